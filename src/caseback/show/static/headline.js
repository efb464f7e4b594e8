// What was found, in one sentence and three dots, for the size the slider stands at.

import { el, put } from "caseback/dom";
import { dotRows } from "caseback/dots";
import { count, interval, part, percent, plural } from "caseback/format";
import { extent, nearest } from "caseback/scales";

export function headline(payload, state) {
  const { curve, graph } = payload;
  const level = Math.round((curve?.level ?? 0.95) * 100);
  const words = el("div", { class: "words", "aria-live": "polite" });
  const gauge = el("div", { class: "gauge" });
  if (curve?.edges.length) {
    const rows = [
      { key: "faithfulness", low: "low", high: "high", look: "own", label: "this circuit" },
      { key: "agnostic", low: "agnostic_low", high: "agnostic_high", look: "agnostic", label: "without positions" },
      { key: "random", low: "random_low", high: "random_high", look: "random", label: "random, same size" },
    ].filter(({ key }) => curve[key]);
    const [least, most] = extent(rows.flatMap(({ key }) => curve[key]));
    const domain = [Math.max(-1, Math.min(-0.05, least - 0.03)), Math.min(2, Math.max(1.03, most + 0.03))];
    state.listen(({ n }) => {
      const k = nearest(curve.edges, Number(n));
      put(words, sentences(k));
      put(gauge, dotRows(
        rows.map(({ key, low, high, look, label }) => ({
          look, label, value: curve[key][k], low: curve[low]?.[k], high: curve[high]?.[k], text: percent(curve[key][k]),
        })),
        { domain, ticks: [[0, "nothing"], [1, "all of it"]], label: "Share of the answer kept" },
      ));
    });
  } else {
    const most = payload.edges.rank.at(-1) ?? 0;
    put(words, el("p", { class: "claim" }, `A circuit of up to ${count(most)} edges`),
      el("p", { class: "controls" }, "Its faithfulness was not measured in this run."));
  }
  return el("section", { class: "headline", "aria-label": "What was found" }, words, gauge);

  function sentences(k) {
    const size = curve.edges[k];
    const of = (x, low, high) => [el("b", {}, percent(x)), " ", el("span", { class: "interval" }, interval(low, high))];
    const value = curve.faithfulness[k];
    const claim = el("p", { class: "claim" },
      el("span", {}, el("b", {}, plural(size, "edge")), `, ${part(size / graph.edges)} of the graph,`), " ",
      el("span", {}, size === 1 ? "keeps " : "keep ", el("b", { class: "own" }, percent(value)), " of the answer."));
    const against = [];
    if (curve.random) {
      const kept = of(curve.random[k], curve.random_low?.[k], curve.random_high?.[k]);
      against.push("A random circuit of the same size keeps ", kept, ". ");
    }
    if (curve.agnostic) {
      const enough = curve.agnostic.findIndex((x) => typeof x === "number" && x >= value);
      const behind = typeof curve.agnostic[k] === "number" && curve.agnostic[k] < value;
      against.push("One that ignores positions keeps ",
        of(curve.agnostic[k], curve.agnostic_low?.[k], curve.agnostic_high?.[k]),
        behind && enough < 0 && " and as much at no size measured",
        behind && enough >= 0 && [" and needs ", el("b", {}, count(curve.edges[enough])), " edges for as much"],
        ".");
    }
    const range = interval(curve.low[k], curve.high[k]);
    return [claim,
      el("p", { class: "sure" }, range ? `${level} % interval ${range}` : "no interval",
        payload.task.held_out ? `, on ${count(payload.task.held_out)} held-out prompts` : ", on held-out prompts"),
      el("p", { class: "controls" }, against)];
  }
}
