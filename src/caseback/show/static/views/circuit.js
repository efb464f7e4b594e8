// The page of a circuit run, top to bottom: what was found, on which question, the circuit itself, and why to believe it.

import { el, put } from "caseback/dom";
import { minimalitySection, patchingSection } from "caseback/checks";
import { curveSection } from "caseback/curves";
import { dial, startOf, stopsOf } from "caseback/dial";
import { reportFrame } from "caseback/frame";
import { graphOf } from "caseback/graph";
import { circuitGrid } from "caseback/grid";
import { headline } from "caseback/headline";
import { loupe } from "caseback/loupe";
import { promptFigure } from "caseback/prompts";
import { recordSection } from "caseback/record";
import { hashState } from "caseback/state";

const TOGGLES = [
  [["residual", "residual"], ["crossing", "crossing"]],
  [["q", "q"], ["k", "k"], ["v", "v"]],
  [["for", "supports"], ["against", "opposes"]],
];

// `frame(payload, state, content)` is what stands around the content; a report's own, unless the page is part of another.
export function view(root, payload, frame = reportFrame) {
  const graph = graphOf(payload);
  const state = hashState(
    { n: String(startOf(payload.curve, graph.maxRank)), node: "", hide: "", prompt: "1", theme: "" },
    {
      n: (text) => /^[1-9]\d*$/.test(text) && Number(text) <= stopsOf(payload.curve, graph.maxRank).at(-1),
      node: (text) => graph.named(text) >= 0,
      prompt: (text) => payload.prompts.some((_, i) => text === String(i + 1)),
      theme: (text) => text === "light" || text === "dark",
    },
  );
  put(root, frame(payload, state, [
    headline(payload, state),
    el("section", { "aria-label": "The question" }, promptFigure(payload, state)),
    el("div", { class: "bench" },
      dial(payload, graph, state),
      el("section", { id: "circuit" },
        el("div", { class: "bar" }, el("h2", {}, "The circuit"), toggles(state)),
        el("div", { class: "stage" }, circuitGrid(graph, payload, state), loupe(graph, state)),
        key())),
    curveSection(payload, state),
    patchingSection(payload, graph, state),
    minimalitySection(payload, graph),
    recordSection(payload, graph),
  ]));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.get().node) state.set({ node: "" });
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((box) => box.setAttribute("open", "")));
}

function toggles(state) {
  const hidden = () => new Set(state.get().hide.split(",").filter(Boolean));
  const buttons = new Map();
  const flip = (name) => {
    const set = hidden();
    if (!set.delete(name)) set.add(name);
    state.set({ hide: [...set].join(",") });
  };
  const groups = TOGGLES.map((group) => el("span", { class: "choice", role: "group" }, group.map(([name, text]) => {
    buttons.set(name, el("button", { type: "button", class: name, onclick: () => flip(name) }, text));
    return buttons.get(name);
  })));
  state.listen(() => {
    const set = hidden();
    for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(!set.has(name)));
  });
  return el("div", { class: "toggles", role: "group", "aria-label": "Edges shown" }, groups);
}

function key() {
  const sample = (look) => el("i", { class: `sample ${look}` });
  return el("p", { class: "key soft" },
    el("span", {}, sample("for"), "supports the answer"), el("span", {}, sample("against"), "opposes it"),
    el("span", {}, sample("head"), "head"), el("span", {}, sample("kv"), "keys and values"),
    el("span", {}, sample("mlp"), "MLP"),
    el("span", {}, "wider is stronger; upward inside a column is the residual stream, across columns is attention"));
}
