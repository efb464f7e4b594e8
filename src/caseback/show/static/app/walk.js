// The keys of a page that is a list below a search field: down into the list, along it, and up again.

import { typing } from "caseback/app/shell";

// links() → the rows' links in their order. Escape leaves the search as it is. The page may listen as well.
export function walk(search, links) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search && event.key === "Escape") {
      event.preventDefault(); // browsers empty a search field by it
      search.blur();
    }
    if (typing(event.target) && !(event.target === search && event.key === "ArrowDown")) return;
    const all = links();
    const at = all.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (step && all.length) {
      event.preventDefault();
      if (at === 0 && step < 0) search.focus();
      else all[Math.min(Math.max(at + step, 0), all.length - 1)].focus();
    }
    if (event.key === "Enter" && event.target === document.body) all[0]?.focus();
  });
}
