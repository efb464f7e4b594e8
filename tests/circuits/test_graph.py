"""The graph: published counts, names that read back, circuits as sets, token-level sizes."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.core.errors import CircuitError

from .graph_strategies import shapes, some_circuit


@pytest.mark.parametrize(
    ("shape", "grouped", "edges"),
    [
        ((12, 12, 12), True, 32_491),
        ((30, 9, 3), True, 70_651),
        ((30, 9, 3), False, 123_211),
        ((24, 14, 2), True, 79_813),
        ((24, 14, 2), False, 179_749),
        ((32, 32, 8), True, 805_681),
        ((32, 32, 8), False, 1_592_881),
    ],
)
def test_residual_edges_of_known_models(shape: tuple[int, int, int], grouped: bool, edges: int) -> None:
    layers, heads, kv = shape
    graph = Graph(n_layers=layers, n_heads=heads, n_kv_heads=kv, grouped=grouped)
    assert graph.residual_allowed.sum() == edges
    assert graph.n_edges == edges + 3 * layers * heads


def test_size_of_the_full_graph_is_the_papers() -> None:
    """Greater-Than on GPT-2 small: 12 tokens, 423,588 edges, with the logits counted at every position."""
    graph = Graph(n_layers=12, n_heads=12, n_kv_heads=12, spans=tuple(f"s{i}" for i in range(11)))
    lengths = np.ones((2, 11))
    lengths[0, 3], lengths[1, 5] = 2, 2  # 12 tokens, cut in two ways
    logits_before_the_end = 11 * graph.n_writers
    assert Circuit.full(graph).size(lengths) == 423_588 - logits_before_the_end


def test_sizes_count_tokens() -> None:
    graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1, spans=("a", "b"))
    lengths = np.array([[3.0, 1.0], [1.0, 1.0]])
    sizes = {
        "embed->a0.h0<q>@a": 2,  # (3 + 1) / 2
        "embed->logits@b": 1,
        "a0.h0<q>@a->b": 2,  # (3*1 + 1*1) / 2
        "a0.h0<v>@a->a": 3.5,  # (3*4/2 + 1*2/2) / 2
        "a0.h0<k>@b->b": 1,
    }
    for name, size in sizes.items():
        assert Circuit.of(graph, [name]).size(lengths) == size, name
    assert Circuit.of(graph, sizes).size(lengths) == sum(sizes.values())
    assert Circuit.empty(graph).size(lengths) == 0
    with pytest.raises(CircuitError, match="span lengths for 3 spans were given to a graph of 2"):
        Circuit.full(graph).size(np.ones((1, 3)))


@given(shapes())
@settings(max_examples=20, deadline=None)
def test_names_read_back_and_are_unique(shape: dict[str, Any]) -> None:
    graph = Graph(**shape)
    indices = np.flatnonzero(graph.allowed)
    names = [graph.name(index) for index in indices]
    assert [graph.index(name) for name in names] == indices.tolist()
    assert len(set(names)) == len(names)


@given(shapes())
@settings(max_examples=20, deadline=None)
def test_the_order_of_layers_is_kept(shape: dict[str, Any]) -> None:
    """An edge leads to a later layer, or from a head to its own layer's MLP where blocks are serial."""
    graph = Graph(**shape)
    for index in np.flatnonzero(graph.allowed[: graph.n_residual]):
        source, end = re.split("->|@", graph.name(index))[:2]
        up = (-1 if source == "embed" else int(re.findall(r"\d+", source)[0]), source.startswith("m"))
        down = (graph.n_layers if end == "logits" else int(re.findall(r"\d+", end)[0]), end.startswith("m"))
        assert up[0] < down[0] or (not graph.parallel and up[0] == down[0] and not up[1] and down[1])


@given(shapes())
@settings(max_examples=20, deadline=None)
def test_places_agree_with_names(shape: dict[str, Any]) -> None:
    graph = Graph(**shape)
    for layer in range(graph.n_layers):
        assert graph.writer_names[graph.writer(layer)] == f"m{layer}"
        assert graph.reader_names[graph.reader(layer, "mlp")] == f"m{layer}"
        for head in range(graph.n_heads):
            assert graph.writer_names[graph.writer(layer, head)] == f"a{layer}.h{head}"
            assert graph.heads[layer, head] == graph.writer(layer, head)
            assert graph.writer_layer[graph.heads[layer, head]] == layer
            assert graph.writer_head[graph.heads[layer, head]] == head
            group = int(graph.group[head])
            assert group == (head * graph.n_kv_heads // graph.n_heads if graph.grouped else head)
            for c, (channel, reader) in enumerate((("q", head), ("k", group), ("v", group))):
                assert graph.reader_names[graph.reader(layer, channel, reader)] == f"a{layer}.h{reader}<{channel}>"
                assert graph.starts[c, layer, head] == graph.reader(layer, channel, reader)
    assert graph.reader_names[graph.logits] == "logits"
    kinds = ["qkvml".index(name[-2] if name[0] == "a" else name[0]) for name in graph.reader_names]
    assert graph.reader_kind.tolist() == kinds


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "head input ''"),
        ("embed", "head input 'embed'"),
        ("embed->m0", "span ''"),
        ("embed->m0@c", "span 'c' does not exist; there are a, b"),
        ("embed->m7@a", "end 'm7'"),
        ("a0.h9->m0@a", "source 'a0.h9'"),
        ("a1.h0->m0@a", "its source does not come before its end"),
        ("embed->logits@a", "the logits are read at the last span only"),
        ("a0.h0<q>@b->a", "its source does not come before its end"),
        ("a0.h0<z>@a->b", "head input 'a0.h0<z>'"),
        ("a0.h0<q>@a", "span ''"),
    ],
)
def test_a_name_that_is_no_edge_is_refused_by_name(name: str, reason: str) -> None:
    graph = Graph(n_layers=2, n_heads=2, n_kv_heads=1, spans=("a", "b"))
    with pytest.raises(CircuitError, match=re.escape(f"there is no edge {name!r}")) as error:
        graph.index(name)
    assert reason in str(error.value)


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_text_is_an_edge_or_a_sentence(text: str) -> None:
    graph = Graph(n_layers=2, n_heads=2, n_kv_heads=1, spans=("a", "b@c"))
    with contextlib.suppress(CircuitError):
        assert graph.name(graph.index(text)) == text


