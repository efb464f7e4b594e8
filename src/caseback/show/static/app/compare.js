// Two runs side by side: what was asked differently, what came out differently, and both drawings.

import { ask } from "caseback/app/api";
import { moment, runLink } from "caseback/app/parts";
import { escapes, problem } from "caseback/app/shell";
import { curvePlot } from "caseback/curve";
import { el, put } from "caseback/dom";
import { dotRows } from "caseback/dots";
import { count, number, plural, score } from "caseback/format";
import { heatMaps } from "caseback/heat";
import { extent } from "caseback/scales";
import { hashState } from "caseback/state";
import { table } from "caseback/table";
import { drawn } from "caseback/views/experiment";

const MOST = 200; // rows of a table of differences

export function page(root) {
  escapes();
  const state = hashState({ a: "", b: "" }, {});
  let asked = 0;
  state.listen(async ({ a, b }) => {
    const mine = ++asked;
    const still = () => mine === asked;
    put(root, el("p", { class: "soft" }, "Reading …"));
    try {
      if (a && b) await both(root, state, still);
      else await choose(root, state, still);
    } catch (error) {
      if (still()) put(root, problem(error), el("p", {}, el("button", { type: "button", class: "link", onclick: () => state.set({ b: "" }) }, "Choose another run")));
    }
  });
}

// The second run is still to be named: the finished runs of the first one's method.
async function choose(root, state, still) {
  const id = state.get().a || state.get().b;
  if (!id) return put(root, el("header", { class: "run-head" }, el("h1", {}, "Compare")), el("p", { class: "empty" }, "Mark two runs in the ", el("a", { href: "/" }, "casebook"), "."));
  const first = await ask(`/api/runs/${encodeURIComponent(id)}`);
  const { rows } = await ask("/api/runs", { method: first.method, status: "finished", size: "200" });
  if (!still()) return;
  const others = rows.filter((row) => row.id !== id);
  put(root, el("header", { class: "run-head" }, el("h1", {}, "Compare ", el("bdi", {}, first.title || first.task), " with")),
    others.length
      ? el("ul", { class: "choose" }, others.map((row) => el("li", {},
        el("button", { type: "button", class: "link", onclick: () => state.set({ a: id, b: row.id }) }, el("bdi", {}, row.title)),
        el("small", {}, " ", el("bdi", {}, row.model), " · ", moment(row.created), " · ", el("bdi", {}, row.id)))))
      : el("p", { class: "empty" }, "There is no other finished run of this method."));
}

async function both(root, state, still) {
  const { a, b } = state.get();
  const told = await ask("/api/compare", { a, b });
  const payloads = await Promise.all(told.runs.map((run) => (run.drawn ? ask(`/api/runs/${encodeURIComponent(run.id)}/payload`) : null)));
  if (!still()) return;
  document.title = "Compare · caseback";
  put(root,
    el("header", { class: "run-head" }, el("h1", {}, `Two ${told.runs[0].method} runs`)),
    el("div", { class: "pair" }, told.runs.map(card)),
    el("p", { class: "swap" }, el("button", { type: "button", class: "quiet", onclick: () => state.set({ a: b, b: a }) }, "swap A and B")),
    pairedSection(told),
    changes("What came out differently", told.found, "The numbers are the same.", true),
    changes("What was asked differently", told.asked, "The requests are the same.", false),
    payloads.every(Boolean) && sideBySide(payloads));
}

function card(run, i) {
  return el("div", { class: "card" }, el("b", { class: "letter" }, "AB"[i]),
    el("div", {}, runLink(run.id, el("bdi", {}, run.task || run.id)),
      el("p", { class: "soft" }, el("bdi", {}, run.model ?? ""), " · ", moment(run.created)), el("p", { class: "soft id" }, el("bdi", {}, run.id))));
}

