"""What an operator is particular to: other relations' subjects, and other answers about the same subject.

Cross-evaluation applies the operator of relation A to the subjects of relation B, asked under B's own prompt. If A's
operator gives B's answers nearly as well as B's own, it reads a coarse property and not the relation (Christ et al. 2025).

Isolation asks the other way round: A's causal edit moves subject i to the answer of j; do sibling relations, which ask
something else of the same subjects, still get their answers for i (the question of RAVEL, Huang et al. 2024)? Only a
sibling that answers differently for i and j can tell. The subject swap, which replaces everything, is the control from
above, an edit by a random matrix the one from below; an edit that does nothing isolates perfectly, so isolation stands
beside success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence.intervals import Interval, proportion_interval
from caseback.model.model import Model
from caseback.relations.attribute import check_operator
from caseback.relations.causal import edited_tokens, targets
from caseback.relations.observe import FirstToken, Observed
from caseback.relations.operator import decode, invert, spectrum_twin, svd
from caseback.relations.relation import Relation

__all__ = ["EDITS", "CrossEvaluation", "Isolation", "Operator", "cross_evaluate", "isolate", "siblings"]

EDITS = ("lre", "swap", "random")


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One relation's operator as it was chosen: a layer and a β, with what belongs to them."""

    W: Float[Tensor, "d d"]
    b: Float[Tensor, "d"]
    beta: float
    layer: int


# --- cross-evaluation ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CrossEvaluation:
    """Shares of B's known subjects for which A's operator says …"""

    operators: tuple[str, ...]
    """A, the rows."""
    subjects: tuple[str, ...]
    """B, the columns."""
    n: Int[np.ndarray, "b"]
    """Known subjects."""
    right: Float[np.ndarray, "a b"]
    """… the token the model gives for B."""
    twin: Float[np.ndarray, "a b"]
    """The same by a random matrix with W's singular values."""
    bias: Float[np.ndarray, "a b"]
    """The same by A's b alone."""
    own: Float[np.ndarray, "a b"]
    """… a token that the model gives to some subject of A (nan where A is not among the columns)."""
    asked: Float[np.ndarray, "a b"]
    """… a token that the model gives to some subject of B."""
    majority: Float[np.ndarray, "b"]
    """Share of B's most frequent answer: what the best constant could reach."""

    def interval(self, operator: str, subjects: str, name: str = "right") -> Interval:
        """A cell with its interval; on the diagonal, a relation's operator on its own subjects."""
        for what, where in ((operator, self.operators), (subjects, self.subjects)):
            if what not in where:
                raise RelationError(f"there is no relation {what!r} in this matrix; there are: {', '.join(where)}")
        a, b = self.operators.index(operator), self.subjects.index(subjects)
        share, n = float(getattr(self, name)[a, b]), int(self.n[b])
        if np.isnan(share):
            raise RelationError(f"{name!r} is not known of {operator!r}: its own subjects are not in this matrix")
        return proportion_interval(round(share * n), n)


