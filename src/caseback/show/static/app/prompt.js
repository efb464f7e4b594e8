// The prompt box: type, and see what comes next, where it comes from, where heads look and what every layer would say; beside
// each, if wanted, the same of a random twin; and, with a second prompt, where the two part.

import { ask, lines } from "caseback/app/api";
import { choice } from "caseback/app/choice";
import { comparedFields, DIRECTIONS, patchSection, SITES } from "caseback/app/patch";
import { keepFocus, strip } from "caseback/app/strip";
import { problem } from "caseback/app/shell";
import { el, put } from "caseback/dom";
import { fixed, number, part as share, percent, score } from "caseback/format";
import { heatMaps } from "caseback/heat";
import { hashState } from "caseback/state";

const PAUSE = 250; // after the last key, ms
const EXAMPLES = ["The capital of Japan is the city of", "When Mary and John went to the store, John gave a drink to", "The opposite of hot is"];
const METHODS = { occlusion: "occlusion", gradient: "gradient × input", integrated: "integrated gradients" };
const TWIN = "A model of the same shape with random weights: what it shows, the method shows where nothing was learnt.";
const PARTS = ["tokens", "next", "attention", "inputs", "lens"];
const TWINS = ["twin.attention", "twin.inputs", "twin.lens"];
const ORDER = [...PARTS, ...TWINS, "patch"]; // they are computed in
const client = [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(36)).join("");

