// Why to believe it: the curves with their controls, the top edges against exact patching, minimality, completeness.

import { curvePlot } from "caseback/curve";
import { el, onWidth, put, svg } from "caseback/dom";
import { dotRows } from "caseback/dots";
import { count, fixed, interval, number, part, percent, plural, score } from "caseback/format";
import { CHANNELS, crossing } from "caseback/graph";
import { extent, linear } from "caseback/scales";
import { table } from "caseback/table";

const numbers = (summary, node) => el("details", {}, el("summary", {}, summary), node);
const NAMED = 12; // rows of the minimality plot

export function curveSection(payload, state) {
  const { curve, areas, completeness } = payload;
  if (!curve?.edges.length) return el("section", {}, el("h2", {}, "How much a circuit keeps"), el("p", { class: "soft" }, "Not measured in this run."));
  const series = [
    { name: "this circuit", look: "own", x: curve.edges, y: curve.faithfulness, low: curve.low, high: curve.high },
    curve.agnostic && { name: "without positions", look: "agnostic", x: curve.edges, y: curve.agnostic, low: curve.agnostic_low, high: curve.agnostic_high },
    curve.random && { name: "random", look: "random", x: curve.edges, y: curve.random, low: curve.random_low, high: curve.random_high },
    completeness && { name: "all but the circuit", look: "complement", x: completeness.edges, y: completeness.faithfulness, low: completeness.low, high: completeness.high },
  ].filter(Boolean);
  const plot = curvePlot(series, {
    xLabel: "edges in the circuit", yLabel: "of the answer kept",
    label: "Faithfulness against the number of edges; the numbers are in the table below",
  });
  state.listen(({ n }) => plot.mark(Number(n)));

  const optional = [
    ["token_edges", "token edges", count], ["ratio", "M(C)/M(full)", fixed], ["agreement", "same answer", percent], ["kl", "KL, nats", number],
  ].filter(([key]) => curve[key]);
  const ranged = (key, name, low, high) => curve[key] && {
    name, number: true, by: (k) => curve[key][k],
    show: (k) => [percent(curve[key][k]), " ", el("small", {}, interval(curve[low]?.[k], curve[high]?.[k]))],
  };
  const columns = [
    { name: "edges", number: true, by: (k) => curve.edges[k], show: (k) => count(curve.edges[k]) },
    { name: "of the graph", number: true, show: (k) => part(curve.edges[k] / payload.graph.edges) },
    ranged("faithfulness", "this circuit", "low", "high"), ranged("agnostic", "without positions", "agnostic_low", "agnostic_high"),
    ranged("random", "random", "random_low", "random_high"),
    ...optional.map(([key, name, shown]) => ({ name, number: true, by: (k) => curve[key][k], show: (k) => shown(curve[key][k]) })),
  ].filter(Boolean);
  const area = ["cpr_linear", "cpr_log", "cmd_linear", "cmd_log"].filter((key) => areas.some((row) => typeof row[key] === "number"));
  const named = { cpr_linear: "CPR", cpr_log: "CPR, log axis", cmd_linear: "CMD", cmd_log: "CMD, log axis" };
  return el("section", {},
    el("h2", {}, "How much a circuit keeps"),
    el("p", { class: "soft measure" }, "Everything outside the circuit is replaced by its value under the reference; 100 % is the whole model, 0 % the reference alone. ",
      `Bands are ${percent(curve.level ?? 0.95)} intervals`, payload.task.held_out ? ` over ${count(payload.task.held_out)} held-out prompts.` : " over held-out prompts."),
    plot.box,
    numbers("The numbers behind the curves", table(columns, curve.edges.map((_, k) => k), { caption: "Faithfulness by size" })),
    area.length > 0 && el("div", { class: "areas" },
      table([{ name: "area under the curve", show: (row) => row.name }, ...area.map((key) => ({ name: named[key], number: true, show: (row) => fixed(row[key], 3) }))],
        areas, { caption: "Areas" }),
      el("p", { class: "soft" }, "CPR: area under faithfulness, higher is better. CMD: area between faithfulness and 1, zero is best.")));
}

