"""Patching: do the scores, made from gradients, follow what happens when single edges are really taken away?

The best edges by score and others drawn from the whole graph are patched exactly, one forward each (`circuits.patching`),
and the two are compared: by correlation, by sign, and by whether the edges that matter most are found. Several kinds of
score (EAP, EAP-IG of so many steps) are held against the same effects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from caseback.circuits.graph import Graph, Scores
from caseback.circuits.parts import graph_of
from caseback.circuits.patching import Patched, patch_edges, sample_edges
from caseback.circuits.score import ScoreConfig, span_names
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import (
    Resampling,
    agreement,
    bootstrap,
    mean_intervals,
    pearson,
    sign_agreement,
    spearman,
    top_recall,
)
from caseback.model.model import Model
from caseback.study.experiments.frame import (
    Experiment,
    ExperimentConfig,
    Finding,
    cell,
    mean_of,
    renamed,
    scored,
    sheet,
)
from caseback.tasks import Task

__all__ = ["PATCHING", "PatchingConfig", "patching"]

WORST = 20
"""Disagreements of scores with exact patching that are listed."""
MEASURES = ("pearson", "spearman", "sign", "recall")
"""Those with an interval; Kendall's is quadratic in the edges."""
BLOCK = 50
"""Edges patched between two saves."""


@dataclass(frozen=True, kw_only=True)
class PatchingConfig(ExperimentConfig):
    """Which edges are patched, and which scores are held against it."""

    steps: tuple[int, ...] = (1,)
    """Gradient points of each kind of score that is compared."""
    top: int = 200
    """Best edges of each kind of score."""
    random: int = 300
    """Edges drawn evenly from the rest of the graph."""
    pairs: int = 8
    """Pairs that are scored and patched."""

    def __post_init__(self) -> None:
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise CircuitError(f"steps are different numbers of gradient points, at least one; got {list(self.steps)}")
        if self.top < 1 or self.pairs < 1:
            raise CircuitError(f"at least 1 top edge is patched on at least 1 pair, not {self.top} on {self.pairs}")


def patching(config: PatchingConfig, model: Model, task: Task, stages: Stages, progress: Progress) -> Finding:
    """Scores beside exact effects, on the same pairs: what differs is the scores' approximation and nothing else."""
    pairs = task[: config.pairs].encode(model)
    graph = graph_of(model, span_names(pairs))
    if config.top + config.random > graph.n_edges:
        raise CircuitError(
            f"{config.top} top and {config.random} random edges were asked for; the graph has {graph.n_edges} edges"
        )
    names = {steps: "EAP" if steps == 1 else f"EAP-IG ({steps})" for steps in config.steps}
    hows = {m: ScoreConfig(reference=config.reference, steps=m, tokens=config.tokens) for m in config.steps}
    mean = mean_of(model, pairs, hows[config.steps[0]])
    scores = {m: scored(f"score-{m}", model, pairs, how, mean, stages, progress) for m, how in hows.items()}
    edges, n_top = _sampled(config, list(scores.values()))
    blocks = [edges[start : start + BLOCK] for start in range(0, len(edges), BLOCK)]

    how: dict[str, Any] = {"reference": config.reference, "mean": mean, "tokens": config.tokens}

    def patch(state: Checkpoint | None, i: int) -> Checkpoint:
        watch = renamed(progress, "patch", before=i * BLOCK * pairs.n, of=len(edges) * pairs.n)
        exact = patch_edges(model, pairs, scores[config.steps[0]], blocks[i], **how, progress=watch).exact
        return Checkpoint({"exact": np.concatenate([state.arrays["exact"], exact]) if state else exact})

    exact = stages.fold("patch", len(blocks), patch).arrays["exact"]
    logits = model.logits(pairs.clean)
    noise = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    found = {
        steps: Patched(edges=edges, score=one.flat[edges].astype(float), exact=exact, n_top=n_top)
        for steps, one in scores.items()
    }
    return _compared(found, graph, names, noise)


def _sampled(config: PatchingConfig, scores: Sequence[Scores]) -> tuple[np.ndarray, int]:
    """The best edges of every kind of score, then random others; how many of them are best ones."""
    each = [sample_edges(one, top=config.top, random=config.random, seed=config.seed) for one in scores]
    top = np.unique(np.concatenate([edges[: config.top] for edges in each]))
    drawn = np.setdiff1d(each[0][config.top :], top)
    return np.concatenate([top, drawn]), len(top)


