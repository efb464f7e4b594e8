// The page of an experiment: the finding in a sentence, then curves, clouds of points, heat maps and tables in the payload's order.

import { scatter } from "caseback/checks";
import { curvePlot } from "caseback/curve";
import { el, put } from "caseback/dom";
import { count, duration, percent } from "caseback/format";
import { reportFrame } from "caseback/frame";
import { heatMaps } from "caseback/heat";
import { KINDS } from "caseback/kinds";
import { list } from "caseback/record";
import { hashState } from "caseback/state";
import { table } from "caseback/table";

// `frame(payload, state, content)` is what stands around the content; a report's own, unless the page is part of another.
export function view(root, payload, frame = reportFrame) {
  const state = hashState({ theme: "" }, { theme: (text) => text === "light" || text === "dark" });
  put(root, frame(payload, state, [
    el("section", { class: "finding", "aria-label": "What was found" }, el("p", { class: "claim" }, payload.claim)),
    payload.sections.map(drawn),
    howSection(payload),
  ]));
}

// One section of the payload.
export function drawn({ title, text, curve, points, heat, heats, table: sheet }) {
  const clouds = points?.map((cloud) => el("figure", {}, scatter(cloud.points), el("figcaption", { class: "soft" }, cloud.name)));
  return el("section", {},
    el("h2", {}, title),
    el("p", { class: "soft measure" }, text),
    curve && plotOf(curve, title),
    clouds && el("div", { class: "clouds" }, clouds),
    heat && heatMaps([heat], title),
    heats && heatMaps(heats, title),
    sheet && tableOf(sheet, title));
}

function plotOf({ x, y, axis, format, series }, title) {
  const label = `${title}; the tables have the numbers`;
  return curvePlot(series, { xLabel: x, yLabel: y, axis: axis ?? "log", format: format ?? "percent", label }).box;
}

function tableOf({ columns, rows }, caption) {
  const shown = columns.map(({ name, kind }, i) => {
    const by = (row) => (Array.isArray(row[i]) ? row[i][0] : row[i]);
    if (kind === "text") return { name, by, show: by };
    return { name, number: true, by, show: (row) => cell(row[i], KINDS[kind]) };
  });
  return table(shown, rows, { caption });
}

function cell(content, { shown, between, sign }) {
  const [value, low, high] = Array.isArray(content) ? content : [content];
  const known = typeof low === "number" && typeof high === "number";
  return [
    el("span", { class: sign && typeof value === "number" ? (value >= 0 ? "for" : "against") : null }, shown(value)),
    known && [" ", el("small", {}, between(low, high))],
  ];
}

// How it was measured: notes, task, model, cost, settings, environment.
export function howSection({ task, model, cost, settings, environment, notes }) {
  const { seconds, cpu_seconds: cpu, peak_memory_mb: memory, sessions } = cost;
  const dropped = Object.entries(task.dropped ?? {}).map(([reason, n]) => `${count(n)} ${reason}`).join(", ");
  return el("section", { class: "record" },
    el("h2", {}, "How it was measured"),
    notes.length > 0 && el("ul", { class: "notes" }, notes.map((note) => el("li", {}, note))),
    el("div", { class: "lists" },
      list("Task", {
        task: task.name, ...(task.metric ? { metric: task.metric } : {}),
        // a prompt or a relation has no pairs to be answered right
        ...(typeof task.n === "number" ? { pairs: count(task.n), "answered right": count(task.kept) } : {}),
        measured: count(task.measured),
        ...(typeof task.accuracy === "number" ? { accuracy: percent(task.accuracy), dropped: dropped || "none" } : {}),
      }),
      list("Model", { model: model.id, ...(model.revision ? { revision: model.revision } : {}) }),
      list("Cost", { time: duration(seconds), "processor time": duration(cpu), "peak memory": `${count(memory)} MB`, sessions }),
      list("Settings", settings), list("Environment", environment)));
}
