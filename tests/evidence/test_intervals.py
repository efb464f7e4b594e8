"""Known answers, then coverage on simulated data, then the edges."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from caseback.core.errors import CasebackError
from caseback.evidence import (
    Resampling,
    bootstrap,
    crossed_mean_interval,
    difference_interval,
    faithfulness,
    faithfulness_difference_intervals,
    faithfulness_intervals,
    grouped_mean_interval,
    intervals,
    mean_interval,
    mean_intervals,
    proportion_interval,
    ratio_interval,
    ratio_intervals,
)

METHODS = ("percentile", "bca")


@pytest.mark.parametrize("method", METHODS)
def test_mean_interval_is_near_the_normal_one(method):
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = mean_interval(values, how=Resampling(method=method, resamples=20_000))
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)
    assert (interval.n, interval.level, interval.method) == (400, 0.95, method)


def test_bca_moves_with_the_skew_as_theory_says():
    # For a skewed mean BCa shifts both ends to the side of the long tail.
    values = np.random.default_rng(1).exponential(1.0, 60)
    plain = mean_interval(values, how=Resampling(resamples=50_000))
    bca = mean_interval(values, how=Resampling(resamples=50_000, method="bca"))
    assert bca.low > plain.low
    assert bca.high > plain.high


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "least"), [(100, 0.92), (30, 0.90), (10, 0.83)])
def test_coverage_of_faithfulness(method, n, least):
    # True faithfulness .7, noise shared between circuit, full and empty as on real prompts; 300 studies, 95 % nominal.
    rng = np.random.default_rng(7)
    covered = 0
    for study in range(300):
        easy = rng.normal(0, 1, n)
        full = 4 + easy + rng.normal(0, 0.5, n)
        empty = -1 + 0.3 * easy + rng.normal(0, 0.5, n)
        circuit = 2.5 + 0.7 * easy + rng.normal(0, 0.8, n)
        how = Resampling(method=method, resamples=400, seed=study)
        interval = faithfulness_intervals(circuit[None], full, empty, how=how)[0]
        covered += interval.low <= 0.7 <= interval.high
    assert least <= covered / 300 <= 0.985


def test_no_effect_is_covered_by_zero():
    rng = np.random.default_rng(3)
    hits = 0
    for study in range(300):
        shared = rng.normal(0, 5, 50)  # it cancels in pairs, so the interval is far narrower than an unpaired one
        a, b = shared + rng.normal(0, 1, 50), shared + rng.normal(0, 1, 50)
        interval = difference_interval(a, b, how=Resampling(resamples=400, seed=study))
        hits += interval.low <= 0 <= interval.high
        assert interval.high - interval.low < 1.2
    assert 0.91 <= hits / 300 <= 0.98


def test_rows_share_their_resamples():
    rng = np.random.default_rng(0)
    full, empty = rng.normal(4, 1, 40), rng.normal(0, 1, 40)
    circuits = np.stack([empty, full, (full + empty) / 2, 2 * full - empty])
    got = faithfulness_intervals(circuits, full, empty)
    assert [i.value for i in got] == pytest.approx([0, 1, 0.5, 2])  # linked to full and empty example by example
    for interval, exact in zip(got, (0, 1, 0.5, 2), strict=True):
        assert interval.low == pytest.approx(exact)
        assert interval.high == pytest.approx(exact)
    assert got[2] == faithfulness_intervals(circuits[2:3], full, empty)[0]
    assert faithfulness(circuits, full, empty) == pytest.approx([0, 1, 0.5, 2])


def test_difference_of_faithfulness_is_paired():
    rng = np.random.default_rng(0)
    full, empty = rng.normal(4, 1, 40), rng.normal(0, 1, 40)
    a = rng.normal(3, 1, (2, 40))
    got = faithfulness_difference_intervals(a, a - 0.5 * (full - empty), full, empty)
    for interval in got:
        assert interval.low == pytest.approx(0.5)
        assert interval.high == pytest.approx(0.5)


def test_ratio_known_answer_and_sign():
    a, b = np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])
    interval = ratio_interval(a, b)
    assert (interval.value, interval.low, interval.high) == (2.0, 2.0, 2.0)
    assert ratio_interval(a, -b).value == -2.0
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (3, 30)), rng.normal(5, 1, 30)
    flipped = ratio_intervals(-x, -y)
    assert ratio_intervals(x, y) == flipped


def test_a_denominator_that_may_be_zero_gives_no_bound():
    rng = np.random.default_rng(0)
    interval = ratio_interval(rng.normal(1, 1, 20), rng.normal(0.05, 1, 20))
    assert (interval.low, interval.high) == (-inf, inf)
    same = rng.normal(0, 1, 20)
    nothing = faithfulness_intervals(rng.normal(0, 1, (1, 20)), same, same)[0]
    assert np.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (-inf, inf)
    assert np.isnan(faithfulness(same, same, same))


def test_groups_and_their_examples_are_both_resampled():
    """The spread is that of group means drawn twice: the variance between groups, and within them, over the groups."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(centre, 1.0, 30) for centre in rng.normal(0, 0.5, 20)]
    means = np.array([group.mean() for group in groups])
    found = grouped_mean_interval(groups, how=Resampling(resamples=20_000))
    assert (found.value, found.n) == (pytest.approx(means.mean()), 20)
    within = np.mean([group.var() / len(group) for group in groups])
    half = 1.95996 * np.sqrt((means.var() + within) / 20)
    assert (found.value - found.low, found.high - found.value) == (
        pytest.approx(half, rel=0.05),
        pytest.approx(half, rel=0.05),
    )
    flat = mean_interval(means, how=Resampling(resamples=20_000))
    assert found.low < flat.low < flat.high < found.high
    constant = grouped_mean_interval([np.full(3, m) for m in means], how=Resampling(resamples=20_000))
    assert constant.high - constant.low == pytest.approx(flat.high - flat.low, rel=0.05)


