// One run: its drawing as in the report, or how far it is; then its tables, how to reopen it, and all that happened.

import { ask, follow, send, text } from "caseback/app/api";
import { reopen } from "caseback/app/code";
import { stopButton } from "caseback/app/jobs";
import { claimLink, moment, progress, status } from "caseback/app/parts";
import { escapes, problem } from "caseback/app/shell";
import { el, put, visible } from "caseback/dom";
import { duration } from "caseback/format";
import { list } from "caseback/record";
import { table } from "caseback/table";
import { view as circuit } from "caseback/views/circuit";
import { view as experiment } from "caseback/views/experiment";
import { view as relation } from "caseback/views/relation";

const VIEWS = { circuit, experiment, relation };

export async function page(root, id) {
  escapes(() => ["node", "sample"].some((name) => new URLSearchParams(location.hash.slice(1)).has(name)));
  const api = `/api/runs/${encodeURIComponent(id)}`;
  try {
    const run = await ask(api);
    document.title = visible(`${run.title || run.task} · ${run.method} · caseback`);
    const payload = run.drawn ? await ask(`${api}/payload`) : null;
    if (payload && VIEWS[payload.kind]) {
      const { model_files: _files, ...settings } = payload.settings; // they stand in the record
      VIEWS[payload.kind](root, { ...payload, settings }, (_, __, content) => [head(run, run.title || payload.title, payload.task.description), content, about(run, api)]);
    } else {
      put(root, head(run, `${run.method}: ${run.title || run.task}`), undrawn(run), about(run, api));
    }
    if (run.status === "running") attend(root, run, api);
  } catch (error) {
    put(root, problem(error), el("p", {}, el("a", { href: "/" }, "Back to the casebook")));
  }
}

function head(run, title, description) {
  const { cost } = run;
  const revision = run.model.revision ? ` ${String(run.model.revision).slice(0, 10)}` : "";
  return el("header", { class: "run-head" },
    el("h1", {}, el("bdi", {}, title)),
    description && el("p", { class: "soft measure" }, el("bdi", {}, description)),
    el("p", { class: "facts" },
      status(run.status),
      el("span", {}, el("bdi", {}, run.model.id ?? "no model"), el("small", {}, revision)),
      el("span", {}, moment(run.created)),
      el("span", {}, duration(cost.seconds), cost.sessions > 1 && el("small", {}, ` in ${cost.sessions} sessions`)),
      el("span", { class: "id" }, el("bdi", {}, run.id)),
      run.method === "claim-test" && claimLink(run.params.claim, "the claim and all its tests"),
      run.status === "finished" && el("a", { href: `/compare#${new URLSearchParams({ a: run.id })}` }, "compare with another"),
      el("span", { id: "act" }, ["interrupted", "unfinished", "failed", "damaged"].includes(run.status) &&
        el("button", { type: "button", class: "act", onclick: (event) => goOn(event.target, run.id) }, "Go on with it"))));
}

async function goOn(button, id) {
  button.setAttribute("disabled", "");
  try {
    await send(`/api/runs/${encodeURIComponent(id)}/resume`, {});
    setTimeout(() => location.reload(), 1500);
  } catch (error) {
    button.replaceWith(problem(error));
  }
}

function undrawn(run) {
  const failed = [...run.events].reverse().find(({ kind }) => kind === "failed");
  return el("section", { id: "progress" },
    run.status === "failed" && failed && el("p", { class: "problem" }, el("bdi", {}, failed.error ?? "It failed.")),
    run.status !== "finished" && el("h2", {}, "How far it is"),
    el("div", { class: "stages" }, run.stages.map(({ name, done, steps }) => progress({ stage: name, done, total: steps }))),
    run.status !== "finished" && !run.stages.length && el("p", { class: "soft" }, "Nothing is saved yet."),
    run.table && el("div", { class: "lists" }, list("Result", scalars(run.table))));
}

const scalars = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => typeof value !== "object" || value === null));

function about(run, api) {
  const shown = run.drawn ? null : [list("Settings", run.params), list("Environment", run.environment)];
  return [
    run.tables.length > 0 && el("section", {},
      el("h2", {}, "Tables"),
      el("p", { class: "downloads" }, run.tables.map((name) =>
        el("button", { type: "button", class: "quiet", onclick: () => download(api, run.id, name) }, el("bdi", {}, name), " .csv")))),
    reopen(run.code),
    el("section", { class: "record" },
      el("h2", {}, "The record"),
      el("div", { class: "lists" },
        shown,
        list("As it was asked", run.passed),
        list("Model files", run.model.files ?? {})),
      events(run)),
  ];
}

async function download(api, id, name) {
  const csv = await text(`${api}/table?${new URLSearchParams({ name })}`);
  const url = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
  el("a", { href: url, download: `${id} ${name}.csv`.replace(/[^\w .()-]+/g, "_") }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function events(run) {
  const left = run.events_left_out;
  const columns = [
    { name: "when", by: ({ at }) => at, show: ({ at }) => (at ?? "").slice(0, 19).replace("T", " ") },
    { name: "what", by: ({ kind }) => kind, show: ({ kind }) => kind },
    { name: "stage", by: ({ stage }) => stage ?? "", show: ({ stage, done, total }) => [stage ?? "", total > 1 && typeof done === "number" ? el("small", {}, ` ${done} of ${total}`) : null] },
    { name: "after", number: true, by: ({ seconds }) => seconds, show: ({ seconds }) => duration(seconds) },
    { name: "", show: detail },
  ];
  return el("details", { class: "events" }, el("summary", {}, `What happened: ${run.events.length} events${left ? ` (${left} earlier ones are in events.jsonl)` : ""}`),
    table(columns, run.events, { caption: "Events; times are UTC" }));
}

function detail(event) {
  const { at, kind, stage, done, total, seconds, cpu_seconds, peak_memory_mb, pid, ...rest } = event;
  const told = Object.entries(rest).filter(([, value]) => typeof value !== "object" || Object.keys(value ?? {}).length);
  return el("bdi", {}, told.map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", "));
}

// A run that another process computes, begun in a terminal or by an earlier server: what Ctrl-C is there.
function stopElsewhere(api, failed) {
  const button = el("button", { type: "button", class: "quiet", title: "as Ctrl-C where it was begun; what is saved is kept", onclick: stop }, "stop");
  async function stop() {
    put(button, "stopping …").setAttribute("disabled", "");
    try {
      await send(`${api}/stop`, {});
    } catch (error) {
      failed(error);
    }
  }
  return button;
}

// A run that is computed now: its stages move; when it ends, the page is drawn anew.
function attend(root, run, api) {
  const box = root.querySelector("#progress .stages");
  const act = root.querySelector("#act");
  ask("/api/jobs").then((jobs) => {
    const own = jobs.find((job) => job.run === run.id && job.state === "running");
    const failed = (error) => put(act, problem(error));
    put(act, own ? stopButton(own, failed) : stopElsewhere(api, failed));
  });
  const stages = new Map(run.stages.map(({ name, done, steps }) => [name, { stage: name, done, total: steps }]));
  follow(`${api}/events`, {
    events(told) {
      for (const { kind, stage, done, total, seconds } of told) {
        if (kind === "stage-finished" || kind === "stage-reopened") {
          const known = stages.get(stage);
          stages.set(stage, { stage, done: known?.total ?? 1, total: known?.total ?? 1 });
        } else if (stage && typeof total === "number") stages.set(stage, { stage, done, total, seconds });
      }
      put(box, [...stages.values()].map(progress));
    },
    end() {
      location.reload();
      return true;
    },
  });
}
