// The casebook: every run of the study folder, found by words, narrowed by method, model, task and status.

import { ask, follow } from "caseback/app/api";
import { facets } from "caseback/app/facets";
import { headline, moment, progress, runLink, status } from "caseback/app/parts";
import { problem, typing } from "caseback/app/shell";
import { walk } from "caseback/app/walk";
import { el, put } from "caseback/dom";
import { count } from "caseback/format";
import { hashState } from "caseback/state";

const COLUMNS = [["task", "run"], ["method", "method"], ["model", "model"], ["status", "status"], [null, "result"], ["created", "made"]];
const ASKED = { words: "", method: "", model: "", task: "", status: "", since: "", until: "", sort: "created", down: "true", page: "1" };

export function page(root) {
  const state = hashState({ ...ASKED, marked: "" }, {
    sort: (text) => COLUMNS.some(([key]) => key === text),
    down: (text) => text === "true" || text === "false",
    page: (text) => /^[1-9]\d{0,5}$/.test(text),
  });
  const search = el("input", { id: "search", type: "search", placeholder: "search runs", autocomplete: "off", spellcheck: "false",
    "aria-label": "Search what was asked", value: state.get().words,
    oninput: () => state.set({ words: search.value, page: "1" }) });
  const found = el("p", { class: "found soft", role: "status" });
  const now = el("section", { class: "now", hidden: true, "aria-label": "Running now" });
  const away = el("div");
  const side = el("aside", { class: "facets" });
  const list = el("div", { class: "list" });
  const bar = el("div", { class: "compare-bar", hidden: true });
  put(root, el("h1", { class: "unseen" }, "Casebook"),
    el("div", { class: "search" }, el("div", { class: "field" }, search, el("kbd", {}, "/")), found), away, now,
    el("div", { class: "casebook" }, side, el("div", {}, list)), bar);

  let running = new Map();
  let asking = null;

  async function load() {
    asking?.abort();
    asking = new AbortController();
    const { marked, ...asked } = state.get();
    try {
      draw(await ask("/api/runs", asked, { signal: asking.signal }));
    } catch (error) {
      if (error.name !== "AbortError") put(list, problem(error));
    }
  }

  function draw(told) {
    const { total, of, rows, pages, page: at } = told;
    put(found, total === of ? `${count(of)} ${of === 1 ? "run" : "runs"}` : `${count(total)} of ${count(of)}`,
      el("span", { class: "path" }, el("bdi", {}, told.study)));
    const narrow = () => put(side, facets(told.facets, state, narrow));
    narrow();
    const focused = document.activeElement?.closest?.("tr")?.dataset.run;
    put(list,
      rows.length ? tableOf(rows) : empty(of),
      pages > 1 && pager(at, pages));
    if (focused) rowOf(focused)?.querySelector("a").focus({ preventScroll: true });
    showMarked();
  }

  function empty(of) {
    if (of) return el("p", { class: "empty" }, "No run is like this. ",
      el("button", { type: "button", class: "link", onclick: () => state.set({ ...ASKED }) }, "Show all"));
    return el("p", { class: "empty" }, "No runs yet. ", el("a", { href: "/new" }, "Start a study"), ", or in a terminal: ",
      el("code", {}, "caseback circuit ioi"));
  }

  function tableOf(rows) {
    const { sort, down } = state.get();
    const turn = (key) => state.set({ sort: key, down: String(sort === key ? down !== "true" : key === "created"), page: "1" });
    const head = ([key, name]) => el("th", { scope: "col", class: `of-${name}`,
      "aria-sort": key === sort ? (down === "true" ? "descending" : "ascending") : null },
      key ? el("button", { type: "button", onclick: () => turn(key) }, name) : name);
    return el("table", { class: "runs" },
      el("caption", { class: "unseen" }, "Runs"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "mark")), COLUMNS.map(head))),
      el("tbody", {}, rows.map(rowFor)));
  }

  function rowFor(row) {
    const set = marks();
    const box = el("input", { type: "checkbox", checked: set.includes(row.id), "aria-label": `mark ${row.id}`, tabindex: "-1",
      onchange: () => mark(row.id) });
    return el("tr", { "data-run": row.id },
      el("td", { class: "of-mark" }, box),
      el("th", { scope: "row", class: "of-run" }, runLink(row.id, el("bdi", {}, row.title)), el("small", {}, el("bdi", {}, row.id))),
      el("td", { class: "of-method" }, row.method),
      el("td", { class: "of-model" }, el("bdi", {}, row.model)),
      el("td", { class: "of-status" }, status(row.status)),
      el("td", { class: "of-result" }, resultOf(row)),
      el("td", { class: "of-made" }, moment(row.created)));
  }

  function resultOf(row) {
    if (running.has(row.id)) return progress(running.get(row.id));
    return row.note ? el("span", { class: "note" }, el("bdi", {}, row.note)) : headline(row.headline);
  }

  function pager(at, pages) {
    const to = (n, text) => el("button", { type: "button", class: "quiet", disabled: n < 1 || n > pages,
      onclick: () => state.set({ page: String(n) }) }, text);
    return el("nav", { class: "pager", "aria-label": "Pages" }, to(at - 1, "← newer"), el("span", { class: "soft" }, `${count(at)} of ${count(pages)}`), to(at + 1, "older →"));
  }

  const marks = () => state.get().marked.split(",").filter(Boolean);

  function mark(id) {
    const set = marks().filter((one) => one !== id);
    if (set.length === marks().length) set.push(id);
    state.set({ marked: set.slice(-2).join(",") });
  }

  function showMarked() {
    const set = marks();
    for (const row of list.querySelectorAll("tr[data-run]")) {
      row.classList.toggle("marked", set.includes(row.dataset.run));
      row.querySelector("input").checked = set.includes(row.dataset.run);
    }
    bar.hidden = !set.length;
    put(bar, set.length < 2 ? "One run is marked; mark another to compare them."
      : el("a", { class: "act", href: compareUrl() }, "Compare the two marked runs"),
      el("button", { type: "button", class: "quiet", onclick: () => state.set({ marked: "" }) }, "clear"));
  }

  const compareUrl = () => `/compare#${new URLSearchParams({ a: marks()[0], b: marks()[1] })}`;
  const rowOf = (id) => [...list.querySelectorAll("tr[data-run]")].find((row) => row.dataset.run === id);

  const links = () => [...list.querySelectorAll("th.of-run a")];
  walk(search, links);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const focused = links().find((link) => link === document.activeElement);
    if (event.key === "x" && focused) mark(focused.closest("tr").dataset.run);
    if (event.key === "c" && marks().length === 2) location.assign(compareUrl());
  });

  let timer = 0;
  state.listen((values, changed) => {
    if (search.value !== values.words) search.value = values.words;
    if (changed.size === 1 && changed.has("marked")) return showMarked();
    clearTimeout(timer);
    timer = setTimeout(load, changed.has("words") && changed.size < 3 ? 80 : 0);
  });
  if (location.hash.startsWith("#search")) search.focus();

  let stamp = null;
  follow("/api/live", {
    study(told) {
      running = new Map(told.running.map((one) => [one.id, one]));
      now.hidden = !told.running.length;
      put(now, el("h2", {}, "Running now"), told.running.map((one) =>
        el("div", { class: "run-now" }, runLink(one.id, el("bdi", {}, one.id)), progress(one))));
      if (stamp !== null && stamp !== told.stamp) load();
      stamp = told.stamp;
    },
  }, { broken: (error) => put(away, error && problem(error)) });
}
