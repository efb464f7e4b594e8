"""Operators along k directions of the final stream against exact ones: time, what they miss, how faithful they are.

Time is that of the whole estimate, prompts' beginnings and the search for the directions included. What is missed is
given as estimated and as it is, which the exact operator tells. Faithfulness is held out: layer and β chosen on one half
of the known samples, scored on the other, both ways.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from bench import cases
from bench.clock import interleaved, ratio, write
from caseback.evidence import proportion_interval
from caseback.model.model import Model
from caseback.relations.faithful import Answers, answers
from caseback.relations.library import get
from caseback.relations.observe import draw, observe
from caseback.relations.operator import Operators, fit
from caseback.relations.sketch import PROBES

__all__ = ["measure"]

RELATIONS = ("adjective comparative", "country capital city")
SIZES = (64, 128, 256)


def measure(rounds: int = 1) -> None:
    """Measure and write bench/results/sketch.json."""
    torch.set_num_threads(1)
    model = cases.default_model()
    found: dict[str, Any] = {"model": model.name, "d": model.d_model, "probes": PROBES, "relations": {}}
    for name in RELATIONS:
        found["relations"][name] = one_relation(model, name, rounds)
        report(name, found["relations"][name])
    write("sketch", found)


def one_relation(model: Model, name: str, rounds: int) -> dict[str, Any]:
    relation = get(name)
    template = relation.prompt_templates[0]
    training, rest = draw(relation.samples, 5, seed=0)
    train = [relation.samples[i] for i in training]
    seen = observe(model, [relation.samples[i] for i in rest], template, train)
    seen = seen[np.flatnonzero(seen.known)]
    kept: dict[str, Operators] = {}

    def estimate(k: int | None) -> None:
        kept[str(k)] = fit(model, train, template, sketch=k)

    jobs = {str(k): partial(estimate, k) for k in (None, *SIZES)}
    times = interleaved(jobs, rounds=rounds, warm=False)
    exact, tried = kept["None"], {}
    for k, operators in kept.items():
        strict = held_out(answers(model, operators, seen))
        one: dict[str, Any] = {"time": times[k], "strict": asdict(proportion_interval(int(strict.sum()), len(strict)))}
        if operators.basis is not None and operators.error is not None:
            W, Q = exact.W, operators.basis
            missed = (W - Q @ (Q.T @ W)).flatten(1).norm(dim=1) / W.flatten(1).norm(dim=1)
            one["times_faster"] = ratio(times["None"].cpu, times[k].cpu)
            one["error"] = {
                "estimated": float(operators.error.median()),
                "true": float(missed.median()),
                "off_by_at_most": float((operators.error / missed - 1).abs().max()),
            }
        tried["exact" if k == "None" else k] = one
    return {"known": len(seen), "tokens": len(seen.prompts[0].ids) - seen.prompts[0].at, "tried": tried}


def held_out(found: Answers) -> np.ndarray:
    """Whether each sample's answer is the model's."""
    order = np.random.default_rng(0).permutation(len(found.token))
    right = np.zeros(len(order), dtype=bool)
    for choose, score in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        right[score] = found.strict[(*found.choose(choose), score)]
    return right


def report(name: str, found: dict[str, Any]) -> None:
    for k, one in found["tried"].items():
        line = f"  {name}, {k}: {one['time'].cpu[0]:.1f} CPU-s, strict {one['strict']['value']:.2f}"
        if "error" in one:
            line += f", {one['times_faster']} times faster, misses {one['error']['estimated']:.2f} ({one['error']['true']:.2f})"
        print(line, flush=True)
