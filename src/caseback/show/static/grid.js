// The circuit on its grid. Draws at most LIMIT edges, the strongest, and says how many it did not draw.
// Sign is told by hue and by dashes, strength by width; the pointer finds the nearest edge or node, the arrow keys walk
// the nodes.

import { el, framed, onWidth, put, svg } from "caseback/dom";
import { count, number, plural, score } from "caseback/format";
import { CHANNELS, crossing, INPUTS } from "caseback/graph";
import { distance, layoutOf, path, wire } from "caseback/layout";
import { chosenPrompt, hue } from "caseback/prompts";

export const LIMIT = 1500;
const GUTTER = 46; // layer numbers, px
const REACH = 7; // px from which the pointer takes hold

// Which edges the reader's toggles let through.
export function filterOf(graph, { hide }) {
  const hidden = new Set(hide.split(","));
  const { channel, score: scores } = graph.edges;
  const families = CHANNELS.map((name, c) => !hidden.has(crossing(c) ? "crossing" : "residual") && !hidden.has(name));
  const [supports, opposes] = [!hidden.has("for"), !hidden.has("against")];
  return (i) => families[channel[i]] && (scores[i] >= 0 ? supports : opposes);
}

export function circuitGrid(graph, payload, state) {
  const picture = svg("svg", { tabindex: "0", role: "application" });
  const scroll = el("div", { class: "grid-scroll" }, picture);
  const gutter = svg("svg", { class: "gutter", "aria-hidden": "true", width: GUTTER });
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const note = el("p", { class: "note" });
  const box = el("div", { class: "grid" }, gutter, scroll, tip, note);
  let layout = null;
  let backdrop = null;
  let drawn = null; // {wires: [{i, p}], nodes: Map id → weight, mark(found)}
  let focus = -1; // the node the keyboard stands at

  const redraw = framed(() => {
    if (!layout) return;
    backdrop ??= frame(graph, payload, layout, state.get());
    drawn = draw(graph, layout, state.get(), picture, backdrop);
    put(note, drawn.note, layout.width > scroll.clientWidth && " Scroll sideways for the other spans.");
    show(document.activeElement === picture ? { node: standing() } : null);
  });
  onWidth(scroll, (width) => {
    layout = layoutOf(graph, width);
    backdrop = null;
    drawGutter(gutter, graph, layout);
    redraw();
    // The answer is at the right.
    requestAnimationFrame(() => scroll.scrollTo({ left: layout.width, behavior: "instant" }));
  });
  state.listen((_, changed) => {
    if (changed.has("prompt")) backdrop = null;
    if (["n", "node", "hide", "prompt"].some((key) => changed.has(key))) redraw();
  });

  picture.addEventListener("pointermove", (event) => show(under(event), event));
  picture.addEventListener("pointerleave", () => show(null));
  picture.addEventListener("click", (event) => {
    const found = under(event);
    focus = found?.node ?? -1;
    if (found?.edge === undefined) state.set({ node: found ? graph.name(found.node) : "" });
    else show(found, event); // a touch does not hover
  });
  picture.addEventListener("focus", () => {
    if (drawn && !picture.matches(":hover")) show({ node: standing() });
  });
  picture.addEventListener("blur", () => drawn && show(null));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) walk(step);
    else if (event.key === "Enter" || event.key === " ") state.set({ node: graph.name(standing()) });
    else return;
    event.preventDefault();
  });

  // The node or edge nearest to the pointer; a node wins over the edges that end in it.
  function under(event) {
    const frame = picture.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    let best = { far: REACH };
    for (const node of drawn.nodes.keys()) {
      const at = layout.at(node);
      const far = Math.hypot(at.x - x, at.y - y) - 2;
      if (far < best.far) best = { far, node };
    }
    if (best.node !== undefined) return best;
    for (const { i, p } of drawn.wires) {
      const far = distance(p, x, y);
      if (far < best.far) best = { far, edge: i };
    }
    return best.edge === undefined ? null : best;
  }

  // The node the keyboard stands at; to begin with the topmost.
  function standing() {
    if (!drawn.nodes.has(focus)) {
      focus = [...drawn.nodes.keys()].reduce((a, b) => (a >= 0 && layout.at(a).y <= layout.at(b).y ? a : b), -1);
    }
    return focus;
  }

  // To the nearest node in a direction, sidesteps counting triple.
  function walk([dx, dy]) {
    const from = layout.at(standing());
    let best = Infinity;
    for (const node of drawn.nodes.keys()) {
      const at = layout.at(node);
      const along = (at.x - from.x) * dx + (at.y - from.y) * dy;
      const aside = Math.abs((at.x - from.x) * dy) + Math.abs((at.y - from.y) * dx);
      if (along > 0.5 && along + 3 * aside < best) [best, focus] = [along + 3 * aside, node];
    }
    const at = layout.at(focus);
    scroll.scrollTo({ left: Math.min(scroll.scrollLeft, Math.max(0, at.x - 60)) });
    scroll.scrollTo({ left: Math.max(scroll.scrollLeft, at.x - scroll.clientWidth + 60) });
    show({ node: focus });
  }

  // Mark what the pointer or the keyboard is at, and say its exact numbers beside it.
  function show(found, event) {
    if (found?.node === -1) found = null;
    drawn.mark(found);
    tip.hidden = !found;
    if (!found) return;
    put(tip, found.edge === undefined ? aboutNode(found.node) : aboutEdge(found.edge));
    const at = found.edge === undefined ? layout.at(found.node) : null;
    const frame = picture.getBoundingClientRect();
    const outer = box.getBoundingClientRect();
    const x = (at ? at.x + frame.left : event.clientX) - outer.left;
    const y = (at ? at.y + frame.top : event.clientY) - outer.top;
    const left = x + tip.offsetWidth + 18 > outer.width ? Math.max(0, x - tip.offsetWidth - 14) : x + 14;
    const top = y + tip.offsetHeight + 24 > outer.height ? y - tip.offsetHeight - 12 : y + 14;
    tip.style.setProperty("left", `${left}px`);
    tip.style.setProperty("top", `${top}px`);
  }

  function aboutEdge(i) {
    const { channel, source, target, rank, score: scores } = graph.edges;
    const [s, t] = [graph.node(source[i]), graph.node(target[i])];
    const input = INPUTS[channel[i]];
    const reader = {
      logits: "the answer",
      mlp: `MLP of layer ${t.layer}`,
      head: `${input} of head ${t.head}, layer ${t.layer}`,
      kv: `${input} of KV head ${t.head}, layer ${t.layer}`,
    }[t.kind];
    const what = crossing(channel[i])
      ? `inside head ${t.head} of layer ${t.layer}, ${input}: ${graph.spans[s.span]} → ${graph.spans[t.span]}`
      : `${graph.place(source[i])} → ${reader}, at ${graph.spans[t.span]}`;
    return [el("b", {}, graph.edgeName(i)), el("span", {}, what),
      el("span", { class: scores[i] >= 0 ? "for" : "against" },
        `${scores[i] > 0 ? "+" : ""}${number(scores[i], 5)} ${scores[i] >= 0 ? "supports" : "opposes"} the answer`),
      el("span", { class: "soft" }, `edge ${count(rank[i])} of the circuit`)];
  }

  function aboutNode(id) {
    const sum = { in: 0, out: 0, ins: 0, outs: 0 };
    for (const i of graph.circuit(Number(state.get().n), filterOf(graph, state.get()))) {
      if (graph.edges.target[i] === id) [sum.in, sum.ins] = [sum.in + 1, sum.ins + graph.edges.score[i]];
      if (graph.edges.source[i] === id) [sum.out, sum.outs] = [sum.out + 1, sum.outs + graph.edges.score[i]];
    }
    return [el("b", {}, graph.name(id)), el("span", {}, graph.describe(id)),
      el("span", {}, `${count(sum.in)} in (${score(sum.ins)}) · ${count(sum.out)} out (${score(sum.outs)})`),
      el("span", { class: "soft" }, "click or Enter shows its edges alone")];
  }

  return box;
}

