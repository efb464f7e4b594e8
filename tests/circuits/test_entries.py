"""`entries` says of every edge at which size it comes alive: the same as pruning the circuit of every size."""

from __future__ import annotations

import numpy as np
import pytest

from caseback.circuits.graph import Graph, Scores
from caseback.circuits.select import best_first, entries, top_n


@pytest.mark.parametrize("seed", range(12))
def test_entries_are_what_pruning_every_size_gives(seed: int) -> None:
    draw = np.random.default_rng(seed)
    graph = Graph(
        n_layers=int(draw.integers(1, 4)),
        n_heads=4,
        n_kv_heads=int(draw.choice([1, 2, 4])),
        spans=("a", "b", "c")[: int(draw.integers(1, 4))],
        parallel=bool(draw.integers(2)),
    )
    residual, crossing = (
        draw.standard_normal(shape).astype(np.float32) for shape in (graph.residual_shape, graph.crossing_shape)
    )
    scores = Scores(graph=graph, residual=residual, crossing=crossing, lengths=np.full((2, graph.n_spans), 2.0))
    for ranking in (best_first(scores), top_n(scores), best_first(scores, merge="qkv")):
        entry = entries(ranking)
        for n in draw.integers(0, ranking.n + 1, 8):
            assert np.array_equal(ranking.circuit(int(n)).flat, entry < n)
