// A prompt as a strip of tokens, a bar over each: up for what raises, hatched and down for what lowers. One token is chosen.

import { el } from "caseback/dom";

// values: a number a token, or null where there is none; shown(value) → its text; choose(i) is called by click and arrows.
// Bars are as high as their part of the greatest size, or of `full` where that is given.
export function strip(words, { values, shown, chosen, choose, label, full, signed = false, under }) {
  const most = full ?? Math.max(...values.map((value) => Math.abs(value ?? 0)), 1e-12);
  const buttons = words.map((word, i) => {
    const value = values[i];
    const part = value === null ? 0 : Math.min(1, Math.abs(value) / most);
    const bar = el("i", { class: value < 0 ? "bar under" : "bar", "aria-hidden": "true", style: { "--part": part.toFixed(3) } });
    return el("button", {
      type: "button", role: "option", class: value === null ? "token blank" : "token", tabindex: i === chosen ? "0" : "-1",
      "aria-selected": String(i === chosen), "aria-label": `${i} ${word}${value === null ? "" : `, ${shown(value)}`}`,
      onclick: () => choose(i),
    },
    el("span", { class: "well" }, bar),
    el("bdi", { class: "word" }, word === "" ? "∅" : word),
    el("small", {}, value === null ? "" : shown(value)),
    under && el("bdi", { class: "under-word" }, under(i)));
  });
  const box = el("div", { class: signed ? "strip signed" : "strip", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" }, buttons);
  box.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: words.length - 1 }[event.key];
    if (to === undefined || to < 0 || to >= words.length) return;
    event.preventDefault();
    choose(to);
  });
  return box;
}

// What had the focus has it again after a drawing: the chosen token of the same strip, or what has the same name.
export function keepFocus(root, draw) {
  const active = document.activeElement;
  const held = root.contains(active) && (active.closest(".strip") ?? active);
  const name = (node) => node.getAttribute("aria-label") ?? node.closest("label")?.textContent ?? node.textContent;
  const like = held && [held.closest("section")?.id, held.tagName, name(held)];
  draw();
  if (!like || document.activeElement === active) return;
  const [section, tag, called] = like;
  const again = [...root.querySelectorAll(`${section ? `#${section} ` : ""}${tag}`)].find((node) => name(node) === called);
  (again?.querySelector("[role=option][aria-selected=true]") ?? again)?.focus({ preventScroll: true });
}
