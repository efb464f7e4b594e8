"""Linear relational concepts: the operator turned round gives a direction for each object, to find it and to write it.

    v_o = W†_ρ (z̄_o − b),   of length 1          z̄_o: mean final stream of the samples with object o

(Chanin et al. 2024, arXiv 2311.08968). As a classifier a subject's state s has the object with the largest v_o · s; as an
editor s is moved by a (v_to − v_from), with a the component s · v_from, or a multiple of |s|, at one layer or at every
layer from it on.

Vectors are made of one half of the known samples and tried on the other half, both ways; what is chosen (ρ of the
classifier, layer and amount of the edit) is chosen on the half that is not scored. A sample whose object has no sample in the other half
cannot be told right; it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence.intervals import Interval, proportion_interval
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import execute
from caseback.model.taps import Key, Tap
from caseback.relations.attribute import check_operator
from caseback.relations.causal import RANKS, edited_tokens
from caseback.relations.observe import Observed
from caseback.relations.operator import Svd, invert, spectrum_svd, svd
from caseback.relations.prompt import Prompt
from caseback.relations.saved import array_of, tensor_of

__all__ = [
    "AMOUNTS",
    "Classified",
    "ConceptEdits",
    "Concepts",
    "classify",
    "concepts",
    "edit_concepts",
    "swapped_tokens",
]

AMOUNTS: tuple[float | None, ...] = (None, 0.25, 0.5, 1.0)
"""How far an edit goes: None: the component along v_from; else that many |s|."""


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """A direction for each object."""

    objects: tuple[str, ...]
    vectors: Float[Tensor, "object d"]
    """Of length 1."""
    tokens: Int[Tensor, "object"]
    """What the model's answer for each most often begins with."""

    def index(self, prompts: Sequence[Prompt]) -> Int[np.ndarray, "sample"]:
        """Place of each prompt's object; -1 where it has no concept."""
        place = {name: i for i, name in enumerate(self.objects)}
        return np.array([place.get(prompt.object, -1) for prompt in prompts], dtype=int)


def concepts(W: Float[Tensor, "d d"], b: Float[Tensor, "d"], seen: Observed, *, rank: int) -> Concepts:
    """v_o for every object among the samples, the operator W cut to a rank. Cost: one decomposition of W."""
    objects, which = _classes(seen)
    vectors = _lift(svd(W), rank, _means(seen.z, which, len(objects)) - b.to(seen.z))
    answers = seen.first.cpu().numpy()
    common = [np.unique(answers[which == o], return_counts=True) for o in range(len(objects))]
    tokens = torch.tensor([int(values[counts.argmax()]) for values, counts in common], device=seen.z.device)
    return Concepts(objects=objects, vectors=_unit(vectors), tokens=tokens)


# --- the classifier ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Classified:
    """Which samples each classifier puts to the right object."""

    layer: int
    subjects: tuple[str, ...]
    """Those that could be classified."""
    objects: tuple[str, ...]
    uncovered: int
    """Known samples left out: no sample of their object in the other half, or a subject seen before."""
    n_objects: int
    right: Mapping[str, Bool[np.ndarray, "sample"]]
    """concepts, centroid (nearest mean state), twin (concepts by a random W of equal singular values), random (random
    directions), majority (the most frequent object of the other half)."""
    ranks: tuple[int, ...]
    """ρ chosen for each half."""

    def accuracy(self, name: str = "concepts") -> Interval:
        """Share of samples put to the right object."""
        return proportion_interval(int(self.right[name].sum()), len(self.right[name]))


def classify(
    model: Model,
    W: Float[Tensor, "d d"],
    b: Float[Tensor, "d"],
    layer: int,
    seen: Observed,
    *,
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
) -> Classified:
    """Classify known samples by the concepts of the other half. `seen` holds no sample W was estimated on.

    ρ is the one that classifies the half that makes the vectors best, each sample by vectors without its own z. Cost: two
    decompositions of d × d. Raises RelationError where fewer than two objects have two known samples.
    """
    check_operator(model, W, b)
    seen, halves, dropped = _halved(seen, seed)
    s = seen.s[:, layer]
    lower = svd(W)
    twin = spectrum_svd(lower[1], len(W), seed=seed)
    ranks = [rank for rank in ranks if rank <= model.d_model]
    draw = torch.Generator().manual_seed(seed)
    names = ("concepts", "centroid", "twin", "random", "majority")
    right: dict[str, list[np.ndarray]] = {name: [] for name in names}
    tested: list[np.ndarray] = []
    chosen: list[int] = []
    for train, test in (halves, halves[::-1]):
        made = seen[train]
        objects, which = _classes(made)
        place = {name: i for i, name in enumerate(objects)}
        truth = np.array([place.get(seen.prompts[i].object, -1) for i in test])
        test, truth = test[truth >= 0], truth[truth >= 0]
        x = s[test]
        best = max(ranks, key=lambda rank: (_left_out(lower, b, made, s[train], which, rank), -rank))
        z = _means(made.z, which, len(objects)) - b.to(made.z)
        centres = _means(s[train], which, len(objects))
        said = {
            "concepts": x @ _unit(_lift(lower, best, z)).T,
            "twin": x @ _unit(_lift(twin, best, z)).T,
            "centroid": -torch.cdist(x, centres),
            "random": x @ _unit(torch.randn(z.shape, generator=draw).to(x)).T,
            "majority": torch.from_numpy(np.bincount(which)).expand(len(x), -1),
        }
        for name, score in said.items():
            right[name].append(score.argmax(dim=-1).cpu().numpy() == truth)
        tested.append(test)
        chosen.append(best)
    order = np.concatenate(tested)
    return Classified(
        layer=layer,
        subjects=tuple(seen.prompts[i].subject for i in order),
        objects=tuple(seen.prompts[i].object for i in order),
        uncovered=dropped + len(seen) - len(order),
        n_objects=len({seen.prompts[i].object for i in order}),
        right={name: np.concatenate(parts) for name, parts in right.items()},
        ranks=tuple(chosen),
    )


