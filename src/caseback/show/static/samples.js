// The samples of a relation: a table that is searched, narrowed, sorted and walked through, beside all that is known of one.
// However many there are, a page of them is drawn at a time.

import { el, put } from "caseback/dom";
import { count, part, plural } from "caseback/format";
import { KINDS } from "caseback/kinds";

const PAGE = 100;
const COLUMNS = [["hit", ""], ["subject", "subject"], ["object", "object"], ["model", "model says"], ["operator", "operator says"]];
const SIGNS = new Map([[true, ["✓", "hit"]], [false, ["✕", "miss"]], [null, ["–", "not tried"]]]);

// sign and word of a hit or a miss; the word only for those who cannot see the sign
const sign = (hit) => {
  const [mark, word] = SIGNS.get(hit ?? null);
  return el("span", { class: `sign ${word}` }, el("span", { "aria-hidden": "true" }, mark), el("span", { class: "unseen" }, word));
};
const worded = (hit) => [sign(hit), el("span", { "aria-hidden": "true" }, ` ${SIGNS.get(hit ?? null)[1]}`)];

export const chosenSample = ({ samples }, state) => (state.get().sample === "" ? -1 : Math.min(Number(state.get().sample), samples.subject.length - 1));

export function explorer(payload, state) {
  const { samples, operator, counts } = payload;
  const all = samples.subject.map((_, i) => i);
  const hits = samples.hit.filter(Boolean).length;
  const search = el("input", { type: "search", id: "sample-search", placeholder: "search subjects, objects, answers", autocomplete: "off", spellcheck: "false",
    "aria-label": "Search the samples", oninput: () => state.set({ find: search.value, page: "1" }) });
  const choices = [["all", `all ${count(all.length)}`], ["hit", `✓ ${plural(hits, "hit")}`], ["miss", `✕ ${plural(all.length - hits, "miss", "misses")}`]];
  const buttons = choices.map(([name, text]) => el("button", { type: "button", onclick: () => state.set({ show: name, page: "1" }) }, text));
  const body = el("tbody");
  const heads = COLUMNS.map(([key, name]) => el("th", { scope: "col" },
    el("button", { type: "button", onclick: () => turn(key) }, name || el("span", { class: "unseen" }, "hit or miss"), !name && "✓")));
  const found = el("p", { class: "soft note", role: "status" });
  const pager = el("nav", { class: "turner", "aria-label": "Pages of samples" });
  const panel = el("aside", { class: "sample-panel", "aria-label": "The chosen sample", "aria-live": "polite" });
  const scroll = el("div", { class: "scroll" }, el("table", { class: "samples" }, el("caption", { class: "unseen" }, "Samples"), el("thead", {}, el("tr", {}, heads)), body));

  function turn(key) {
    const { sort, down } = state.get();
    if (sort !== key) state.set({ sort: key, down: "false", page: "1" });
    else if (down === "false") state.set({ down: "true", page: "1" });
    else state.set({ sort: "", down: "false", page: "1" });
  }

  function listed() {
    const { find, show, sort, down } = state.get();
    const words = find.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (i) => `${samples.subject[i]} ${samples.object[i]} ${samples.model[i]} ${samples.operator[i]}`.toLowerCase();
    const rows = all.filter((i) => (show === "all" || samples.hit[i] === (show === "hit")) && (!words.length || words.every((word) => text(i).includes(word))));
    if (!sort) return rows;
    const by = samples[sort];
    rows.sort((a, b) => (sort === "hit" ? Number(by[b]) - Number(by[a]) : by[a].trim().localeCompare(by[b].trim(), "en", { numeric: true })) * (down === "true" ? -1 : 1));
    return rows;
  }

  function fill() {
    const { sort, down, page, show, find } = state.get();
    const rows = listed();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    const at = Math.min(Number(page), pages);
    const drawn = rows.slice((at - 1) * PAGE, at * PAGE);
    if (search.value !== find) search.value = find;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(choices[i][0] === show)));
    heads.forEach((head, i) => {
      if (COLUMNS[i][0] === sort) head.setAttribute("aria-sort", down === "true" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const held = body.contains(document.activeElement);
    put(body, drawn.map(rowOf));
    put(found, rows.length === all.length ? null : rows.length ? `${count(rows.length)} of ${count(all.length)}` : "No sample is like this.");
    const to = (n, name) => el("button", { type: "button", class: "quiet", disabled: n < 1 || n > pages, onclick: () => state.set({ page: String(n) }) }, name);
    put(pager, pages > 1 && [to(at - 1, "← back"), el("span", { class: "soft" }, `${count((at - 1) * PAGE + 1)} to ${count(Math.min(at * PAGE, rows.length))} of ${count(rows.length)}`), to(at + 1, "on →")]);
    mark(held);
  }

  function rowOf(i) {
    const cell = (name) => el("td", {}, el("bdi", {}, samples[name][i]));
    return el("tr", { "data-sample": String(i), onclick: () => state.set({ sample: String(i) }) },
      el("td", {}, sign(samples.hit[i])),
      el("th", { scope: "row" }, el("button", { type: "button" }, el("bdi", {}, samples.subject[i]))),
      cell("object"), cell("model"), cell("operator"));
  }

  const rowsOf = () => [...body.children];

  // Which row is the chosen one, and which of them Tab leads to.
  function mark(focus) {
    const chosen = chosenSample(payload, state);
    const rows = rowsOf();
    const own = rows.find((row) => Number(row.dataset.sample) === chosen);
    for (const row of rows) {
      row.classList.toggle("chosen", row === own);
      row.querySelector("button").setAttribute("aria-pressed", String(row === own));
      row.querySelector("button").tabIndex = row === (own ?? rows[0]) ? 0 : -1;
    }
    if (focus) own?.querySelector("button").focus({ preventScroll: true });
    if (own) reveal(own);
    put(panel, chosen < 0 ? el("p", { class: "soft" }, "Choose a sample to see what is known of it.") : about(payload, chosen));
  }

  // Scrolls the box of the table, and never the page.
  function reveal(row) {
    const head = body.offsetTop;
    const above = row.offsetTop - head;
    const below = row.offsetTop + row.offsetHeight - scroll.clientHeight;
    scroll.scrollTop = Math.max(Math.min(scroll.scrollTop, above), below);
  }

  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const rows = rowsOf();
    const at = rows.indexOf(event.target.closest("tr"));
    const next = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
    next.querySelector("button").focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    state.set({ sample: next.dataset.sample });
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" || !body.firstChild) return;
    event.preventDefault();
    body.querySelector("button[tabindex='0']").focus();
  });

  state.listen((_, changed) => {
    if ([...changed].every((key) => key === "theme")) return;
    if (changed.size === 1 && changed.has("sample")) mark(false);
    else fill();
  });
  return el("section", { class: "explorer" },
    el("h2", {}, "Samples"),
    el("p", { class: "soft measure" }, `The operator at layer ${count(operator.layer)} and β ${KINDS.number.tick(operator.beta)}, chosen with all samples. A hit: it says what the model says, ` +
      "which need not be the object.", counts.splits > 1 ? ` Of the first of ${count(counts.splits)} draws of training samples.` : null),
    el("div", { class: "explorer-bar" }, search, el("span", { class: "choice one", role: "group", "aria-label": "Samples shown" }, buttons), found),
    el("div", { class: "explorer-body" }, el("div", {}, scroll, pager), panel));
}

