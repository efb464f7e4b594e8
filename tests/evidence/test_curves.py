from __future__ import annotations

import numpy as np
import pytest

from caseback.core.errors import CasebackError
from caseback.evidence import Resampling, cmd, cpr, curve_interval

MIB = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


@pytest.mark.parametrize("axis", ["linear", "log"])
def test_a_constant_curve_is_its_own_mean(axis):
    assert cpr(MIB, np.full(10, 0.8), axis=axis).value == pytest.approx(0.8)
    assert cmd(MIB, np.full(10, 0.8), axis=axis).value == pytest.approx(0.2)
    assert cmd(MIB, np.full(10, 1.3), axis=axis).value == pytest.approx(0.3)


def test_straight_lines_are_exact_on_their_axis():
    area = cpr(MIB, MIB)
    assert area.value * (area.stop - area.start) == pytest.approx((1 - 0.001**2) / 2)  # MIB's unnormalised figure
    assert (area.start, area.stop, area.axis) == (0.001, 1.0, "linear")
    assert cpr(MIB, np.log10(MIB), axis="log").value == pytest.approx(-1.5)


def test_small_sizes_count_on_the_log_axis_only():
    early, late = np.ones(10), np.ones(10)
    early[:5] = 0
    assert cpr(MIB, early).value > 0.96
    assert cpr(MIB, early, axis="log").value == pytest.approx(0.5, abs=0.1)
    assert cpr(MIB, late).value == pytest.approx(1)


def test_the_interval_holds_the_value_and_is_exact_without_noise():
    rng = np.random.default_rng(0)
    full, empty = rng.normal(4, 1, 30), rng.normal(0, 1, 30)
    share = np.array([0.2, 0.5, 1.0])
    circuits = empty + share[:, None] * (full - empty)
    sizes = np.array([0.1, 0.5, 1.0])
    exact = curve_interval(sizes, circuits, full, empty, measure="cmd", axis="log")
    assert exact.value == pytest.approx(cmd(sizes, share, axis="log").value)
    assert exact.low == pytest.approx(exact.value)
    assert exact.high == pytest.approx(exact.value)
    circuits += rng.normal(0, 1, (3, 30))
    noisy = curve_interval(sizes, circuits, full, empty, measure="cpr", how=Resampling(seed=1))
    assert noisy.low < noisy.value < noisy.high
    assert noisy.n == 30


def test_errors_are_sentences():
    with pytest.raises(CasebackError, match="size 0 has no place on the log axis"):
        cpr(np.array([0.0, 1.0]), np.ones(2), axis="log")
    with pytest.raises(CasebackError, match="between 0 and 1, got 3 to 40"):
        cpr(np.array([3.0, 40.0]), np.ones(2))
    with pytest.raises(CasebackError, match="ascending"):
        cmd(np.array([0.5, 0.1]), np.ones(2))
    with pytest.raises(CasebackError, match="two different sizes"):
        cmd(np.array([0.5]), np.ones(1))
