// The ledger of claims: what was said of parts of the model, and how each of it stands now.

import { ask, follow } from "caseback/app/api";
import { facet } from "caseback/app/facets";
import { claimLink, moment, status } from "caseback/app/parts";
import { problem } from "caseback/app/shell";
import { walk } from "caseback/app/walk";
import { el, put } from "caseback/dom";
import { count, plural } from "caseback/format";
import { hashState } from "caseback/state";

const PAGE = 50; // claims drawn at once
const FACETS = [["status", "Status"], ["model", "Model"]];
const COLUMNS = [["status", "status"], ["component", "claim"], ["tests", "tested"], ["created", "made"]];
const ASKED = { words: "", status: "", model: "", sort: "created", down: "true", page: "1" };

export function page(root) {
  const state = hashState(ASKED, {
    sort: (text) => COLUMNS.some(([key]) => key === text),
    down: (text) => text === "true" || text === "false",
    page: (text) => /^[1-9]\d{0,5}$/.test(text),
  });
  const search = el("input", { id: "search", type: "search", placeholder: "search claims", autocomplete: "off", spellcheck: "false",
    "aria-label": "Search components and descriptions", oninput: () => state.set({ words: search.value, page: "1" }) });
  const found = el("p", { class: "found soft", role: "status" });
  const away = el("div");
  const side = el("aside", { class: "facets" });
  const list = el("div", { class: "list" });
  put(root, el("h1", { class: "unseen" }, "Claims"),
    el("div", { class: "search" }, el("div", { class: "field" }, search, el("kbd", {}, "/")), found), away,
    el("div", { class: "casebook" }, side, list));

  let told = null;

  async function load() {
    try {
      told = await ask("/api/claims");
      draw();
    } catch (error) {
      put(list, problem(error));
    }
  }

  function draw() {
    if (!told) return;
    const { words, sort, down, page: wanted, ...chosen } = state.get();
    const asked = words.toLowerCase().split(/\s+/).filter(Boolean);
    const said = told.claims.filter((claim) => {
      const text = `${claim.id} ${claim.component ?? ""} ${claim.description ?? ""}`.toLowerCase();
      return asked.every((word) => text.includes(word));
    });
    const fits = (claim, but) => FACETS.every(([key]) => key === but || !chosen[key] || (claim[key] ?? "") === chosen[key]);
    const rows = said.filter((claim) => fits(claim));
    if (sort !== "created") rows.sort((a, b) => compare(a[sort], b[sort]));
    if (sort === "created" ? down !== "true" : down === "true") rows.reverse();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    const at = Math.min(Number(wanted), pages);
    const of = told.claims.length;
    put(found, rows.length === of ? plural(of, "claim") : `${count(rows.length)} of ${count(of)}`,
      el("span", { class: "path" }, el("bdi", {}, told.study)));
    const focused = document.activeElement?.closest?.("tr")?.dataset.claim;
    put(side, narrowing(said, fits));
    put(list, rows.length ? tableOf(rows.slice((at - 1) * PAGE, at * PAGE)) : empty(of), pages > 1 && pager(at, pages));
    if (focused) [...list.querySelectorAll("tr[data-claim]")].find((row) => row.dataset.claim === focused)?.querySelector("a").focus({ preventScroll: true });
  }

  function narrowing(said, fits) {
    const values = (key) => {
      const counts = new Map();
      for (const claim of said) if (fits(claim, key)) counts.set(claim[key] ?? "", (counts.get(claim[key] ?? "") ?? 0) + 1);
      return [...counts].sort(([a, n], [b, m]) => m - n || compare(a, b));
    };
    return FACETS.map(([key, title]) => facet(key, title, values(key), state, draw));
  }

  function empty(of) {
    if (of) return el("p", { class: "empty" }, "No claim is like this. ",
      el("button", { type: "button", class: "link", onclick: () => state.set({ ...ASKED }) }, "Show all"));
    return el("p", { class: "empty" }, "No claims yet. A claim says what a part of the model does, before it is tested: ",
      el("code", {}, "caseback claim new COMPONENT DESCRIPTION"));
  }

  function tableOf(rows) {
    const { sort, down } = state.get();
    const turn = (key) => state.set({ sort: key, down: String(sort === key ? down !== "true" : key === "created" || key === "tests"), page: "1" });
    const head = ([key, name]) => el("th", { scope: "col", class: `of-${name}`, "aria-sort": key === sort ? (down === "true" ? "descending" : "ascending") : null },
      el("button", { type: "button", onclick: () => turn(key) }, name));
    return el("table", { class: "runs claims" },
      el("caption", { class: "unseen" }, "Claims"),
      el("thead", {}, el("tr", {}, COLUMNS.map(head))),
      el("tbody", {}, rows.map((row) => el("tr", { "data-claim": row.id },
        el("td", { class: "of-status" }, status(row.status)),
        el("th", { scope: "row", class: "of-claim" }, row.note
          ? [claimLink(row.id, el("bdi", {}, row.id)), el("small", { class: "note" }, el("bdi", {}, row.note))]
          : [claimLink(row.id, el("bdi", {}, row.description)), el("small", {}, el("bdi", {}, row.component))]),
        el("td", { class: "of-tested" }, row.tests ? `${plural(row.tests, "test")} in ${plural(row.runs, "run")}` : row.note ? "" : "not yet"),
        el("td", { class: "of-made" }, row.created && moment(row.created))))));
  }

  function pager(at, pages) {
    const to = (n, text) => el("button", { type: "button", class: "quiet", disabled: n < 1 || n > pages, onclick: () => state.set({ page: String(n) }) }, text);
    return el("nav", { class: "pager", "aria-label": "Pages" }, to(at - 1, "← back"), el("span", { class: "soft" }, `${count(at)} of ${count(pages)}`), to(at + 1, "on →"));
  }

  walk(search, () => [...list.querySelectorAll("th.of-claim a")]);
  state.listen((values) => {
    if (search.value !== values.words) search.value = values.words;
    draw();
  });
  load();
  if (location.hash.startsWith("#search")) search.focus();

  let stamp = null;
  follow("/api/live", {
    study(seen) {
      if (stamp !== null && stamp !== seen.stamp) load();
      stamp = seen.stamp;
    },
  }, { broken: (error) => put(away, error && problem(error)) });
}

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? ""), "en", { numeric: true }));
