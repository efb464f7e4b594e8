// Begin a study: choose a method, fill in its form, watch it.

import { ask, follow, send } from "caseback/app/api";
import { form } from "caseback/app/form";
import { jobList } from "caseback/app/jobs";
import { problem } from "caseback/app/shell";
import { el, put } from "caseback/dom";
import { hashState } from "caseback/state";

export async function page(root) {
  document.title = "New study · caseback";
  const trouble = el("div", { role: "status" });
  const box = el("div", { class: "begin" });
  const jobs = el("div", { class: "jobs" });
  put(root, el("header", { class: "run-head" }, el("h1", {}, "New study")), box, jobs);
  let methods, models;
  try {
    [methods, models] = await Promise.all([ask("/api/methods"), ask("/api/models")]);
  } catch (error) {
    return put(box, problem(error));
  }
  const state = hashState({ method: methods[0].method, given: "{}" }, {
    method: (text) => methods.some(({ method }) => method === text),
    given: (text) => isObject(text),
  });
  const list = el("ul", { class: "methods", role: "radiogroup", "aria-label": "Method" });
  const sheet = el("form", { novalidate: true, onsubmit: begin });
  put(box, list, el("div", {}, sheet, trouble));
  let made = null;

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = methods.findIndex(({ method }) => method === state.get().method);
    state.set({ method: methods[Math.min(Math.max(at + step, 0), methods.length - 1)].method, given: "{}" });
    list.querySelector("[aria-checked=true]").focus();
  });

  state.listen(({ method, given }, changed) => {
    put(list, methods.map((one) => el("li", {}, el("button", { type: "button", role: "radio", "aria-checked": String(one.method === method),
      tabindex: one.method === method ? "0" : "-1", onclick: () => state.set({ method: one.method, given: "{}" }) },
    one.title, el("small", {}, one.method)))));
    const chosen = list.querySelector("[aria-checked=true]");
    list.scrollLeft = chosen.offsetLeft - list.offsetLeft - 20; // where the list is a row
    if (changed.has("method")) draw(methods.find((one) => one.method === method), JSON.parse(given));
  });

  function draw({ title, says, fields }, given) {
    put(trouble);
    made = form(fields, given, { models, changed: remember });
    put(sheet, el("h2", {}, title), el("p", { class: "soft" }, says), made.box,
      el("div", { class: "go" },
        el("button", { type: "submit", class: "act" }, "Begin"),
        el("label", {}, el("input", { type: "checkbox", id: "force" }), " do it again even if the same study is finished")));
  }

  function remember() {
    try {
      state.set({ given: JSON.stringify(made.values()) });
      put(trouble);
    } catch (error) {
      put(trouble, problem(error));
    }
  }

  async function begin(event) {
    event.preventDefault();
    try {
      const params = made.values({ whole: true });
      await send("/api/jobs", { method: state.get().method, params, force: sheet.querySelector("#force").checked });
      put(trouble, el("p", { class: "soft" }, "It has begun; it goes on when this page is closed."));
      jobs.scrollIntoView({ block: "nearest" });
    } catch (error) {
      put(trouble, problem(error));
    }
  }

  follow("/api/live", {
    study({ jobs: told }) {
      put(jobs, told.length > 0 && [el("h2", {}, "Begun from here"), jobList(told, (error) => put(trouble, problem(error)))]);
    },
  });
}

function isObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}
