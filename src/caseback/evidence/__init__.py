"""The arithmetic of belief: intervals, rank statistics and curves. NumPy only; no method, no model, no page."""

from __future__ import annotations

from caseback.evidence.curves import Area, cmd, cpr, curve_interval
from caseback.evidence.intervals import (
    Interval,
    Resampling,
    bootstrap,
    difference_interval,
    faithfulness,
    faithfulness_difference_intervals,
    faithfulness_intervals,
    grouped_mean_interval,
    mean_interval,
    mean_intervals,
    proportion_interval,
    ratio_interval,
    ratio_intervals,
)
from caseback.evidence.ranks import (
    Agreement,
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

__all__ = [
    "Agreement",
    "Area",
    "Interval",
    "Resampling",
    "agreement",
    "bootstrap",
    "cmd",
    "cpr",
    "curve_interval",
    "difference_interval",
    "faithfulness",
    "faithfulness_difference_intervals",
    "faithfulness_intervals",
    "grouped_mean_interval",
    "kendall",
    "mean_interval",
    "mean_intervals",
    "pearson",
    "proportion_interval",
    "rank_overlap",
    "ranks",
    "ratio_interval",
    "ratio_intervals",
    "sign_agreement",
    "spearman",
    "top",
    "top_difference",
    "top_recall",
]
