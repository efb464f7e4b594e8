// Single edges put to the test: the strongest against exact patching, and what a circuit loses without one of its own.

import { el, onWidth, put, svg } from "caseback/dom";
import { dotRows } from "caseback/dots";
import { count, fixed, NONE, number, percent, plural, score } from "caseback/format";
import { CHANNELS, crossing } from "caseback/graph";
import { extent, linear } from "caseback/scales";
import { table } from "caseback/table";

const NAMED = 12; // rows of the minimality plot
const LEAST = 4; // of them, from the lower end

const known = (x) => typeof x === "number";

export function patchingSection(payload, graph, state) {
  const rows = payload.table.map((row) => ({ ...row, at: graph.find(row) }));
  const { validation } = payload;
  if (!rows.length && !validation) return null;
  return el("section", {},
    el("h2", {}, "The strongest edges, checked"),
    el("p", { class: "soft measure" },
      "The score is an estimate from gradients. Exact patching takes one edge away for real and measures the metric again."),
    el("div", { class: "beside" },
      table(columnsOf(graph, state), rows, { caption: "Top edges with their scores and exact-patching values" }),
      el("div", {}, agreement(validation), scatter([...(validation?.sample ?? []), ...rows.map((r) => [r.score, r.exact])]))));
}

function columnsOf(graph, state) {
  const signed = (x) => el("span", { class: known(x) ? (x >= 0 ? "for" : "against") : null }, score(x));
  const rank = (row) => (row.at >= 0 ? graph.edges.rank[row.at] : null);
  const kind = ({ channel }) =>
    `${crossing(channel) ? "crossing" : "residual"}${CHANNELS[channel] === "in" ? "" : ` ${CHANNELS[channel]}`}`;
  const agrees = ({ score: a, exact: b }) => (known(a) && known(b) ? Number(Math.sign(a) === Math.sign(b)) : null);
  const open = (row) => {
    state.set({ node: graph.name(row.target), n: String(Math.max(Number(state.get().n), rank(row) ?? 0)) });
    document.getElementById("circuit").scrollIntoView({ block: "start" });
    document.querySelector(".loupe button")?.focus({ preventScroll: true });
  };
  const name = (row) => {
    const text = graph.edgeName(row);
    return el("button", { type: "button", class: "link", title: "show in the circuit", onclick: () => open(row) }, foldable(text));
  };
  const enters = { name: "enters at", title: "the size of circuit that first has this edge" };
  return [
    { name: "edge", by: (row) => graph.edgeName(row), show: name },
    { name: "score", number: true, by: (row) => row.score, show: (row) => signed(row.score) },
    { name: "exact patching", number: true, by: (row) => row.exact, show: (row) => signed(row.exact) },
    { name: "interval", show: ({ low, high }) => known(low) && known(high) && el("small", {}, `${score(low)} … ${score(high)}`) },
    { name: "signs", by: agrees, show: (row) => ({ 1: "agree", 0: "differ" })[agrees(row)] ?? NONE },
    { name: "kind", by: (row) => row.channel, show: kind },
    { ...enters, number: true, by: rank, show: (row) => count(rank(row)) },
  ];
}

// An edge's name that breaks, where it has to, before its arrow and its span.
function foldable(name) {
  const pieces = name.split(/(->|@)/);
  return pieces.map((piece, i) => (i % 2 ? [el("wbr"), el("span", { class: "joint" }, piece)] : piece));
}

function agreement(validation) {
  if (!validation) return null;
  const figures = {
    Pearson: fixed(validation.pearson),
    Spearman: fixed(validation.spearman),
    "signs agree": percent(validation.sign_agreement),
    "edges patched": count(validation.n),
  };
  return [
    el("dl", { class: "figures" },
      Object.entries(figures).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    known(validation.sign_agreement) && el("p", { class: "note" },
      "Signs agree: the share of the patched edges whose exact effect has the sign of the score. Chance is 50 %; ",
      "zero agrees with zero alone.")];
}

// Estimated against exact, with the line on which they are equal.
export function scatter(pairs) {
  const points = pairs.filter(([a, b]) => known(a) && known(b));
  if (points.length < 3) return null;
  const box = el("figure", { class: "scatter" });
  const [low, high] = extent(points.flat());
  const pad = 0.06 * (high - low);
  onWidth(box, (wide) => {
    const size = Math.min(300, wide);
    const x = linear([low - pad, high + pad], [34, size - 6]);
    const y = linear([low - pad, high + pad], [size - 30, 6]);
    const line = (look, x1, y1, x2, y2) => svg("line", { class: look, x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) });
    const text = (px, py, anchor, words) => svg("text", { x: px, y: py, "text-anchor": anchor }, words);
    const label = `Exact patching against score for ${plural(points.length, "edge")}`;
    put(box, svg("svg", { width: size, height: size, role: "img", "aria-label": label },
      line("equal", low, low, high, high),
      low < 0 && high > 0 && [line("zero", low - pad, 0, high + pad, 0), line("zero", 0, low - pad, 0, high + pad)],
      points.map(([a, b]) =>
        svg("circle", { class: Math.sign(a) === Math.sign(b) ? "same" : "differ", cx: x(a), cy: y(b), r: 2.6 })),
      x.ticks(3).map((tick) => text(x(tick), size - 12, "middle", number(tick, 2))),
      y.ticks(3).map((tick) => text(28, y(tick) + 4, "end", number(tick, 2))),
      text(size - 6, size - 34, "end", "score"),
      text(38, 14, "start", "exact")));
  });
  return box;
}

export function minimalitySection(payload, graph) {
  const { minimality } = payload;
  if (!minimality?.rows.length) return null;
  const rows = [...minimality.rows].sort((a, b) => (b.loss ?? -Infinity) - (a.loss ?? -Infinity));
  const worse = rows.filter((row) => row.loss > 0).length;
  const clear = rows.some((row) => known(row.low)) &&
    `, ${count(rows.filter((row) => row.low > 0).length)} of them with an interval that excludes zero`;
  const shown = rows.length > NAMED ? [...rows.slice(0, NAMED - LEAST), ...rows.slice(-LEAST)] : rows;
  const [low, high] = extent(shown.flatMap((row) => [row.loss, row.low, row.high, 0]));
  const room = 0.04 * (high - low);
  const entries = shown.map((row) => ({
    label: graph.edgeName(row), look: row.loss >= 0 ? "for" : "against",
    value: row.loss, low: row.low, high: row.high, text: known(row.loss) ? `${number(100 * row.loss, 2)} %` : NONE,
  }));
  return el("section", {},
    el("h2", {}, "Is every edge needed?"),
    el("p", { class: "measure" },
      `Of ${plural(rows.length, "edge")} taken one at a time out of the circuit of ${count(minimality.edges)}, `,
      `${count(worse)} made it worse${clear || ""}.`),
    dotRows(entries, { domain: [low - room, high + room], ticks: [[0, "no loss"]], label: "Faithfulness lost without the edge" }),
    rows.length > NAMED && el("p", { class: "note" }, `The ${NAMED - LEAST} most and the ${LEAST} least needed are drawn.`));
}
