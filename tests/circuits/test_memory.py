"""A graph too large for the machine is refused by arithmetic, before anything of its size is made."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest

from caseback.circuits import parts
from caseback.circuits.graph import Graph, Scores
from caseback.circuits.parts import PLACE_BYTES, graph_of, require_memory
from caseback.circuits.select import best_first
from caseback.core.errors import CircuitError
from caseback.model.model import Model
from caseback.zoo.tiny import tiny


def large(spans: int) -> Graph:
    """A model of 7B parameters, one span a token."""
    return Graph(n_layers=32, n_heads=32, n_kv_heads=32, spans=tuple(f"t{i}" for i in range(spans)))


def test_a_graph_that_does_not_fit_is_refused_with_the_number_of_spans_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "free_bytes", lambda: 16_000_000_000)
    graph = large(200)
    tracemalloc.start()
    with pytest.raises(
        CircuitError, match="200 spans × 1,057 writers × 3,105 readers takes 25 GB .* 16 GB are free"
    ) as e:
        require_memory(graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    [most] = map(int, re.findall(r"at most (\d+) spans", str(e.value)))
    require_memory(large(most))
    with pytest.raises(CircuitError):
        require_memory(large(most + 1))


def test_where_no_span_fits_the_way_out_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "free_bytes", lambda: 1000)
    with pytest.raises(CircuitError, match="not one span fits: take a smaller model"):
        graph_of(Model(tiny("llama")), ("a", "b"))


def test_what_is_free_is_less_than_there_is() -> None:
    assert 1e6 < parts.free_bytes() < 1e14


def test_a_place_takes_what_is_said() -> None:
    """Scores at hand, the pass that takes most: within a fifth of the estimate, and hardly above it."""
    graph = Graph(n_layers=8, n_heads=16, n_kv_heads=16, spans=("a", "b", "c", "d"))
    rng = np.random.default_rng(0)
    tracemalloc.start()
    scores = Scores(
        graph=graph,
        residual=rng.standard_normal(graph.residual_shape, dtype=np.float32),
        crossing=rng.standard_normal(graph.crossing_shape, dtype=np.float32),
        lengths=np.ones((2, 4)),
    )
    best_first(scores)
    taken = tracemalloc.get_traced_memory()[1] / graph.n_index
    tracemalloc.stop()
    assert 0.8 * PLACE_BYTES < taken < 1.1 * PLACE_BYTES