@torch.no_grad()
def cross_evaluate(
    model: Model, operators: Mapping[str, Operator], seen: Mapping[str, Observed], *, seed: int = 0
) -> CrossEvaluation:
    """Apply every operator to the known subjects of every relation.

    The diagonal is the reference and flatters where an operator's layer and β were chosen on the same subjects. Cost:
    2 · operators · subjects rows of the unembedding, one decomposition an operator. Raises RelationError for a relation
    without known subjects or an operator of another width.
    """
    if not operators or not seen:
        raise RelationError("a cross-evaluation needs at least one operator and one relation's subjects")
    for operator in operators.values():
        check_operator(model, operator.W, operator.b)
    if whole := [name for name, one in seen.items() if not isinstance(one.reading, FirstToken)]:
        raise RelationError(f"{whole[0]!r} was asked for whole objects; relations are compared by first tokens")
    known = {name: one[np.flatnonzero(one.known)] for name, one in seen.items()}
    if empty := [name for name, one in known.items() if not len(one)]:
        raise RelationError(f"{model.name} knows no subject of {empty[0]!r}; leave that relation out")
    answers = {name: one.token.cpu().numpy() for name, one in known.items()}
    shape = (len(operators), len(known))
    tables = {name: np.full(shape, np.nan) for name in ("right", "twin", "bias", "own", "asked")}
    for a, (name, operator) in enumerate(operators.items()):
        twin = spectrum_twin(operator.W, seed=seed)
        alone = int(decode(model, operator.b[None].to(model.device))[0])
        for c, (column, one) in enumerate(known.items()):
            s, right = one.s[:, operator.layer], answers[column]
            both = torch.stack([operator.beta * (s @ W.to(s).T) + operator.b.to(s) for W in (operator.W, twin)])
            said, random = decode(model, both).cpu().numpy()
            tables["right"][a, c] = np.mean(said == right)
            tables["twin"][a, c] = np.mean(random == right)
            tables["bias"][a, c] = np.mean(alone == right)
            tables["asked"][a, c] = np.mean(np.isin(said, right))
            if name in answers:
                tables["own"][a, c] = np.mean(np.isin(said, answers[name]))
    return CrossEvaluation(
        operators=tuple(operators),
        subjects=tuple(known),
        n=np.array([len(one) for one in known.values()]),
        majority=np.array([np.unique(right, return_counts=True)[1].max() / len(right) for right in answers.values()]),
        **tables,
    )


# --- isolation ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What an edit for one relation does to the others' answers about the same subject; edits are lre, swap, random."""

    siblings: tuple[str, ...]
    subjects: tuple[str, ...]
    """The subject that is edited, pair by pair."""
    targets: tuple[str, ...]
    """The one it is to answer like."""
    success: Bool[np.ndarray, "edit pair"]
    """The edited relation answers as for the target."""
    telling: Bool[np.ndarray, "sibling pair"]
    """The sibling is known of both subjects and answers differently."""
    unchanged: Bool[np.ndarray, "sibling edit pair"]
    """The sibling answers as without the edit."""

    def rate(self, edit: str = "lre") -> Interval:
        """Share of pairs in which the edited relation answers as for the target."""
        return proportion_interval(int(self.success[self._of(edit)].sum()), len(self.subjects))

    def isolated(self, sibling: str | None = None, edit: str = "lre", *, successful: bool = False) -> Interval:
        """Share of telling pairs whose sibling answer is unchanged, of one sibling or of all together; with `successful`
        only where the edit did what it should. Pairs of one subject are not independent of each other, and an interval
        over all siblings counts them as if they were."""
        if sibling is not None and sibling not in self.siblings:
            raise RelationError(f"there is no sibling {sibling!r}; there are: {', '.join(self.siblings)}")
        rows = slice(None) if sibling is None else [self.siblings.index(sibling)]
        counted = self.telling[rows] & (self.success[self._of(edit)] | (not successful))
        if not counted.any():
            raise RelationError(
                f"no pair tells whether {sibling or 'a sibling'} is left alone: none differs in its answer"
                + (" where the edit succeeds" if successful else "")
            )
        return proportion_interval(int((self.unchanged[rows, self._of(edit)] & counted).sum()), int(counted.sum()))

    @staticmethod
    def _of(edit: str) -> int:
        if edit not in EDITS:
            raise RelationError(f"there is no edit {edit!r}; there are: {', '.join(EDITS)}")
        return EDITS.index(edit)