def test_one_group_says_nothing_of_others_and_none_is_refused():
    one = grouped_mean_interval([np.array([0.0, 1.0])])
    assert (one.value, one.low, one.high, one.n) == (0.5, -inf, inf, 1)
    for groups in ([], [np.array([1.0]), np.array([])]):
        with pytest.raises(CasebackError, match="no examples to make an interval from"):
            grouped_mean_interval(groups)
    with pytest.raises(CasebackError, match="finite"):
        grouped_mean_interval([np.array([1.0, np.nan])])


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(30, 40, 0.59806, 0.85813), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (199, 200, 0.97223, 0.99912)],
)
def test_wilson_s_interval_of_a_proportion(hits, n, low, high):
    """The values of scipy.stats.binomtest(hits, n).proportion_ci(method="wilson"), scipy 1.17."""
    found = proportion_interval(hits, n)
    assert (found.value, found.n, found.method) == (hits / n, n, "wilson")
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_a_proportion_of_nothing_is_refused():
    for hits, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(CasebackError, match="a proportion is a count"):
            proportion_interval(hits, n)


@pytest.mark.parametrize("method", METHODS)
def test_one_example_knows_nothing_and_constants_know_all(method):
    how = Resampling(method=method)
    one = mean_interval(np.array([3.0]), how=how)
    assert (one.value, one.low, one.high, one.n) == (3.0, -inf, inf, 1)
    constant = mean_interval(np.full(9, 3.0), how=how)
    assert (constant.low, constant.high) == (3.0, 3.0)


def test_deterministic_by_seed_and_free_of_the_block_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 33))
    first = mean_intervals(values, how=Resampling(seed=5))
    assert first == mean_intervals(values, how=Resampling(seed=5))
    assert first != mean_intervals(values, how=Resampling(seed=6))
    monkeypatch.setattr(intervals, "_BLOCK", 100)
    blocked = mean_intervals(values, how=Resampling(seed=5))
    assert [i.low for i in blocked] == pytest.approx([i.low for i in first])


def test_any_statistic_of_means():
    values = np.random.default_rng(0).normal(2, 1, (3, 50))
    got = bootstrap(lambda m: m.prod(axis=0, keepdims=True), values)
    assert len(got) == 1
    assert got[0].value == pytest.approx(values.mean(axis=1).prod())
    assert got[0].low < got[0].value < got[0].high


def test_errors_are_sentences():
    with pytest.raises(CasebackError, match="no examples"):
        mean_interval(np.array([], dtype=float))
    with pytest.raises(CasebackError, match=r"example 1 \(row 0\) is nan"):
        mean_interval(np.array([1.0, np.nan]))
    with pytest.raises(CasebackError, match="resampled jointly, but have 2, 3 examples"):
        bootstrap(lambda a, b: a - b, np.ones((1, 2)), np.ones((1, 3)))
    for bad in ({"level": 1.0}, {"resamples": 10}, {"method": "normal"}):
        with pytest.raises(CasebackError):
            Resampling(**bad)


# --- rows and columns drawn ---------------------------------------------------------------------------------------------------------------


def test_a_crossed_mean_covers_what_repetitions_add():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        effect = rng.normal(size=(6, 1))  # a repetition moves all of its examples together
        values = 0.5 + effect + rng.normal(size=(6, 40))
        found = crossed_mean_interval(values, how=Resampling(resamples=500))
        covered += found.low <= 0.5 <= found.high
        assert found.high - found.low > 3 * 2 / np.sqrt(values.size)  # much wider than if all were independent
    assert covered >= 80  # few repetitions: a percentile bootstrap of six is a little narrow


def test_a_crossed_mean_leaves_out_what_was_not_measured():
    values = np.array([[1.0, np.nan, 3.0, np.nan], [1.0, np.nan, np.nan, 5.0]])
    found = crossed_mean_interval(values)
    assert found.value == 3.0 and found.n == 3
    assert 1.0 <= found.low <= 3.0 <= found.high <= 5.0
    one = crossed_mean_interval(np.ones((3, 20)))
    assert (one.value, one.high, one.method) == (1.0, 1.0, "wilson") and 0.8 < one.low < 0.9
    with pytest.raises(CasebackError, match="no examples"):
        crossed_mean_interval(np.full((2, 2), np.nan))
