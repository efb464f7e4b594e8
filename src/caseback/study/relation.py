"""Relations as runs: one relation of one model, judged, with all that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from caseback.core.errors import RelationError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import Interval, crossed_mean_interval, grouped_mean_interval, mean_interval, proportion_interval
from caseback.model.model import Model
from caseback.relations import causal
from caseback.relations.judge import JudgeConfig, Split, drawn, judge_split, pooled, template_of
from caseback.relations.library import resolve
from caseback.relations.prompt import first_token
from caseback.relations.relation import Relation
from caseback.study.finding import Finding, Looking, LookingConfig, cell, line, sheet
from caseback.study.store import Record

__all__ = [
    "NAMES",
    "RELATION",
    "Means",
    "RelationConfig",
    "edit_sections",
    "intervals",
    "means",
    "relation",
    "splits_of",
]


@dataclass(frozen=True, kw_only=True)
class RelationConfig(LookingConfig):
    """One relation."""

    relation: str
    """A library relation's name, or a file."""
    splits: int = 1
    """Draws of training samples; the whole study is done for each."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How the operator is estimated and judged; the seed is that of the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", replace(self.judge, seed=self.seed))

    @property
    def judged(self) -> JudgeConfig:
        """How it is judged: of a random twin, which knows nothing, every sample counts."""
        return replace(self.judge, known=False) if self.twin else self.judge

    @property
    def label(self) -> str:
        return resolve(self.relation).name

    def data(self) -> str:
        """SHA-256 of the relation."""
        return sha256_json(asdict(resolve(self.relation)))


def relation(config: RelationConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Judge a relation: every split a stage, then arithmetic."""
    known, how = resolve(config.relation), config.judged
    shared = _sharing(model, known) if how.objects == "first" else []

    def judged(split: int) -> Checkpoint:
        found = judge_split(model, known, how, split, stages=stages, progress=progress)
        names = ("n_asked", "n_known", "chance", "chosen", "folds", "said", "tops")
        data = {name: getattr(found, name) for name in names}
        return Checkpoint({**found.arrays, "sample": found.sample}, data)

    splits = [_split(stages.stage(f"split-{i}", lambda i=i: judged(i))) for i in range(config.splits)]  # type: ignore[misc]
    first = splits[0]
    chosen = first.chosen
    # distinct samples of all splits; where all count, the known ones of the first
    n_asked = len({i for split in range(config.splits) for i in drawn(known, how, split)[1]})
    n_known = len({int(i) for split in splits for i in split.sample}) if how.known else first.n_known
    scores, edits = intervals(splits, how)
    rivals = ("majority", "bias", "embedding", "identity", "translation", "ridge", "random", "first")
    best = max((name for name in rivals if name in scores), key=lambda name: scores[name].value)
    whole = how.objects == "whole"
    what = f"object of {round(1 / (first.chance or 1))}" if whole else "token"
    claim = (
        f"Chosen on one half and scored on the other, a linear map of the subject's state gives the model's own {what} for "
        f"{scores['strict'].value:.0%} of {scores['strict'].n} held-out subjects ({_range(scores['strict'])}); the best "
        f"control, {NAMES[best]}, {scores[best].value:.0%}. "
    )
    claim += (
        f"The inverse of such a map changes the answer to another subject's in {edits['causal'].value:.0%} of "
        f"{edits['causal'].n} edits. "
        if edits
        else "Causality is not measured: too few subjects have another with a different answer. "
    )
    if how.sketch is not None:
        claim += f"W is a sketch along {how.sketch} directions and misses about {chosen['sketch_error']:.0%} of it. "
    if shared:
        claim += (
            f"{len(shared)} of {len({sample.object for sample in known.samples})} objects share their first token with another, "
            "so that tells them apart only in part (--objects whole reads all of it). "
        )
    claim += f"With all samples block {chosen['layer']:.0f} is chosen"
    claim += "." if chosen["edit_layer"] is None else f", for edits block {chosen['edit_layer']:.0f}."
    table: dict[str, Any] = {
        "relation": known.name,
        "category": known.category,
        "objects": how.objects,
        "n_known": n_known,
        "n_test": scores["strict"].n,
        "n_asked": n_asked,
        **{name: chosen[name] for name in ("layer", "beta", "rank", "edit_layer", "cut")},
        "faithful_strict": scores["strict"].value,
        "faithful_prefix": scores["prefix"].value,
        "chance": first.chance,
        "causality": edits["causal"].value if edits else None,
        "low": scores["strict"].low,
        "high": scores["strict"].high,
        "causality_low": edits["causal"].low if edits else None,
        "causality_high": edits["causal"].high if edits else None,
        "controls": {name: scores[name].value for name in how.controls}
        | {name: edits[name].value if edits else None for name in EDITS[1:]},
        "sketch": how.sketch,
        "sketch_error": chosen.get("sketch_error"),
        "splits": [float(split.arrays["strict"].mean()) for split in splits],
    }
    template = template_of(known, how)
    notes = [
        f"Template: {template!r}; {how.train} training samples, "
        + ("asked without examples." if how.zero_shot else "which are also the few-shot examples."),
        "Layer and β (and the edit's layer and rank) are chosen on one half of the samples and scored on the other, "
        "both ways; controls that have a layer choose theirs on the same half, the random operators take the operator's layer, β "
        "and rank. The layer, β and rank shown are those chosen with all.",
        "Strict: the operator's answer is the model's. "
        + (WHOLE if whole else "Prefix: the operator's likeliest token begins the object."),
        "Intervals: Wilson's over samples, at 95 %; of several splits a bootstrap that draws splits and samples.",
        f"The model knows {n_known} of {n_asked} samples that were asked; "
        + (
            "only these count."
            if how.known
            else "all count, so the operator is to say what the model says, true or not."
        ),
        *(
            []
            if how.sketch is None
            else [
                f"The operator is a sketch: W along {how.sketch} of {model.d_model} directions of the final stream. At layer "
                f"{chosen['layer']:.0f} it misses an estimated {chosen['sketch_error']:.1%} of W (Frobenius norm)."
            ]
        ),
        "An operator says what can be read from a state linearly, not that the model reads it so.",
    ]
    return Finding(
        claim=claim, table=table, sections=_sections(first, scores, edits), notes=notes, measured=scores["strict"].n
    )


