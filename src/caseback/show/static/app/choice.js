// One of a few: buttons side by side, the chosen one pressed.

import { el } from "caseback/dom";

export const choice = (names, wanted, pick, label) =>
  el("span", { class: "choice one", role: "group", "aria-label": label }, Object.entries(names).map(([name, text]) =>
    el("button", { type: "button", "aria-pressed": String(name === wanted), onclick: () => pick(name) }, text)));
