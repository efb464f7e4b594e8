// How to reopen something in Python and in a terminal, each with a button that copies it.

import { el, put } from "caseback/dom";

export const reopen = (code) => el("section", {},
  el("h2", {}, "Reopen it"),
  el("div", { class: "codes" }, Object.entries(code).map(([name, text]) => box(name, text))));

function box(name, code) {
  const button = el("button", { type: "button", class: "quiet", onclick: copy }, "copy");
  async function copy() {
    try {
      await navigator.clipboard.writeText(code);
      put(button, "copied");
    } catch {
      getSelection().selectAllChildren(pre);
    }
  }
  const lines = code.trimEnd().split("\n").flatMap((line) => [line, el("br")]);
  const pre = el("code", { class: "code" }, lines);
  return el("figure", {}, el("figcaption", {}, el("h3", {}, name === "python" ? "Python" : "Terminal"), button), pre);
}
