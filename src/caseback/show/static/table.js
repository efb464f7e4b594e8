// A table whose columns sort by click or keyboard.

import { el, put } from "caseback/dom";

const LONG = 40; // characters; a longer text is broken into lines

// columns: [{name, title, number: bool, show(row) → node or text, by(row) → sort key}]; a column without `by` does not sort.
// rows come in the order they are first shown in. Returns the table in a box that scrolls by itself.
export function table(columns, rows, { caption, sorted = null, limit = Infinity } = {}) {
  let order = { column: sorted, down: false };
  const body = el("tbody");
  const heads = columns.map((column) => {
    const sort = () => {
      order = { column, down: order.column === column ? !order.down : Boolean(column.number) };
      fill();
    };
    return el("th", { scope: "col", class: column.number ? "number" : null, title: column.title },
      column.by ? el("button", { type: "button", onclick: sort }, column.name) : column.name);
  });

  function fill() {
    const { column, down } = order;
    heads.forEach((head, i) => {
      if (columns[i] === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const listed = column?.by ? [...rows].sort((a, b) => compare(column.by(a), column.by(b)) * (down ? -1 : 1)) : rows;
    put(body, listed.slice(0, limit).map((row) =>
      el("tr", {}, columns.map((c, i) => {
        const shown = c.show(row);
        const long = !c.number && (shown?.textContent ?? String(shown ?? "")).length > LONG;
        return el(i ? "td" : "th", { scope: i ? null : "row", class: c.number ? "number" : long ? "long" : null }, shown);
      }))));
  }

  fill();
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, heads)), body));
}

// Numbers by size, text by alphabet, the unknown last when rising.
function compare(a, b) {
  const [noA, noB] = [a === null || a === undefined, b === null || b === undefined];
  if (noA || noB) return Number(noA) - Number(noB);
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}
