// One claim: how it stands and by which rule, what it said beforehand, and every test of it on one scale.

import { ask, follow } from "caseback/app/api";
import { reopen } from "caseback/app/code";
import { moment, runLink, status } from "caseback/app/parts";
import { escapes, problem } from "caseback/app/shell";
import { el, put, visible } from "caseback/dom";
import { axis, track } from "caseback/dots";
import { count, duration, interval, percent, plural } from "caseback/format";
import { linear } from "caseback/scales";

const WIDEST = 2; // a margin beyond ±200 % is drawn as an arrow, so that it does not squeeze the others
const LOOKS = { supports: "for", refutes: "against", undecided: "" };

export async function page(root, id) {
  escapes(() => false, "/claims");
  const away = el("div");
  const box = el("div");
  put(root, away, box);
  let shown = "";

  async function load() {
    try {
      const told = await ask(`/api/claims/${encodeURIComponent(id)}`);
      if (JSON.stringify(told) === shown) return;
      shown = JSON.stringify(told);
      document.title = visible(`${told.component} · claim · caseback`);
      const held = [...box.querySelectorAll("a, button, summary")].indexOf(document.activeElement);
      const open = [...box.querySelectorAll("details")].map((one) => one.open);
      put(box, drawn(told));
      box.querySelectorAll("details").forEach((one, i) => open[i] && one.setAttribute("open", ""));
      if (held >= 0) box.querySelectorAll("a, button, summary")[held]?.focus({ preventScroll: true });
    } catch (error) {
      put(box, problem(error), el("p", {}, el("a", { href: "/claims" }, "Back to the claims")));
    }
  }

  await load();
  let stamp = null;
  follow("/api/live", {
    study(seen) {
      if (stamp !== seen.stamp) load();
      stamp = seen.stamp;
    },
  }, { broken: (error) => put(away, error && problem(error)) });
}

function drawn(claim) {
  return [
    el("header", { class: "run-head" },
      el("p", { class: "id" }, el("bdi", {}, claim.component)),
      el("h1", {}, "“", el("bdi", {}, claim.description), "”"),
      el("p", { class: "facts" },
        el("span", {}, el("bdi", {}, claim.model), claim.revision && el("small", {}, " ", el("bdi", {}, String(claim.revision).slice(0, 24)))),
        moment(claim.created),
        el("span", {}, claim.found_in ? ["found in ", runLink(claim.found_in, "a run")] : ["found ", el("bdi", {}, claim.found)]),
        claim.prompts > 0 && el("span", {}, `${plural(claim.prompts, "prompt")} set aside`),
        el("span", { class: "id" }, el("bdi", {}, claim.id)))),
    standing(claim),
    saidBefore(claim),
    tests(claim),
    uncounted(claim),
    reopen(claim.code),
  ];
}

function standing({ status: now, because, rule }) {
  return el("section", { class: "standing", "aria-label": "How it stands" },
    el("div", {}, el("p", { class: "stands" }, status(now)), el("p", { class: "soft" }, because)),
    el("div", {}, el("h2", {}, "The rule"),
      el("dl", {}, rule.map(([name, when]) => el("div", { class: name === now ? "now-so" : null, "aria-current": name === now ? "true" : null },
        el("dt", {}, status(name)), el("dd", {}, when)))),
      el("p", { class: "soft" }, "The status follows from the tests; nobody sets it. A test once run counts for ever.")));
}

function saidBefore({ predictions, tests: all, created }) {
  const verdicts = (name) => {
    const found = all.filter(({ test }) => test === name);
    return el("li", {}, name, " ", found.length ? found.map(({ verdict }) => [status(verdict), " "]) : el("small", {}, "not tested"));
  };
  return el("section", {}, el("h2", {}, "Said beforehand"),
    el("p", { class: "soft measure" }, "Written down ", moment(created), ", before any test; another wording would be another claim."),
    el("ul", { class: "said" }, predictions.map(({ text, tests: names }) =>
      el("li", {}, el("p", {}, el("bdi", {}, text[0].toUpperCase() + text.slice(1)), "."), el("ul", {}, names.map(verdicts))))));
}