explorer.asked = { find: "", show: "all", sort: "", down: "false", page: "1", sample: "" };
explorer.fits = ({ subject }) => ({
  show: (text) => ["all", "hit", "miss"].includes(text),
  sort: (text) => text === "" || COLUMNS.some(([key]) => key === text),
  down: (text) => text === "true" || text === "false",
  page: (text) => /^[1-9]\d{0,5}$/.test(text),
  sample: (text) => text === "" || (/^\d{1,7}$/.test(text) && Number(text) < subject.length),
});

// All that the record has of one sample.
function about({ samples, scores, operator }, i) {
  const labels = new Map(scores.map(({ name, label, of }) => [name, { label, of }]));
  const held = Object.entries(samples.held).filter(([name]) => labels.has(name));
  const part_ = (edits) => held.filter(([name]) => labels.get(name).of.startsWith("edit") === edits)
    .filter(([, values]) => !edits || values[i] !== null)
    .map(([name, values]) => [el("dt", {}, labels.get(name).label), el("dd", {}, worded(values[i]))]);
  const edits = part_(true);
  const says = (who, text) => [el("dt", {}, who), el("dd", {}, el("bdi", { class: "word" }, text))];
  return [
    el("h3", {}, el("bdi", {}, samples.subject[i])),
    el("dl", { class: "says" }, says("object", samples.object[i]), says("model", samples.model[i]), says("operator", samples.operator[i]),
      el("dt", {}, "the same"), el("dd", {}, worded(samples.hit[i]))),
    samples.tops && el("div", { class: "tops" }, [["model", "Model’s likeliest"], ["operator", "Operator’s likeliest"]].map(([who, title]) =>
      el("div", {}, el("h4", {}, title), el("ol", {}, samples.tops[who][i].map(([text, p]) =>
        el("li", { style: { "--part": String(Math.min(1, Math.max(0, p))) } }, el("bdi", { class: "word" }, text === "" ? "∅" : text), el("span", {}, part(p)))))))),
    samples.at_layer && ladder(samples.at_layer[i], operator.layer),
    el("h4", {}, "Held out, whose answer is the model’s"), el("dl", {}, part_(false)),
    edits.length > 0 && [el("h4", {}, "Edited towards another subject"), el("dl", {}, edits)],
  ];
}

// At which layers the operator hits: full squares and empty ones, the chosen layer underlined.
function ladder(hits, own) {
  const at = hits.flatMap((hit, layer) => (hit ? [layer] : []));
  const said = at.length ? `Hits at layers ${ranges(at)}` : "Hits at no layer";
  return [el("h4", {}, "By layer, each at its best β"),
    el("div", { class: "ladder", role: "img", "aria-label": said }, hits.map((hit, layer) =>
      el("i", { class: `${hit ? "full" : ""} ${layer === own ? "own" : ""}`.trim() || null }))),
    el("p", { class: "note" }, `${said}.`)];
}

// 0, 1, 2, 5 → "0–2, 5"
function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    if (runs.at(-1)?.[1] === n - 1) runs.at(-1)[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? String(a) : `${a}–${b}`)).join(", ");
}
