"""Known answers, the definition, and what a bootstrap over prompts must give."""

from __future__ import annotations

import numpy as np
import pytest

from caseback.core.errors import CasebackError
from caseback.evidence import auroc, auroc_interval, wins


def some(n: int = 12, tokens: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, which are positive (some prompts have none), and the prompt of each."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n * tokens) < 0.2
    scores = rng.integers(0, 6, n * tokens) + 1.5 * positive
    return scores.astype(float), positive, np.repeat(np.arange(n), tokens)


def test_it_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, positive, prompt = some()
    high, low = scores[positive][:, None], scores[~positive][None]
    expected = ((high > low) + (high == low) / 2).mean()
    assert auroc(scores, positive) == pytest.approx(expected)
    assert auroc(-scores, positive) == pytest.approx(1 - expected)
    assert auroc(np.zeros(len(scores)), positive) == 0.5
    assert auroc_interval(wins(scores, positive, prompt), positive, prompt).value == pytest.approx(expected)


def test_the_ends_are_those_of_redrawn_prompts() -> None:
    scores, positive, prompt = some()
    found = auroc_interval(wins(scores, positive, prompt), positive, prompt)
    rng, areas = np.random.default_rng(1), []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(prompt == p) for p in rng.integers(12, size=12)])
        areas.append(auroc(scores[rows], positive[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, (0.025, 0.975))), abs=0.02)
    assert found.n == 12 and found.low < found.value < found.high


def test_differences_are_paired() -> None:
    scores, positive, prompt = some()
    own = wins(scores, positive, prompt)
    same = auroc_interval(own - own, positive, prompt)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert auroc_interval(own, positive, prompt).high - auroc_interval(own, positive, prompt).low > 0.05


def test_one_prompt_bounds_nothing_and_one_kind_of_token_is_refused() -> None:
    scores, positive = np.array([1.0, 2.0]), np.array([False, True])
    here = np.zeros(2, dtype=int)
    found = auroc_interval(wins(scores, positive, here), positive, here)
    assert (found.value, found.low, found.high) == (1.0, -np.inf, np.inf)
    with pytest.raises(CasebackError, match="needs tokens of both kinds"):
        auroc_interval(wins(scores, ~positive | positive, here), ~positive | positive, here)