export function page(root) {
  document.title = "Prompt · caseback";
  const state = hashState({ text: "", token: "", head: "", method: "occlusion", look: "taken", model: "", twin: "false",
    against: "false", other: "", site: "resid_post", direction: "denoise", answer: "", foil: "" }, {
    token: (text) => /^\d{0,3}$/.test(text),
    head: (text) => /^(\d+\.\d+)?$/.test(text),
    method: (text) => Object.hasOwn(METHODS, text),
    look: (text) => text === "taken" || text === "attention",
    twin: (text) => text === "true" || text === "false",
    against: (text) => text === "true" || text === "false",
    site: (text) => Object.hasOwn(SITES, text),
    direction: (text) => Object.hasOwn(DIRECTIONS, text),
  });
  const input = el("textarea", { id: "prompt", rows: "2", spellcheck: "false", autocomplete: "off", "aria-label": "Prompt",
    placeholder: "Type a prompt", oninput: () => state.set({ text: input.value, token: "" }) });
  const second = el("textarea", { id: "other", rows: "1", spellcheck: "false", autocomplete: "off", "aria-label": "Second prompt",
    placeholder: "A second prompt of as many tokens", oninput: () => state.set({ other: second.value }) });
  const compared = comparedFields(state);
  const tick = (key, name, tip) => el("label", { class: "soft", title: tip }, el("input", { type: "checkbox", id: key,
    onchange: (event) => turn(key, event.target.checked) }), name);
  const models = el("span");
  const took = el("p", { class: "took", role: "status" });
  const places = Object.fromEntries(["next", "patch", "inputs", "attention", "lens"].map((name) => [name, el("section", { id: name })]));
  const reading = el("div", { class: "reading" }, Object.values(places));
  const trouble = el("div");
  put(root, el("h1", { class: "unseen" }, "Prompt"),
    el("div", { class: "ask" }, input, second,
      el("div", { class: "under-ask" }, models, tick("twin", "beside its random twin", TWIN), tick("against", "against a second prompt"), took)), trouble, reading);

  let seen = {};
  let asking = null;
  let timer = 0;
  let outdated = false; // the grid that is drawn answers an earlier question
  const owed = new Set(); // parts asked for that have not come: an answer that was broken off owes them still
  const on = (key) => state.get()[key] === "true";
  const wants = (part) => (part === "patch" ? on("against") && state.get().other.trim() && state.get().other !== state.get().text
    : !part.startsWith("twin.") || on("twin"));

  function turn(key, checked) {
    const { text, other } = state.get();
    state.set({ [key]: String(checked), ...(key === "against" && checked && !other && { other: text }) });
    if (key === "against" && checked) second.focus();
  }

  async function load(wanted) {
    asking?.abort();
    for (const part of wanted) owed.add(part);
    const { text, token, head, method, model, other, site, direction, answer, foil } = state.get();
    if (!text) return greet();
    if (wanted.includes("patch")) outdated = wants("patch");
    const mine = (asking = new AbortController());
    reading.classList.remove("done");
    reading.classList.add("stale");
    put(took, seen.model ? "reading …" : "loading the model …");
    const times = [];
    const parts = ORDER.filter((part) => owed.has(part) && wants(part));
    try {
      const body = { text, client, parts, method, token: token === "" ? -1 : Number(token), head: head || null, model: model || null,
        ...(parts.includes("patch") && { other, site, direction, answer, foil }) };
      await lines("/api/prompt", body, (told) => {
        if (mine !== asking || told.part === "stale") return;
        if (told.part === "error") throw new Error(told.error);
        const more = told.left > 0; // rows of a grid are still to come
        if (!more) owed.delete(told.part);
        if (told.part === "tokens") seen = { model: seen.model };
        seen[told.part] = told.part === "patch" ? grown(seen.patch, told) : told;
        if (told.part === "patch") outdated = false;
        if (!more && told.part !== "tokens" && (told.part !== "model" || told.ms > 20))
          times.push(`${told.part.replace(".", " ")} ${told.ms >= 1000 ? `${fixed(told.ms / 1000, 1)} s` : `${Math.round(told.ms)} ms`}`);
        put(took, [seen.model?.name, ...times].filter(Boolean).join(" · "));
        put(trouble);
        reading.classList.remove("stale");
        keepFocus(reading, told.part === "patch" ? drawPatch : draw);
      }, mine.signal);
      if (mine === asking) reading.classList.add("done");
    } catch (error) {
      if (error.name === "AbortError" || mine !== asking) return;
      reading.classList.add("stale"); // what stands there is of another prompt
      put(trouble, problem(error));
      put(took);
    }
  }

  function greet() {
    put(took);
    seen = { model: seen.model };
    places.lens.drawn = null;
    for (const box of Object.values(places)) put(box).classList.remove("old");
    put(places.next, el("p", { class: "soft measure" }, "Raw text, as the model gets it. Or one of these:"),
      el("ul", { class: "choose" }, EXAMPLES.map((text) => el("li", {},
        el("button", { type: "button", class: "link", onclick: () => state.set({ text }) }, text)))));
  }

  const twinOf = (part) => (on("twin") ? seen[`twin.${part}`] : null);
  const sameLens = () => places.lens.drawn?.lens === seen.lens && places.lens.drawn?.twin === twinOf("lens");
  const choose = (i) => state.set({ token: String(i), head: state.get().head });
  const chosen = () => Math.min(Number(state.get().token || Infinity), seen.tokens.words.length - 1);

  // Every part that is known is drawn; what is there of an earlier prompt or token stays, faded, until its own has come.
  function draw() {
    if (!seen.tokens) return;
    const { words } = seen.tokens;
    const at = chosen();
    const fits = { next: true, inputs: seen.inputs?.error || seen.inputs?.token === at, attention: true, lens: !sameLens() };
    for (const [name, section] of Object.entries({ next: nextSection, inputs: inputsSection, attention: attentionSection, lens: lensSection })) {
      places[name].classList.toggle("old", !seen[name] || (name === "inputs" && !fits.inputs));
      if (seen[name] && fits[name]) put(places[name], seen[name].error ? problem({ message: seen[name].error }) : section(words, at));
    }
    places.lens.drawn = { lens: seen.lens, twin: twinOf("lens") };
    drawPatch();
  }

  // A map that somebody walks on is left as it is until all its rows are there.
  function drawPatch() {
    const { patch } = seen;
    if (!on("against") || !state.get().text) return put(places.patch);
    places.patch.classList.toggle("old", outdated);
    if (outdated && !patch && places.patch.querySelector(".heat")) return;
    if (patch?.left && places.patch.querySelector(".heat-scroll")?.contains(document.activeElement)) return;
    put(places.patch, patchSection(patch, state, compared));
  }

  function nextSection(words, at) {
    const { says, probability } = seen.next;
    const rows = says[at].map((word, i) => el("li", { style: { "--part": String(probability[at][i]) } },
      el("bdi", { class: "word" }, word || "∅"), el("i", { "aria-hidden": "true" }), el("span", {}, share(probability[at][i]))));
    return [
      el("h2", {}, "What comes next"),
      el("p", { class: "soft measure" }, "Over each token, how likely the model holds the next one that stands under it. Choose a token to look at it."),
      strip(words, { values: probability.map(([best]) => best), full: 1, shown: percent, chosen: at, choose, under: (i) => `→ ${says[i][0]}`,
        label: "Tokens, with the probability of the likeliest next one" }),
      el("div", { class: "next" }, el("h3", {}, "After ", el("bdi", {}, `${at} ${words[at]}`)), el("ol", {}, rows))];
  }

  function inputsSection(words, at) {
    const { scores, answer, logit, baseline, method } = seen.inputs;
    const short = { occlusion: "what the logit loses when the token gives way to a mean embedding", gradient: "the embedding against a mean one, times the gradient",
      integrated: "the gradient along the way from a mean embedding, summed" }[method];
    const beside = twinOf("inputs");
    const twin = beside?.token === at && beside.method === method ? beside : null;
    const full = Math.max(...[...scores, ...(twin?.scores ?? [])].map(Math.abs), 1e-12);
    const bars = (values, label) => strip(words.slice(0, at + 1), { values, full, shown: score, signed: true, chosen: at, choose, label });
    return [
      el("div", { class: "bar" }, el("h2", {}, "Where ", el("bdi", {}, answer), " comes from"),
        choice(METHODS, state.get().method, (name) => state.set({ method: name }), "Method")),
      el("p", { class: "soft measure" }, `In logits: ${short}. The logit is ${number(logit)}; with nothing but mean embeddings, ${number(baseline)}.`),
      bars(scores, "Tokens, with their part in the next one"),
      twinBlock(beside, twin, () => [
        el("p", { class: "soft measure" }, "The parts of the same tokens in the logit of ", el("bdi", {}, answer),
          `, on the same scale. The largest is ${score(largest(twin.scores))} there and ${score(largest(scores))} in the model.`),
        bars(twin.scores, "Random twin: tokens, with their part in the next one")])];
  }

  // What stands beside a part when the twin is wanted: the same of the twin, or that it is still to come.
  function twinBlock(beside, twin, shown) {
    if (!on("twin")) return null;
    return el("div", { class: "twin" }, el("h3", {}, "Its random twin ", el("small", {}, "the same shape, weights never trained")),
      beside?.error ? problem({ message: beside.error }) : twin ? shown() : el("p", { class: "soft" }, "reading …"));
  }

  function attentionSection(words, at) {
    const { head, pattern, taken, strongest } = seen.attention;
    const raw = state.get().look === "attention" || !taken;
    const map = raw ? pattern : taken;
    const sharesOf = (values) => {
      const all = values.slice(0, at + 1).reduce((sum, value) => sum + value, 0) || 1;
      return values.map((value, i) => (i <= at ? value / all : null));
    };
    const shares = sharesOf(map[at]);
    const beside = twinOf("attention");
    const twin = beside?.token === at && beside.head === head ? beside : null;
    const bars = (values, label) => strip(words, { values, full: 1, shown: percent, chosen: at, choose, label });
    const most = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
    const mostOf = (values) => ["most from ", el("bdi", {}, `${most(values)} ${words[most(values)]}`), ` (${percent(Math.max(...values))})`];
    const { layers, heads } = seen.model;
    const [layer, index] = head.split(".").map(Number);
    const select = (name, n, value, pick) => el("label", {}, name, el("select", { onchange: (event) => pick(Number(event.target.value)) },
      Array.from({ length: n }, (_, i) => el("option", { value: i, selected: i === value }, i))));
    const full = words.map((_, t) => words.map((__, s) => (s <= t ? map[t][s] : null)));
    const axis = { labels: words.map((word, i) => `${i} ${word}`) };
    return [
      el("div", { class: "bar" }, el("h2", {}, `Where head ${head} looks`),
        taken && choice({ taken: "what it takes", attention: "attention alone" }, state.get().look, (name) => state.set({ look: name }), "What is shown")),
      el("p", { class: "soft measure" }, raw ? "Shares of its attention at the chosen token." :
        "Shares of what it takes at the chosen token: attention times the length of what the looked-at token gives, |A v W_O|."),
      bars(shares, "Tokens, with the share the head takes from each"),
      el("div", { class: "heads" },
        select("layer ", layers, layer, (l) => state.set({ head: `${l}.${index}` })),
        select("head ", heads, index, (h) => state.set({ head: `${layer}.${h}` })),
        el("span", { class: "soft" }, "taking most here: "),
        strongest.map(({ head: name, from }) => el("button", { type: "button", class: "quiet", "aria-pressed": String(name === head),
          title: `from ${from} ${words[from]}`, onclick: () => state.set({ head: name }) }, name))),
      twinBlock(beside, twin, () => {
        const random = sharesOf((raw ? twin.pattern : twin.taken)[at]);
        return [el("p", { class: "soft measure" }, "The same head takes ", mostOf(random), " there, and ", mostOf(shares), " in the model."),
          bars(random, "Random twin: tokens, with the share the head takes from each")];
      }),
      el("details", { class: "whole", open: places.attention.querySelector("details")?.open },
        el("summary", {}, "Its whole map"),
        heatMaps([{ x: { name: "looked at", ...axis }, y: { name: "looks", ...axis }, values: full, format: raw ? "percent" : "number", scale: "sequential" }], `Head ${head}`))];
  }

  function lensSection(words) {
    const flip = (rows) => [...rows].reverse();
    const heatOf = ({ sites, says, probability }, name) => ({ name, x: { name: "token", labels: words.map((word, i) => `${i} ${word}`) },
      y: { name: "site", labels: flip(sites) }, values: flip(probability), texts: flip(says), format: "percent", scale: "sequential" });
    const beside = twinOf("lens");
    const twin = beside && !beside.error ? beside : null;
    const surest = ({ probability }) => percent(Math.max(...probability.flat()));
    return [el("h2", {}, "What every layer would say"),
      el("p", { class: "soft measure" }, "The logit lens: the likeliest next token if the model stopped there; the colour is its probability.",
        twin && ` Its surest is ${surest(seen.lens)}; of the random twin, ${surest(twin)}.`),
      heatMaps(twin ? [heatOf(seen.lens, seen.model.name), heatOf(twin, "its random twin")] : [heatOf(seen.lens)], "Logit lens"),
      on("twin") && !twin && twinBlock(beside, null)];
  }

  state.listen((values, changed) => {
    for (const [box, value] of [[input, values.text], [second, values.other], ...fieldsOf(compared, values)]) if (box.value !== value) box.value = value;
    for (const key of ["twin", "against"]) document.getElementById(key).checked = on(key);
    second.hidden = !on("against");
    clearTimeout(timer);
    const has = (...keys) => keys.some((key) => changed.has(key));
    if (has("text", "model")) {
      timer = setTimeout(() => load(ORDER), changed.size > 5 ? 0 : PAUSE);
      return;
    }
    keepFocus(reading, draw);
    const parts = [];
    if (has("token", "head")) parts.push("attention", "twin.attention");
    if (has("token", "method")) parts.push("inputs", "twin.inputs");
    if (has("twin")) parts.push(...TWINS);
    if (has("against", "other", "site", "direction", "answer", "foil")) parts.push("patch");
    for (const part of parts) owed.add(part);
    if (parts.length) timer = setTimeout(() => load(parts), has("other", "answer", "foil") ? PAUSE : 60);
  });

  ask("/api/models").then((names) => {
    if (names.length < 2) return;
    put(models, el("label", { class: "soft" }, "model ", el("select", { onchange: (event) => state.set({ model: event.target.value, head: "" }) },
      names.map((name) => el("option", { value: name ?? "", selected: (name ?? "") === state.get().model }, name ?? "the default")))));
  }, (error) => put(trouble, problem(error)));
  input.focus({ preventScroll: true });
}

// A grid with the rows that have come.
function grown(grid, told) {
  if (told.error || told.words) return { ...told, rows: new Map(told.rows) };
  return { ...grid, ...told, rows: new Map([...grid.rows, ...told.rows]) };
}

const fieldsOf = (box, values) => [...box.querySelectorAll("input")].map((field) => [field, values[field.name]]);

const largest = (values) => values.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
