"""From graph indices to what a page draws: every edge keeps its name, the strongest are kept, the rest is counted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from caseback.circuits.graph import Graph
from caseback.core.errors import CasebackError
from caseback.show.circuit import circuit_payload, edge_ends
from caseback.show.payload import CHANNELS, MAX_EDGES, MAX_PROMPTS

from .synthetic import GRAPH, payload

SHAPES = [
    Graph(n_layers=2, n_heads=4, n_kv_heads=2, spans=("a", "b", "c")),
    Graph(n_layers=3, n_heads=2, n_kv_heads=2, spans=("a", "b"), parallel=True),
    Graph(n_layers=2, n_heads=4, n_kv_heads=2, spans=("a", "b"), grouped=False),
    Graph(n_layers=1, n_heads=1, n_kv_heads=1),
]


def name_of(graph: Graph, channel: int, source: int, target: int) -> str:
    """The name of an edge from its payload columns, by the numbering the schema states."""
    per_layer = graph.n_heads + graph.n_groups + 1

    def place(node: int) -> tuple[str, str]:
        span, at = divmod(node, graph.n_layers * per_layer + 2)
        layer, inner = divmod(at - 1, per_layer)
        if at == 0:
            text = "embed"
        elif layer == graph.n_layers:
            text = "logits"
        elif inner == per_layer - 1:
            text = f"m{layer}"
        else:
            text = f"a{layer}.h{inner if inner < graph.n_heads else inner - graph.n_heads}"
        return text, graph.spans[span]

    (u, s), (v, t) = place(source), place(target)
    if CHANNELS[channel].startswith("cross"):
        return f"{v}<{CHANNELS[channel][-1]}>@{s}->{t}"
    return f"{u}->{v}{'' if channel == 0 else f'<{CHANNELS[channel]}>'}@{t}"


@pytest.mark.parametrize("graph", SHAPES, ids=lambda graph: f"{graph.n_layers}x{graph.n_heads}x{graph.n_groups}")
def test_every_edge_keeps_its_name(graph: Graph) -> None:
    index = np.flatnonzero(graph.allowed)
    ends = edge_ends(graph, index)
    names = [name_of(graph, *columns) for columns in zip(*(column.tolist() for column in ends), strict=True)]
    assert names == [graph.name(i) for i in index]


def test_a_crossing_edge_starts_at_its_kv_head() -> None:
    graph = SHAPES[0]
    ends = edge_ends(graph, np.array([graph.index(f"a1.h{head}<k>@a->c") for head in range(4)]))
    assert [(source - 1 - 7 - 4) for source in ends.source.tolist()] == [0, 0, 1, 1]


def minimal(graph: Graph, index: np.ndarray, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "title": "t",
        "graph": graph,
        "model": {"id": "m"},
        "task": {"name": "t", "description": "d", "metric": "logit_diff", "n": 2, "dropped": {}},
        "index": index,
        "score": np.ones(len(index)),
        "rank": np.arange(1, len(index) + 1),
    }
    return circuit_payload(**{**fields, **changes})


def test_the_first_edges_are_kept_and_the_rest_is_counted() -> None:
    index = np.flatnonzero(GRAPH.allowed)[: MAX_EDGES + 500]
    score = np.linspace(2, 1, len(index))
    shuffled = np.random.default_rng(0).permutation(len(index))
    rank = np.arange(1, len(index) + 1)
    made = minimal(
        GRAPH, index[shuffled], score=score[shuffled], rank=rank[shuffled], abs_score=float(2 * score[:MAX_EDGES].sum())
    )
    assert made["edges"]["rank"] == list(range(1, MAX_EDGES + 1))
    assert made["edges"]["score"] == pytest.approx(score[:MAX_EDGES], rel=1e-4)
    assert made["left_out"] == {
        "edges": GRAPH.n_edges - MAX_EDGES,
        "abs_score_share": pytest.approx(0.5, abs=1e-6),
    }


def test_a_run_without_edges_prompts_or_curve_has_a_payload() -> None:
    made = minimal(SHAPES[3], np.zeros(0, dtype=np.int64))
    assert made["edges"]["score"] == []
    assert made["curve"] is None
    assert made["left_out"]["edges"] == SHAPES[3].n_edges


def test_what_is_not_finite_is_null_and_numpy_is_plain() -> None:
    made = minimal(
        SHAPES[0],
        np.flatnonzero(SHAPES[0].allowed)[:3],
        curve={"edges": np.array([1, 3]), "faithfulness": np.array([np.nan, 1.0]), "low": [-np.inf, 0], "high": [1, 2]},
        cost={"seconds": np.float32(1.5)},
    )
    assert made["curve"]["faithfulness"] == [None, 1.0]
    assert made["curve"]["low"] == [None, 0]
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CasebackError, match=r"edges\.score, row 0"):
        minimal(SHAPES[0], np.flatnonzero(SHAPES[0].allowed)[:1], score=np.array([np.nan]))


def test_at_most_five_prompts_are_kept() -> None:
    prompt = {"tokens": ["a"], "spans": [("a", 0, 1)], "counterfactual": ["b"], "answers": ["c"], "foils": ["d"]}
    made = minimal(SHAPES[0], np.flatnonzero(SHAPES[0].allowed)[:1], prompts=[prompt] * 9)
    assert len(made["prompts"]) == MAX_PROMPTS


def test_rows_of_the_table_find_their_edges() -> None:
    made = payload(400)
    edges = made["edges"]
    carried = set(zip(edges["channel"], edges["source"], edges["target"], strict=True))
    rows = [(row["channel"], row["source"], row["target"]) for row in made["table"]]
    assert len(rows) == 60
    assert carried.issuperset(rows)
    assert "edge" not in made["table"][0]