@torch.no_grad()
def isolate(
    model: Model,
    W: Float[Tensor, "d d"],
    rank: int,
    layer: int,
    seen: Observed,
    siblings: Mapping[str, Observed],
    *,
    pairs: int = 24,
    seed: int = 0,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Isolation:
    """Edit up to `pairs` known subjects to another's answer and ask their sibling relations under the same edit; `stages`
    saves what is known after every subject.

    The edit is Δs = W†_ρ (z_j − z_i) at the subject's last token, z from the edited relation; in a sibling's prompt the
    same Δs is added where its subject ends. Subjects are matched by their text. Cost: 3 rows of the tokens from the
    subject on, for each pair and relation.
    """
    check_operator(model, W, W[0])
    if not 0 <= layer < model.n_layers:
        raise RelationError(f"there is no layer {layer}; there are 0 to {model.n_layers - 1}")
    if not 1 <= rank <= model.d_model:
        raise RelationError(f"ranks lie between 1 and {model.d_model}, got {rank}")
    places = {name: _places(one) for name, one in siblings.items()}
    covered = [i for i in np.flatnonzero(seen.known) if any(seen.prompts[i].subject in at for at in places.values())]
    if len(covered) < 2:
        raise RelationError(
            "fewer than two subjects are known of both the relation and a sibling; siblings share subjects"
        )
    few = seen[np.random.default_rng(seed).permutation(covered)[:pairs]]
    target = targets(few, seed=seed)
    chosen = [i for i in range(len(few)) if target[i] >= 0]
    if not chosen:
        raise RelationError("the known subjects all have the same answer, so there is nothing to edit them to")
    delta = few.z[target[chosen].tolist()] - few.z[chosen]
    moves = torch.stack([_moves(matrix, rank, delta) for matrix in (W, spectrum_twin(W, seed=seed))], dim=1)
    nothing = {
        "success": np.zeros((len(EDITS), len(chosen)), dtype=bool),
        "telling": np.zeros((len(siblings), len(chosen)), dtype=bool),
        "unchanged": np.zeros((len(siblings), len(EDITS), len(chosen)), dtype=bool),
    }

    def edited(state: Checkpoint | None, number: int) -> Checkpoint:
        found = {name: array.copy() for name, array in (state.arrays if state else nothing).items()}
        i, j = chosen[number], int(target[chosen[number]])
        said = _edited(model, few, i, few.s[j, layer], moves[number], layer)
        found["success"][:, number] = said == int(few.first[j])
        for row, (name, one) in enumerate(siblings.items()):
            here, there = (places[name].get(few.prompts[k].subject) for k in (i, j))
            if here is None or there is None or one.first[here] == one.first[there]:
                continue
            found["telling"][row, number] = True
            said = _edited(model, one, here, one.s[there, layer], moves[number], layer)
            found["unchanged"][row, :, number] = said == int(one.first[here])
        return Checkpoint(found)

    saved = (stages or InMemory(progress)).fold("isolation", len(chosen), edited).arrays
    return Isolation(
        siblings=tuple(siblings),
        subjects=tuple(few.prompts[i].subject for i in chosen),
        targets=tuple(few.prompts[int(target[i])].subject for i in chosen),
        success=saved["success"],
        telling=saved["telling"],
        unchanged=saved["unchanged"],
    )


def siblings(relation: Relation, others: Sequence[Relation], *, least: int = 8) -> tuple[Relation, ...]:
    """The other relations of the same kind of subject that share at least `least` subjects with this one."""
    mine = {sample.subject for sample in relation.samples}
    return tuple(
        other
        for other in others
        if other.name != relation.name
        and other.properties.domain_name == relation.properties.domain_name
        and len(mine & {sample.subject for sample in other.samples}) >= least
    )


def _places(seen: Observed) -> dict[str, int]:
    """Known subject → its first place."""
    return {seen.prompts[int(i)].subject: int(i) for i in np.flatnonzero(seen.known)[::-1]}


def _edited(
    model: Model, seen: Observed, i: int, swap: Float[Tensor, "d"], moves: Float[Tensor, "2 d"], layer: int
) -> Int[np.ndarray, "edit"]:
    """The model's tokens under the three edits, in the order of EDITS."""
    s = seen.s[i, layer]
    new = torch.stack([s + moves[0].to(s), swap, s + moves[1].to(s)])
    return edited_tokens(model, seen.prompts[i], [layer], new[None])[0].cpu().numpy()


def _moves(W: Tensor, rank: int, delta: Tensor) -> Float[Tensor, "pair d"]:
    """W†_ρ δ for every row of δ."""
    return invert(svd(W), delta, ranks=[rank])[0]
