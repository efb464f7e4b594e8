// Small parts that several pages show: a status, a date, progress, headline numbers.

import { el } from "caseback/dom";
import { count, duration, number } from "caseback/format";

const SIGNS = { finished: "●", running: "◐", interrupted: "◌", unfinished: "◌", failed: "✕", damaged: "✕",
  supported: "✓", refuted: "✕", inconclusive: "≈", hypothesis: "○", supports: "✓", refutes: "✕", undecided: "≈" };

export const status = (name) =>
  el("span", { class: `status ${name in SIGNS ? name : ""}` }, el("i", { "aria-hidden": "true" }, SIGNS[name] ?? "?"), name);

// A moment in the reader's own time zone; the tip has it in UTC.
export function moment(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return "–";
  const year = at.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short", ...year });
  const time = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return el("time", { datetime: iso, title: `${iso.slice(0, 19).replace("T", " ")} UTC` }, `${day}, ${time}`);
}

// How far a computation is: a stage's name, steps, a bar.
export function progress({ stage, done, total, seconds }) {
  const known = typeof done === "number" && typeof total === "number" && total > 0;
  return el("div", { class: "progress" },
    el("span", { class: "stage-name" }, stage ?? "begins"),
    el("span", { class: "track", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": known ? String(total) : null,
      "aria-valuenow": known ? String(done) : null, "aria-label": stage ?? "begins" },
      el("i", { style: { width: known ? `${((100 * done) / total).toFixed(1)}%` : "0" } })),
    el("span", { class: "steps" }, known ? `${count(done)} of ${count(total)}` : "",
      typeof seconds === "number" ? el("small", {}, ` ${duration(seconds)}`) : null));
}

// The first numbers of a result.
export function headline(numbers, most = 3) {
  const entries = Object.entries(numbers).slice(0, most);
  return el("span", { class: "numbers" }, entries.map(([name, value]) =>
    el("span", {}, el("small", {}, name.replaceAll("_", " ")), " ", Number.isInteger(value) ? count(value) : number(value))));
}

export const claimLink = (id, ...inside) => el("a", { href: `/claims/${encodeURIComponent(id)}` }, ...inside);
export const runLink = (id, ...inside) => el("a", { href: `/run/${encodeURIComponent(id)}` }, ...inside);
