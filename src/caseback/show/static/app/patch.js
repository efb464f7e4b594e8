// Where two prompts differ inside the model: a grid of patches, layer by token, that fills from the last layer down.

import { choice } from "caseback/app/choice";
import { problem } from "caseback/app/shell";
import { el, put } from "caseback/dom";
import { score } from "caseback/format";
import { heatMaps } from "caseback/heat";

export const SITES = { resid_post: "stream", attn_out: "attention", mlp_out: "MLP" };
export const DIRECTIONS = { denoise: "first into second", noise: "second into first" };
const WHAT = { resid_post: "the stream after a layer", attn_out: "what a layer's attention adds", mlp_out: "what a layer's MLP adds" };

// `seen`: the parts of the answer with its rows by layer; null before anything has come.
export function patchSection(seen, state, fields) {
  const { site, direction, text, other } = state.get();
  const bar = el("div", { class: "bar" }, el("h2", {}, "Where the two prompts part"), el("span", { class: "choices" },
    choice(SITES, site, (name) => state.set({ site: name }), "What is patched"),
    choice(DIRECTIONS, direction, (name) => state.set({ direction: name }), "Direction")));
  if (!other.trim() || other === text)
    return [bar, el("p", { class: "soft measure" }, "Change a word of the second prompt, for one of as many tokens: ",
      "then every place of one run is put into the other, and one sees where the answer follows.")];
  if (!seen) return [bar, fields, el("p", { class: "soft" }, "patching …")];
  if (seen.error) return [bar, fields, problem({ message: seen.error })];
  return [bar, fields, said(seen), map(seen),
    el("p", { class: "soft measure" }, "Tokens before the first that differs hold the same in both runs, so a patch there is 0 and not computed. ",
      "One pair of prompts has no interval: over many, ", el("code", {}, "caseback patch"), " makes a run with one.")];
}

function said({ site, direction, answer, foil, start, other, layers, left }) {
  const [into, from] = direction === "denoise" ? ["second", "first"] : ["first", "second"];
  return el("p", { class: "soft measure" },
    `A value of the ${from} prompt's run, ${WHAT[site]} at one token, is put into the ${into}'s. Followed is the logit of `,
    el("bdi", {}, `“${answer}”`), " minus that of ", el("bdi", {}, `“${foil}”`), `: ${score(start)} without a patch is 0 %, ${score(other)} in the other run is 100 %.`,
    left > 0 && el("span", { class: "left" }, ` ${layers.length - left} of ${layers.length} layers.`));
}

function map({ words: [first, second], layers, rows, site }) {
  const labels = first.map((word, i) => `${i} ${word === second[i] ? word : `${word}/${second[i]}`}`);
  const heat = { x: { name: "token", labels }, y: { name: site, labels: layers.map(String) }, format: "percent", scale: "diverging",
    values: layers.map((layer) => rows.get(layer) ?? labels.map(() => null)) };
  return heatMaps([heat], "Patches");
}

// The words that are compared; empty: what either prompt makes likeliest.
export function comparedFields(state) {
  const field = (key, name) => el("label", {}, name, el("input", { type: "text", name: key, autocomplete: "off", spellcheck: "false", value: state.get()[key],
    placeholder: "its likeliest", oninput: (event) => state.set({ [key]: event.target.value }) }));
  return el("div", { class: "compared" }, field("answer", "after the first: "), field("foil", "after the second: "));
}
