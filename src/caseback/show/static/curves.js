// How much of the answer circuits of every size keep, against the controls; the same as a table; the areas under it.

import { curvePlot } from "caseback/curve";
import { el } from "caseback/dom";
import { count, fixed, interval, number, part, percent } from "caseback/format";
import { table } from "caseback/table";

const KINDS = [
  { key: "faithfulness", low: "low", high: "high", name: "this circuit", look: "own" },
  { key: "agnostic", low: "agnostic_low", high: "agnostic_high", name: "without positions", look: "agnostic" },
  { key: "random", low: "random_low", high: "random_high", name: "random", look: "random" },
];
const OTHERS = [
  { key: "token_edges", name: "token edges", shown: count },
  { key: "ratio", name: "M(C)/M(full)", shown: fixed },
  { key: "agreement", name: "same answer", shown: percent },
  { key: "kl", name: "KL, nats", shown: number },
];
const AREAS = { cpr_log: "CPR, log axis", cmd_log: "CMD, log axis", cpr_linear: "CPR, linear axis", cmd_linear: "CMD, linear axis" };

export function curveSection(payload, state) {
  const { curve, areas, completeness, graph, task } = payload;
  const title = el("h2", {}, "How much a circuit keeps");
  if (!curve?.edges.length) return el("section", {}, title, el("p", { class: "soft" }, "Not measured in this run."));
  const kinds = KINDS.filter(({ key }) => curve[key]);
  const series = kinds.map(({ key, low, high, name, look }) =>
    ({ name, look, x: curve.edges, y: curve[key], low: curve[low], high: curve[high] }));
  if (completeness) {
    const { edges, faithfulness, low, high } = completeness;
    series.push({ name: "all but the circuit", look: "complement", x: edges, y: faithfulness, low, high });
  }
  const plot = curvePlot(series, {
    xLabel: "edges in the circuit",
    yLabel: "of the answer kept",
    label: "Faithfulness against the number of edges; the table below has the numbers",
  });
  state.listen(({ n }) => plot.mark(Number(n)));
  return el("section", {},
    title,
    el("p", { class: "soft measure" },
      "Everything outside the circuit is replaced by its value under the reference; 100 % is the whole model, ",
      `0 % the reference alone. Bands are ${percent(curve.level ?? 0.95)} intervals over `,
      `${task.held_out ? `${count(task.held_out)} ` : ""}held-out prompts.`),
    plot.box,
    el("details", {}, el("summary", {}, "The numbers behind the curves"), numbers(curve, graph, kinds)),
    areaTable(areas, curve.edges));
}

function numbers(curve, graph, kinds) {
  const columns = [
    { name: "edges", number: true, by: (k) => curve.edges[k], show: (k) => count(curve.edges[k]) },
    { name: "of the graph", number: true, show: (k) => part(curve.edges[k] / graph.edges) },
    ...kinds.map(({ key, low, high, name }) => ({
      name,
      number: true,
      by: (k) => curve[key][k],
      show: (k) => [percent(curve[key][k]), " ", el("small", {}, interval(curve[low]?.[k], curve[high]?.[k]))],
    })),
    ...OTHERS.filter(({ key }) => curve[key]).map(({ key, name, shown }) => ({
      name,
      number: true,
      by: (k) => curve[key][k],
      show: (k) => shown(curve[key][k]),
    })),
  ];
  return table(columns, curve.edges.map((_, k) => k), { caption: "Faithfulness by size" });
}

function areaTable(areas, sizes) {
  const keys = Object.keys(AREAS).filter((key) => areas.some((row) => typeof row[key] === "number"));
  if (!keys.length) return null;
  const columns = [
    { name: "area under the curve", show: (row) => row.name },
    ...keys.map((key) => ({ name: AREAS[key], number: true, show: (row) => fixed(row[key], 3) })),
  ];
  const last = (sizes.at(-1) - sizes.at(-2)) / (sizes.at(-1) - sizes[0]);
  return el("div", { class: "areas" },
    table(columns, areas, { caption: "Areas" }),
    el("p", { class: "soft" },
      "CPR: area under faithfulness, higher is better. CMD: area between faithfulness and 1, zero is best. ",
      sizes.length > 2 && keys.includes("cpr_linear") &&
        `The linear axis flatters every curve: the last step, up to the whole model, is ${percent(last)} of it.`));
}