WHOLE = (
    "An answer is one of the relation's objects: the one whose tokens have the highest mean log-probability, for the model "
    "written behind the question, for the operator all from one stream. The operator's target is the mean of the streams "
    "that predict the object's tokens. Prefix: the operator's answer is the sample's object. First-token operator: estimated "
    "where the prompt ends, it answers the object with the likeliest first token. An edit succeeds if the model's next token "
    "is the first one of the other subject's object; the rest is not asked."
)


def _sharing(model: Model, relation: Relation) -> list[str]:
    """Objects whose first token is another object's too; raises RelationError where all begin alike."""
    objects = sorted({sample.object for sample in relation.samples})
    tokens = [first_token(model, text) for text in objects]
    if len(objects) > 1 and len(set(tokens)) == 1:
        raise RelationError(
            f"all {len(objects)} objects of {relation.name!r} begin with the same token in {model.name}, so the first token "
            "tells none apart; read them whole (--objects whole)"
        )
    return [text for text, token in zip(objects, tokens, strict=True) if tokens.count(token) > 1]


EDITS = ("causal", *(f"causal_{name}" for name in causal.CONTROLS))
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
    "first": "first-token operator, same objects",
    "causal": "edit: operator's inverse",
    "causal_swap": "edit: subject swap",
    "causal_unembedding": "edit: unembedding row",
    "causal_random": "edit: random directions, same spectrum",
}


@dataclass(frozen=True, kw_only=True)
class Means:
    """Several relations' means, each relation counted alike."""

    intervals: Mapping[str, Interval]
    """faithful_strict, faithful_prefix, causality (the latter of the relations that could be edited)."""
    over: str
    """What the intervals are over."""