function pairedSection({ paired, note }) {
  const rows = Object.entries(paired).map(([name, { value, low, high, n }]) =>
    ({ label: name.replaceAll("_", " "), look: low > 0 ? "for" : high < 0 ? "against" : "", value, low, high, text: `${score(value)}  (n ${n})` }));
  if (!rows.length) return el("section", {}, el("h2", {}, "Example by example"), el("p", { class: "soft measure" }, `${note[0].toUpperCase()}${note.slice(1)}.`));
  const [low, high] = extent(rows.flatMap((row) => [row.low, row.high, 0]));
  const room = 0.06 * (high - low || 1);
  return el("section", {}, el("h2", {}, "Example by example"),
    el("p", { class: "soft measure" }, "B − A of the mean over the examples that both measured, with its paired bootstrap interval. An interval that reaches over 0 tells of no difference."),
    dotRows(rows, { domain: [low - room, high + room], ticks: [[0, "no difference"]], label: "B minus A, paired" }));
}

function changes(title, rows, none, differences) {
  const shown = (value) => (value === null ? "–" : typeof value === "number" ? (Number.isInteger(value) ? count(value) : number(value, 4)) : typeof value === "object" ? JSON.stringify(value) : String(value));
  const both = (row) => typeof row.a === "number" && typeof row.b === "number";
  const columns = [
    { name: "what", by: (row) => row.name, show: (row) => el("bdi", {}, row.name) },
    { name: "A", number: differences, show: (row) => el("bdi", {}, shown(row.a)) },
    { name: "B", number: differences, show: (row) => el("bdi", {}, shown(row.b)) },
  ];
  if (differences) columns.push({ name: "B − A", number: true, by: (row) => (both(row) ? row.b - row.a : null),
    show: (row) => (both(row) ? el("span", { class: row.b >= row.a ? "for" : "against" }, score(row.b - row.a)) : "–") });
  return el("section", { class: "changes" }, el("h2", {}, title),
    rows.length ? table(columns, rows, { caption: title, limit: MOST }) : el("p", { class: "soft" }, none),
    rows.length > MOST && el("p", { class: "note" }, `${plural(rows.length - MOST, "more row")} of lists are left out here; caseback compare prints them all.`));
}

function sideBySide(payloads) {
  const [one, two] = payloads;
  if (one.kind === "circuit" && two.kind === "circuit") return circuits(one, two);
  if (one.kind === "relation" && two.kind === "relation") return relations(one, two);
  if (one.kind !== "experiment" || two.kind !== "experiment") return null;
  const pairs = one.sections.map((section, i) => [section, two.sections.find(({ title }) => title === section.title) ?? two.sections[i]]);
  return el("section", {}, el("h2", {}, "Both"),
    el("div", { class: "pair" }, payloads.map((payload, i) => el("p", { class: "lead" }, el("b", { class: "letter" }, "AB"[i]), " ", el("bdi", {}, payload.claim)))),
    pairs.map(bothOf));
}

// One section of both runs. Heat maps are drawn together, so that one colour means one value.
function bothOf([one, two]) {
  const alike = one.heat && two?.heat && one.heat.format === two.heat.format && one.heat.scale === two.heat.scale;
  return [
    el("div", { class: "pair" }, [one, two].map((section) => el("div", {}, section && drawn(alike ? { ...section, heat: null } : section)))),
    alike && el("div", { class: "together" }, heatMaps([{ ...one.heat, name: "A" }, { ...two.heat, name: "B" }], one.title)),
  ];
}

function relations(one, two) {
  const series = [[one, "A", "own"], [two, "B", "second"]].map(([{ layers }, name, look]) => ({ ...layers[0], name, look }));
  return el("section", {}, el("h2", {}, "Both operators, by layer"),
    el("p", { class: "soft measure" }, "Share of the samples for which the operator’s answer is the model’s, every layer at its best β, with Wilson’s 95 % intervals."),
    curvePlot(series, { xLabel: "layer", yLabel: "faithful", axis: "linear", label: "Faithfulness by layer, both runs" }).box,
    one.sections.map((section) => bothOf([section, two.sections.find(({ title }) => title === section.title)])));
}

function circuits(one, two) {
  const series = [[one, "A", "own"], [two, "B", "second"]].filter(([{ curve }]) => curve?.edges.length)
    .map(([{ curve }, name, look]) => ({ name, look, x: curve.edges, y: curve.faithfulness, low: curve.low, high: curve.high }));
  if (!series.length) return null;
  const label = "Faithfulness against the number of edges, both runs";
  return el("section", {}, el("h2", {}, "How much the circuits keep"),
    curvePlot(series, { xLabel: "edges in the circuit", yLabel: "of the answer kept", label }).box);
}
