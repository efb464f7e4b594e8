// The prompts of the task, token by token, each span with its name and its own tint.

import { el, put } from "caseback/dom";
import { number } from "caseback/format";

// Hues a golden angle apart: neighbours differ, and any number of spans has one each.
export const hue = (span) => String((40 + span * 137.5) % 360);

// The example the reader chose, from the state's "1", "2", …; undefined when there is none.
export const chosenPrompt = ({ prompts }, { prompt }) => prompts[Number(prompt) - 1];

export function promptFigure(payload, state) {
  const { prompts, task } = payload;
  const box = el("div", { class: "prompt" });
  if (!prompts.length) return el("p", { class: "soft" }, "This run kept no example prompts.");

  function show(i) {
    const prompt = prompts[i];
    const tabs = prompts.length > 1 &&
      el("div", { class: "choice", role: "group", "aria-label": "Example" },
        prompts.map((_, k) =>
          el("button", { type: "button", "aria-pressed": String(k === i), "aria-label": `Example ${k + 1}`,
            onclick: () => state.set({ prompt: String(k + 1) }) }, k + 1)));
    put(box,
      el("div", { class: "prompt-head" }, el("h2", {}, "The question"), tabs),
      el("p", { class: "tokens" },
        groups(prompt.tokens, prompt).map(({ name, tokens, span }) =>
          el("span", { class: span < 0 ? "span none" : "span", style: { "--hue": hue(span) } },
            el("span", { class: "words" }, tokens.map((token) => el("bdi", {}, token))),
            el("span", { class: "span-name" }, name))),
        el("span", { class: "answer" },
          el("span", { class: "words" }, el("bdi", {}, prompt.answers.join(" · ").trim())),
          el("span", { class: "span-name" },
            prompt.foils.length ? ["not ", el("bdi", {}, prompt.foils.join(" · ").trim())] : "answer"))),
      el("p", { class: "counterfactual" },
        el("span", { class: "lead" }, "against "),
        prompt.counterfactual.map((token, k) =>
          token === prompt.tokens[k] ? el("bdi", {}, token) : el("bdi", { class: "changed" }, token)),
        typeof prompt.metric === "number" &&
          el("span", { class: "soft" }, `   ${task.metric.replaceAll("_", " ")} ${number(prompt.metric)}`)));
  }

  state.listen(({ prompt }, changed) => {
    if (changed.has("prompt")) show(Number(prompt) - 1);
  });
  return box;

  // Consecutive tokens of one span; tokens outside every span have none.
  function groups(tokens, { spans }) {
    const out = [];
    let at = 0;
    for (const [name, start, end] of [...spans, [null, tokens.length, tokens.length]]) {
      if (at < start) out.push({ name: "", tokens: tokens.slice(at, start), span: -1 });
      if (start < end) out.push({ name, tokens: tokens.slice(start, end), span: task.spans.indexOf(name) });
      at = end;
    }
    return out;
  }
}
