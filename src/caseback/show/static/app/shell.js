// What stands around every page: where one can go, light and dark, and the keys that work everywhere.

import { el, put } from "caseback/dom";

const PLACES = [["", "/", "Casebook"], ["claims", "/claims", "Claims"], ["prompt", "/prompt", "Prompt"], ["new", "/new", "New study"]];
const THEME = "caseback-theme";

// Puts the shell into `root` and returns the box for the page.
export function shell(root, name) {
  const box = el("div", { id: "page" });
  const link = ([place, href, text]) => el("a", { href, "aria-current": place === name ? "page" : null }, text);
  put(root,
    el("header", { class: "top" },
      el("a", { class: "mark", href: "/" }, "caseback"),
      el("nav", { "aria-label": "Places" }, PLACES.map(link)),
      themeButton()),
    box,
    el("footer", { class: "keys" }, keysOf(name).map(([keys, what]) =>
      el("span", {}, keys.map((key) => el("kbd", {}, key)), " ", what))));
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (event.key === "/") {
      event.preventDefault();
      const search = document.getElementById("search");
      if (search) search.focus();
      else location.assign("/#search=");
    }
  });
  return box;
}

export const typing = (node) => node.matches?.("textarea, select, input:not([type=checkbox], [type=range], [type=radio])") ?? false;

function keysOf(name) {
  const all = [[["/"], "search"]];
  if (name === "") all.push([["↑", "↓"], "choose a run"], [["Enter"], "open it"], [["x"], "mark it"], [["c"], "compare the marked"]);
  if (name === "claims") all.push([["↑", "↓"], "choose a claim"], [["Enter"], "open it"]);
  if (name === "claim") all.push([["Esc"], "back to the claims"]);
  if (name === "run" || name === "compare") all.push([["Esc"], "back to the casebook"]);
  if (name === "prompt") all.push([["←", "→"], "choose a token"]);
  return all;
}

function themeButton() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const button = el("button", { type: "button", class: "quiet theme", onclick: turn });
  const chosen = () => localStorage.getItem(THEME) ?? "";
  const dark = () => (chosen() ? chosen() === "dark" : system.matches);

  function show() {
    if (chosen()) root.style.setProperty("color-scheme", chosen());
    put(button, dark() ? "light" : "dark");
  }

  function turn() {
    localStorage.setItem(THEME, dark() ? "light" : "dark");
    show();
  }

  system.addEventListener("change", show);
  show();
  return button;
}

// Escape leads back, to the casebook or another page, unless something on the page has a use for it.
export function escapes(busy = () => false, back = "/") {
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (typing(event.target)) event.target.blur();
    else if (!event.target.closest?.("[role=grid]") && !busy()) location.assign(back);
  }, { capture: true });
}

// A sentence that something could not be done.
export const problem = (error) => el("p", { class: "problem", role: "alert" }, error.message ?? String(error));
