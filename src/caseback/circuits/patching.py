"""How good are the scores? Exact patching of single edges, beside their estimates.

The exact effect of an edge is M(full) − M(full without it): its reader alone sees the reference value of its source,
everything after runs on. Positive = the edge supports the answer, like a score. Exhaustive patching is a forward an
edge; a sample of the best and of random edges tells how far the ranking can be trusted (arXiv 2403.17806 does this
exhaustively on GPT-2; expect rank agreement well below 1 for one gradient point, higher for several).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from caseback.circuits.evaluate import measure
from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.circuits.reference import Mean, Reference
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.evidence import agreement, mean_intervals
from caseback.evidence.intervals import Interval
from caseback.evidence.ranks import Agreement
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch

__all__ = ["Patched", "patch_edges", "sample_edges"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """Exact effects of some edges, example by example, beside their scores."""

    edges: Int[np.ndarray, "edge"]
    """Edge indices (`Graph.name`)."""
    score: Float[np.ndarray, "edge"]
    exact: Float[np.ndarray, "edge example"]
    """M(full) − M(full without the edge), in metric units."""
    n_top: int
    """The first `n_top` edges are the best by |score|, the rest are random."""

    def intervals(self) -> tuple[Interval, ...]:
        """Mean exact effect of every edge with its bootstrap interval."""
        return mean_intervals(self.exact)

    def agreement(self) -> Agreement:
        """Correlations, sign agreement and top recall (of a fifth of the edges) between scores and exact effects."""
        return agreement(self.score, self.exact.mean(axis=1), k=max(1, len(self.edges) // 5))


def sample_edges(scores: Scores, *, top: int, random: int, seed: int) -> Int[np.ndarray, "edge"]:
    """The `top` best edges by |score|, ties by index, then `random` others drawn evenly from the graph."""
    graph = scores.graph
    allowed = np.flatnonzero(graph.allowed)
    if top < 0 or random < 0 or not 0 < top + random <= len(allowed):
        raise CircuitError(f"{top} top and {random} random edges were asked for; the graph has {len(allowed)} edges")
    order = allowed[np.argsort(-np.abs(scores.flat[allowed]), kind="stable")]
    drawn = np.random.default_rng(seed).choice(len(order) - top, size=random, replace=False)
    return np.concatenate([order[:top], order[top:][np.sort(drawn)]])


def without(graph: Graph, edge: int | np.integer) -> Circuit:
    """The full circuit but for one edge."""
    flat = graph.allowed.copy()
    flat[edge] = False
    return Circuit.from_flat(graph, flat)


def patch_edges(
    model: Model,
    pairs: PairBatch,
    scores: Scores,
    edges: Int[np.ndarray, "edge"],
    *,
    n_top: int = 0,
    reference: Reference = "counterfactual",
    mean: Mean | None = None,
    tokens: int = 320,
    progress: Progress = silent,
) -> Patched:
    """Patch each edge by itself on every pair; the blocks before the edge's reader are not run again."""
    found = measure(
        model,
        pairs,
        [without(scores.graph, edge) for edge in edges],
        reference=reference,
        mean=mean,
        tokens=tokens,
        progress=lambda stage, done, total: progress("patch", done, total),
    )
    return Patched(
        edges=edges, score=scores.flat[edges].astype(float), exact=found.full[None] - found.metric, n_top=n_top
    )