function draw(graph, layout, choice, picture, backdrop) {
  const { edges } = graph;
  const size = Number(choice.n);
  const alone = graph.named(choice.node);
  const keeps = filterOf(graph, choice);
  const chosen = [];
  const nodes = new Map();
  let matching = 0;
  const weigh = (id, weight) => nodes.set(id, (nodes.get(id) ?? 0) + weight);
  for (const i of graph.circuit(size, keeps)) {
    if (alone >= 0 && !graph.touches(i, alone)) continue;
    matching++;
    if (chosen.length < LIMIT) chosen.push(i);
    weigh(edges.source[i], Math.abs(edges.score[i]));
    weigh(edges.target[i], Math.abs(edges.score[i]));
  }
  if (alone >= 0) weigh(alone, 0);

  const wires = chosen.map((i) => ({ i, p: wire(layout, graph.edge(i), edges.channel[i]) }));
  const most = chosen.length ? Math.abs(edges.score[chosen[0]]) : 1;
  const quiet = Math.min(1, Math.max(0.35, 14 / Math.sqrt(chosen.length))); // many edges whisper, few speak
  const drawnEdges = [...wires].reverse().map(({ i, p }) => {
    const strength = Math.sqrt(Math.abs(edges.score[i]) / most);
    return svg("path", {
      class: edges.score[i] >= 0 ? "edge for" : "edge against",
      d: path(p),
      "stroke-width": (0.7 + 3.1 * strength).toFixed(2),
      opacity: (quiet * (0.3 + 0.7 * strength)).toFixed(2),
    });
  });

  const heaviest = Math.max(1e-12, ...nodes.values());
  const drawnNodes = [...nodes].map(([id, weight]) =>
    glyph(graph.node(id), layout, Math.sqrt(weight / heaviest), id === alone));
  const mark = svg("g", { class: "mark" });
  picture.setAttribute("width", layout.width);
  picture.setAttribute("height", layout.height);
  picture.setAttribute("aria-label",
    `The circuit of ${plural(size, "edge")} on a grid of ${graph.L} layers and ${graph.spans.length} spans. ` +
    "Arrow keys walk its nodes, Enter shows one node's edges alone, Escape shows all.");
  put(picture, backdrop,
    svg("g", { class: "edges" }, drawnEdges), svg("g", { class: "nodes" }, drawnNodes), mark);

  return {
    wires, nodes,
    note: remarks(graph, size, matching, chosen.length, alone),
    mark(found) {
      if (!found) return put(mark);
      if (found.edge === undefined) {
        const at = layout.at(found.node);
        return put(mark, svg("circle", { cx: at.x, cy: at.y, r: layout.radius(graph.node(found.node).span) + 4 }));
      }
      const p = wires.find(({ i }) => i === found.edge)?.p;
      return put(mark, p && svg("path", { d: path(p), class: edges.score[found.edge] >= 0 ? "for" : "against" }));
    },
  };
}