function tests({ tests: all, runs, meanings, code }) {
  const title = el("h2", {}, "Tests");
  if (!all.length) return el("section", {}, title, el("p", { class: "soft measure" }, "None yet. In a terminal: ", el("code", {}, code.shell.trim().split("\n").at(-1))));
  const scale = scaleOf(all);
  const names = [...new Set(all.map(({ test }) => test))];
  return el("section", {}, title,
    el("p", { class: "soft measure" }, "On prompts the claim was not found on. The margin is the value less what it must reach, in shares of 100 %; " +
      "bars are 95 % intervals. Wholly right of 0 supports the claim, wholly left refutes it."),
    el("table", { class: "tests" },
      el("caption", { class: "unseen" }, "Tests"),
      el("thead", {}, el("tr", {}, ["test", "verdict"].map(heading),
        el("th", { scope: "col", class: "of-margin" }, el("span", { class: "unseen" }, "margin"), axis(scale)),
        el("th", { scope: "col", class: "of-over" }, "margin"), ["value", "control", "must reach", "cost"].map(heading))),
      runs.map((run) => el("tbody", {},
        el("tr", { class: "of-run" }, el("th", { scope: "rowgroup", colspan: "8" },
          runLink(run.id, moment(run.created)), el("span", {}, el("bdi", {}, run.split)), el("span", {}, plural(run.pairs, "pair")),
          el("span", {}, `${plural(run.forwards, "prompt")} run in ${duration(run.seconds)}`))),
        all.filter((test) => test.run === run.id).map((test) => rowOf(test, run, scale))))),
    el("details", {}, el("summary", {}, "What each test measures"),
      el("ul", { class: "notes" }, names.map((name) => el("li", {}, meanings[name] ?? name)))));
}

const heading = (name) => el("th", { scope: "col", class: `of-${name.replace(" ", "-")}` }, name);

function rowOf(test, run, scale) {
  const { value, low, high, control, bar, verdict, over } = test;
  const ends = { value: over, low: test.over_low ?? -Infinity, high: test.over_high ?? Infinity };
  const cell = (name, ...inside) => el("td", { class: `of-${name.replace(" ", "-")}`, "data-name": name }, inside);
  return el("tr", {},
    el("th", { scope: "row", class: "of-test" }, test.test, test.split !== run.split && el("small", {}, el("bdi", {}, test.split))),
    cell("verdict", status(verdict)),
    el("td", { class: `of-margin ${LOOKS[verdict] ?? ""} ${verdict}` }, track(ends, scale)),
    el("td", { class: "of-over", "data-name": "margin" }, el("b", {}, signed(over)), " ", el("small", {}, between(test.over_low, test.over_high))),
    cell("value", percent(value), " ", el("small", {}, between(low, high))),
    cell("control", control === null ? "none" : [percent(control), " ", el("small", {}, between(test.control_low, test.control_high))]),
    cell("must reach", el("bdi", {}, bar)),
    cell("cost", count(test.forwards), el("small", {}, " prompts")));
}

const signed = (x) => (x > 0 ? "+" : "") + percent(x);
const known = (x) => typeof x === "number";
const between = (low, high) => (known(low) && known(high) ? interval(low, high)
  : known(low) ? `above ${percent(low)}` : known(high) ? `below ${percent(high)}` : "no bounds");

// One scale for all margins, 0 always on it.
function scaleOf(all) {
  const clip = (x) => Math.min(WIDEST, Math.max(-WIDEST, x));
  const ends = all.flatMap((test) => [test.over_low, test.over_high, test.over]).filter(known).map(clip);
  const low = Math.min(0, ...ends);
  const high = Math.max(0, ...ends);
  const room = 0.08 * (high - low || 1);
  const domain = [low - room, high + room];
  return { domain, ticks: linear(domain, [0, 1]).ticks(4).map((x) => [Math.abs(x) < 1e-9 ? 0 : x, Math.abs(x) < 1e-9 ? "0" : signed(x)]) };
}

function uncounted({ uncounted: others }) {
  if (!others.length) return null;
  return el("section", {}, el("h2", {}, "Runs that do not count"),
    el("p", { class: "soft measure" }, "Not finished, or of the model's twin with random weights, which tests the method."),
    el("ul", { class: "choose" }, others.slice(0, 50).map(({ id, status: state, created, twin }) => el("li", {},
      status(state), " ", runLink(id, moment(created)), twin && el("small", {}, " random twin")))));
}
