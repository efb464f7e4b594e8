// How it was measured: the task and what was dropped, settings, cost, environment, and what this file leaves out.

import { el } from "caseback/dom";
import { count, duration, number, percent } from "caseback/format";

export function recordSection(payload, graph) {
  const { task, model, left_out: left, cost, settings, environment, notes } = payload;
  const dropped = Object.entries(task.dropped);
  const { seconds, peak_memory_mb: memory, ...passes } = cost;
  const costs = {
    ...Object.fromEntries(Object.entries(passes).map(([name, n]) => [name, typeof n === "number" ? count(n) : n])),
    ...(seconds === undefined ? {} : { time: duration(seconds) }),
    ...(memory === undefined ? {} : { "peak memory": `${count(memory)} MB` }),
  };
  return el("section", { class: "record" },
    el("h2", {}, "How it was measured"),
    notes.length > 0 && el("ul", { class: "notes" }, notes.map((note) => el("li", {}, note))),
    el("div", { class: "lists" },
      list("Task", {
        task: task.name, metric: task.metric, pairs: count(task.n),
        ...(task.held_out ? { "held out": count(task.held_out) } : {}),
        ...(typeof task.accuracy === "number" ? { accuracy: percent(task.accuracy) } : {}),
        dropped: dropped.length ? dropped.map(([reason, n]) => `${count(n)} ${reason}`).join(", ") : "none",
        spans: task.spans.join(" · "),
      }),
      list("Model", {
        model: model.id, ...(model.revision ? { revision: model.revision } : {}),
        layers: count(model.n_layers), heads: count(model.n_heads), "KV heads": count(model.n_kv_heads),
        blocks: model.parallel ? "parallel" : "sequential",
      }),
      list("Left out of this file", {
        "edges of the graph": count(payload.graph.edges), "edges carried": count(graph.edges.n),
        "edges left out": count(left.edges),
        ...(typeof left.abs_score_share === "number" ? { "their part of Σ|score|": percent(left.abs_score_share) } : {}),
      }),
      list("Cost", costs), list("Settings", settings), list("Environment", environment)));
}

export function list(title, values) {
  const entries = Object.entries(values);
  if (!entries.length) return null;
  return el("div", {}, el("h3", {}, title),
    el("dl", {}, entries.map(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, shown(value))])));
}

function shown(value) {
  if (value === null) return "none";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : number(value, 6);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.length ? value.map(shown).join(", ") : "none";
  if (typeof value !== "object") return value;
  return Object.entries(value).map(([k, v]) => `${k} ${shown(v)}`).join(", ") || "none";
}
