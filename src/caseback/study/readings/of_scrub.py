"""Causal scrubbing as a run: how much of the answer is left when all is exchanged that a hypothesis lets be exchanged?

Beside it stand the same parts depending on the whole prompt (what they carry when nothing is exchanged), the same parts
depending on nothing, the same structure in other places, and the hypothesis less each of its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.circuits.hypothesis import PROMPT, Hypothesis, hypothesis_file, others, read_hypothesis
from caseback.circuits.scrub import Scrubbed, scrub
from caseback.core.errors import ReadingError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file, sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import ratio_interval
from caseback.evidence.intervals import Interval
from caseback.model.model import Model
from caseback.study.finding import Finding, Looking, cell, sheet
from caseback.study.readings.of_tasks import TaskConfig
from caseback.study.spec import plain

__all__ = ["SCRUB", "ScrubConfig", "scrubbing"]

BLOCK = 4
"""Hypotheses scrubbed between two saves."""
BASE = "base"
ALONE = 0.25
"""Share of draws without exchange above which the claim says so."""


@dataclass(frozen=True, kw_only=True)
class ScrubConfig(TaskConfig):
    """One hypothesis about one task."""

    n: int | None = 400
    """Pairs; their clean prompts are what is exchanged, so many are needed for others that agree."""
    hypothesis: str | None = None
    """A JSON file (docs/scrub.md), or the name of one that comes with caseback."""
    draws: int = 4
    """Exchanges for every prompt."""
    others: int = 8
    """Hypotheses of the same structure in other places."""

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 1000 or not 0 <= self.others <= 1000:
            raise ReadingError(
                f"scrubbing takes 1 to 1000 draws and 0 to 1000 other places, got {self.draws} and {self.others}"
            )

    def read_hypothesis(self) -> Hypothesis:
        """Raises CircuitError for a file that holds none."""
        return read_hypothesis(self.hypothesis)

    def data(self) -> str | None:
        return sha256_json([super().data(), sha256_file(hypothesis_file(self.hypothesis))])


def scrubbing(config: ScrubConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """The hypothesis, its controls, and what each of its nodes is good for."""
    own = config.read_hypothesis()
    own.bind(model)
    pairs = config.read(model).encode(model).to(model.device)
    variants = {"the hypothesis": own}
    if own.nodes:
        variants |= {"depending on the whole prompt": own.agreeing((PROMPT,)), "depending on nothing": own.agreeing(())}
    less = {f"without {name}": own.without(name) for name in own.nodes}
    rng = np.random.default_rng(config.seed)
    moved = {f"elsewhere {i}": other for i, other in enumerate(others(own, model, config.others, rng))}
    names = [*variants, *less, *moved]
    every = [*variants.values(), *less.values(), *moved.values()]
    blocks = [every[i : i + BLOCK] for i in range(0, len(every), BLOCK)]

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        def tick(stage: str, done: int, total: int) -> None:
            progress(stage, i * BLOCK * config.draws + done, len(every) * config.draws)

        found = scrub(model, pairs, blocks[i], draws=config.draws, seed=config.seed, progress=tick)
        arrays, alone = dict(state.arrays) if state else {}, dict(state.data) if state else {}
        for number, one in enumerate(found, start=i * BLOCK):
            arrays[f"scrubbed.{number}"] = np.stack([one.metric, one.loss])
            alone[str(number)] = one.alone
            arrays[BASE] = np.stack([one.model, one.random])
        return Checkpoint(arrays, plain(alone))

    saved = stages.fold("scrub", len(blocks), step)
    base = saved.arrays[BASE]
    found = {
        name: Scrubbed(metric=values[0], loss=values[1], model=base[0], random=base[1], alone=saved.data[str(number)])
        for number, name in enumerate(names)
        for values in [saved.arrays[f"scrubbed.{number}"]]
    }
    gaps = base[0].mean(axis=-1) - base[1].mean(axis=-1)
    if not (gaps[0] and gaps[1]):
        raise ReadingError("these prompts have the same metric as others on average, so there is nothing to recover")
    return _told(config, own, found, list(moved), pairs.metric, pairs.n)


def _told(
    config: ScrubConfig, own: Hypothesis, found: dict[str, Scrubbed], moved: Sequence[str], metric: str, n: int
) -> Finding:
    base = found["the hypothesis"]
    rows: list[list[Any]] = [
        [name, cell(one.recovered), cell(one.loss_recovered)]
        for name, one in found.items()
        if name not in moved and not name.startswith("without ")
    ]
    elsewhere = [found[name] for name in moved]
    beside: tuple[Interval, Interval] | None = None
    if elsewhere:
        beside = _mean(elsewhere)
        rows.append([f"{len(moved)} other places, mean", *map(cell, beside)])
        rows.append([f"{len(moved)} other places, most", *(max(v) for v in _values(elsewhere))])
    nodes: list[list[Any]] = []
    for name, node in own.nodes.items():
        less = found[f"without {name}"]
        nodes.append([name, *node.words, base.alone.get(name, 0.0)] + [cell(less.recovered), cell(less.loss_recovered)])
    here, lost = base.recovered, base.loss_recovered
    claim = (
        f"The hypothesis recovers {_share(here.value)} of the metric ({_share(here.low)} to {_share(here.high)}) and "
        f"{_share(lost.value)} of the loss ({_share(lost.low)} to {_share(lost.high)})"
    )
    if beside is not None:
        claim += f"; in {len(moved)} other places it recovers {_share(beside[0].value)} and {_share(beside[1].value)}"
    most = max(base.alone.values(), default=0.0)
    if most > ALONE:
        claim += f"; in {most:.0%} of the draws no other prompt agreed, so nothing was exchanged: take more pairs"
    sections: list[dict[str, Any]] = [
        {
            "title": "What is left when all else is exchanged",
            "text": "100 %: the model as it is; 0 %: the whole output from another prompt. Loss: minus the log of the answer's "
            "probability. The same parts depending on the whole prompt carry what these parts and paths can carry; a "
            "hypothesis may pass that, where what it lets be exchanged works against the answer.",
            "table": sheet(f"text parts, percent {metric}, percent loss", rows),
        }
    ]
    if nodes:
        sections.append(
            {
                "title": "Its nodes",
                "text": "No other agreed: share of draws for which nothing was exchanged, since no other prompt agreed; where it is "
                "large the feature is not tested. Without: what the hypothesis recovers when nobody reads the node.",
                "table": sheet(
                    f"text node, text sites, text depends on, text reads, percent no other agreed, percent {metric} without, "
                    "percent loss without",
                    nodes,
                ),
            }
        )
    as_it_is, another = base.model.mean(axis=1).tolist(), base.random.mean(axis=1).tolist()
    table = {
        "hypothesis": own.plain(),
        "recovered": cell(here),
        "loss_recovered": cell(lost),
        "whole_prompt": cell(found["depending on the whole prompt"].recovered) if own.nodes else None,
        "nothing": cell(found["depending on nothing"].recovered) if own.nodes else None,
        "elsewhere": [cell(one.recovered) for one in elsewhere],
        "loss_elsewhere": [cell(one.loss_recovered) for one in elsewhere],
        "without": {name: cell(found[f"without {name}"].recovered) for name in own.nodes},
        "alone": dict(base.alone),
        "as_it_is": as_it_is,
        "another_prompt": another,
        "draws": config.draws,
        "n": n,
    }
    values = [
        f"{name} {own_:.2f} as it is, {other:.2f} from another prompt"
        for name, own_, other in zip((metric, "loss"), as_it_is, another, strict=True)
    ]
    notes = [
        *([f"The hypothesis: {own.about}"] if own.about else []),
        f"{n} prompts"
        + (" of a random twin, none dropped" if config.twin else " that the model answers right")
        + f", each exchanged {config.draws} times; "
        + "; ".join(values)
        + ".",
        "Shares are ratios of means over prompts; intervals draw prompts, not exchanges.",
        "That a hypothesis recovers much does not make it the only one that would.",
    ]
    return Finding(claim=claim + ".", table=plain(table), sections=sections, notes=notes, measured=n)


def _values(found: Sequence[Scrubbed]) -> tuple[list[float], list[float]]:
    return [one.recovered.value for one in found], [one.loss_recovered.value for one in found]


def _mean(found: Sequence[Scrubbed]) -> tuple[Interval, Interval]:
    """Recovered by the mean over hypotheses: of the metric, of the loss."""
    (own, own_loss), (random, random_loss) = found[0].model, found[0].random
    metric = np.mean([one.metric for one in found], axis=0)
    loss = np.mean([one.loss for one in found], axis=0)
    return ratio_interval(metric - random, own - random), ratio_interval(random_loss - loss, random_loss - own_loss)


def _share(value: float) -> str:
    return f"{round(value, 2) + 0:.0%}"  # no "-0%"


SCRUB = Looking("scrub", ScrubConfig, "Causal scrubbing", scrubbing)
