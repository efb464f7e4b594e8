"""Relations as runs: one relation of one model, judged, with all that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import Interval, mean_interval, proportion_interval
from caseback.model.model import Model
from caseback.relations import causal
from caseback.relations.judge import CONTROLS, JudgeConfig, Split, judge_split, pooled, template_of
from caseback.relations.library import resolve
from caseback.study.finding import Finding, Looking, LookingConfig, cell, line, sheet

__all__ = ["RELATION", "RelationConfig", "relation"]


@dataclass(frozen=True, kw_only=True)
class RelationConfig(LookingConfig):
    """One relation."""

    relation: str
    """A library relation's name, or a file."""
    splits: int = 1
    """Draws of training samples; the whole study is done for each."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    @property
    def label(self) -> str:
        return resolve(self.relation).name

    def data(self) -> str:
        """SHA-256 of the relation."""
        return sha256_json(asdict(resolve(self.relation)))


def relation(config: RelationConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Judge a relation: every split a stage, then arithmetic."""
    known = resolve(config.relation)

    def judged(split: int) -> Checkpoint:
        found = judge_split(model, known, config.judge, split, progress=progress)
        data = {"n_asked": found.n_asked, "chosen": found.chosen, "folds": found.folds, "said": found.said}
        return Checkpoint({**found.arrays, "sample": found.sample}, data)

    splits = [_split(stages.stage(f"split-{i}", lambda i=i: judged(i))) for i in range(config.splits)]  # type: ignore[misc]
    scores = {name: _interval(splits, name) for name in ("strict", "prefix", *CONTROLS)}
    edits = {name: _interval(splits, name) for name in ("causal", *(f"causal_{name}" for name in causal.CONTROLS))}
    first = splits[0]
    chosen = first.chosen
    best = max(
        ("majority", "bias", "embedding", "identity", "translation", "ridge", "random"), key=lambda n: scores[n].value
    )
    claim = (
        f"Chosen on one half and scored on the other, a linear map of the subject's state gives the model's own token for "
        f"{scores['strict'].value:.0%} of {scores['strict'].n} held-out subjects ({_range(scores['strict'])}); the best "
        f"control, {NAMES[best]}, {scores[best].value:.0%}. The inverse of such a map changes the answer to another "
        f"subject's in {edits['causal'].value:.0%} of {edits['causal'].n} edits. With all samples block {chosen['layer']:.0f} is "
        f"chosen, for edits block {chosen['edit_layer']:.0f}."
    )
    table: dict[str, Any] = {
        "relation": known.name,
        "category": known.category,
        "n_known": len(first.sample),
        "n_test": scores["strict"].n,
        "n_asked": first.n_asked,
        **{name: chosen[name] for name in ("layer", "beta", "rank", "edit_layer", "cut")},
        "faithful_strict": scores["strict"].value,
        "faithful_prefix": scores["prefix"].value,
        "causality": edits["causal"].value,
        "low": scores["strict"].low,
        "high": scores["strict"].high,
        "causality_low": edits["causal"].low,
        "causality_high": edits["causal"].high,
        "controls": {name: scores[name].value for name in CONTROLS}
        | {f"causal_{name}": edits[f"causal_{name}"].value for name in causal.CONTROLS},
        "splits": [float(split.arrays["strict"].mean()) for split in splits],
    }
    template = template_of(known, config.judge)
    notes = [
        f"Template: {template!r}; {config.judge.train} training samples, "
        + ("asked without examples." if config.judge.zero_shot else "which are also the few-shot examples."),
        "Layer and β (and the edit's layer and rank) are chosen on one half of the known samples and scored on the other, "
        "both ways; controls that have a layer choose theirs on the same half, the random operators take the operator's layer, β "
        "and rank. The layer, β and rank shown are those chosen with all.",
        "Strict: the operator's likeliest token is the model's. Prefix: it begins the object. Intervals: Wilson's over "
        "samples, at 95 %; of several splits a bootstrap.",
        "An operator says what can be read from a state linearly, not that the model reads it so.",
    ]
    return Finding(
        claim=claim, table=table, sections=_sections(first, scores, edits), notes=notes, measured=scores["strict"].n
    )