function remarks(graph, size, matching, drawn, alone) {
  const parts = [`${plural(drawn, "edge")} drawn`];
  if (matching > drawn) parts.push(`${count(matching - drawn)} weaker ones not drawn`);
  const missing = size - graph.carried(size);
  if (alone < 0 && missing > 0) parts.push(`${count(missing)} of the circuit’s ${count(size)} are not in this file`);
  return `${parts.join(" · ")}.`;
}

// Columns, rows, names, and a faint dot for every node of the model.
function frame(graph, payload, layout, choice) {
  const { L, H, K, spans } = graph;
  const prompt = chosenPrompt(payload, choice);
  const example = (name) => {
    const found = prompt?.spans.find(([span]) => span === name);
    return found ? prompt.tokens.slice(found[1], found[2]).join("").trim() : "";
  };
  const fits = (text, s) => {
    const room = Math.floor((layout.columns[s].width - 4) / 6.3);
    return text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`;
  };
  const perSpan = L * (H + K + 1) + 2;
  let dots = "";
  for (let id = 0; id < perSpan * spans.length; id++) {
    if (id % perSpan === perSpan - 1 && id < perSpan * spans.length - 1) continue; // the logits are read at the last span
    const { x, y } = layout.at(id);
    dots += `M${x.toFixed(1)} ${y.toFixed(1)}h0`;
  }
  return svg("g", { class: "frame" },
    spans.map((name, s) => {
      const { left: x, width } = layout.columns[s];
      const head = (y) => svg("text", { class: "span-name", x: layout.centre(s), y }, fits(name, s), svg("title", {}, name));
      return svg("g", { style: { "--hue": hue(s) } },
        s % 2 === 0 && svg("rect", { class: "lane", x, y: layout.top, width, height: layout.floor - layout.top + 28 }),
        svg("rect", { class: "tint", x: x + 4, y: layout.floor + 30, width: width - 8, height: 3 }),
        head(14), head(layout.floor + 48),
        svg("text", { class: "example", x: layout.centre(s), y: layout.floor + 65 }, fits(example(name), s)));
    }),
    Array.from({ length: L }, (_, l) =>
      svg("line", { class: "layer", x1: 0, x2: layout.right, y1: layout.ground(l), y2: layout.ground(l) })),
    svg("text", { x: layout.centre(spans.length - 1) - 12, y: layout.top - 14, "text-anchor": "end" }, "logits"),
    svg("path", { class: "dot", d: dots }));
}

// The layer numbers, which stay when the grid scrolls.
function drawGutter(gutter, { L }, layout) {
  const every = layout.row < 14 ? 5 : 1;
  gutter.setAttribute("height", layout.height);
  const name = (text, y) => svg("text", { x: GUTTER - 8, y: y + 4 }, text);
  put(gutter, name("embed", layout.floor + 16),
    Array.from({ length: L }, (_, l) => l % every === 0 && name(l, layout.ground(l) - layout.row / 2)));
}

function glyph({ id, kind, span }, layout, strength, chosen) {
  const { x, y } = layout.at(id);
  const r = layout.radius(span) * (0.62 + 0.5 * strength);
  const common = { class: `${kind}${chosen ? " chosen" : ""}`, style: { "--hue": hue(span) } };
  if (kind === "mlp") {
    return svg("rect", { ...common, x: x - r * 1.5, y: y - r * 0.85, width: r * 3, height: r * 1.7, rx: 0.8 });
  }
  if (kind === "kv") {
    return svg("path", { ...common, d: `M${x} ${y - r * 1.3}L${x + r * 1.25} ${y + r}H${x - r * 1.25}Z` });
  }
  return svg("circle", { ...common, cx: x, cy: y, r: kind === "head" ? r : r * 1.35 });
}
