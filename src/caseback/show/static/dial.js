// The slider of sizes: a logarithmic scale with a notch at every measured size and the curve itself drawn over the track.

import { el, onWidth, put, svg } from "caseback/dom";
import { count, interval, percent, plural } from "caseback/format";
import { extent, linear, log, nearest } from "caseback/scales";

const INSET = 9; // half the thumb: where the browser lets the track's ends lie, px
const BETWEEN = 12; // stops a decade besides the measured sizes

// The sizes the slider stops at: every measured one, and steps between up to the largest circuit known.
export function stopsOf(curve, maxRank) {
  const measured = curve?.edges ?? [];
  const top = Math.max(maxRank, ...measured, 1);
  const steps = Array.from({ length: Math.ceil(Math.log10(top) * BETWEEN) }, (_, i) => Math.round(10 ** (i / BETWEEN)));
  const free = [...steps, top].filter((n) => n <= top && !measured.some((m) => Math.abs(Math.log(n / m)) < 0.08));
  return [...new Set([...measured, ...free])].sort((a, b) => a - b);
}

// Where the reader starts: the smallest measured size that keeps four fifths of the answer, else the one that keeps most.
export function startOf(curve, maxRank) {
  if (!curve?.edges.length) return Math.min(200, Math.max(1, maxRank));
  const enough = curve.faithfulness.findIndex((f) => f >= 0.8);
  const best = curve.faithfulness.reduce((a, f, i) => (f > (curve.faithfulness[a] ?? -Infinity) ? i : a), 0);
  return curve.edges[enough < 0 ? best : enough];
}

export function dial(payload, graph, state) {
  const { curve } = payload;
  const stops = stopsOf(curve, graph.maxRank);
  const input = el("input", { type: "range", id: "size", min: "0", max: String(stops.length - 1), step: "1",
    oninput: () => state.set({ n: String(stops[input.valueAsNumber]) }) });
  const size = el("output", { class: "size", for: "size" });
  const kept = el("span", { class: "kept" });
  const scale = el("div", { class: "scale", "aria-hidden": "true" });
  onWidth(scale, (width) => put(scale, drawnScale(curve, stops, width)));

  state.listen(({ n }, changed) => {
    if (!changed.has("n")) return;
    const at = nearest(stops, Number(n));
    input.value = String(at);
    const k = curve?.edges.length ? nearest(curve.edges, stops[at]) : -1;
    const exact = k >= 0 && curve.edges[k] === stops[at];
    const value = k < 0 ? "faithfulness not measured" : `${percent(curve.faithfulness[k])} of the answer`;
    const where = k < 0 || exact ? "" : `measured at ${count(curve.edges[k])} edges`;
    put(size, el("b", {}, count(stops[at])), stops[at] === 1 ? " edge" : " edges");
    put(kept, value, " ", el("small", {}, where || (k < 0 ? "" : interval(curve.low[k], curve.high[k]))));
    input.setAttribute("aria-valuetext", `${plural(stops[at], "edge")}, ${value}${where && `, ${where}`}`);
  });
  return el("div", { class: "dial" },
    el("label", { for: "size" }, "Size of the circuit"),
    el("div", { class: "track" }, scale, input),
    el("div", { class: "readout" }, size, kept));
}

function drawnScale(curve, stops, width) {
  const height = 30;
  const at = linear([0, stops.length - 1], [INSET, width - INSET]);
  const x = (n) => at(stops.indexOf(n));
  const ticks = log([1, stops.at(-1)], [0, 1]).ticks().filter((n) => n <= stops.at(-1));
  const near = (n) => at(nearest(stops, n));
  const labels = ticks.map((n) => svg("text", { x: near(n), y: height + 25, "text-anchor": "middle" }, count(n)));
  if (!curve?.edges.length) return svg("svg", { width, height: height + 28 }, labels);
  const [low, high] = extent([...curve.faithfulness, 0, 1]);
  const y = linear([Math.max(-0.5, low), Math.min(1.6, high)], [height - 2, 3]);
  const inside = (value) => Math.min(height, Math.max(0, y(value)));
  const points = curve.edges.map((n, i) => [x(n), curve.faithfulness[i]]).filter(([, f]) => f !== null);
  return svg("svg", { width, height: height + 28 },
    svg("line", { class: "full", x1: INSET, x2: width - INSET, y1: y(1), y2: y(1) }),
    svg("path", { class: "spark", d: points.map(([px, f], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${inside(f).toFixed(1)}`).join("") }),
    curve.edges.map((n) => svg("line", { class: "notch", x1: x(n), x2: x(n), y1: height + 2, y2: height + 14 })),
    labels);
}
