// Rows of one dot with its interval on a shared axis: a small dot plot made of plain boxes, so it needs no measuring.

import { el } from "caseback/dom";
import { linear } from "caseback/scales";

const known = (x) => typeof x === "number";

// rows: [{label, look, value, low, high, text}]; ticks: [[value, name]].
export function dotRows(rows, { domain, ticks, label }) {
  return el("div", { class: "dots", role: "list", "aria-label": label },
    rows.map(({ label: name, look, value, low, high, text }) =>
      el("div", { class: `row ${look ?? ""}`, role: "listitem" },
        el("span", { class: "label" }, name),
        track({ value, low, high }, { domain, ticks }),
        el("span", { class: "value" }, text))),
    el("div", { class: "row axis", "aria-hidden": "true" },
      el("span", {}),
      axis({ domain, ticks }),
      el("span", {})));
}

// Where a value lies in the domain, as a place in the track; what lies beyond it stands at its end.
const place = (x, domain) => Math.min(100, Math.max(0, linear(domain, [0, 100])(x)));
const left = (x, domain) => `${place(x, domain).toFixed(2)}%`;

// One dot with its interval. An end that lies beyond the domain, or is infinite, is an arrow.
export function track({ value, low, high }, { domain, ticks }) {
  const ranged = known(low) && known(high);
  return el("span", { class: "track", "aria-hidden": "true" },
    ticks.map(([at]) => el("i", { class: at === 0 ? "tick zero" : "tick", style: { left: left(at, domain) } })),
    ranged && el("i", { class: "range", style: { left: left(low, domain), width: `${(place(high, domain) - place(low, domain)).toFixed(2)}%` } }),
    ranged && low < domain[0] && el("i", { class: "beyond low" }),
    ranged && high > domain[1] && el("i", { class: "beyond high" }),
    known(value) && el("i", { class: "dot", style: { left: left(value, domain) } }));
}

// The names of the ticks.
export const axis = ({ domain, ticks }) =>
  el("span", { class: "track" }, ticks.map(([at, text]) => el("b", { style: { left: left(at, domain) } }, text)));
