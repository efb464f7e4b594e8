// A heat map: cells coloured by value, their text or number inside where there is room, labels that stay in sight while
// the map scrolls inside its own box. Nothing hangs on colour: a tip says label, value, interval and text of the cell
// under the pointer or, by arrow keys, of the one that is walked to; cells below zero are hatched.

import { el, onWidth, put } from "caseback/dom";
import { KINDS } from "caseback/kinds";

const GAP = 1; // between cells, px
const LETTER = 7; // width of a letter in a cell or a label, px
const TALL = 1150; // a higher map scrolls in its own box, px
const DEEP = { deep: 0.6, deeper: 0.8 }; // parts of the scale from which letters need the paper's colour: in the dark, in the light

// heats: maps of one format on one scale, side by side when there are several. Returns the nodes to put on the page.
export function heatMaps(heats, title) {
  const scale = scaleOf(heats);
  const map = (heat, head) =>
    el("figure", { class: "heat" },
      el("figcaption", {}, heat.name && el("h3", {}, heat.name), head),
      mapOf(heat, scale, [title, heat.name].filter(Boolean).join(", ")),
      heat.note && el("p", { class: "note" }, heat.note));
  if (heats.length === 1) return map(heats[0], headOf(axes(heats[0]), legend(heats[0], scale)));
  const alike = heats.every(({ x, y }) => x.name === heats[0].x.name && y.name === heats[0].y.name);
  const columns = Math.max(...heats.map(({ x }) => x.labels.length));
  const least = Math.min(Math.max(240, 70 + columns * (heats.some(({ texts }) => texts) ? 62 : 14)), 560);
  return [
    el("div", { class: "heats-head" }, headOf(alike && axes(heats[0]), legend(heats[0], scale))),
    el("div", { class: "heats", style: { "--least": `${least}px` } }, heats.map((heat) => map(heat, !alike && headOf(axes(heat))))),
  ];
}

const headOf = (...parts) => el("div", { class: "heat-head" }, parts);
const axes = ({ x, y }) => el("span", { class: "axes" }, el("span", {}, "↓ ", y.name), el("span", {}, "→ ", x.name));

function legend({ format, scale }, { ends }) {
  const { tick } = KINDS[format];
  return ends && el("span", { class: `legend ${scale}` }, tick(ends[0]), el("i"), tick(ends[1]));
}

// Value → part of the scale 0 … 1, with the scale's ends.
function scaleOf(heats) {
  const { format, scale } = heats[0];
  let [low, high] = [Infinity, -Infinity];
  for (const { values } of heats)
    for (const row of values)
      for (const x of row) {
        if (x === null) continue;
        if (x < low) low = x;
        if (x > high) high = x;
      }
  if (low > high) return { ends: null, of: () => 0 };
  if (scale === "diverging") {
    const size = Math.max(Math.abs(low), Math.abs(high));
    return { ends: [-size, size], of: (x) => (size ? Math.abs(x) / size : 0) };
  }
  if (format === "count" || format === "percent") low = Math.min(0, low);
  return { ends: [low, high], of: (x) => (high > low ? (x - low) / (high - low) : 0.5) };
}

function mapOf(heat, scale, label) {
  const { x, y, values, texts } = heat;
  const { brief } = KINDS[heat.format];
  const words = values.map((row, i) => row.map((value, j) => (texts ? marked(texts[i][j]) : value === null ? "" : brief(value))));
  const cells = values.map((row, i) =>
    row.map((value, j) => {
      const part = value === null ? 0 : scale.of(value);
      const looks = ["cell", value === null && "gap", value < 0 && "under", ...Object.keys(DEEP).map((k) => part > DEEP[k] && k)];
      return el("span", { class: looks.filter(Boolean).join(" "), role: "gridcell", style: { "--part": part.toFixed(3) } },
        el("bdi", {}, words[i][j]));
    }));
  const corner = el("span", { class: "corner", role: "columnheader" }, el("span", { class: "unseen" }, y.name));
  const grid = el("div", { class: `cells ${heat.scale} ${texts ? "texts" : ""}`, role: "presentation" },
    el("div", { role: "row" }, corner, x.labels.map((name) => el("span", { class: "top", role: "columnheader" }, el("bdi", {}, marked(name))))),
    cells.map((row, i) => el("div", { role: "row" }, el("span", { class: "side", role: "rowheader" }, el("bdi", {}, marked(y.labels[i]))), row)));
  const scroll = el("div", { class: "heat-scroll", tabindex: "0", role: "grid", "aria-label": `${label}; arrow keys walk its cells` }, grid);
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const box = el("div", { class: "heat-box" }, scroll, tip);
  const wanted = longest(words.flat()) * LETTER + 10;
  onWidth(box, (width) => fit({ scroll, grid, corner, wanted, width }, heat));
  walkable({ scroll, tip, box, cells, heat });
  return box;
}

