"""A relation judged: fitted on a few samples, its layer, β and rank chosen on one half of the rest and scored on the
other half, both ways, so that every sample is scored by a choice it had no part in.

Samples that count are those the model knows, or all, where the model is to be a random twin that knows nothing. Answers are
first tokens, or whole objects (`caseback.relations.whole`). Where there is no other answer to edit to, causality is nan.

With several splits all of it is done anew for other training samples; a sample's score is then its mean over the splits
it was tested in, and the interval is a bootstrap over samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import InMemory, Stages
from caseback.model.model import Model
from caseback.relations import causal, faithful
from caseback.relations.likeliest import likeliest
from caseback.relations.observe import FIRST_TOKEN, Observed, Reading, draw, observe
from caseback.relations.operator import Operators, fit
from caseback.relations.prompt import ask
from caseback.relations.relation import Relation
from caseback.relations.sketch import check_sketch
from caseback.relations.whole import Whole

__all__ = ["CONTROLS", "JudgeConfig", "Split", "drawn", "judge_split", "n_known", "pooled", "template_of"]

CONTROLS = ("identity", "translation", "ridge", "embedding", "bias", "random", "majority")
LEAST = 6
"""Samples below which nothing can be chosen on one half and scored on the other."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How a relation is judged."""

    train: int = 5
    """Samples the operator is estimated on, which are also the few-shot examples."""
    zero_shot: bool = False
    """Ask without examples, by the zero-shot template."""
    template: int = 0
    """Which of the relation's templates."""
    layers: str = "even"
    """Layers of the causal edit: even (every second) or all. Faithfulness is always measured at all."""
    pairs: int = 24
    """Samples at most that are edited."""
    objects: str = "first"
    """What an answer is: first (the first token, any of the vocabulary) or whole (one of the relation's objects, all its
    tokens)."""
    known: bool = True
    """Only samples that the model knows count; without, all that are asked, and the operator is to agree with the model."""
    sketch: int | None = None
    """Estimate the operator along that many directions of the final stream only, in cotangents; None: exactly."""
    seed: int = 0

    @property
    def controls(self) -> tuple[str, ...]:
        """The controls of faithfulness; of whole objects also the operator of first tokens (`first`), whose answer is the
        object with the likeliest first token."""
        return (*CONTROLS, "first") if self.objects == "whole" else CONTROLS

    def __post_init__(self) -> None:
        if self.objects not in ("first", "whole"):
            raise RelationError(f"objects are read by their 'first' token or 'whole', not {self.objects!r}")
        if self.layers not in ("even", "all"):
            raise RelationError(f"layers are 'even' or 'all', not {self.layers!r}")
        if self.sketch is not None and self.sketch < causal.RANKS[0]:
            raise RelationError(
                f"a sketch takes at least {causal.RANKS[0]} directions, the smallest rank of an edit, not {self.sketch}"
            )
        if self.train < 2 or self.pairs < 2:
            raise RelationError(f"train and pairs are at least 2, not {self.train} and {self.pairs}")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's numbers; `sample` are the places in the relation's list of the samples that count: the known ones, or
    all."""

    sample: Int[np.ndarray, "known"]
    n_asked: int
    """Samples that were asked, the training samples aside."""
    arrays: Mapping[str, np.ndarray]
    """strict, prefix and each control [known] (bool); betas [beta]; by_layer [layer, beta], control_NAME [layer]; at_layer
    [layer, known] (bool), whether the operator answers as the model at each layer's best β; edited [layer,
    rank], edited_swap, edited_unembedding, edited_random [layer] (NaN where nothing could be edited); causal, causal_swap
    … [known] (NaN where not edited); singular [d], of a sketch as many as its directions; W [d, d] and b [d],
    the operator at the chosen layer."""
    chosen: Mapping[str, int | float | None]
    """layer, beta, edit_layer, rank, cut: the choice made with all samples that count; cut is the smallest rank of W that
    loses nothing. edit_layer and rank are None where nothing could be edited. Of a sketch also sketch_error, the share of W
    it misses at that layer, in Frobenius norm."""
    folds: Sequence[Mapping[str, int | float | None]]
    """The choices made on each half."""
    said: Sequence[Sequence[str]]
    """[subject, object, the model's answer, the operator's answer] of each sample that counts."""
    n_known: int
    """Samples that the model knows."""
    chance: float | None = None
    """Share of right guesses among the answers; None where any token is one."""
    tops: Mapping[str, Sequence[Sequence[Sequence[str | float]]]] = field(default_factory=dict)
    """"model" and "operator" → the likeliest tokens [text, probability] of each sample that counts, likeliest first. Empty
    where answers are whole objects, and in runs made before they were kept."""


def template_of(relation: Relation, config: JudgeConfig) -> str:
    """The template that is asked; raises RelationError where there is none of that number."""
    name = "prompt_templates_zs" if config.zero_shot else "prompt_templates"
    found = getattr(relation, name)
    if not 0 <= config.template < len(found):
        raise RelationError(
            f"relation {relation.name!r} has {len(found)} {name}, so there is no number {config.template}"
        )
    return str(found[config.template])


def drawn(relation: Relation, config: JudgeConfig, split: int = 0) -> tuple[list[int], list[int]]:
    """(training, asked): places of a split's samples in the relation's list."""
    return draw(relation.samples, config.train, seed=config.seed + 1000 * split)


def judge_split(
    model: Model,
    relation: Relation,
    config: JudgeConfig,
    split: int = 0,
    *,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Split:
    """Fit, choose, score; `stages` saves what is known after every few seconds. Raises RelationError where too few samples
    count."""
    stages = stages or InMemory(progress)
    if config.sketch is not None:
        check_sketch(model, config.sketch)
    template = template_of(relation, config)
    seed = config.seed + 1000 * split
    training, rest = drawn(relation, config, split)
    train = [relation.samples[i] for i in training]
    examples = [] if config.zero_shot else train
    reading: Reading = FIRST_TOKEN
    whole = config.objects == "whole"
    if whole:
        question = ask(model, template, train[0]).text
        reading = Whole.of(model, [sample.object for sample in relation.samples], question)
    others = [relation.samples[i] for i in rest]
    asked = observe(model, others, template, examples, reading=reading, stages=stages, progress=progress)
    counted = np.flatnonzero(asked.known) if config.known else np.arange(len(asked))
    if len(counted) < LEAST:
        raise RelationError(
            (f"{model.name} knows {len(counted)} of {len(asked)}" if config.known else f"there are {len(asked)}")
            + f" samples of {relation.name!r} under the template {template!r}; at least {LEAST} are needed: try another "
            "template, more samples or another model"
        )
    seen, places = asked[counted], np.array(rest)[counted]
    shots, sketch = not config.zero_shot, config.sketch
    fitted = partial(fit, model, train, template, shots=shots, sketch=sketch, seed=seed, stages=stages)
    operators = fitted(whole=whole)
    found = faithful.answers(model, operators, seen, stages=stages)
    rivals = {}
    if isinstance(reading, Whole):
        plain, first = fitted(stage="first-operator"), replace(seen, reading=reading.first_tokens)
        rivals["first"] = faithful.answers(model, plain, first, stages=stages, stage="first-answers")
    order = np.random.default_rng(seed).permutation(len(seen))
    halves = (np.sort(order[::2]), np.sort(order[1::2]))
    scores = {name: np.zeros(len(seen), dtype=bool) for name in ("strict", "prefix", *config.controls)}
    folds: list[dict[str, int | float | None]] = []
    for choose, report in (halves, halves[::-1]):
        layer, beta = found.choose(choose)
        token = found.lre[layer, beta]
        scores["strict"][report] = found.strict[layer, beta, report]
        scores["prefix"][report] = faithful.prefix(model, token, seen)[report]
        for name in found.controls:
            scores[name][report] = found.control(name, choose, report)
        for name, other in rivals.items():
            scores[name][report] = other.strict[(*other.choose(choose), report)]
        scores["embedding"][report] = found.embedding(choose, report)
        scores["majority"][report] = found.majority(choose, report)
        random = faithful.random_answers(model, operators, seen, layer, found.betas[beta], seed=seed)
        scores["random"][report] = (random == found.token)[report]
        folds.append({"layer": layer, "beta": found.betas[beta]})
    everything = np.arange(len(seen))
    layer, beta = found.choose(everything)
    ranks = [rank for rank in causal.RANKS if rank <= operators.rank]
    cut = faithful.cut_answers(model, operators, seen, layer, found.betas[beta], ranks) == found.token
    enough = [r for r, right in zip(ranks, cut, strict=True) if right.sum() >= found.strict[layer, beta].sum()]

    edits = _edits(model, operators, seen, order, config, seed, stages)
    for fold, choice in zip(folds, edits.folds, strict=True):
        fold |= choice
    arrays: dict[str, np.ndarray] = {
        **scores,
        **edits.scores,
        "betas": np.array(found.betas),
        "by_layer": found.strict.mean(axis=2),
        "at_layer": np.stack([right[right.mean(axis=1).argmax()] for right in found.strict]),
        **{f"control_{name}": (token == found.token).mean(axis=1) for name, token in found.controls.items()},
        **edits.curves,
        "cut_ranks": np.array(ranks),
        "cut": cut.mean(axis=1),
        "singular": operators.svd(layer)[1].cpu().numpy(),
        "W": operators.matrix(layer).float().cpu().numpy(),
        "b": operators.b[layer].float().cpu().numpy(),
    }
    said = [
        [prompt.subject, prompt.object, mine, its]
        for prompt, mine, its in zip(
            seen.prompts,
            reading.texts(model, torch.from_numpy(found.token)),
            reading.texts(model, torch.from_numpy(found.lre[layer, beta])),
            strict=True,
        )
    ]
    chosen = {
        "layer": layer,
        "beta": found.betas[beta],
        **edits.chosen,
        "cut": enough[0] if enough else operators.rank,
    }
    tops = {}
    if not whole:
        said_by = operators.apply(layer, seen.s[:, layer], beta=found.betas[beta])
        tops = {"model": likeliest(model, seen.z), "operator": likeliest(model, said_by)}
    if operators.error is not None:
        chosen["sketch_error"] = float(operators.error[layer])
    return Split(
        sample=places,
        n_asked=len(asked),
        arrays=arrays,
        chosen=chosen,
        folds=folds,
        said=said,
        n_known=int(asked.known.sum()),
        chance=reading.chance,
        tops=tops,
    )


@dataclass(frozen=True, kw_only=True)
class _Edits:
    """What came of the edits, all nan and None where there were none."""

    scores: dict[str, np.ndarray]
    """causal, causal_swap … [known]."""
    curves: dict[str, np.ndarray]
    folds: Sequence[Mapping[str, int | None]]
    chosen: Mapping[str, int | None]


def _edits(
    model: Model,
    operators: Operators,
    seen: Observed,
    order: np.ndarray,
    config: JudgeConfig,
    seed: int,
    stages: Stages,
) -> _Edits:
    """Edit up to `pairs` samples, half from each half; layer and rank are chosen on one half and scored on the other."""
    layers = list(range(0, model.n_layers, 1 if config.layers == "all" else 2))
    scores = {name: np.full(len(seen), np.nan) for name in ("causal", *(f"causal_{c}" for c in causal.CONTROLS))}
    subset = np.sort(order[: config.pairs])
    few = seen[subset]
    side = np.isin(subset, np.sort(order[::2]))  # a target comes from the sample's own half
    target = np.full(len(few), -1)
    for own in (np.flatnonzero(side), np.flatnonzero(~side)):
        if len(own):
            other = causal.targets(few[own], seed=seed)
            target[own] = np.where(other >= 0, own[other], -1)
    parts = [np.flatnonzero((target >= 0) & half) for half in (side, ~side)]
    if min(map(len, parts)) < 2:  # too few have another with a different answer
        none = {"edit_layer": None, "rank": None}
        ranks = sum(rank <= operators.rank for rank in causal.RANKS)
        curves = {"edit_layers": np.array(layers), "edited": np.full((len(layers), ranks), np.nan)}
        curves["edited_random"] = curves["edited"]
        curves |= {f"edited_{name}": np.full(len(layers), np.nan) for name in ("swap", "unembedding")}
        return _Edits(scores=scores, curves=curves, folds=(none, none), chosen=none)
    # targets are places among `few`; a sample without one is left out of the scores but may be a target
    found = causal.edit(model, operators, few, target, layers=layers, seed=seed, stages=stages)
    edited = np.flatnonzero(target >= 0)
    folds = []
    for choose, report in (parts, parts[::-1]):
        at, rank = found.choose(choose)
        folds.append({"edit_layer": found.layers[at], "rank": found.ranks[rank]})
        scores["causal"][subset[report]] = found.lre[at, rank, report]
        scores["causal_random"][subset[report]] = found.random[at, rank, report]
        for name in ("swap", "unembedding"):
            right = getattr(found, name)
            scores[f"causal_{name}"][subset[report]] = right[right[:, choose].mean(axis=1).argmax(), report]
    at, rank = found.choose(edited)
    curves = {
        "edit_layers": np.array(found.layers),
        "edited": found.lre[..., edited].mean(axis=2),
        "edited_random": found.random[..., edited].mean(axis=2),
        "edited_swap": found.swap[..., edited].mean(axis=1),
        "edited_unembedding": found.unembedding[..., edited].mean(axis=1),
    }
    chosen = {"edit_layer": found.layers[at], "rank": found.ranks[rank]}
    return _Edits(scores=scores, curves=curves, folds=folds, chosen=chosen)


def pooled(splits: Sequence[Split], name: str) -> Float[np.ndarray, "sample"]:
    """A score per sample: the mean over the splits it was tested in. Samples never tested are left out."""
    sums: dict[int, list[float]] = {}
    for split in splits:
        for place, value in zip(split.sample.tolist(), split.arrays[name].astype(float).tolist(), strict=True):
            if not np.isnan(value):
                sums.setdefault(place, []).append(value)
    if not sums:
        raise RelationError(f"no sample has a value of {name}")
    return np.array([np.mean(values) for _, values in sorted(sums.items())])


@torch.no_grad()
def n_known(model: Model, relation: Relation, *, progress: Progress = silent) -> tuple[int, int]:
    """(known, asked) samples of a relation under its first template after five examples."""
    training, rest = draw(relation.samples, min(5, len(relation.samples) - 1), seed=0)
    examples = [relation.samples[i] for i in training]
    asked = observe(
        model, [relation.samples[i] for i in rest], relation.prompt_templates[0], examples, progress=progress
    )
    return int(asked.known.sum()), len(asked)
