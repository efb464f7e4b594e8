"""How sure a number is: bootstrap intervals for statistics of means.

Every figure caseback reports over examples is a smooth function of per-example means: a mean, a ratio of means, the
baseline-corrected faithfulness (mean(m_C) - mean(m_0)) / (mean(m_full) - mean(m_0)), the area under a curve of such. So
there is one bootstrap:

1. draw examples with replacement, the same draw for every row of every sample, so that what is paired stays paired;
2. a draw is a row of counts, hence all resampled means are one matrix product [rows, examples] @ [examples, draws];
3. apply the statistic to all draws at once and take percentiles, or BCa percentiles (Efron 1987), whose acceleration
   comes from the leave-one-out means, which are closed-form.

Invariant: an interval never claims more than the data hold. One example gives (-inf, inf). A denominator that changes
sign within the draws counts as -inf for the lower end and +inf for the upper end, so a baseline that cannot be told
from the full model gives an unbounded interval, as Fieller's theorem asks. Under 20 or so examples the bootstrap is
somewhat too narrow (tests/evidence measures by how much).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Real

from caseback.core.errors import CasebackError

__all__ = [
    "Interval",
    "Resampling",
    "bootstrap",
    "crossed_mean_interval",
    "difference_interval",
    "faithfulness",
    "faithfulness_difference_intervals",
    "faithfulness_intervals",
    "grouped_mean_interval",
    "mean_interval",
    "mean_intervals",
    "oriented_ratio",
    "proportion_interval",
    "ratio_interval",
    "ratio_intervals",
]

_BLOCK = 4_000_000
"""Resampling counts held at once (32 MB); more examples are drawn in more blocks, with the same random stream."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    level: float = 0.95
    """Nominal coverage, in (0, 1)."""
    resamples: int = 2000
    """Bootstrap draws, at least 100."""
    seed: int = 0
    method: str = "percentile"
    """percentile, or bca (bias-corrected and accelerated: better for skewed data)."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise CasebackError(f"the level of an interval lies between 0 and 1, got {self.level}")
        if self.resamples < 100:
            raise CasebackError(f"a bootstrap needs at least 100 resamples, got {self.resamples}")
        if self.method not in ("percentile", "bca"):
            raise CasebackError(f"there is no interval method {self.method!r}; there are: percentile, bca")


DEFAULT = Resampling()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the range that holds the true one at a given level."""

    value: float
    """The statistic on the examples themselves."""
    low: float
    """Lower end; -inf where the data do not bound it."""
    high: float
    """Upper end; inf where the data do not bound it."""
    n: int
    """Number of examples."""
    level: float
    """Nominal coverage, in (0, 1)."""
    method: str
    """percentile, bca or wilson: how the ends were found (percentile where bca does not exist)."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: Real[np.ndarray, "_ _"], how: Resampling = DEFAULT
) -> tuple[Interval, ...]:
    """Intervals for a statistic of means, resampling examples jointly over all samples.

    `statistic` takes one array of means [rows, draws] per sample and returns [results, draws]; it marks a draw it is
    not defined on with nan. Samples are per-example values [rows, examples] with the same number of examples.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    n = arrays[0].shape[1]
    if any(a.shape[1] != n for a in arrays):
        raise CasebackError(
            f"samples are resampled jointly, but have {', '.join(str(a.shape[1]) for a in arrays)} examples"
        )
    if n == 0:
        raise CasebackError("there are no examples to make an interval from")
    for a in arrays:
        if not np.isfinite(a).all():
            row, example = (int(i) for i in np.argwhere(~np.isfinite(a))[0])
            raise CasebackError(f"example {example} (row {row}) is {a[row, example]}; an interval needs finite values")

    values = statistic(*(a.mean(axis=1, keepdims=True) for a in arrays))[:, 0]
    draws = _draws(statistic, arrays, n, how) if n > 1 else np.full((len(values), 1), np.nan)
    jackknife = None
    if how.method == "bca" and n > 1:
        jackknife = statistic(*((a.sum(axis=1, keepdims=True) - a) / (n - 1) for a in arrays))
    tail = (1 - how.level) / 2
    out = []
    for i, value in enumerate(values.tolist()):
        corrected = None if jackknife is None else _bca(value, draws[i], jackknife[i], tail)
        low, high = _ends(value, draws[i], corrected or (tail, 1 - tail))
        method = "bca" if corrected else "percentile"
        out.append(Interval(value=value, low=low, high=high, n=n, level=how.level, method=method))
    return tuple(out)


