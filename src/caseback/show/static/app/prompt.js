// The prompt box: type, and see what comes next, where it comes from, where heads look and what every layer would say.

import { ask, lines } from "caseback/app/api";
import { keepFocus, strip } from "caseback/app/strip";
import { problem } from "caseback/app/shell";
import { el, put } from "caseback/dom";
import { fixed, number, part as share, percent, score } from "caseback/format";
import { heatMaps } from "caseback/heat";
import { hashState } from "caseback/state";

const PAUSE = 250; // after the last key, ms
const EXAMPLES = ["The capital of Japan is the city of", "When Mary and John went to the store, John gave a drink to", "The opposite of hot is"];
const METHODS = { occlusion: "occlusion", gradient: "gradient × input", integrated: "integrated gradients" };
const PARTS = ["tokens", "next", "attention", "inputs", "lens"]; // the order they are computed in
const client = [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(36)).join("");

export function page(root) {
  document.title = "Prompt · caseback";
  const state = hashState({ text: "", token: "", head: "", method: "occlusion", look: "taken", model: "" }, {
    token: (text) => /^\d{0,3}$/.test(text),
    head: (text) => /^(\d+\.\d+)?$/.test(text),
    method: (text) => text in METHODS,
    look: (text) => text === "taken" || text === "attention",
  });
  const input = el("textarea", { id: "prompt", rows: "2", spellcheck: "false", autocomplete: "off", "aria-label": "Prompt",
    placeholder: "Type a prompt", oninput: () => state.set({ text: input.value, token: "" }) });
  const models = el("span");
  const took = el("p", { class: "took", role: "status" });
  const places = Object.fromEntries(["next", "inputs", "attention", "lens"].map((name) => [name, el("section", { id: name })]));
  const reading = el("div", { class: "reading" }, Object.values(places));
  const trouble = el("div");
  put(root, el("h1", { class: "unseen" }, "Prompt"),
    el("div", { class: "ask" }, input,
      el("div", { class: "under-ask" }, models, took)), trouble, reading);

  let seen = {};
  let asking = null;
  let timer = 0;
  const owed = new Set(); // parts asked for that have not come: an answer that was broken off owes them still

  async function load(wanted) {
    asking?.abort();
    for (const part of wanted) owed.add(part);
    const { text, token, head, method, model } = state.get();
    if (!text) return greet();
    const mine = (asking = new AbortController());
    reading.classList.remove("done");
    reading.classList.add("stale");
    put(took, seen.model ? "reading …" : "loading the model …");
    const times = [];
    const parts = PARTS.filter((part) => owed.has(part));
    try {
      const body = { text, client, parts, method, token: token === "" ? -1 : Number(token), head: head || null, model: model || null };
      await lines("/api/prompt", body, (told) => {
        if (mine !== asking || told.part === "stale") return;
        if (told.part === "error") throw new Error(told.error);
        owed.delete(told.part);
        if (told.part === "tokens") seen = { model: seen.model };
        seen[told.part] = told;
        if (told.part !== "tokens" && (told.part !== "model" || told.ms > 20))
          times.push(`${told.part} ${told.ms >= 1000 ? `${fixed(told.ms / 1000, 1)} s` : `${Math.round(told.ms)} ms`}`);
        put(took, [seen.model?.name, ...times].filter(Boolean).join(" · "));
        put(trouble);
        reading.classList.remove("stale");
        keepFocus(reading, draw);
      }, mine.signal);
      if (mine === asking) reading.classList.add("done");
    } catch (error) {
      if (error.name === "AbortError" || mine !== asking) return;
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

  const choose = (i) => state.set({ token: String(i), head: state.get().head });
  const chosen = () => Math.min(Number(state.get().token || Infinity), seen.tokens.words.length - 1);

  // Every part that is known is drawn; what is there of an earlier prompt or token stays, faded, until its own has come.
  function draw() {
    if (!seen.tokens) return;
    const { words } = seen.tokens;
    const at = chosen();
    const fits = { next: true, inputs: seen.inputs?.error || seen.inputs?.token === at, attention: true, lens: places.lens.drawn !== seen.lens };
    for (const [name, section] of Object.entries({ next: nextSection, inputs: inputsSection, attention: attentionSection, lens: lensSection })) {
      places[name].classList.toggle("old", !seen[name] || (name === "inputs" && !fits.inputs));
      if (seen[name] && fits[name]) put(places[name], seen[name].error ? problem({ message: seen[name].error }) : section(words, at));
    }
    places.lens.drawn = seen.lens;
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
    return [
      el("div", { class: "bar" }, el("h2", {}, "Where ", el("bdi", {}, answer), " comes from"),
        choice(METHODS, state.get().method, (name) => state.set({ method: name }), "Method")),
      el("p", { class: "soft measure" }, `In logits: ${short}. The logit is ${number(logit)}; with nothing but mean embeddings, ${number(baseline)}.`),
      strip(words.slice(0, at + 1), { values: scores, shown: score, signed: true, chosen: at, choose, label: "Tokens, with their part in the next one" })];
  }

  function attentionSection(words, at) {
    const { head, pattern, taken, strongest } = seen.attention;
    const raw = state.get().look === "attention" || !taken;
    const map = raw ? pattern : taken;
    const row = map[at].map((value, i) => (i <= at ? value : null));
    const all = row.reduce((sum, value) => sum + (value ?? 0), 0) || 1;
    const shares = row.map((value) => (value === null ? null : value / all));
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
      strip(words, { values: shares, full: 1, shown: percent, chosen: at, choose, label: "Tokens, with the share the head takes from each" }),
      el("div", { class: "heads" },
        select("layer ", layers, layer, (l) => state.set({ head: `${l}.${index}` })),
        select("head ", heads, index, (h) => state.set({ head: `${layer}.${h}` })),
        el("span", { class: "soft" }, "taking most here: "),
        strongest.map(({ head: name, from }) => el("button", { type: "button", class: "quiet", "aria-pressed": String(name === head),
          title: `from ${from} ${words[from]}`, onclick: () => state.set({ head: name }) }, name))),
      el("details", { class: "whole", open: places.attention.querySelector("details")?.open },
        el("summary", {}, "Its whole map"),
        heatMaps([{ x: { name: "looked at", ...axis }, y: { name: "looks", ...axis }, values: full, format: raw ? "percent" : "number", scale: "sequential" }], `Head ${head}`))];
  }

  function lensSection(words) {
    const { sites, says, probability } = seen.lens;
    const flip = (rows) => [...rows].reverse();
    const heat = { x: { name: "token", labels: words.map((word, i) => `${i} ${word}`) }, y: { name: "site", labels: flip(sites) },
      values: flip(probability), texts: flip(says), format: "percent", scale: "sequential" };
    return [el("h2", {}, "What every layer would say"),
      el("p", { class: "soft measure" }, "The logit lens: the likeliest next token if the model stopped there; the colour is its probability."),
      heatMaps([heat], "Logit lens")];
  }

  state.listen((values, changed) => {
    if (input.value !== values.text) input.value = values.text;
    clearTimeout(timer);
    if (changed.has("text") || changed.has("model")) {
      timer = setTimeout(() => load(PARTS), changed.size > 5 ? 0 : PAUSE);
      return;
    }
    keepFocus(reading, draw);
    const parts = ["token", "head"].some((key) => changed.has(key)) ? ["attention"] : [];
    if (changed.has("token") || changed.has("method")) parts.push("inputs");
    if (parts.length) timer = setTimeout(() => load(parts), 60);
  });

  ask("/api/models").then((names) => {
    if (names.length < 2) return;
    put(models, el("label", { class: "soft" }, "model ", el("select", { onchange: (event) => state.set({ model: event.target.value, head: "" }) },
      names.map((name) => el("option", { value: name ?? "", selected: (name ?? "") === state.get().model }, name ?? "the default")))));
  }, (error) => put(trouble, problem(error)));
  input.focus({ preventScroll: true });
}

function choice(names, wanted, pick, label) {
  return el("span", { class: "choice one", role: "group", "aria-label": label }, Object.entries(names).map(([name, text]) =>
    el("button", { type: "button", "aria-pressed": String(name === wanted), onclick: () => pick(name) }, text)));
}
