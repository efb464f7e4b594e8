// A curve plot: lines with interval bands over a logarithmic or linear axis, names at the line ends, one vertical marker.
// Told apart without colour: the first series is solid with dots, the others dashed and dotted.

import { el, onWidth, put, svg } from "caseback/dom";
import { KINDS } from "caseback/kinds";
import { extent, linear, log } from "caseback/scales";

const HEIGHT = 340;
const DOTTED = 80; // points of a line that are drawn as dots as well, at most
const GAP = 16; // least distance of two names at the line ends, px

// series: [{name, short, look, x, y, low, high}]; look is a class: "own", "control", "random", …; axis: "log" or "linear";
// format: how y is written, one of KINDS.
// Returns {box, mark(x)}.
export function curvePlot(series, { xLabel, yLabel, label, axis = "log", format = "percent" }) {
  const box = el("div", { class: "plot" });
  let marked = null;
  let draw = () => {};
  onWidth(box, (width) => {
    draw = () => put(box, drawn(series, { xLabel, yLabel, label, axis, format, width, marked }));
    draw();
  });
  return {
    box,
    mark(x) {
      marked = x;
      draw();
    },
  };
}

function drawn(series, { xLabel, yLabel, label, axis, format, width, marked }) {
  const narrow = width < 560;
  const edge = { left: 46, right: narrow ? 14 : 150, top: 14, bottom: 44 };
  const xs = extent(series.flatMap((s) => s.x));
  const alone = axis === "log" ? [xs[0] / 2, xs[0] * 2] : [xs[0] - 1, xs[0] + 1];
  const x = { log, linear }[axis](xs[0] === xs[1] ? alone : xs, [edge.left, width - edge.right]);
  const own = series[0];
  const seen = extent([...series.flatMap((s) => s.y), ...(own.low ?? []), ...(own.high ?? []), 0]);
  // a share is seen against the whole, unless it is a small one
  const whole = format === "percent" && (axis === "log" || seen[1] > 0.4);
  const [low, high] = extent([...seen, whole ? 1 : null, seen[0] === seen[1] ? 1 : null]);
  const room = 0.04 * (high - low);
  const y = linear([low - (low < 0 ? room : 0), high + room], [HEIGHT - edge.bottom, edge.top]);

  const key = (tick) => tick === 0 || (whole && Math.abs(tick - 1) < 1e-9);
  const written = KINDS[format].tick;
  const grid = y.ticks(5).map((tick) =>
    svg("g", { class: key(tick) ? "line key" : "line" },
      svg("line", { x1: edge.left, x2: width - edge.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: edge.left - 8, y: y(tick) + 4, "text-anchor": "end" }, written(tick))),
  );
  const most = narrow ? 4 : 7;
  const stepped = axis === "log" || !series.every((s) => s.x.every(Number.isInteger));
  const all = x.ticks(most).filter((tick) => stepped || Number.isInteger(tick)); // no layer 2.5
  const step = axis === "log" ? Math.ceil(all.length / most) : 1;
  const ticks = all.filter((_, i) => i % step === 0).map((tick) =>
    svg("g", { class: "line" },
      svg("line", { x1: x(tick), x2: x(tick), y1: HEIGHT - edge.bottom, y2: HEIGHT - edge.bottom + 5 }),
      svg("text", { x: x(tick), y: HEIGHT - edge.bottom + 19, "text-anchor": "middle" }, KINDS.number.tick(tick))),
  );

  const ends = [];
  const lines = [...series].reverse().map((s) => {
    const points = s.x.map((size, i) => [x(size), s.y[i]]).filter(([, value]) => value !== null && value !== undefined);
    if (!points.length) return null;
    const path = points.map(([px, value], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const [px, value] = points.at(-1);
    ends.push({ at: y(value), px, look: s.look, name: s.short ?? s.name });
    return svg("g", { class: `series ${s.look}` },
      band(s, x, y),
      svg("path", { class: "curve", d: path }),
      ((s === own && points.length <= DOTTED) || points.length === 1) && points.map(([cx, cy]) => svg("circle", { cx, cy: y(cy), r: 2.6 })));
  });
  ends.sort((a, b) => a.at - b.at);
  for (let i = 1; i < ends.length; i++) ends[i].at = Math.max(ends[i].at, ends[i - 1].at + GAP);
  const spill = Math.max(0, (ends.at(-1)?.at ?? 0) - (HEIGHT - edge.bottom));
  const names = ends.map(({ at, px, look, name }) =>
    svg("text", { class: `name ${look}`, x: narrow ? px - 6 : width - edge.right + 10, y: at - spill + (narrow ? -7 : 4),
      "text-anchor": narrow ? "end" : "start" }, name));

  const marker = marked !== null && marked >= xs[0] * 0.999 && marked <= xs[1] * 1.001 &&
    svg("line", { class: "marker", x1: x(marked), x2: x(marked), y1: edge.top, y2: HEIGHT - edge.bottom });
  return svg("svg", { width, height: HEIGHT, role: "img", "aria-label": label },
    grid, ticks, marker, svg("g", {}, lines), names,
    svg("text", { class: "axis", x: width - edge.right, y: HEIGHT - 4, "text-anchor": "end" }, xLabel),
    svg("text", { class: "axis", x: edge.left + 6, y: edge.top + 2 }, yLabel));
}

// The interval of a series, cut where it is not known and where it leaves the plot.
function band(s, x, y) {
  if (!s.low || !s.high) return null;
  const inside = (value) => Math.min(HEIGHT, Math.max(0, y(value))).toFixed(1);
  const known = s.x.map((size, i) => ({ px: x(size).toFixed(1), low: s.low[i], high: s.high[i] }))
    .filter(({ low, high }) => typeof low === "number" && typeof high === "number");
  if (!known.length) return null;
  const up = known.map(({ px, high }) => `${px} ${inside(high)}`);
  const back = known.reverse().map(({ px, low }) => `${px} ${inside(low)}`);
  return svg("path", { class: "band", d: `M${[...up, ...back].join("L")}Z` });
}