def _draws(
    statistic: Callable[..., np.ndarray], arrays: list[np.ndarray], n: int, how: Resampling
) -> Float[np.ndarray, "results draws"]:
    rng = np.random.default_rng(how.seed)
    block = max(1, _BLOCK // n)
    centres = [a.mean(axis=1, keepdims=True) for a in arrays]
    parts = []
    for start in range(0, how.resamples, block):
        size = min(block, how.resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).T / n
        # Around the mean, so that constant data have draws equal to their mean to the last bit.
        parts.append(statistic(*(c + (a - c) @ weights for a, c in zip(arrays, centres, strict=True))))
    return np.concatenate(parts, axis=1)


def _ends(value: float, draws: Float[np.ndarray, "draws"], ends: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of the draws; an undefined draw counts against both ends."""
    if not np.isfinite(value):
        return -inf, inf
    undefined = np.isnan(draws)
    low = np.quantile(np.where(undefined, -inf, draws), ends[0], method="lower")
    high = np.quantile(np.where(undefined, inf, draws), ends[1], method="higher")
    return float(low), float(high)


def _bca(value: float, draws: np.ndarray, jackknife: np.ndarray, tail: float) -> tuple[float, float] | None:
    """BCa's tails Phi(z0 + (z0 + z) / (1 - a (z0 + z))); None where they do not exist (constant data)."""
    if not np.isfinite(value) or not np.isfinite(draws).all() or not np.isfinite(jackknife).all():
        return None
    normal = NormalDist()
    below = float((draws < value).mean() + (draws == value).mean() / 2)
    if not 0 < below < 1:
        return None
    z0 = normal.inv_cdf(below)
    d = jackknife.mean() - jackknife
    spread = float((d**2).sum()) ** 1.5
    a = float((d**3).sum()) / (6 * spread) if spread > 0 else 0.0
    shifted = [z0 + z for z in (normal.inv_cdf(tail), normal.inv_cdf(1 - tail))]
    if any(1 - a * s <= 0 for s in shifted):
        return None
    low, high = (normal.cdf(z0 + s / (1 - a * s)) for s in shifted)
    return low, high


def mean_intervals(values: Real[np.ndarray, "rows examples"], *, how: Resampling = DEFAULT) -> tuple[Interval, ...]:
    """The mean of every row, with shared resamples."""
    return bootstrap(lambda means: means, values, how=how)


def mean_interval(values: Real[np.ndarray, "examples"], *, how: Resampling = DEFAULT) -> Interval:
    """The mean of one sample.

    >>> str(mean_interval(np.array([1.0, 2.0, 3.0, 4.0])))
    '2.500 [1.500, 3.500]'
    """
    return mean_intervals(values[None], how=how)[0]


def grouped_mean_interval(groups: Sequence[Real[np.ndarray, "_"]], *, how: Resampling = DEFAULT) -> Interval:
    """The mean over groups of each group's mean, of which both the groups and the examples within them are a sample: a
    bootstrap that draws groups with replacement, then for every group drawn its examples (percentiles).

    `n` is the number of groups; one group says nothing of others, so its interval is unbounded.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise CasebackError("there are no examples to make an interval from, in a group at least")
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not all(np.isfinite(group).all() for group in arrays):
        raise CasebackError("an interval needs finite values")
    value, n = float(np.mean([group.mean() for group in arrays])), len(arrays)
    low, high = -inf, inf
    if n > 1:
        rng = np.random.default_rng(how.seed)
        drawn = rng.integers(n, size=(how.resamples, n))
        means = np.empty(drawn.shape)
        for i, group in enumerate(arrays):
            here = drawn == i
            means[here] = group[rng.integers(len(group), size=(int(here.sum()), len(group)))].mean(axis=1)
        tail = (1 - how.level) / 2
        low, high = _ends(value, means.mean(axis=1), (tail, 1 - tail))
    return Interval(value=value, low=low, high=high, n=n, level=how.level, method="percentile")


def crossed_mean_interval(values: Float[np.ndarray, "draws examples"], *, how: Resampling = DEFAULT) -> Interval:
    """The mean over examples of each example's mean over the repetitions (rows) it was in, NaN where it was in none; both
    examples and repetitions are samples, and a bootstrap draws both (Owen 2007, the pigeonhole bootstrap; percentiles).

    `n` is the number of examples with a value. Values that are all 0 or all 1 get Wilson's interval of as many examples.
    """
    here = np.isfinite(values)
    here, values = here[:, here.any(axis=0)], values[:, here.any(axis=0)]
    n = values.shape[1]
    if not n:
        raise CasebackError("there are no examples to make an interval from")
    filled, whole = np.where(here, values, 0.0), here.astype(float)
    value = float((filled.sum(axis=0) / whole.sum(axis=0)).mean())
    if value in (0.0, 1.0) and set(np.unique(values[here])) <= {0.0, 1.0}:
        return proportion_interval(round(value) * n, n, level=how.level)
    rng = np.random.default_rng(how.seed)
    rows, columns = (
        rng.multinomial(size, np.full(size, 1 / size), size=how.resamples).astype(float) for size in values.shape
    )
    sums, counts = rows @ filled, rows @ whole
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    weights = columns * (counts > 0)
    total = weights.sum(axis=1)
    draws = np.divide((weights * means).sum(axis=1), total, out=np.full_like(total, np.nan), where=total > 0)
    tail = (1 - how.level) / 2
    low, high = _ends(value, draws[np.isfinite(draws)], (tail, 1 - tail))
    return Interval(value=value, low=low, high=high, n=n, level=how.level, method="percentile")


def proportion_interval(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: right also at 0 and 1, where a bootstrap has no width.

    With p = hits/n and z the normal quantile: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    """
    if not 0 <= hits <= n or n < 1:
        raise CasebackError(f"a proportion is a count out of at least one example, got {hits} of {n}")
    p, z = hits / n, NormalDist().inv_cdf((1 + level) / 2)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((centre + side * half) / (1 + z * z / n) for side in (-1, 1))
    return Interval(value=p, low=max(0.0, low), high=min(1.0, high), n=n, level=level, method="wilson")


def difference_interval(
    a: Real[np.ndarray, "examples"], b: Real[np.ndarray, "examples"], *, how: Resampling = DEFAULT
) -> Interval:
    """mean(a) - mean(b) where a[i] and b[i] are the same example."""
    return mean_interval(a - b, how=how)


def oriented_ratio(estimate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A division of draws, undefined (nan) where the denominator is zero or has not the sign of its `estimate`."""
    sign = -1.0 if estimate < 0 else 1.0

    def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        defined = sign * bottom > 0
        return np.where(defined, top / np.where(defined, bottom, 1.0), np.nan)

    return divide


def ratio_intervals(
    numerator: Real[np.ndarray, "rows examples"],
    denominator: Real[np.ndarray, "examples"],
    *,
    how: Resampling = DEFAULT,
) -> tuple[Interval, ...]:
    """mean(numerator) / mean(denominator) of every row, examples resampled jointly (a ratio of means, not a mean of
    ratios).
    """
    divide = oriented_ratio(float(np.mean(denominator)))
    return bootstrap(divide, numerator, denominator[None], how=how)


def ratio_interval(
    numerator: Real[np.ndarray, "examples"], denominator: Real[np.ndarray, "examples"], *, how: Resampling = DEFAULT
) -> Interval:
    """mean(numerator) / mean(denominator), examples resampled jointly."""
    return ratio_intervals(numerator[None], denominator, how=how)[0]


def faithfulness(
    circuit: Real[np.ndarray, "*circuits examples"],
    full: Real[np.ndarray, "examples"],
    empty: Real[np.ndarray, "examples"],
) -> Float[np.ndarray, "*circuits"]:
    """(mean(m_C) - mean(m_0)) / (mean(m_full) - mean(m_0)): 0 for the empty circuit, 1 for the full model, nan where
    those two are equal.
    """
    base = np.mean(empty)
    gap = np.mean(full) - base
    return np.asarray((np.mean(circuit, axis=-1) - base) / (gap or np.nan))


def faithfulness_intervals(
    circuits: Real[np.ndarray, "circuits examples"],
    full: Real[np.ndarray, "examples"],
    empty: Real[np.ndarray, "examples"],
    *,
    how: Resampling = DEFAULT,
) -> tuple[Interval, ...]:
    """The baseline-corrected faithfulness of every circuit; `full` and `empty` are the metric of the whole model and of
    the empty circuit.
    """
    return ratio_intervals(circuits - empty, full - empty, how=how)


def faithfulness_difference_intervals(
    a: Real[np.ndarray, "circuits examples"],
    b: Real[np.ndarray, "circuits examples"],
    full: Real[np.ndarray, "examples"],
    empty: Real[np.ndarray, "examples"],
    *,
    how: Resampling = DEFAULT,
) -> tuple[Interval, ...]:
    """faithfulness(a[i]) - faithfulness(b[i]) on the same examples: does circuit a beat its control?"""
    return ratio_intervals(a - b, full - empty, how=how)