def means(records: Sequence[Record]) -> Means:
    """The means of finished relation runs. Where they have several splits, relations and their samples (each its mean over
    the splits) are both resampled; where one, relations alone."""
    several = any(len(record.table["splits"]) > 1 for record in records)
    intervals = {}
    for key, name in (("faithful_strict", "strict"), ("faithful_prefix", "prefix"), ("causality", "causal")):
        counted = [record for record in records if record.table[key] is not None]
        if counted and several:
            intervals[key] = grouped_mean_interval([pooled(splits_of(record), name) for record in counted])
        elif counted:
            intervals[key] = mean_interval(np.array([record.table[key] for record in counted]))
    over = "relations and their samples, each its mean over the splits" if several else "relations"
    return Means(intervals=intervals, over=over)


def splits_of(record: Record) -> list[Split]:
    """What a finished run's splits found. Raises StudyError where they are not kept."""
    return [_split(record.stage(f"split-{i}")) for i in range(len(record.table["splits"]))]


def _split(saved: Any) -> Split:
    arrays = dict(saved.arrays)
    return Split(sample=arrays.pop("sample"), arrays=arrays, **saved.data)


def intervals(splits: Sequence[Split], how: JudgeConfig) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """(faithfulness and its controls, edits and theirs), by the names of `NAMES`; no edits where nothing could be edited."""
    scores = {name: _interval(splits, name) for name in ("strict", "prefix", *how.controls)}
    edited = any(split.chosen["edit_layer"] is not None for split in splits)
    return scores, {name: _interval(splits, name) for name in EDITS} if edited else {}


def _interval(splits: Sequence[Split], name: str) -> Interval:
    """Wilson's interval of a share; of several splits, a bootstrap that draws splits and samples."""
    if len(splits) == 1:
        values = pooled(splits, name)
        return proportion_interval(round(float(values.sum())), len(values))
    table = np.full((len(splits), 1 + max(int(split.sample.max()) for split in splits)), np.nan)
    for row, split in zip(table, splits, strict=True):
        row[split.sample] = split.arrays[name]
    return crossed_mean_interval(table)


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
    singular = arrays["singular"]
    S = singular / singular[0]
    ranks, missed = arrays["cut_ranks"], split.chosen.get("sketch_error")
    rows: list[list[Any]] = [[NAMES[name], cell(found)] for name, found in (*scores.items(), *edits.items())]
    if split.chance is not None:
        rows.insert(len(scores), ["chance, one of the objects", split.chance])
    samples = [[subject, obj, mine, its, "yes" if mine == its else "no"] for subject, obj, mine, its in split.said]
    return [
        {
            "title": ("First tokens" if split.chance is None else "Whole objects")
            + ": faithfulness, causality and their controls",
            "text": "Held out: chosen on one half, scored on the other."
            + (" The lower rows are edits." if edits else ""),
            "table": sheet("text what, percent share of samples", rows),
        },
        {
            "title": "Faithfulness by layer",
            "text": "Share of the samples for which the decoded answer is the model's. Curves show every layer's best β "
            "on all samples, so they flatter the operator a little; the table above does not.",
            "curve": {"x": "layer", "y": "faithful", "axis": "linear", "series": faithful},
        },
        *([] if split.chosen["edit_layer"] is None else edit_sections(split)),
        {
            "title": "Singular values of W",
            "text": f"At layer {split.chosen['layer']:.0f}, as a share of the largest."
            + (f" The sketch misses an estimated {missed:.1%} of W." if missed is not None else ""),
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


def edit_sections(split: Split) -> list[dict[str, Any]]:
    """Causality by layer and by rank, of a split in which something could be edited."""
    arrays = split.arrays
    at = arrays["edit_layers"]
    chosen = list(at).index(split.chosen["edit_layer"])
    edited = [
        line("inverse", "own", at, arrays["edited"].max(axis=1)),
        line("subject swap", "second", at, arrays["edited_swap"]),
        line("unembedding row", "third", at, arrays["edited_unembedding"]),
        line("random directions", "random", at, arrays["edited_random"].max(axis=1)),
    ]
    ranks = zip(causal.RANKS, arrays["edited"][chosen], arrays["edited_random"][chosen], strict=False)
    return [
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
                [[int(rank), float(mine), float(random)] for rank, mine, random in ranks],
            ),
        },
    ]


RELATION = Looking("relation", RelationConfig, "Linear relation", relation)