export function tableSection(payload, graph, state) {
  const rows = payload.table.map((row, i) => ({ ...row, i, at: graph.find(row) }));
  if (!rows.length) return null;
  const open = (row) => {
    const size = Math.max(Number(state.get().n), row.at >= 0 ? graph.edges.rank[row.at] : 0);
    state.set({ node: graph.name(row.target), n: String(size) });
    document.getElementById("circuit").scrollIntoView({ block: "start" });
    document.querySelector(".loupe button")?.focus({ preventScroll: true });
  };
  const signed = (row, key) => el("span", { class: row[key] >= 0 ? "for" : "against" }, score(row[key]));
  const columns = [
    { name: "edge", by: (row) => graph.edgeName(row), show: (row) => el("button", { type: "button", class: "link", title: "show in the circuit", onclick: () => open(row) }, graph.edgeName(row)) },
    { name: "kind", by: (row) => row.channel, show: (row) => `${crossing(row.channel) ? "crossing " : row.channel ? "residual " : "residual"}${CHANNELS[row.channel] === "in" ? "" : CHANNELS[row.channel]}` },
    { name: "enters at", title: "size of the circuit that first has this edge", number: true, by: (row) => (row.at >= 0 ? graph.edges.rank[row.at] : null), show: (row) => (row.at >= 0 ? count(graph.edges.rank[row.at]) : "–") },
    { name: "score", number: true, by: (row) => row.score, show: (row) => signed(row, "score") },
    { name: "exact patching", number: true, by: (row) => row.exact, show: (row) => signed(row, "exact") },
    { name: "interval", show: (row) => el("small", {}, span(row.low, row.high)) },
    { name: "signs", by: (row) => agree(row), show: (row) => ({ 1: "agree", 0: "differ", [-1]: "–" })[agree(row)] },
  ];
  const { validation } = payload;
  return el("section", {},
    el("h2", {}, "The strongest edges, checked"),
    el("p", { class: "soft measure" }, "The score is an estimate from gradients. Exact patching takes one edge away for real and measures the metric again."),
    el("div", { class: "beside" },
      table(columns, rows, { caption: "Top edges with their scores and exact-patching values", sorted: null }),
      el("div", { class: "checked" }, agreement(validation), scatter(rows, validation?.sample ?? []))));
}

const agree = (row) => (typeof row.exact !== "number" || typeof row.score !== "number" ? -1 : Number(Math.sign(row.exact) === Math.sign(row.score)));
const span = (low, high) => (typeof low === "number" && typeof high === "number" ? `${score(low)} … ${score(high)}` : "");

function agreement(validation) {
  if (!validation) return null;
  return el("dl", { class: "figures" }, [
    ["Pearson", fixed(validation.pearson)], ["Spearman", fixed(validation.spearman)], ["signs agree", percent(validation.sign_agreement)], ["edges patched", count(validation.n)],
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// Estimated against exact, with the line on which they are equal.
function scatter(rows, sample) {
  const points = [...sample, ...rows.map((row) => [row.score, row.exact])].filter(([a, b]) => typeof a === "number" && typeof b === "number");
  if (points.length < 3) return null;
  const box = el("figure", { class: "scatter" });
  onWidth(box, (wide) => {
    const size = Math.min(300, wide);
    const [low, high] = extent(points.flat());
    const pad = 0.06 * (high - low);
    const x = linear([low - pad, high + pad], [34, size - 6]);
    const y = linear([low - pad, high + pad], [size - 30, 6]);
    const zero = low < 0 && high > 0;
    put(box, svg("svg", { width: size, height: size, role: "img", "aria-label": `Exact patching against score for ${points.length} edges` },
      svg("line", { class: "equal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
      zero && [svg("line", { class: "zero", x1: x(low - pad), x2: x(high + pad), y1: y(0), y2: y(0) }), svg("line", { class: "zero", x1: x(0), x2: x(0), y1: y(low - pad), y2: y(high + pad) })],
      points.map(([a, b]) => svg("circle", { class: Math.sign(a) === Math.sign(b) ? "same" : "differ", cx: x(a), cy: y(b), r: 2.6 })),
      x.ticks(3).map((t) => svg("text", { x: x(t), y: size - 12, "text-anchor": "middle" }, number(t, 2))),
      y.ticks(3).map((t) => svg("text", { x: 28, y: y(t) + 4, "text-anchor": "end" }, number(t, 2))),
      svg("text", { class: "axis", x: size - 6, y: size - 34, "text-anchor": "end" }, "score"),
      svg("text", { class: "axis", x: 38, y: 14 }, "exact")));
  });
  return box;
}

export function minimalitySection(payload, graph) {
  const { minimality } = payload;
  if (!minimality?.rows.length) return null;
  const rows = [...minimality.rows].sort((a, b) => (b.loss ?? -Infinity) - (a.loss ?? -Infinity));
  const hurts = rows.filter((row) => row.loss > 0).length;
  const clear = rows.filter((row) => row.low > 0).length;
  const shown = rows.length > NAMED ? [...rows.slice(0, NAMED - 4), ...rows.slice(-4)] : rows;
  const [low, high] = extent(shown.flatMap((row) => [row.loss, row.low, row.high, 0]));
  const room = 0.04 * (high - low);
  return el("section", {},
    el("h2", {}, "Is every edge needed?"),
    el("p", { class: "measure" }, `Of ${plural(rows.length, "edge")} taken one at a time out of the circuit of ${count(minimality.edges)}, ${count(hurts)} made it worse`,
      rows.some((row) => typeof row.low === "number") ? `, ${count(clear)} of them with an interval that excludes zero.` : "."),
    dotRows(shown.map((row) => ({ label: graph.edgeName(row), look: row.loss >= 0 ? "for" : "against", value: row.loss, low: row.low, high: row.high, text: percent(row.loss) })),
      { domain: [low - room, high + room], ticks: [[0, "no loss"]], label: "Faithfulness lost without the edge" }),
    rows.length > NAMED && el("p", { class: "soft" }, `The ${NAMED - 4} most and the 4 least needed are drawn.`));
}
