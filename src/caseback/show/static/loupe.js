// The panel beside the grid: with a node isolated, its in- and out-edges with exact scores; without, the strongest nodes.
// Every entry is a button, so all that the pointer finds in the grid can be reached by keyboard.

import { el, put } from "caseback/dom";
import { count, number, plural } from "caseback/format";
import { filterOf } from "caseback/grid";
import { CHANNELS, crossing } from "caseback/graph";

const LISTED = 40;
const STRONGEST = 14;

export function loupe(graph, state) {
  const box = el("aside", { class: "loupe", "aria-label": "Details" });
  state.listen((choice, changed) => {
    if (!["n", "node", "hide"].some((key) => changed.has(key))) return;
    const id = graph.named(choice.node);
    put(box, id < 0 ? strongest(choice) : isolated(id, choice));
  });
  return box;

  function strongest(choice) {
    const weight = new Map();
    const { source, target, score } = graph.edges;
    for (const i of graph.circuit(Number(choice.n), filterOf(graph, choice))) {
      for (const id of [source[i], target[i]]) weight.set(id, (weight.get(id) ?? 0) + Math.abs(score[i]));
    }
    const listed = [...weight].sort((a, b) => b[1] - a[1]).slice(0, STRONGEST);
    return [el("h3", {}, "Strongest nodes"),
      el("p", { class: "soft" },
        `of ${plural(weight.size, "node")}, by the sum of |score| over their edges. Choose one to see its edges alone.`),
      el("ol", { class: "entries" }, listed.map(([id, w]) => entry({
        name: graph.place(id), where: `@${graph.spans[graph.node(id).span]}`, value: number(w, 3), share: w / listed[0][1],
        look: null, id, title: graph.describe(id),
      })))];
  }

  function isolated(id, choice) {
    const into = [];
    const out = [];
    for (const i of graph.circuit(Number(choice.n), filterOf(graph, choice))) {
      if (graph.edges.target[i] === id) into.push(i);
      if (graph.edges.source[i] === id) out.push(i);
    }
    const most = Math.max(1e-12, ...[...into, ...out].map((i) => Math.abs(graph.edges.score[i])));
    return [
      el("div", { class: "loupe-head" }, el("h3", {}, graph.name(id)),
        el("button", { type: "button", class: "quiet", onclick: () => state.set({ node: "" }) }, "show all", el("kbd", {}, "Esc"))),
      el("p", { class: "soft" }, graph.describe(id)),
      list("In", into, "source", most), list("Out", out, "target", most)];
  }

  function list(name, indices, end, most) {
    return [el("h4", {}, `${name} `, el("span", { class: "soft" }, count(indices.length))),
      el("ol", { class: "entries" }, indices.slice(0, LISTED).map((i) => {
        const { channel, score, rank } = graph.edges;
        const other = graph.edges[end][i];
        const input = channel[i] && !crossing(channel[i]) ? `<${CHANNELS[channel[i]]}>` : "";
        const span = graph.spans[graph.node(other).span];
        return entry({
          name: graph.place(other), where: crossing(channel[i]) ? `${CHANNELS[channel[i]].toUpperCase()} @${span}` : input,
          value: number(score[i], 4), share: Math.abs(score[i]) / most, look: score[i] >= 0 ? "for" : "against",
          id: other, title: `${graph.edgeName(i)}, edge ${count(rank[i])}`,
        });
      })),
      indices.length > LISTED && el("p", { class: "soft" }, `and ${count(indices.length - LISTED)} weaker ones`)];
  }

  function entry({ name, where, value, share, look, id, title }) {
    return el("li", {}, el("button", { type: "button", onclick: () => choose(id), title, class: look },
      el("span", { class: "who" }, name, " ", el("small", {}, where)), el("span", { class: "value" }, value),
      el("i", { class: "bar", style: { width: `${(share * 100).toFixed(1)}%` } })));
  }

  function choose(id) {
    state.set({ node: graph.name(id) });
    box.querySelector("button")?.focus({ preventScroll: true });
  }
}
