"""Do two scorings of the same things agree? Correlations, signs, and what stands at the top.

Scores are compared as they are (Pearson), by rank (Spearman, Kendall tau-b), by sign, and by their top-k sets, which is
what selecting a circuit looks at. Ranking for a top set is by |score| unless said otherwise, and ties go to the lower
index, so every answer is deterministic. A correlation with a constant is nan: there is no order to agree with.

Chance levels, for two unrelated rankings: correlations 0, sign agreement .5 (for balanced signs), recall of the top k
of n is k / n, the set difference at a share s is 1 - s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real

from caseback.core.errors import CasebackError

__all__ = [
    "Agreement",
    "agreement",
    "kendall",
    "pearson",
    "rank_overlap",
    "ranks",
    "sign_agreement",
    "spearman",
    "top",
    "top_difference",
    "top_recall",
]

_BLOCK = 4_000_000
"""Pairs Kendall's tau looks at at once."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well an estimate follows the truth, over n items."""

    n: int
    pearson: float
    spearman: float
    kendall: float
    """tau-b."""
    sign: float
    """Share of items with the same sign."""
    recall: float
    """Share of the truth's top k (by |score|) that is in the estimate's top k."""
    k: int


def agreement(estimate: Real[np.ndarray, "items"], truth: Real[np.ndarray, "items"], *, k: int) -> Agreement:
    """All measures of this file at once."""
    return Agreement(
        n=len(truth),
        pearson=pearson(estimate, truth),
        spearman=spearman(estimate, truth),
        kendall=kendall(estimate, truth),
        sign=sign_agreement(estimate, truth),
        recall=top_recall(estimate, truth, k=k),
        k=k,
    )


def pearson(a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"]) -> float:
    """Linear correlation; nan when a side is constant or has under two items."""
    a, b = _pair(a, b)
    if (
        len(a) < 2 or (a == a[0]).all() or (b == b[0]).all()
    ):  # equality, not variance: round-off must not make an order out of none
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)), -1, 1))


def ranks(values: Real[np.ndarray, "items"]) -> Float[np.ndarray, "items"]:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"]) -> float:
    """Pearson's correlation of the ranks."""
    a, b = _pair(a, b)
    return pearson(ranks(a), ranks(b))


def kendall(a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"]) -> float:
    """tau-b = (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b); quadratic in the number of
    items, made in blocks.
    """
    a, b = _pair(a, b)
    n = len(a)
    balance = untied_a = untied_b = 0.0
    rows = max(1, _BLOCK // max(n, 1))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        later = np.arange(n) > np.arange(start, stop)[:, None]
        sa = np.sign(a - a[start:stop, None]) * later
        sb = np.sign(b - b[start:stop, None]) * later
        balance += float((sa * sb).sum())
        untied_a += float(np.abs(sa).sum())
        untied_b += float(np.abs(sb).sum())
    if not untied_a or not untied_b:
        return float("nan")
    return balance / float(np.sqrt(untied_a) * np.sqrt(untied_b))


def sign_agreement(a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"]) -> float:
    """Share of items whose signs are equal; zero is a sign of its own."""
    a, b = _pair(a, b)
    return float((np.sign(a) == np.sign(b)).mean())


def top(scores: Real[np.ndarray, "items"], k: int, *, absolute: bool = True) -> Int[np.ndarray, "k"]:
    """Indices of the k greatest scores (of |scores| if `absolute`), greatest first; ties to the lower index."""
    if not 0 < k <= len(scores):
        raise CasebackError(f"the top {k} of {len(scores)} items was asked for; choose 1 to {len(scores)}")
    key = np.abs(scores) if absolute else np.asarray(scores)
    return np.argsort(-key, kind="stable")[:k]


def top_recall(
    estimate: Real[np.ndarray, "items"], truth: Real[np.ndarray, "items"], *, k: int, absolute: bool = True
) -> float:
    """Share of the truth's top k that the estimate's top k holds."""
    a, b = _pair(estimate, truth)
    return len(np.intersect1d(top(a, k, absolute=absolute), top(b, k, absolute=absolute))) / k


def top_difference(
    a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"], *, share: float, absolute: bool = True
) -> float:
    """1 - |R1 n R2| / L, where R1 and R2 are the top `share` (in (0, 1]) of the two rankings and L is their length
    (PEAP section 2).
    """
    a, b = _pair(a, b)
    return 1 - top_recall(a, b, k=_length(share, len(a)), absolute=absolute)


def rank_overlap(
    a: Real[np.ndarray, "items"], b: Real[np.ndarray, "items"], *, share: float, absolute: bool = True
) -> float:
    """Spearman's correlation of the two rankings over the items that stand in the top `share` of both.

    Over those in both, because an item in only one of the tops is counted by `top_difference` already, and because
    unrelated rankings then give 0 (over the union they give a negative number). nan with under two such items.
    """
    a, b = _pair(a, b)
    k = _length(share, len(a))
    both = np.intersect1d(top(a, k, absolute=absolute), top(b, k, absolute=absolute))
    if absolute:
        a, b = np.abs(a), np.abs(b)
    return spearman(a[both], b[both])


def _length(share: float, n: int) -> int:
    if not 0 < share <= 1:
        raise CasebackError(f"a share of a ranking lies in (0, 1], got {share}")
    return max(1, round(share * n))


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise CasebackError(f"two scorings are compared item by item, but have {len(a)} and {len(b)} items")
    if not len(a):
        raise CasebackError("there are no items to compare")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CasebackError("scores that are not finite cannot be ranked")
    return a, b
