"""A finished study as plain data: what a page, a record or another tool needs of it, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from caseback.circuits.discover import Discovery
from caseback.circuits.evaluate import Measured
from caseback.circuits.select import entries
from caseback.core.stages import Checkpoint
from caseback.evidence import Interval

__all__ = ["describe"]

MAX_EDGES = 20_000


def describe(found: Discovery) -> Checkpoint:
    """Arrays: the edges that come alive first (index, score, rank), so that the circuit of n edges is those of rank ≤
    n. Data: everything else, JSON."""
    scores, ranking, about = found.scores, found.ranking, found.about
    entry = entries(ranking)
    index = np.argsort(entry, kind="stable")[:MAX_EDGES]
    index = index[entry[index] < ranking.n]
    arrays = {"index": index, "score": scores.flat[index].astype(np.float64), "rank": np.arange(1, len(index) + 1)}
    minimal, _ = found.minimality
    losses, exact, agreement = found.losses(), found.patched.intervals(), found.agreement()
    table = [
        {
            "edge": int(edge),
            "name": scores.graph.name(edge),
            "score": float(score),
            "exact": e.value,
            "low": e.low,
            "high": e.high,
        }
        for edge, score, e in zip(found.patched.edges[: found.patched.n_top], found.patched.score, exact, strict=False)
    ]
    data = {
        "title": f"The circuit of {about.task} in {about.model}",
        "graph": scores.graph.to_json(),
        "abs_score": float(np.abs(scores.flat).sum()),
        "model": {"id": about.model, "revision": about.revision},
        "task": {
            "name": about.task,
            "description": about.description,
            "metric": about.metric,
            "n": about.n,
            "held_out": found.n_held_out,
            "accuracy": about.accuracy,
            "dropped": dict(about.dropped),
        },
        "prompts": list(about.prompts),
        "curve": _curve(found),
        "areas": [{"name": name, **row} for name, row in found.areas().items()],
        "minimality": {
            "edges": found.sizes[found.chosen],
            "rows": [
                {"edge": int(edge), "name": scores.graph.name(edge), "loss": f.value, "low": f.low, "high": f.high}
                for edge, f in zip(minimal, losses, strict=True)
            ],
        },
        "completeness": {
            "edges": list(found.sizes),
            **_columns(found.complement.faithfulness(), "faithfulness", "low", "high"),
        },
        "table": table,
        "validation": {
            "pearson": agreement.pearson,
            "spearman": agreement.spearman,
            "sign_agreement": agreement.sign,
            "n": agreement.n,
            "sample": np.stack([found.patched.score, found.patched.exact.mean(axis=1)], axis=1).tolist(),
        },
        "settings": {
            **asdict(found.config),
            "selection_metric": about.metric,
            "scores": dict(scores.method)["name"],
        },
        "chosen": {"edges": found.sizes[found.chosen], "target": found.config.target},
        "notes": _notes(found),
    }
    return Checkpoint(arrays, data)


def _columns(intervals: Sequence[Interval], value: str, low: str, high: str) -> dict[str, list[float]]:
    return {value: [f.value for f in intervals], low: [f.low for f in intervals], high: [f.high for f in intervals]}


def _curve(found: Discovery) -> dict[str, Any]:
    def mean(measured: Measured, name: str) -> list[float]:
        return [float(value) for value in getattr(measured, name).mean(axis=1)]

    return {
        "edges": list(found.sizes),
        "token_edges": list(found.token_edges),
        **_columns(found.circuit.faithfulness(), "faithfulness", "low", "high"),
        **_columns(found.random_mean().faithfulness(), "random", "random_low", "random_high"),
        **_columns(found.agnostic.faithfulness(), "agnostic", "agnostic_low", "agnostic_high"),
        "ratio": [float(r) for r in found.circuit.ratio],
        "agreement": mean(found.circuit, "agreement"),
        "kl": mean(found.circuit, "kl"),
    }


def _notes(found: Discovery) -> list[str]:
    config, n = found.config, found.n_held_out
    words = {
        "counterfactual": "its value on the counterfactual prompt",
        "mean": "its mean over the discovery pairs' counterfactual prompts, tokens of the same span",
        "zero": "zero",
    }
    return [
        f"Edges were scored and selected on the discovery pairs; every curve is measured on {n} held-out pairs.",
        f"A removed edge carries {words[config.reference]}"
        + (
            " (crossing edges: reference pattern × reference value, not renormalised, as in the published PEAP code)."
            if config.mixing == "peap"
            else "."
        ),
        f"Faithfulness is (M(C) − M(∅)) / (M(full) − M(∅)). Random: mean of {config.draws} shuffles of the scores "
        f"within edge type, on {min(config.control_pairs, n)} of those pairs, like what is left without the circuit. "
        "Random and position-agnostic circuits are the largest with no more live token-level edges than the circuit.",
        *_empty_controls(found),
        f"The chosen size is the smallest that reaches {config.target:g} on {config.control_pairs} discovery "
        f"pairs or fewer; minimality and exact patching use {min(config.patch_pairs, n)} held-out pairs.",
        "A circuit is a claim about this task's prompts and this ablation, not about the model at large; edges "
        "scored one by one are used together.",
    ]


def _empty_controls(found: Discovery) -> list[str]:
    """Where a control has no edge at all, its 0 is not a comparison."""
    empty = [size for size, control in zip(found.sizes, found.agnostic_token_edges, strict=True) if not control]
    if not empty:
        return []
    return [
        f"Up to {max(empty):,} edges no circuit without positions is small enough: there the control is empty, hence 0."
    ]
