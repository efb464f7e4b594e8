"""Selection: the array form of best first against a heap of edges, pruning against reachability, both written plainly."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.circuits.select import best_first, largest, prune, shuffled, threshold, top_n
from caseback.core.errors import CircuitError

from .graph_strategies import shapes, some_circuit

Node = tuple[str, str]


def ends_of(graph: Graph, name: str) -> tuple[Node, Node]:
    """(source node, end node) of an edge, read off its name alone; an MLP's input and output are one node."""
    ends, _, where = name.partition("@")
    if "->" in ends:
        source, _, end = ends.partition("->")
        return (source, where), (end, where)
    head, channel = ends[:-3], ends[-2]
    before, _, after = where.partition("->")
    layer, number = head.split(".h")
    group = number if channel == "q" or not graph.grouped else str(int(number) * graph.n_kv_heads // graph.n_heads)
    return (f"{layer}.h{group}<{channel}>", after if channel == "q" else before), (head, after)


def attention_input(graph: Graph, node: Node) -> Node:
    """The merged node of a reader; other nodes are themselves."""
    if "<q>" in node[0] and graph.grouped:
        layer, head = node[0].removesuffix("<q>").split(".h")
        return f"{layer}.h{int(head) * graph.n_kv_heads // graph.n_heads}<>", node[1]
    return node[0].split("<")[0] + "<>" if "<" in node[0] else node[0], node[1]


def heap_order(scores: Scores, merge: str, sign: str) -> list[frozenset[str]]:
    """Best first with a heap of edges: the units in order, each a set of edge names."""
    graph = scores.graph
    worth = {"absolute": abs, "positive": float, "negative": lambda x: -x}[sign]
    units: dict[object, list[int]] = {}
    for index in np.flatnonzero(graph.allowed).tolist():
        source, end = ends_of(graph, graph.name(index))
        if merge == "qkv":
            where = graph.name(index).split("@")[1]
            source, end = attention_input(graph, source), attention_input(graph, end)
            key: object = (source, end) if "<" not in source[0] else (end, where)
        else:
            key = index
        units.setdefault(key, []).append(index)

    # merged units tie by the place of their merged reader, whose order is that of the smallest edge but for k and v
    into: dict[Node, list[tuple[float, int, list[int], list[Node]]]] = {}
    for number, indices in enumerate(units.values()):
        pairs = [ends_of(graph, graph.name(i)) for i in indices]
        if merge == "qkv":
            pairs = [(attention_input(graph, a), attention_input(graph, b)) for a, b in pairs]
        value = max(worth(float(scores.flat[i])) for i in indices)
        into.setdefault(pairs[0][1], []).append((-value, number, indices, [a for a, _ in pairs]))
    start = ("logits", graph.spans[-1])
    reached, heap, order = {start}, list(into[start]), []
    heapq.heapify(heap)
    while heap:
        _, _, indices, sources = heapq.heappop(heap)
        order.append(frozenset(graph.name(i) for i in indices))
        for source in sources:
            if source not in reached:
                reached.add(source)
                for candidate in into.get(source, []):
                    heapq.heappush(heap, candidate)
    return order


def scores_of(graph: Graph, seed: int, levels: int | None = None) -> Scores:
    """Random scores; with `levels`, whole numbers with many ties."""
    draw = np.random.default_rng(seed)

    def numbers(shape: tuple[int, ...]) -> np.ndarray:
        return (
            draw.standard_normal(shape) if levels is None else draw.integers(-levels, levels + 1, shape).astype(float)
        )

    return Scores(
        graph=graph,
        residual=numbers(graph.residual_shape),
        crossing=numbers(graph.crossing_shape),
        lengths=np.ones((1, graph.n_spans)),
    )


def in_order(ranking) -> list[frozenset[str]]:
    units: list[set[str]] = [set() for _ in range(ranking.n)]
    for index in np.flatnonzero(ranking.rank < ranking.n):
        units[ranking.rank[index]].add(ranking.graph.name(index))
    return [frozenset(unit) for unit in units]


@given(
    shapes(),
    st.integers(0, 10_000),
    st.sampled_from([None, 1, 4]),
    st.sampled_from(["absolute", "positive", "negative"]),
)
@settings(max_examples=120, deadline=None)
def test_best_first_is_the_heap(shape: dict[str, Any], seed: int, levels: int | None, sign: str) -> None:
    graph = Graph(**shape)
    scores = scores_of(graph, seed, levels)
    assert in_order(best_first(scores, sign=sign)) == heap_order(scores, "separate", sign)


@given(shapes(), st.integers(0, 10_000), st.sampled_from(["absolute", "positive", "negative"]))
@settings(max_examples=120, deadline=None)
def test_merged_best_first_is_the_heap(shape: dict[str, Any], seed: int, sign: str) -> None:
    graph = Graph(**shape)
    scores = scores_of(graph, seed)
    assert in_order(best_first(scores, merge="qkv", sign=sign)) == heap_order(scores, "qkv", sign)


@given(shapes(), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_merged_ties_are_deterministic_and_whole(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    scores = scores_of(graph, seed, levels=1)
    first, again = (best_first(scores, merge="qkv") for _ in range(2))
    assert np.array_equal(first.rank, again.rank)
    assert sorted(map(sorted, in_order(first))) == sorted(map(sorted, heap_order(scores, "qkv", "absolute")))


def reachable(circuit: Circuit) -> set[str]:
    """Pruning by plain search: names of the edges on a path from an embedding to the logits of the last span."""
    graph = circuit.graph
    edges = {name: ends_of(graph, name) for name in circuit.names()}
    fed = {("embed", span) for span in graph.spans}
    read = {("logits", graph.spans[-1])}
    for _ in range(4 * graph.n_layers + 4):
        fed |= {end for source, end in edges.values() if source in fed}
        read |= {source for source, end in edges.values() if end in read}
    return {name for name, (source, end) in edges.items() if source in fed and end in read}


@given(shapes(), st.integers(0, 10_000), st.sampled_from([0.05, 0.15, 0.3, 0.6]))
@settings(max_examples=150, deadline=None)
def test_pruning_keeps_what_lies_on_a_path(shape: dict[str, Any], seed: int, share: float) -> None:
    graph = Graph(**shape)
    circuit = some_circuit(graph, seed, share)
    pruned = prune(circuit)
    assert set(pruned.names()) == reachable(circuit)
    assert prune(pruned) == pruned
    assert pruned <= circuit


@given(shapes(), st.integers(0, 10_000), st.sampled_from(["separate", "qkv"]))
@settings(max_examples=40, deadline=None)
def test_prefixes_grow(shape: dict[str, Any], seed: int, merge: str) -> None:
    graph = Graph(**shape)
    ranking = best_first(scores_of(graph, seed), merge=merge)
    sizes = sorted({0, 1, 3, ranking.n // 2, ranking.n})
    circuits = ranking.circuits([n for n in sizes if n <= ranking.n])
    assert all(small <= large for small, large in zip(circuits, circuits[1:], strict=False))
    assert circuits[-1] == prune(Circuit.full(graph))  # everything that matters is ranked
    assert circuits[0] == Circuit.empty(graph)
    ranked = ranking.edges(ranking.n)
    assert Circuit.of(graph, ranked) == ranking.circuit(ranking.n, pruned=False)
    with pytest.raises(CircuitError, match="this ranking has 0 to"):
        ranking.circuit(ranking.n + 1)


@given(shapes(), st.integers(0, 10_000), st.sampled_from(["absolute", "positive", "negative"]))
@settings(max_examples=40, deadline=None)
def test_top_n_and_threshold_agree(shape: dict[str, Any], seed: int, sign: str) -> None:
    graph = Graph(**shape)
    scores = scores_of(graph, seed)
    ranking = top_n(scores, sign=sign)
    assert ranking.n == graph.n_edges
    worth = {"absolute": np.abs, "positive": np.copy, "negative": np.negative}[sign](scores.flat)
    order = ranking.edges(ranking.n)
    assert np.all(np.diff(worth[order]) <= 0)
    n = len(order) // 3
    assert threshold(scores, float(worth[order[n]]), sign=sign, pruned=False) == ranking.circuit(n + 1, pruned=False)
    assert threshold(scores, float(worth[order[n]]), sign=sign) == ranking.circuit(n + 1)


def test_merged_units_are_worth_their_best_channel() -> None:
    graph = Graph(n_layers=1, n_heads=2, n_kv_heads=1, spans=("a", "b"))
    residual, crossing = np.zeros(graph.residual_shape), np.zeros(graph.crossing_shape)
    residual[1, 0, graph.reader(0, "k")] = -5
    crossing[2, 0, 1, 1, 0] = 3
    scores = Scores(graph=graph, residual=residual, crossing=crossing, lengths=np.ones((1, 2)))
    assert set(top_n(scores, merge="qkv").circuit(1, pruned=False).names()) == {
        "embed->a0.h0<q>@b", "embed->a0.h1<q>@b", "embed->a0.h0<k>@b", "embed->a0.h0<v>@b",
    }  # fmt: skip
    assert set(threshold(scores, 3.0, merge="qkv", pruned=False).names()) - {
        "embed->a0.h0<q>@b", "embed->a0.h1<q>@b", "embed->a0.h0<k>@b", "embed->a0.h0<v>@b",
    } == {"a0.h1<q>@a->b", "a0.h1<k>@a->b", "a0.h1<v>@a->b"}  # fmt: skip


@given(shapes(), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_free_crossing_edges_come_with_their_head(shape: dict[str, Any], seed: int) -> None:
    """The position-agnostic selection: a head's crossing edges directly follow the edge that reaches its output."""
    graph = Graph(**shape)
    scores = scores_of(graph, seed).collapse()
    ranking = best_first(scores, crossing="free")
    names = [scores.graph.name(index) for index in ranking.edges(ranking.n)]
    place = {name: i for i, name in enumerate(names)}
    for name in names:
        if "->" not in name.split("@")[0]:
            first = min(i for other, i in place.items() if other.startswith(name.split("<")[0] + "->"))
            assert first < place[name] <= first + 3


def test_largest_finds_the_size() -> None:
    graph = Graph(n_layers=3, n_heads=4, n_kv_heads=2, spans=("a", "b", "c"))
    lengths = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 1.0]])
    ranking = best_first(scores_of(graph, 0))
    sizes = [ranking.circuit(n).size(lengths) for n in range(ranking.n + 1)]
    for limit in (0.0, 10.0, 57.5, max(sizes)):
        best = largest(ranking, lambda circuit: circuit.size(lengths), limit)
        assert best.size(lengths) == max(size for size in sizes if size <= limit)
    agnostic = best_first(scores_of(graph, 0).collapse(), crossing="free")
    best = largest(agnostic, lambda circuit: circuit.expand(graph).size(lengths), 100.0)
    assert 0 < best.expand(graph).size(lengths) <= 100


@given(shapes(), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_shuffling_stays_within_edge_types(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    scores = scores_of(graph, seed)
    dealt = shuffled(scores, seed)
    for kind in range(8):
        where = (graph.edge_type == kind) & graph.allowed
        assert np.array_equal(np.sort(scores.flat[where]), np.sort(dealt.flat[where]))
    assert np.array_equal(dealt.flat, shuffled(scores, seed).flat)
    if graph.n_edges > 100:
        assert not np.array_equal(dealt.flat, scores.flat)
        assert not np.array_equal(dealt.flat, shuffled(scores, seed + 1).flat)
