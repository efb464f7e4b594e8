// Choices that narrow the list, each with the number of runs it would leave.

import { el } from "caseback/dom";
import { count } from "caseback/format";

const NAMES = [["status", "Status"], ["method", "Method"], ["model", "Model"], ["task", "Task"]];
const MOST = 8;
const open = new Set();

export function facets(told, state, redraw) {
  const narrow = matchMedia("(max-width: 800px)").matches;
  const days = ["since", "until"].map((name) =>
    el("label", {}, name, el("input", { type: "date", value: state.get()[name], onchange: (event) => state.set({ [name]: event.target.value, page: "1" }) })));
  const groups = NAMES.map(([key, title]) => facet(key, title, told[key], state, redraw));
  const chosen = NAMES.filter(([key]) => state.get()[key]).length + ["since", "until"].filter((key) => state.get()[key]).length;
  const box = el("details", { class: "narrow-down", open: !narrow || open.has("all"),
    ontoggle: () => (box.open ? open.add("all") : open.delete("all")) },
    el("summary", {}, "Narrow down", chosen ? ` (${chosen})` : ""),
    groups, el("div", { class: "days" }, el("h3", {}, "Made"), days));
  return box;
}

// One choice: values is [[name, how many], …].
export function facet(key, title, values, state, redraw) {
  const wanted = state.get()[key];
  values = values.filter(([name]) => name); // nothing said is nothing to choose
  if (values.length < 2 && !wanted) return null;
  const shown = open.has(key) ? values : values.filter(([name], i) => i < MOST || name === wanted);
  const choose = (name) => state.set({ [key]: name === wanted ? "" : name, page: "1" });
  const left = values.length - shown.length;
  return el("div", { class: "facet", role: "group", "aria-label": title },
    el("h3", {}, title),
    el("ul", {}, shown.map(([name, n]) =>
      el("li", {}, el("button", { type: "button", "aria-pressed": String(name === wanted), onclick: () => choose(name) },
        el("bdi", {}, name), el("small", {}, count(n)))))),
    left > 0 && el("button", { type: "button", class: "more", onclick: () => redraw(open.add(key)) }, `${count(left)} more`));
}
