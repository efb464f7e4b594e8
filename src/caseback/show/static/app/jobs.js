// The studies begun from this server: how far each is, and how to stop it.

import { send } from "caseback/app/api";
import { progress, runLink } from "caseback/app/parts";
import { el } from "caseback/dom";

export function jobList(jobs, failed) {
  return jobs.map((job) => el("div", { class: "job" },
    el("div", { class: "what" }, el("b", {}, job.method), " ",
      job.run ? runLink(job.run, el("bdi", {}, job.run)) : el("span", { class: "soft" }, job.state === "running" ? "no run yet" : "no run was made")),
    state(job), stopButton(job, failed)));
}

function state(job) {
  if (job.state === "running") return progress(job);
  if (job.state === "failed") return el("p", { class: "note" }, el("bdi", {}, job.error));
  return el("p", { class: "soft" }, { finished: "finished", stopped: "stopped; it can be gone on with from its page" }[job.state] ?? job.state);
}

export function stopButton(job, failed) {
  if (job.state !== "running") return null;
  const stop = () => send(`/api/jobs/${job.job}/cancel`, {}).catch(failed);
  return el("button", { type: "button", class: "quiet", disabled: job.stopping, onclick: stop }, job.stopping ? "stopping …" : "stop");
}
