"""One number for a faithfulness curve: CPR and CMD (MIB, arXiv 2504.13151).

With k the circuit's size as a fraction of all edges, in (0, 1], and f(k) the baseline-corrected faithfulness:

    CPR = area under f(k)            higher is better, may exceed 1
    CMD = area under |1 - f(k)|      0 is best

both by the trapezoid rule over the measured sizes, on the linear axis k (MIB's) or on the logarithmic axis log k, where
the small sizes count too. **Normalisation**: the area is divided by the width of the measured range, so it is the mean
height of the curve there: f = c everywhere gives CPR = c on either axis, at any sizes. MIB's own figure is `value *
(stop - start)`, the same to .1 % for its sizes .001 to 1. **Outside the measured range nothing is assumed**; `start`
and `stop` say what was measured, and areas compare only over the same range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real

from caseback.core.errors import CasebackError
from caseback.evidence.intervals import DEFAULT, Interval, Resampling, bootstrap, oriented_ratio

__all__ = ["Area", "cmd", "cpr", "curve_interval"]

Axis = Literal["linear", "log"]


@dataclass(frozen=True, kw_only=True)
class Area:
    """The mean height of a curve over the sizes it was measured at."""

    value: float
    axis: str
    start: float
    """Smallest measured size, as a fraction of all edges."""
    stop: float
    """Largest measured size, as a fraction of all edges."""


def cpr(sizes: Real[np.ndarray, "sizes"], curve: Real[np.ndarray, "sizes"], *, axis: Axis = "linear") -> Area:
    """Mean of f over the measured sizes.

    >>> cpr(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0])).value
    0.75
    """
    return _measure(sizes, np.asarray(curve, float), axis)


def cmd(sizes: Real[np.ndarray, "sizes"], curve: Real[np.ndarray, "sizes"], *, axis: Axis = "linear") -> Area:
    """Mean of |1 - f| over the measured sizes (of the line between measured heights |1 - f|, as MIB does)."""
    return _measure(sizes, np.abs(1 - np.asarray(curve, float)), axis)


def curve_interval(
    sizes: Real[np.ndarray, "sizes"],
    circuits: Real[np.ndarray, "sizes examples"],
    full: Real[np.ndarray, "examples"],
    empty: Real[np.ndarray, "examples"],
    *,
    measure: Literal["cpr", "cmd"],
    axis: Axis = "linear",
    how: Resampling = DEFAULT,
) -> Interval:
    """CPR or CMD with its bootstrap interval, from the per-example metric of the circuit of every size.

    |1 - f| folds noise upwards, so the CMD of a perfect circuit lies above 0 on few examples, and so does its interval.
    """
    weights = _weights(sizes, axis)
    divide = oriented_ratio(float(np.mean(full) - np.mean(empty)))

    def area(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        height = divide(top, bottom)
        return weights[None] @ (height if measure == "cpr" else np.abs(1 - height))

    return bootstrap(area, circuits - empty, (full - empty)[None], how=how)[0]


def _measure(sizes: np.ndarray, heights: np.ndarray, axis: Axis) -> Area:
    weights = _weights(sizes, axis)
    return Area(value=float(weights @ heights), axis=axis, start=float(sizes[0]), stop=float(sizes[-1]))


def _weights(sizes: np.ndarray, axis: Axis) -> Float[np.ndarray, "sizes"]:
    """The trapezoid rule as weights that sum to 1: half the step on either side, over the width."""
    k = np.asarray(sizes, float)
    if len(k) < 2 or (np.diff(k) < 0).any() or k[0] == k[-1]:
        raise CasebackError(f"an area needs at least two different sizes in ascending order, got {k.tolist()}")
    if k[0] < 0 or k[-1] > 1:
        raise CasebackError(f"sizes are fractions of all edges, between 0 and 1, got {k[0]:g} to {k[-1]:g}")
    if axis == "log":
        if k[0] == 0:
            raise CasebackError("size 0 has no place on the log axis; leave the empty circuit out or use axis='linear'")
        k = np.log(k)
    steps = np.diff(k) / (k[-1] - k[0])
    return np.concatenate([steps, [0.0]]) / 2 + np.concatenate([[0.0], steps]) / 2
