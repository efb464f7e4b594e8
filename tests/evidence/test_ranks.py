"""Known answers, brute force, chance levels."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest

from caseback.core.errors import CasebackError
from caseback.evidence import (
    agreement,
    kendall,
    pearson,
    rank_overlap,
    ranks,
    sign_agreement,
    spearman,
    top,
    top_difference,
    top_recall,
)

module = sys.modules["caseback.evidence.ranks"]  # the package's `ranks` is the function


def test_ranks_share_ties():
    assert ranks(np.array([10.0, 30.0, 10.0, 20.0])).tolist() == [1.5, 4.0, 1.5, 3.0]
    assert ranks(np.array([2, 2, 2])).tolist() == [2.0, 2.0, 2.0]


def test_correlations_known_answers():
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert pearson(a, 3 * a - 7) == pytest.approx(1)
    assert pearson(a, -a) == pytest.approx(-1)
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    b = np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert kendall(a, b) == pytest.approx(0.6)  # 8 concordant, 2 discordant of 10
    assert spearman(a, b) == pytest.approx(1 - 6 * 4 / (5 * 24))  # 1 - 6 sum d^2 / (n (n^2 - 1))


def test_kendall_is_the_definition_with_ties(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 60).astype(float), rng.integers(0, 6, 60).astype(float)
    balance = untied_a = untied_b = 0
    for i, j in combinations(range(60), 2):
        sa, sb = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
        balance, untied_a, untied_b = balance + sa * sb, untied_a + abs(sa), untied_b + abs(sb)
    expected = balance / np.sqrt(untied_a * untied_b)
    assert kendall(a, b) == pytest.approx(expected)
    monkeypatch.setattr(module, "_BLOCK", 70)
    assert kendall(a, b) == pytest.approx(expected)


def test_no_order_no_correlation():
    constant, other = np.full(5, 0.1), np.arange(5.0)
    for measure in (pearson, spearman, kendall):
        assert np.isnan(measure(constant, other))
        assert np.isnan(measure(np.array([1.0]), np.array([2.0])))


def test_tops():
    scores = np.array([1.0, -5.0, 3.0, 3.0, -3.0])
    assert top(scores, 3).tolist() == [1, 2, 3]  # ties to the lower index
    assert top(scores, 3, absolute=False).tolist() == [2, 3, 0]
    assert top_recall(np.array([9.0, 8.0, 1.0, 0.0]), np.array([9.0, 1.0, 8.0, 0.0]), k=2) == 0.5
    assert top_difference(np.array([9.0, 8.0, 1.0, 0.0]), np.array([9.0, 1.0, 8.0, 0.0]), share=0.5) == 0.5
    assert top_difference(scores, scores, share=0.4) == 0
    assert rank_overlap(scores, 2 * scores, share=1.0) == pytest.approx(1)
    assert sign_agreement(np.array([1.0, -1.0, 0.0, 2.0]), np.array([3.0, 1.0, 0.0, -1.0])) == 0.5


def test_chance_levels():
    rng = np.random.default_rng(0)
    n, draws = 2000, 40
    found = []
    for _ in range(draws):
        a, b = rng.normal(size=n), rng.normal(size=n)
        found.append(
            [pearson(a, b), spearman(a, b), kendall(a, b), sign_agreement(a, b), top_recall(a, b, k=200)]
            + [top_difference(a, b, share=0.1), rank_overlap(a, b, share=0.5)]
        )
    assert np.mean(found, axis=0) == pytest.approx([0, 0, 0, 0.5, 0.1, 0.9, 0], abs=0.02)


def test_agreement_is_all_of_them():
    a, b = np.array([3.0, -2.0, 1.0, 0.5]), np.array([2.0, -3.0, 0.5, 1.0])
    all_of_them = agreement(a, b, k=2)
    assert all_of_them.n == 4
    assert all_of_them.recall == 1.0
    assert all_of_them.sign == 1.0
    assert all_of_them.pearson == pearson(a, b)
    assert all_of_them.kendall == kendall(a, b)


def test_errors_are_sentences():
    with pytest.raises(CasebackError, match="3 and 2 items"):
        module._pair(np.ones(3), np.ones(2))  # the public functions' own annotations refuse it first when checked
    with pytest.raises(CasebackError, match="no items"):
        sign_agreement(np.ones(0), np.ones(0))
    with pytest.raises(CasebackError, match="not finite"):
        spearman(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(CasebackError, match="top 5 of 3"):
        top(np.ones(3), 5)
    with pytest.raises(CasebackError, match="share"):
        top_difference(np.ones(3), np.ones(3), share=1.5)