def _left_out(parts: Svd, b: Tensor, made: Observed, s: Tensor, which: np.ndarray, rank: int) -> float:
    """Share of the samples classified right when a sample's own z is taken out of its object's mean."""
    n = np.bincount(which)
    index = torch.from_numpy(which).to(s.device)
    means = _means(made.z, which, len(n))
    size = torch.from_numpy(n).to(means)[index, None]
    without = (means[index] * size - made.z) / (size - 1).clamp(min=1)
    score = s @ _unit(_lift(parts, rank, means - b.to(means))).T
    own = (s * _unit(_lift(parts, rank, without - b.to(means)))).sum(dim=-1)
    score[torch.arange(len(s), device=s.device), index] = own
    right = (score.argmax(dim=-1) == index) & (size[:, 0] > 1)
    return float(right.double().mean())


# --- the editor --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ConceptEdits:
    """Which edits made the model answer with the target object's token."""

    starts: tuple[int, ...]
    """Layers at which an edit begins."""
    amounts: tuple[float | None, ...]
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    targets: tuple[str, ...]
    """The object each sample is moved to."""
    right: Mapping[str, Bool[np.ndarray, "start amount sample"]]
    """single (one layer), onward (every layer from it), random (onward, along random directions); swap (the state of a
    sample of the target object, [start, 1, sample])."""
    halves: tuple[Int[np.ndarray, "half"], Int[np.ndarray, "other"]]

    def success(self, name: str = "onward") -> Interval:
        """Share of samples edited to the target, layer and amount chosen on the other half; of equals the first."""
        right, hits = self.right[name], 0
        for choose, report in (self.halves, self.halves[::-1]):
            best = int(right[:, :, choose].mean(axis=2).argmax())
            hits += int(right.reshape(-1, right.shape[-1])[best, report].sum())
        return proportion_interval(hits, len(self.subjects))

    def by_start(self, name: str = "onward") -> Float[np.ndarray, "start amount"]:
        return self.right[name].mean(axis=2)