// Cells as wide as the box allows, between what can still be pointed at and what needs no more room.
function fit({ scroll, grid, corner, wanted, width }, { x, y, texts }) {
  const set = (name, size) => scroll.style.setProperty(name, typeof size === "number" ? `${size}px` : size);
  set("--side", `fit-content(${Math.max(64, Math.min(220, Math.round(width * 0.3)))}px)`);
  grid.style.setProperty("--columns", x.labels.length);
  const side = corner.offsetWidth;
  const room = Math.floor((width - side) / x.labels.length) - GAP;
  const least = texts ? Math.min(Math.max(wanted, 44), 76) : x.labels.length > 100 ? 8 : 12;
  const size = Math.max(least, Math.min(room, texts ? 120 : Math.max(38, wanted)));
  const worded = Boolean(texts) || size >= wanted;
  const name = longest(x.labels) * LETTER + 6;
  const upright = name > size && size < 44;
  const rise = worded ? 24 : Math.min(size, 22);
  set("--stop", side);
  set("--size", size);
  set("--rise", rise);
  set("--top", upright ? Math.min(name + 4, 110) : 24);
  grid.classList.toggle("worded", worded);
  grid.classList.toggle("upright", upright);
  scroll.classList.toggle("tall", y.labels.length * (rise + GAP) > TALL);
}

// A text that is nothing but spaces (many a token is) can be seen.
const marked = (text) => text.replace(/^[ \u00a0\u2000-\u200a\u3000]+$/, (spaces) => "␣".repeat(spaces.length));

const longest = (words) => words.reduce((most, word) => Math.max(most, [...word].length), 0);

function walkable({ scroll, tip, box, cells, heat }) {
  const { x, y, values, texts, low, high, format } = heat;
  const { exact, between } = KINDS[format];
  let at = strongest(values);
  let lit = null;

  function show([i, j]) {
    lit?.classList.remove("lit");
    lit = cells[i][j];
    lit.classList.add("lit");
    at = [i, j];
    const known = typeof low?.[i][j] === "number" && typeof high?.[i][j] === "number";
    put(tip,
      el("b", {}, el("bdi", {}, texts?.[i][j] ? `“${texts[i][j]}”  ` : null), exact(values[i][j])),
      known && el("span", {}, between(low[i][j], high[i][j])),
      el("span", { class: "soft" }, y.name, " ", el("bdi", {}, y.labels[i]), " · ", x.name, " ", el("bdi", {}, x.labels[j])));
    tip.hidden = false;
    const [outer, cell] = [box.getBoundingClientRect(), lit.getBoundingClientRect()];
    const right = cell.right - outer.left + 8;
    const left = right + tip.offsetWidth > outer.width ? cell.left - outer.left - tip.offsetWidth - 8 : right;
    const below = cell.bottom - outer.top + 6;
    const top = below + tip.offsetHeight > outer.height ? cell.top - outer.top - tip.offsetHeight - 6 : below;
    tip.style.setProperty("left", `${Math.max(0, Math.min(left, outer.width - tip.offsetWidth))}px`);
    tip.style.setProperty("top", `${top}px`);
  }

  function hide() {
    lit?.classList.remove("lit");
    lit = null;
    tip.hidden = true;
  }

  const place = new Map(cells.flatMap((row, i) => row.map((cell, j) => [cell, [i, j]])));
  scroll.addEventListener("pointerover", (event) => {
    const found = place.get(event.target.closest(".cell"));
    if (found) show(found);
    else hide();
  });
  scroll.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  scroll.addEventListener("focus", () => scroll.matches(":focus-visible") && show(at));
  scroll.addEventListener("blur", hide);
  scroll.addEventListener("scroll", () => lit && !scroll.matches(":focus-visible") && hide(), { passive: true });
  scroll.addEventListener("keydown", (event) => {
    const [rows, columns] = [y.labels.length, x.labels.length];
    const [i, j] = at;
    const to = {
      ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j],
      Home: [i, 0], End: [i, columns - 1], PageUp: [0, j], PageDown: [rows - 1, j],
    }[event.key];
    if (event.key === "Escape") hide();
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = [Math.min(Math.max(to[0], 0), rows - 1), Math.min(Math.max(to[1], 0), columns - 1)];
    cells[next[0]][next[1]].scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    show(next);
  });
}

// Where the value of greatest size stands.
function strongest(values) {
  let best = { size: -1, at: [0, 0] };
  values.forEach((row, i) => row.forEach((x, j) => {
    if (x !== null && Math.abs(x) > best.size) best = { size: Math.abs(x), at: [i, j] };
  }));
  return best.at;
}