NAMES = {
    "strict": "operator, strict",
    "prefix": "operator, prefix",
    "identity": "identity (logit lens)",
    "translation": "translation",
    "ridge": "ridge regression",
    "embedding": "operator at the embedding",
    "bias": "bias alone",
    "random": "random directions, same spectrum",
    "majority": "majority answer",
    "causal": "operator's inverse",
    "causal_swap": "subject swap",
    "causal_unembedding": "unembedding row",
    "causal_random": "random directions, same spectrum",
}


def _split(saved: Any) -> Split:
    arrays = dict(saved.arrays)
    return Split(sample=arrays.pop("sample"), arrays=arrays, **saved.data)


def _interval(splits: Sequence[Split], name: str) -> Interval:
    """Wilson's interval of a share; of several splits' means, a bootstrap over samples."""
    values = pooled(splits, name)
    if len(splits) == 1:
        return proportion_interval(round(float(values.sum())), len(values))
    return mean_interval(values)


def _range(found: Interval) -> str:
    return f"{found.low:.0%} to {found.high:.0%}"


def _sections(split: Split, scores: Mapping[str, Interval], edits: Mapping[str, Interval]) -> list[dict[str, Any]]:
    arrays = split.arrays
    layers = np.arange(len(arrays["by_layer"]))
    share = arrays["by_layer"].max(axis=1)
    faithful = [line("operator", "own", layers, share)]
    faithful += [
        line(name, look, layers, arrays[f"control_{name}"])
        for name, look in (("identity", "second"), ("translation", "third"), ("ridge", "control"), ("bias", "random"))
    ]
    at = arrays["edit_layers"]
    edited = [
        line("inverse", "own", at, arrays["edited"].max(axis=1)),
        line("subject swap", "second", at, arrays["edited_swap"]),
        line("unembedding row", "third", at, arrays["edited_unembedding"]),
        line("random directions", "random", at, arrays["edited_random"].max(axis=1)),
    ]
    singular = arrays["singular"]
    S = singular / singular[0]
    ranks = arrays["cut_ranks"]
    rows = [[NAMES[name], cell(found)] for name, found in (*scores.items(), *edits.items())]
    samples = [[subject, obj, mine, its, "yes" if mine == its else "no"] for subject, obj, mine, its in split.said]
    return [
        {
            "title": "Faithfulness, causality and their controls",
            "text": "Held out: chosen on one half, scored on the other. The lower rows are edits.",
            "table": sheet("text what, percent share of samples", rows),
        },
        {
            "title": "Faithfulness by layer",
            "text": "Share of the known samples for which the decoded token is the model's. Curves show every layer's best β "
            "on all samples, so they flatter the operator a little; the table above does not.",
            "curve": {"x": "layer", "y": "faithful", "axis": "linear", "series": faithful},
        },
        {
            "title": "Causality by layer",
            "text": "Share of edits after which the model answers as for the other subject, at every layer's best rank.",
            "curve": {"x": "layer", "y": "changed", "axis": "linear", "series": edited},
        },
        {
            "title": "Causality by rank",
            "text": f"At layer {split.chosen['edit_layer']:.0f}; a full inverse fails, since small singular values blow up.",
            "table": sheet(
                "count rank, percent edits that succeed, percent random directions",
                [
                    [int(rank), float(mine), float(random)]
                    for rank, mine, random in zip(
                        causal.RANKS,
                        arrays["edited"][list(at).index(split.chosen["edit_layer"])],
                        arrays["edited_random"][list(at).index(split.chosen["edit_layer"])],
                        strict=False,
                    )
                ],
            ),
        },
        {
            "title": "Singular values of W",
            "text": f"At layer {split.chosen['layer']:.0f}, as a share of the largest.",
            "curve": {
                "x": "number",
                "y": "share of the largest",
                "series": [line("W", "own", np.arange(1, len(S) + 1), S)],
            },
            "table": sheet(
                "count rank of W, percent faithful when cut",
                [[int(rank), float(right)] for rank, right in zip(ranks, arrays["cut"], strict=True)],
            ),
        },
        {
            "title": "Samples",
            "text": f"At layer {split.chosen['layer']:.0f} and β {split.chosen['beta']:g}, chosen with all samples.",
            "table": sheet("text subject, text object, text model, text operator, text same", samples),
        },
    ]


RELATION = Looking("relation", RelationConfig, "Linear relation", relation)