def _compared(found: Mapping[int, Patched], graph: Graph, names: Mapping[int, str], noise: float) -> Finding:
    """Agreement of every kind of score with the exact effects, over all edges, the best and the random ones."""
    one = next(iter(found.values()))
    (n, n_pairs), n_top = one.exact.shape, one.n_top
    parts = {"all": slice(0, n), "top": slice(0, n_top), "random": slice(n_top, n)}
    rows: list[dict[str, Any]] = [
        {"scores": names[steps], "steps": steps, "subset": part, **_followed(kind.score[rows], one.exact[rows], noise)}
        for steps, kind in found.items()
        for part, rows in parts.items()
        if rows.start < rows.stop
    ]
    table: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0] if name not in MEASURES}
    for name in MEASURES:
        for i, end in enumerate(("", "_low", "_high")):
            table[name + end] = [row[name][i] for row in rows]
    whole = [row for row in rows if row["subset"] == "all"]
    ranked = ", ".join(f"{row['scores']} {row['spearman'][0]:.3f}" for row in whole)
    signs = ", ".join(f"{row['scores']} {row['sign'][0]:.1%}" for row in whole)
    notes = [
        "The exact effect of an edge is M(full) − M(full without it): its reader alone sees the reference value of its "
        "source, and everything after runs on. Scores and effects are of the same pairs.",
        f"Signs are compared where the exact effect exceeds round-off ({noise:.1g}, four units in the last place of the "
        "largest logit); correlations take every edge.",
        "Random edges are drawn evenly from the graph, so most of them carry next to nothing.",
        "The intervals say how much the agreement would move with other pairs, not with other edges.",
    ]
    return Finding(
        claim=f"Rank correlation with exact patching over {n} edges: {ranked}; right signs: {signs}.",
        table={"pairs": n_pairs, "patched": n, "n_top": n_top, "n_random": n - n_top, "round_off": noise, **table},
        sections=_sections(found, rows, graph, names),
        notes=notes,
        measured=n_pairs,
    )


def _sections(
    found: Mapping[int, Patched], rows: Sequence[Mapping[str, Any]], graph: Graph, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Score against effect, the agreement in numbers, and the edges on which the two are furthest apart."""
    one = next(iter(found.values()))
    exact = one.exact.mean(axis=1)
    points = [
        {"name": names[steps], "points": np.stack([kind.score, exact], axis=1).tolist()}
        for steps, kind in found.items()
    ]
    columns = "scores subset edges pearson spearman kendall sign recall".split()
    apart = np.stack([np.abs(kind.score - exact) for kind in found.values()]).max(axis=0)
    worst = np.argsort(-apart, kind="stable")[:WORST]
    differ = [
        [graph.name(one.edges[i]), *(float(kind.score[i]) for kind in found.values()), cell(effect), float(apart[i])]
        for i, effect in zip(worst, mean_intervals(one.exact[worst]), strict=True)
    ]
    return [
        {
            "title": "Do scores follow the exact effect?",
            "text": f"{len(exact):,} edges, {one.n_top} of them the best by |score|, patched one at a time on "
            f"{one.exact.shape[1]} pairs. Found at the top: the share of the exact effects' largest fifth that is in the "
            "scores' largest fifth. Intervals are over pairs.",
            "points": points,
            "table": sheet(
                "text scores, text edges, count patched, number Pearson, number Spearman, number Kendall, "
                "percent signs agree, percent found at the top",
                [[row[name] for name in columns] for row in rows],
            ),
        },
        {
            "title": "Where they differ most",
            "text": "Score and exact effect in the metric's units; positive supports the answer.",
            "table": sheet(
                ", ".join(
                    ["text edge", *(f"signed {name}" for name in names.values()), "signed exact", "number apart"]
                ),
                differ,
            ),
        },
    ]


def _followed(
    scores: Float[np.ndarray, "edge"], exact: Float[np.ndarray, "edge example"], noise: float
) -> dict[str, Any]:
    """All measures of agreement; those that are cheap to compute with their intervals over examples."""
    mean = exact.mean(axis=1)
    k, clear = max(1, len(scores) // 5), np.abs(mean) > noise

    def measures(means: np.ndarray) -> np.ndarray:
        columns = [
            (
                pearson(scores, truth),
                spearman(scores, truth),
                sign_agreement(scores[clear], truth[clear]) if clear.any() else math.nan,
                top_recall(scores, truth, k=k),
            )
            for truth in means.T
        ]
        return np.array(columns).T

    found = bootstrap(measures, exact, how=Resampling(resamples=1000))
    whole = agreement(scores, mean, k=k)
    return {
        **dict(zip(MEASURES, map(cell, found), strict=True)),
        **{"edges": whole.n, "k": k, "compared": int(clear.sum()), "kendall": whole.kendall},
    }


PATCHING = Experiment("patching", PatchingConfig, "Scores against exact patching", patching)
