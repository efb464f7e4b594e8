"""Which parts of a model, at which positions, answer a question: score every edge, select, ablate the rest, judge.

    scores = score(model, task.discovery.encode(model))          every edge of the graph, one number each
    circuit = best_first(scores).circuit(2000)                   any size from one ranking
    found = measure(model, task.held_out.encode(model), [circuit])

`discover` does all of it with the controls. Edges are places in arrays (`graph`), never objects; a score is positive
where the edge supports the answer. The method, its costs and its limits are in docs/circuits.md.
"""

from __future__ import annotations

from caseback.circuits import exchange, positions
from caseback.circuits.ablate import Mixing
from caseback.circuits.describe import describe
from caseback.circuits.discover import About, DiscoverConfig, Discovery, discover
from caseback.circuits.evaluate import Measured, curve_sizes, measure
from caseback.circuits.graph import CHANNELS, Circuit, Graph, Scores
from caseback.circuits.patching import Patched, patch_edges, sample_edges
from caseback.circuits.reference import Mean, Reference
from caseback.circuits.score import ScoreConfig, score
from caseback.circuits.select import (
    Merge,
    Ranking,
    Sign,
    best_first,
    entries,
    largest,
    prune,
    shuffled,
    threshold,
    top_n,
)

__all__ = [
    "CHANNELS",
    "About",
    "Circuit",
    "DiscoverConfig",
    "Discovery",
    "Graph",
    "Mean",
    "Measured",
    "Merge",
    "Mixing",
    "Patched",
    "Ranking",
    "Reference",
    "ScoreConfig",
    "Scores",
    "Sign",
    "best_first",
    "curve_sizes",
    "describe",
    "discover",
    "entries",
    "exchange",
    "largest",
    "measure",
    "patch_edges",
    "positions",
    "prune",
    "sample_edges",
    "score",
    "shuffled",
    "threshold",
    "top_n",
]
