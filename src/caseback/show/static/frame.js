// What stands around a report: the masthead with its switch of light and dark, and the footer.

import { el, put } from "caseback/dom";

export function reportFrame(payload, state, content) {
  return [
    masthead(payload, state),
    content,
    el("footer", {}, "Made by caseback. This file holds everything it shows and asks nothing of any network."),
  ];
}

function masthead(payload, state) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (state.get().theme ? state.get().theme === "dark" : system.matches);
  const turn = () => state.set({ theme: dark() ? "light" : "dark" });
  const button = el("button", { type: "button", class: "quiet theme", onclick: turn });
  const root = document.documentElement;
  const follow = () => put(button, dark() ? "light" : "dark");
  state.listen(({ theme }) => {
    if (theme) root.style.setProperty("color-scheme", theme);
    else root.style.removeProperty("color-scheme");
    follow();
  });
  system.addEventListener("change", follow);
  const { model, task } = payload;
  return el("header", { class: "masthead" },
    el("p", { class: "mark" }, "caseback"),
    el("div", {}, el("h1", {}, payload.title), el("p", { class: "soft" }, task.description)),
    el("p", { class: "soft model" }, model.id),
    button);
}