@torch.no_grad()
def edit_concepts(
    model: Model,
    W: Float[Tensor, "d d"],
    b: Float[Tensor, "d"],
    seen: Observed,
    *,
    rank: int,
    starts: Sequence[int],
    amounts: Sequence[float | None] = AMOUNTS,
    pairs: int = 24,
    seed: int = 0,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> ConceptEdits:
    """Move up to `pairs` known samples to another object by the concepts of the half they are not in; `stages` saves what
    came of each.

    The target is drawn from the other half's objects whose answer is another token. Cost: (3 · amounts + 1) · starts rows
    of the tokens from the subject on, a sample. Raises RelationError where too few objects have two known samples.
    """
    check_operator(model, W, b)
    if not starts or not all(0 <= start < model.n_layers for start in starts):
        raise RelationError(f"edits start at layers 0 to {model.n_layers - 1}, got {list(starts)}")
    stages = stages or InMemory()
    seen, halves, _ = _halved(seen, seed)
    draw = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    names = ("single", "onward", "random")
    found: dict[str, list[Tensor]] = {name: [] for name in (*names, "swap")}
    places: list[np.ndarray] = []
    rows: list[tuple[int, str]] = []
    for train, test in (halves, halves[::-1]):
        made = seen[train]
        known = concepts(W, b, made, rank=rank)
        test = draw.permutation(test)
        index = known.index([seen.prompts[i] for i in test])
        tested = len(rows)
        for i, place in zip(test, index, strict=True):
            prompt, answer = seen.prompts[int(i)], seen.first[int(i)]
            other = np.flatnonzero((known.tokens != answer).cpu().numpy())
            if place < 0 or not len(other) or len(rows) - tested >= (pairs + 1) // 2:
                continue
            to = int(draw.choice(other))
            wild = _unit(torch.randn((2, model.d_model), generator=noise).to(seen.s))
            true = known.vectors[[place, to]]
            # which vectors, and whether later layers are edited too
            ways = tuple(zip(names, (true, true, wild), (False, True, True), strict=True))
            giver = int(draw.choice([j for j in train if seen.prompts[int(j)].object == known.objects[to]]))

            def moved(prompt: Prompt = prompt, ways: Any = ways, giver: int = giver) -> Checkpoint:
                how: Any = {"starts": starts, "amounts": amounts}
                tokens = {n: swapped_tokens(model, prompt, *pair, **how, onward=on) for n, pair, on in ways}
                tokens["swap"] = edited_tokens(model, prompt, starts, seen.s[giver, list(starts)][:, None])
                return Checkpoint({name: array_of(token) for name, token in tokens.items()})

            said = stages.stage(f"edit-{len(rows)}", moved).arrays
            for name, array in said.items():
                found[name].append(tensor_of(array, known.tokens) == known.tokens[to])
            rows.append((int(i), known.objects[to]))
            progress("concept edits", len(rows), min(pairs, len(seen)))
        places.append(np.arange(tested, len(rows)))
    if min(len(part) for part in places) < 1:
        raise RelationError("too few objects with different answers have two known samples, so no edit can be judged")
    return ConceptEdits(
        starts=tuple(starts),
        amounts=tuple(amounts),
        subjects=tuple(seen.prompts[i].subject for i, _ in rows),
        objects=tuple(seen.prompts[i].object for i, _ in rows),
        targets=tuple(target for _, target in rows),
        right={name: torch.stack(parts, dim=-1).cpu().numpy() for name, parts in found.items()},
        halves=(places[0], places[1]),
    )


@torch.no_grad()
def swapped_tokens(
    model: Model,
    prompt: Prompt,
    remove: Float[Tensor, "d"],
    add: Float[Tensor, "d"],
    *,
    starts: Sequence[int],
    amounts: Sequence[float | None] = AMOUNTS,
    onward: bool,
) -> Int[Tensor, "start amount"]:
    """The model's token when the subject's last state is moved by a (add − remove) at layer `starts[i]`, and with
    `onward` at every later layer too; a is the component along `remove` (amount None) or amount · |s|."""
    prefix = Prefix.of(model, prompt.ids, prompt.at)
    begin = torch.tensor(list(starts), device=model.device).repeat_interleave(len(amounts))
    component = torch.tensor([amount is None for amount in amounts], device=model.device).repeat(len(starts))
    times = torch.tensor([amount or 0.0 for amount in amounts], device=model.device).repeat(len(starts))
    move = partial(_moved, prompt.at - prefix.length, remove, add, component, times)
    layers = range(min(starts), model.n_layers) if onward else sorted(set(starts))
    taps: dict[Key, Tap] = {
        ("resid_pre", layer): partial(move, begin <= layer if onward else begin == layer) for layer in layers
    }
    logits = execute(model, prefix.batch(len(begin)), taps, given=prefix.past(len(begin)))
    assert logits is not None
    return logits.argmax(dim=-1).view(len(starts), len(amounts))


def _moved(
    place: int, remove: Tensor, add: Tensor, component: Tensor, times: Tensor, active: Tensor, value: Tensor
) -> Tensor:
    s, value = value[:, place], value.clone()
    a = torch.where(component, s @ remove.to(s), times.to(s) * s.norm(dim=-1)) * active
    value[:, place] = s + a[:, None] * (add - remove).to(s)
    return value


# --- parts -------------------------------------------------------------------------------------------------------------------------------


def _lift(parts: Svd, rank: int, delta: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """W†_ρ δ."""
    return invert(parts, delta, ranks=[rank])[0]


def _unit(vectors: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _classes(seen: Observed) -> tuple[tuple[str, ...], Int[np.ndarray, "sample"]]:
    names, which = np.unique([prompt.object for prompt in seen.prompts], return_inverse=True)
    return tuple(str(name) for name in names), which


def _means(x: Float[Tensor, "sample d"], which: Int[np.ndarray, "sample"], n: int) -> Float[Tensor, "object d"]:
    index = torch.from_numpy(which).to(x.device)
    total = x.new_zeros((n, x.shape[1])).index_add_(0, index, x)
    return total / torch.bincount(index, minlength=n).to(x)[:, None]


def _halved(seen: Observed, seed: int) -> tuple[Observed, tuple[np.ndarray, np.ndarray], int]:
    """(known samples, each subject once; two halves, every object's samples dealt in turn to both; how many went)."""
    known = np.flatnonzero(seen.known)
    first = {seen.prompts[int(i)].subject: int(i) for i in known[::-1]}
    kept = seen[sorted(first.values())]
    if len(kept) < 4:
        raise RelationError(
            f"{len(kept)} subjects are known; concepts need at least 4, two objects of two samples each"
        )
    _, which = _classes(kept)
    if (np.bincount(which) > 1).sum() < 2:
        raise RelationError(
            "fewer than two objects have two known samples, so none can be found in a sample that did not make its "
            "concept; take a relation whose subjects share objects, such as 'country language'"
        )
    order = np.random.default_rng(seed).permutation(len(kept))
    order = order[np.argsort(which[order], kind="stable")]
    return kept, (np.sort(order[::2]), np.sort(order[1::2])), len(seen) - len(kept)
