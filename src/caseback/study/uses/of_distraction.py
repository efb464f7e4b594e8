"""Distraction tests as a run: is the truth still in the subject's state when a falsehood was said before?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint
from caseback.model.model import Model
from caseback.relations.attribute import Distracted, Kind, distracted
from caseback.relations.judge import template_of
from caseback.study.finding import Finding, Looking, cell, line, sheet
from caseback.study.resume import RunFolder
from caseback.study.uses.frame import UseConfig, flat, operator_of, tuples

__all__ = ["DISTRACT", "DistractConfig", "distract"]

READERS = {
    "model": "the model's answer",
    "lens": "operator at the subject",
    "twin": "random operator, same spectrum",
    "embedding": "operator at the embedding",
    "bias": "bias alone",
}
TOLD = {
    "repetition": "A falsehood stated twice before the question",
    "instruction": "A falsehood to be copied before the question",
}
SHORT = {"repetition": "told a falsehood twice", "instruction": "told to copy one"}


@dataclass(frozen=True, kw_only=True)
class DistractConfig(UseConfig):
    """Distraction tests of one relation."""

    shots: bool = False
    """Ask after the training samples as examples, which a falsehood hardly overcomes; else after the falsehood alone."""


def distract(config: DistractConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Does the operator still find the truth in the subject's state when a falsehood was said before?"""
    source, operator, notes = operator_of(config, run, model, progress)
    training = source.training
    rest = [sample for sample in source.relation.samples if sample.subject not in {one.subject for one in training}]

    def tested(kind: Kind) -> Checkpoint:
        found = distracted(
            model,
            source.relation,
            operator.W,
            operator.b,
            operator.beta,
            operator.layer,
            template_of(source.relation, source.judge),
            rest,
            kind,
            examples=training if config.shots else [],
            seed=config.seed,
            progress=progress,
        )
        ranks = {f"truth_{name}": value for name, value in found.ranks.items()}
        ranks |= {f"falsehood_{name}": value for name, value in found.false_ranks.items()}
        halves = dict(zip(("half", "other"), found.halves, strict=True))
        data = {name: getattr(found, name) for name in ("asked", "prompts", "subjects", "objects", "falsehoods")}
        return Checkpoint({**ranks, **halves}, data)

    tests = {
        kind: _distracted(kind, operator.layer, run.stage(kind, lambda kind=kind: tested(kind)))  # type: ignore[misc]
        for kind in get_args(Kind)
    }
    sections: list[dict[str, Any]] = []
    table: dict[str, Any] = {"relation": source.relation.name, "layer": operator.layer, "shots": config.shots}
    parts: list[str] = []
    for kind, found in tests.items():
        truth = {k: {name: found.recall(name, k) for name in READERS} for k in (1, 3)}
        told = {name: found.recall(name, falsehood=True) for name in READERS}
        parts.append(
            f"{SHORT[kind]} the model says the truth in {truth[1]['model'].value:.0%}, the operator at the subject finds it in "
            f"{truth[1]['lens'].value:.0%} (its random twin in {truth[1]['twin'].value:.0%})"
        )
        rows = [[READERS[k], *map(cell, (truth[1][k], truth[3][k], told[k]))] for k in READERS]
        sections.append(
            {
                "title": TOLD[kind],
                "text": f"Of {found.n} subjects that the model knows when nothing distracts it. Truth: what it answers then.",
                "table": sheet("text reader, percent truth first, percent truth in 3, percent falsehood first", rows),
            }
        )
        table |= {"n": found.n, **flat(f"{kind}_truth1", truth[1]), **flat(f"{kind}_truth3", truth[3])}
        table |= {**flat(f"{kind}_falsehood1", told), f"{kind}_by_layer": found.by_layer("lens").tolist()}
    for kind, found in tests.items():
        layers = np.arange(model.n_layers)
        series = [
            line("operator", "own", layers, found.by_layer("lens")),
            line("operator, in 3", "second", layers, found.by_layer("lens", 3)),
            line("random operator", "random", layers, found.by_layer("twin")),
            line("model", "control", layers, np.full(len(layers), float(found.by_layer("model")[0]))),
        ]
        sections.append(
            {
                "title": f"By layer: {TOLD[kind][0].lower()}{TOLD[kind][1:]}",
                "text": f"Share with the truth first, read from the subject's state entering each layer by the operator of "
                f"layer {operator.layer}. Layer 0, the embedding, is the same whatever was said before.",
                "curve": {"x": "layer", "y": "truth first", "axis": "linear", "series": series},
            }
        )
    for kind, found in tests.items():
        lens = found.ranks["lens"]
        at = 1 + int((lens[1:] == 0).mean(axis=1).argmax()) if len(lens) > 1 else 0
        samples: list[list[Any]] = [
            [
                found.subjects[i],
                found.objects[i],
                found.falsehoods[i],
                int(found.ranks["model"][0, i]),
                int(lens[at, i]),
            ]
            for i in range(found.n)
        ]
        sections.append(
            {
                "title": f"Samples: {TOLD[kind][0].lower()}{TOLD[kind][1:]}",
                "text": f"Rank of the truth (0: nothing is likelier); the operator at layer {at}, its best over all samples.",
                "detail": True,
                "table": sheet("text subject, text truth, text falsehood, count model, count operator", samples),
            }
        )
    notes += [
        "The layer that is read is chosen on one half of the samples and scored on the other, both ways, and never the "
        "embedding; the random operator is allowed the same.",
        "Examples come before the falsehood."
        if config.shots
        else "No examples come before the falsehood; the operator was estimated "
        + ("without them too." if source.judge.zero_shot else "after some."),
        "Where the model still says the truth the falsehood did not take, and there is no distraction to overcome.",
    ]
    table["operator_run"] = source.run
    return Finding(
        claim=f"Of {tests['repetition'].n} subjects: {'; '.join(parts)}.",
        table=table,
        sections=sections,
        notes=notes,
        measured=sum(one.n for one in tests.values()),
    )


def _distracted(kind: Kind, layer: int, saved: Checkpoint) -> Distracted:
    a = saved.arrays
    truth, told = (
        {name: a[f"{what}_{name}"] for name in READERS if f"{what}_{name}" in a} for what in ("truth", "falsehood")
    )
    return Distracted(
        kind=kind, layer=layer, ranks=truth, false_ranks=told, halves=(a["half"], a["other"]), **tuples(saved.data)
    )


DISTRACT = Looking("distract", DistractConfig, "Distraction tests", distract)
