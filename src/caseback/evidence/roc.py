"""How well does a number tell some tokens from others? The area under the ROC curve, of tokens that come in prompts.

    AUROC = P(x⁺ > x⁻) + ½ P(x⁺ = x⁻)         over pairs of a token that should score high and one that should not

.5 is chance, 1 a threshold that makes no mistake. Tokens of a prompt go together, so the bootstrap draws prompts: with
wins_pq the pairs won by the positive tokens of prompt p over the negative ones of q, and w how often each prompt is drawn,
AUROC = wᵀ wins w / (w · positive)(w · negative). It is linear in `wins`, so means and differences over scorings are AUROCs too.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from caseback.core.errors import CasebackError
from caseback.evidence.intervals import DEFAULT, Interval, Resampling, bootstrap

__all__ = ["auroc", "auroc_interval", "wins"]


def wins(
    scores: Float[np.ndarray, "token"], positive: Bool[np.ndarray, "token"], prompt: Int[np.ndarray, "token"]
) -> Float[np.ndarray, "prompt prompt"]:
    """Pairs that the positive tokens of each prompt (rows) win over the negative ones of each (columns); a tie is half one.
    Prompts are numbered from 0."""
    n = int(prompt.max()) + 1
    found = np.zeros((n, n))
    high, row = scores[positive], prompt[positive]
    for q in range(n):
        low = np.sort(scores[~positive & (prompt == q)])
        won = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
        found[:, q] = np.bincount(row, weights=won, minlength=n)
    return found


def auroc(scores: Float[np.ndarray, "token"], positive: Bool[np.ndarray, "token"]) -> float:
    """Of one scoring.

    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    won = float(wins(scores, positive, np.zeros(len(scores), dtype=int)).sum())
    return won / float(positive.sum() * (~positive).sum())


def auroc_interval(
    won: Float[np.ndarray, "prompt prompt"],
    positive: Bool[np.ndarray, "token"],
    prompt: Int[np.ndarray, "token"],
    *,
    how: Resampling = DEFAULT,
) -> Interval:
    """The AUROC of `wins`, or of a mean or difference of them, with a bootstrap over prompts. Raises CasebackError where all
    tokens are positive, or none."""
    n = len(won)
    pairs = [np.bincount(prompt[which], minlength=n).astype(float) for which in (positive, ~positive)]
    if not all(side.any() for side in pairs):
        raise CasebackError("an AUROC needs tokens of both kinds, some that should score high and some that should not")

    def area(drawn: Float[np.ndarray, "prompt draw"]) -> Float[np.ndarray, "one draw"]:
        size = (pairs[0] @ drawn) * (pairs[1] @ drawn)
        top = (drawn * (won @ drawn)).sum(axis=0)
        defined = size > 0.5 / n**2  # the least there can be is 1/n², one token of each kind in a prompt drawn once
        return np.where(defined, top / np.where(defined, size, 1.0), np.nan)[None]

    # each prompt's own indicator is a row, so the means of a draw are the shares in which prompts were drawn
    return bootstrap(area, np.eye(n), how=how)[0]
