// The page of a relation: what one linear map is worth beside its controls, at which layer, with how much of W, and for
// which samples.

import { curvePlot } from "caseback/curve";
import { el, put } from "caseback/dom";
import { dotRows } from "caseback/dots";
import { count, interval, percent } from "caseback/format";
import { reportFrame } from "caseback/frame";
import { heatMaps } from "caseback/heat";
import { KINDS } from "caseback/kinds";
import { chosenSample, explorer } from "caseback/samples";
import { hashState } from "caseback/state";
import { table } from "caseback/table";
import { drawn, howSection } from "caseback/views/experiment";

const plain = KINDS.number.tick; // 2, not 2.00
const LOOKS = { operator: "own", edit: "own", control: "random", "edit control": "random" };

// `frame(payload, state, content)` is what stands around the content; a report's own, unless the page is part of another.
export function view(root, payload, frame = reportFrame) {
  const state = hashState({ theme: "", ...explorer.asked }, {
    theme: (text) => text === "light" || text === "dark",
    ...explorer.fits(payload.samples),
  });
  put(root, frame(payload, state, [
    el("section", { class: "finding", "aria-label": "What was found" }, el("p", { class: "claim" }, payload.claim)),
    scores(payload),
    layers(payload),
    explorer(payload, state),
    spectrum(payload),
    payload.sections.map(drawn),
    howSection(payload),
  ]));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosenSample(payload, state) >= 0) state.set({ sample: "" });
  });
}

function scores({ scores: all, chance, operator, counts }) {
  const rows = (wanted) => all.filter(({ of }) => wanted.includes(of))
    .map(({ label, of, value, low, high }) => ({ label, look: LOOKS[of], value, low, high, text: el("span", {}, percent(value), " ", el("small", {}, interval(low, high))) }));
  const faithful = rows(["operator", "control"]);
  if (typeof chance === "number") faithful.push({ label: "chance, one of the objects", look: "random", value: chance, text: percent(chance) });
  const edits = rows(["edit", "edit control"]);
  const plot = (some, label) => dotRows(some, { domain: [0, 1], ticks: [[0, "0"], [0.5, "50 %"], [1, "100 %"]], label });
  return el("section", { class: "scores" },
    el("h2", {}, "The operator and its controls"),
    el("p", { class: "soft measure" }, "Held out: layer and β are chosen on one half of the samples and scored on the other, both ways. ",
      counts.splits > 1 ? `Means of ${count(counts.splits)} draws of training samples.` : null),
    el("div", { class: "beside" },
      el("div", { class: "shares" },
        el("h3", {}, "Share of samples whose answer is the model’s"), plot(faithful, "Faithfulness"),
        edits.length > 0 && [el("h3", {}, "Share of edits after which the model answers as for another subject"), plot(edits, "Causality")]),
      el("div", {}, el("dl", { class: "figures" }, figures(operator, counts)), halves(operator))));
}

function figures({ layer, beta, cut, rank, n_layers: n, edit_layer: at, edit_rank: with_, sketch_error: missed }, { asked, known, counted }) {
  const pair = (name, value, more) => el("div", {}, el("dt", {}, name), el("dd", {}, value, more && el("small", {}, ` ${more}`)));
  return [
    pair("layer", count(layer), `of ${count(n)}`), pair("β", plain(beta)),
    pair("rank that is enough", count(cut), `of ${count(rank)}`), pair("samples that count", count(counted), `${count(known)} of ${count(asked)} known`),
    typeof at === "number" && [pair("edited at layer", count(at)), pair("edited with rank", count(with_))],
    typeof missed === "number" && pair("missed by the sketch", percent(missed)),
  ];
}

const halves = ({ folds }) => folds.length > 0 && el("p", { class: "note" }, "Chosen on each half: ",
  folds.map(({ layer, beta }, i) => `${i ? "; " : ""}layer ${layer}, β ${plain(beta)}`), ". The figures above are chosen with all samples.");

function layers({ layers: series, grid, operator }) {
  const plot = curvePlot(series, { xLabel: "layer", yLabel: "faithful", axis: "linear", label: "Faithfulness by layer; the table has the numbers" });
  plot.mark(operator.layer);
  const rows = series[0].x.map((_, i) => i);
  const columns = [
    { name: "layer", number: true, by: (i) => series[0].x[i], show: (i) => count(series[0].x[i]) },
    ...series.map((line) => ({ name: line.name, number: true, by: (i) => line.y[i],
      show: (i) => [percent(line.y[i]), line.low && [" ", el("small", {}, interval(line.low[i], line.high[i]))]] })),
  ];
  const heat = grid && { x: { name: "β", labels: grid.betas.map(plain) }, y: { name: "layer", labels: rows.map(String) },
    values: grid.values, format: "percent", scale: "sequential" };
  return el("section", {},
    el("h2", {}, "Faithfulness by layer"),
    el("p", { class: "soft measure" }, "Share of the samples for which the decoded answer is the model’s; the band is Wilson’s 95 % interval. " +
      "Every layer is shown at its best β on all samples, so the curve flatters the operator a little. The upright line is the chosen layer."),
    plot.box,
    el("details", {}, el("summary", {}, "As a table"), table(columns, rows, { caption: "Faithfulness by layer" })),
    heat && el("details", {}, el("summary", {}, "By layer and β"), heatMaps([heat], "Faithfulness by layer and β")));
}

function spectrum({ spectrum: { values, ranks, faithful }, operator }) {
  const W = { name: "W", look: "own", x: values.map((_, i) => i + 1), y: values };
  const cut = { name: "cut", look: "own", x: ranks, y: faithful };
  const plot = (line, xLabel, yLabel, label, at) => {
    const made = curvePlot([line], { xLabel, yLabel, label });
    if (at) made.mark(at);
    return el("figure", {}, made.box);
  };
  const columns = [
    { name: "rank of W", number: true, by: (i) => ranks[i], show: (i) => count(ranks[i]) },
    { name: "faithful when cut to it", number: true, by: (i) => faithful[i], show: (i) => percent(faithful[i]) },
  ];
  return el("section", {},
    el("h2", {}, "How much of W is needed"),
    el("p", { class: "soft measure" }, `At layer ${count(operator.layer)}. Left: singular values as shares of the largest. Right: faithfulness when W is cut to its largest ones; ` +
      `rank ${count(operator.cut)} loses nothing.`),
    el("div", { class: "two" },
      plot(W, "number of the singular value", "of the largest", "Singular values of W, as shares of the largest"),
      plot(cut, "rank of W", "faithful", "Faithfulness by rank of W", operator.cut)),
    el("details", {}, el("summary", {}, "As a table"), table(columns, ranks.map((_, i) => i), { caption: "Faithfulness by rank of W" })));
}
