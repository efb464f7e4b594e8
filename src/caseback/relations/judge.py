"""A relation judged: fitted on a few samples, its layer, β and rank chosen on one half of the rest and scored on the
other half, both ways, so that every known sample is scored by a choice it had no part in.

With several splits all of it is done anew for other training samples; a sample's score is then its mean over the splits
it was tested in, and the interval is a bootstrap over samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.model.model import Model
from caseback.relations import causal, faithful
from caseback.relations.observe import Observed, draw, observe
from caseback.relations.operator import Operators, fit
from caseback.relations.relation import Relation

__all__ = ["CONTROLS", "JudgeConfig", "Split", "judge_split", "n_known", "pooled", "template_of"]

CONTROLS = ("identity", "translation", "ridge", "embedding", "bias", "random", "majority")
LEAST = 6
"""Known samples below which nothing can be chosen on one half and scored on the other."""


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
    """Known samples at most that are edited."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layers not in ("even", "all"):
            raise RelationError(f"layers are 'even' or 'all', not {self.layers!r}")
        if self.train < 2 or self.pairs < 2:
            raise RelationError(f"train and pairs are at least 2, not {self.train} and {self.pairs}")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's numbers; `sample` are the places of the known samples in the relation's list."""

    sample: Int[np.ndarray, "known"]
    n_asked: int
    """Samples that were asked, the training samples aside."""
    arrays: Mapping[str, np.ndarray]
    """strict, prefix and each control [known] (bool); by_layer [layer, beta], control_NAME [layer]; edited [layer,
    rank], edited_swap, edited_unembedding, edited_random [layer]; causal, causal_swap … [known] (NaN where not edited);
    singular [d]; W [d, d] and b [d], the operator at the chosen layer."""
    chosen: Mapping[str, int | float]
    """layer, beta, edit_layer, rank, cut: the choice made with all known samples; cut is the smallest rank of W that
    loses nothing."""
    folds: Sequence[Mapping[str, int | float]]
    """The choices made on each half."""
    said: Sequence[Sequence[str]]
    """[subject, object, the model's token, the operator's token] of each known sample."""


def template_of(relation: Relation, config: JudgeConfig) -> str:
    """The template that is asked; raises RelationError where there is none of that number."""
    name = "prompt_templates_zs" if config.zero_shot else "prompt_templates"
    found = getattr(relation, name)
    if not 0 <= config.template < len(found):
        raise RelationError(
            f"relation {relation.name!r} has {len(found)} {name}, so there is no number {config.template}"
        )
    return str(found[config.template])


def judge_split(
    model: Model, relation: Relation, config: JudgeConfig, split: int = 0, *, progress: Progress = silent
) -> Split:
    """Fit, choose, score. Raises RelationError where the model knows too few samples."""
    template = template_of(relation, config)
    seed = config.seed + 1000 * split
    training, rest = draw(relation.samples, config.train, seed=seed)
    train = [relation.samples[i] for i in training]
    examples = [] if config.zero_shot else train
    asked = observe(model, [relation.samples[i] for i in rest], template, examples, progress=progress)
    known = np.flatnonzero(asked.known)
    if len(known) < LEAST:
        raise RelationError(
            f"{model.name} knows {len(known)} of {len(asked)} samples of {relation.name!r} under the template "
            f"{template!r}; at least {LEAST} are needed: try another template, more samples or another model"
        )
    seen, places = asked[known], np.array(rest)[known]
    operators = fit(model, train, template, shots=not config.zero_shot, progress=progress)
    found = faithful.answers(model, operators, seen)
    order = np.random.default_rng(seed).permutation(len(seen))
    halves = (np.sort(order[::2]), np.sort(order[1::2]))
    scores = {name: np.zeros(len(seen), dtype=bool) for name in ("strict", "prefix", *CONTROLS)}
    folds: list[dict[str, int | float]] = []
    for choose, report in (halves, halves[::-1]):
        layer, beta = found.choose(choose)
        token = found.lre[layer, beta]
        scores["strict"][report] = found.strict[layer, beta, report]
        scores["prefix"][report] = faithful.prefix(model, token, seen)[report]
        for name in found.controls:
            scores[name][report] = found.control(name, choose, report)
        scores["embedding"][report] = found.embedding(choose, report)
        scores["majority"][report] = found.majority(choose, report)
        random = faithful.random_answers(model, operators, seen, layer, found.betas[beta], seed=seed)
        scores["random"][report] = (random == found.token)[report]
        folds.append({"layer": layer, "beta": found.betas[beta]})
    everything = np.arange(len(seen))
    layer, beta = found.choose(everything)
    ranks = [rank for rank in causal.RANKS if rank <= model.d_model]
    cut = faithful.cut_answers(model, operators, seen, layer, found.betas[beta], ranks) == found.token
    enough = [r for r, right in zip(ranks, cut, strict=True) if right.sum() >= found.strict[layer, beta].sum()]

    edited, subset = _edits(model, operators, seen, order, config, seed, progress)
    causal_scores = {name: np.full(len(seen), np.nan) for name in ("causal", *(f"causal_{c}" for c in causal.CONTROLS))}
    by_place = {int(i): k for k, i in enumerate(subset)}
    parts = [np.array([by_place[int(i)] for i in half if int(i) in by_place], dtype=int) for half in halves]
    if min(map(len, parts)) < 2:
        raise RelationError("too few known samples have different answers, so no edit can be judged on halves")
    for fold, (choose, report) in zip(folds, (parts, parts[::-1]), strict=True):
        at, rank = edited.choose(choose)
        fold |= {"edit_layer": edited.layers[at], "rank": edited.ranks[rank]}
        causal_scores["causal"][subset[report]] = edited.lre[at, rank, report]
        causal_scores["causal_random"][subset[report]] = edited.random[at, rank, report]
        for name in ("swap", "unembedding"):
            right = getattr(edited, name)
            causal_scores[f"causal_{name}"][subset[report]] = right[right[:, choose].mean(axis=1).argmax(), report]
    at, rank = edited.choose(np.arange(len(subset)))
    arrays: dict[str, np.ndarray] = {
        **scores,
        **causal_scores,
        "by_layer": found.strict.mean(axis=2),
        **{f"control_{name}": (token == found.token).mean(axis=1) for name, token in found.controls.items()},
        "edit_layers": np.array(edited.layers),
        "edited": edited.lre.mean(axis=2),
        "edited_random": edited.random.mean(axis=2),
        "edited_swap": edited.swap.mean(axis=1),
        "edited_unembedding": edited.unembedding.mean(axis=1),
        "cut_ranks": np.array(ranks),
        "cut": cut.mean(axis=1),
        "singular": operators.svd(layer)[1].cpu().numpy(),
        "W": operators.W[layer].float().cpu().numpy(),
        "b": operators.b[layer].float().cpu().numpy(),
    }
    words = [model.tokenizer.decode([int(t)]) for t in (*found.token, *found.lre[layer, beta])]
    said = [
        [prompt.subject, prompt.object, mine, its]
        for prompt, mine, its in zip(seen.prompts, words[: len(seen)], words[len(seen) :], strict=True)
    ]
    chosen: dict[str, int | float] = {
        "layer": layer,
        "beta": found.betas[beta],
        "edit_layer": edited.layers[at],
        "rank": edited.ranks[rank],
        "cut": enough[0] if enough else model.d_model,
    }
    return Split(sample=places, n_asked=len(asked), arrays=arrays, chosen=chosen, folds=folds, said=said)


def _edits(
    model: Model,
    operators: Operators,
    seen: Observed,
    order: np.ndarray,
    config: JudgeConfig,
    seed: int,
    progress: Progress,
) -> tuple[causal.Edited, np.ndarray]:
    """Edit up to `pairs` samples, half from each half; returns what came of it and their places among the known."""
    subset = np.sort(order[: config.pairs])
    few = seen[subset]
    side = np.isin(subset, np.sort(order[::2]))  # a target comes from the sample's own half
    target = np.full(len(few), -1)
    for own in (np.flatnonzero(side), np.flatnonzero(~side)):
        if len(own):
            other = causal.targets(few[own], seed=seed)
            target[own] = np.where(other >= 0, own[other], -1)
    keep = np.flatnonzero(target >= 0)
    if len(keep) < 4:
        raise RelationError("too few known samples have different answers, so no edit can be judged")
    layers = range(0, model.n_layers, 1 if config.layers == "all" else 2)
    # targets are places among `few`; a sample without one is left out of the scores but may be a target
    found = causal.edit(model, operators, few, target, layers=list(layers), seed=seed, progress=progress)
    cut = causal.Edited(
        layers=found.layers,
        ranks=found.ranks,
        target=found.target[keep],
        lre=found.lre[..., keep],
        random=found.random[..., keep],
        swap=found.swap[..., keep],
        unembedding=found.unembedding[..., keep],
    )
    return cut, subset[keep]


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
