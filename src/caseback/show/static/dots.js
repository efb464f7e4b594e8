// Rows of one dot with its interval on a shared axis: a small dot plot made of plain boxes, so it needs no measuring.

import { el } from "caseback/dom";
import { linear } from "caseback/scales";

const known = (x) => typeof x === "number";

// rows: [{label, look, value, low, high, text}]; ticks: [[value, name]].
export function dotRows(rows, { domain, ticks, label }) {
  const at = linear(domain, [0, 100]);
  const clipped = (x) => Math.min(100, Math.max(0, at(x)));
  const left = (x) => `${clipped(x).toFixed(2)}%`;
  const width = (low, high) => `${(clipped(high) - clipped(low)).toFixed(2)}%`;
  const lines = () => ticks.map(([value]) => el("i", { class: "tick", style: { left: left(value) } }));
  return el("div", { class: "dots", role: "list", "aria-label": label },
    rows.map(({ label: name, look, value, low, high, text }) =>
      el("div", { class: `row ${look ?? ""}`, role: "listitem" },
        el("span", { class: "label" }, name),
        el("span", { class: "track", "aria-hidden": "true" },
          lines(),
          known(low) && known(high) &&
            el("i", { class: "range", style: { left: left(low), width: width(low, high) } }),
          known(value) && el("i", { class: "dot", style: { left: left(value) } })),
        el("span", { class: "value" }, text))),
    el("div", { class: "row axis", "aria-hidden": "true" },
      el("span", {}),
      el("span", { class: "track" }, ticks.map(([value, text]) => el("b", { style: { left: left(value) } }, text))),
      el("span", {})));
}