def test_span_names_may_be_odd_and_one_span_need_not_be_named() -> None:
    graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1, spans=("S1+1", "b@c", " "))
    assert graph.name(graph.index("a0.h0<k>@S1+1->b@c")) == "a0.h0<k>@S1+1->b@c"
    agnostic = graph.with_spans()
    assert agnostic.index("embed->logits") == agnostic.index("embed->logits@all")
    assert agnostic.index("a0.h0<k>") == agnostic.index("a0.h0<k>@all->all")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_layers": 0}, "n_layers"),
        ({"n_heads": 3, "n_kv_heads": 2}, "3 heads cannot be shared by 2 KV heads evenly"),
        ({"spans": ()}, "at least one"),
        ({"spans": ("a", "a")}, "unique"),
        ({"spans": ("a", "")}, "named"),
        ({"spans": ("a->b",)}, "rename it"),
    ],
)
def test_an_impossible_graph_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CircuitError, match=reason):
        Graph(**{"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, **change})


def test_records_read_back() -> None:
    graph = Graph(n_layers=2, n_heads=4, n_kv_heads=2, spans=("a", "b"), parallel=True, grouped=False)
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    circuit = some_circuit(graph, 0)
    assert Circuit.from_arrays(graph, circuit.to_arrays()) == circuit
    draw = np.random.default_rng(0)
    scores = Scores(
        graph=graph,
        residual=draw.standard_normal(graph.residual_shape),
        crossing=draw.standard_normal(graph.crossing_shape),
        lengths=np.ones((3, 2)),
        method={"steps": 5},
    )
    again = Scores.from_arrays(graph, scores.to_arrays(), scores.method)
    assert np.array_equal(again.flat, scores.flat)
    assert again.method == scores.method
    assert again.n == 3
    with pytest.raises(CircuitError, match="not the record of a graph"):
        Graph.from_json({"n_layers": 2})


@given(shapes(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_circuits_are_sets(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    a, b = some_circuit(graph, seed), some_circuit(graph, seed + 100)
    full, empty = Circuit.full(graph), Circuit.empty(graph)
    assert full.complement == empty
    assert full.n_edges == graph.n_edges
    assert empty.n_edges == 0
    assert a | a.complement == full
    assert a & a.complement == empty
    assert full - a == a.complement
    assert (a | b).complement == a.complement & b.complement
    assert a & b <= a <= a | b
    assert (a <= b) == ((a | b) == b)
    assert len({a, Circuit.from_arrays(graph, a.to_arrays()), full, full}) <= 2
    assert Circuit.of(graph, a.names()) == a == Circuit.of(graph, a.edges)
    assert all(name in a for name in a.names())
    with pytest.raises(CircuitError, match="different graphs"):
        a | Circuit.full(graph.with_spans(("another",)))


@given(shapes(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_expanding_and_collapsing(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    one = some_circuit(graph.with_spans(), seed, 0.1)
    wide = one.expand(graph)
    for name in wide.names():
        if "->" in name.split("@")[0]:
            assert name.split("@")[0] in one  # residual edges are those of the agnostic circuit, at every span
        else:
            assert one.residual[0, graph.writer_names.index(name.split("<")[0])].any()
    assert wide.collapse().residual.tolist() == one.residual.tolist()
    assert Circuit.full(graph).collapse().n_edges == graph.with_spans().n_edges
    if graph.n_spans > 1:
        with pytest.raises(CircuitError, match="only a one-span circuit"):
            wide.expand(graph)


def test_scores_collapse_to_signed_sums() -> None:
    graph = Graph(n_layers=1, n_heads=2, n_kv_heads=1, spans=("a", "b"))
    residual, crossing = np.zeros(graph.residual_shape), np.zeros(graph.crossing_shape)
    residual[:, 0, 0] = [3, -1]
    crossing[0, 0, 1] = [[1, 0], [-4, 2]]
    one = Scores(graph=graph, residual=residual, crossing=crossing, lengths=np.array([[2.0, 1.0]])).collapse()
    assert one.residual[0, 0, 0] == 2
    assert one.crossing[0, 0, 1, 0, 0] == -1
    assert one.lengths.tolist() == [[3.0]]


def test_wrong_arrays_are_refused() -> None:
    graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1, spans=("a", "b"))
    residual, crossing = np.zeros(graph.residual_shape, dtype=bool), np.zeros(graph.crossing_shape, dtype=bool)
    crossing[1, 0, 0, 0, 1] = True
    with pytest.raises(CircuitError, match="a0.h0<k>@b->a is no edge"):
        Circuit(graph=graph, residual=residual, crossing=crossing)
    with pytest.raises(CircuitError, match="have the shape"):
        Circuit(graph=graph, residual=residual[:1], crossing=crossing)
    scores = Scores(
        graph=graph,
        residual=np.full(graph.residual_shape, np.nan),
        crossing=np.zeros(graph.crossing_shape),
        lengths=np.ones((1, 2)),
    )
    with pytest.raises(CircuitError, match="that of embed->a0.h0<q>@a is nan"):
        _ = scores.flat
