"""Small random graphs and circuits, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from caseback.circuits.graph import Circuit, Graph


@st.composite
def shapes(draw: st.DrawFn, max_spans: int = 3) -> dict[str, Any]:
    """What `Graph(**shape)` takes; a graph is not made here because beartype's draws are forbidden inside a strategy."""
    kv = draw(st.integers(1, 2))
    return {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": kv * draw(st.integers(1, 2)),
        "n_kv_heads": kv,
        "spans": tuple(f"s{i}" for i in range(draw(st.integers(1, max_spans)))),
        "parallel": draw(st.booleans()),
        "grouped": draw(st.booleans()),
    }


def some_circuit(graph: Graph, seed: int, share: float = 0.5) -> Circuit:
    return Circuit.from_flat(graph, (np.random.default_rng(seed).random(graph.n_index) < share) & graph.allowed)
