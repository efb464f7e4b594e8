"""The exchange format: what is written reads back, its own shape is kept, hostile files get a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.circuits.exchange import Exchanged, from_json, group, read, to_json, write
from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.core.errors import CircuitError

from .graph_strategies import shapes, some_circuit

SHAPE: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "spans": ("a", "b"), "parallel": False}


def some_scores(graph: Graph, seed: int) -> Scores:
    draw = np.random.default_rng(seed)
    scores = Scores(
        graph=graph,
        residual=draw.standard_normal(graph.residual_shape),
        crossing=draw.standard_normal(graph.crossing_shape),
        lengths=draw.integers(1, 4, (3, graph.n_spans)).astype(float),
        method={"gradient": "eap", "steps": 1},
    )
    return scores.with_flat(scores.flat)


def written(seed: int = 0, **change: Any) -> dict[str, Any]:
    graph = Graph(**{**SHAPE, **change})
    return json.loads(json.dumps(to_json(some_circuit(graph, seed), some_scores(graph, seed), d_model=32)))


@given(shapes(), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_what_is_written_reads_back(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    circuit, scores = some_circuit(graph, seed), some_scores(graph, seed)
    back = from_json(json.loads(json.dumps(to_json(circuit, scores, d_model=8))))
    assert back.circuit == circuit
    assert back.positions
    assert back.notes == ()
    assert np.array_equal(back.scores.flat, scores.flat)
    assert np.array_equal(back.scores.lengths, scores.lengths)
    assert back.scores.method == scores.method


def test_the_file_has_the_formats_own_shape() -> None:
    """As `Graph.from_json` of EAP-IG reads it: every ungrouped edge and node of that model, no other."""
    data = written()
    assert data["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    heads = Graph(n_layers=2, n_heads=4, n_kv_heads=4)
    names = {heads.name(i).partition("@")[0] for i in np.flatnonzero(heads.allowed[: heads.n_residual])}
    assert set(data["edges"]) == {name.replace("embed", "input") for name in names}
    assert set(data["nodes"]) == {name.replace("embed", "input") for name in heads.writer_names} | {"logits"}
    assert all(set(entry) == {"score", "in_graph"} for entry in data["edges"].values())
    assert all(set(entry) == {"in_graph"} for entry in data["nodes"].values())


def test_the_agnostic_view_sums_scores_and_keeps_edges_of_any_span() -> None:
    graph = Graph(**SHAPE)
    scores = some_scores(graph, 0)
    circuit = Circuit.of(graph, ["embed->a1.h1<k>@b", "a0.h0->logits@b"])
    edges = to_json(circuit, scores, d_model=8)["edges"]
    assert {name for name, entry in edges.items() if entry["in_graph"]} == {
        "input->a1.h2<k>", "input->a1.h3<k>", "a0.h0->logits",
    }  # fmt: skip
    k, q, m = graph.reader(1, "k", 1), graph.reader(1, "q", 3), graph.reader(1, "mlp")
    shares = [edges[f"input->a1.h{head}<k>"]["score"] for head in (2, 3)]
    assert sum(shares) == pytest.approx(scores.residual[:, 0, k].sum())
    assert shares[0] == shares[1]
    assert edges["input->a1.h3<q>"]["score"] == pytest.approx(scores.residual[:, 0, q].sum())
    assert edges["a1.h2->m1"]["score"] == pytest.approx(scores.residual[:, graph.writer(1, 2), m].sum())


@given(shapes(), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_nodes_are_in_when_read_and_fed(shape: dict[str, Any], seed: int) -> None:
    data = to_json(some_circuit(Graph(**shape), seed, 0.1), some_scores(Graph(**shape), seed), d_model=8)
    kept = [name for name, entry in data["edges"].items() if entry["in_graph"]]
    for node, entry in data["nodes"].items():
        fed = node == "input" or any(name.split("->")[1].split("<")[0] == node for name in kept)
        assert entry["in_graph"] == (node == "logits" or (fed and any(name.startswith(node + "->") for name in kept)))


@given(shapes(), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_without_positions_a_file_is_a_one_span_circuit(shape: dict[str, Any], seed: int) -> None:
    graph = Graph(**shape)
    circuit = some_circuit(graph, seed, 0.2)
    data = to_json(circuit, some_scores(graph, seed), d_model=8)
    del data["positions"]
    back = from_json(data)
    assert not back.positions
    assert len(back.notes) == 2
    one = back.circuit
    assert one.graph.spans == ("all",)
    assert not one.graph.grouped
    for name, entry in data["edges"].items():
        assert (name.replace("input->", "embed->") in one) == entry["in_graph"]
        place = one.graph.index(name.replace("input->", "embed->"))
        assert back.scores.flat[place] == pytest.approx(entry["score"])
    read_from = one.residual[0].any(axis=1)[one.graph.heads]
    assert np.array_equal(one.crossing[0, :, :, 0, 0], read_from)

    again = group(back, graph.n_kv_heads)
    assert again.circuit.graph == Graph(**{**shape, "spans": ("all",), "grouped": True})
    if graph.grouped:
        assert np.array_equal(again.circuit.residual, circuit.collapse().residual)
        assert np.allclose(again.scores.residual, some_scores(graph, seed).collapse().residual)
        assert again.notes == back.notes


def test_grouping_says_what_it_lost() -> None:
    graph = Graph(**{**SHAPE, "spans": ("all",), "grouped": False})
    circuit = Circuit.of(graph, ["embed->a0.h0<k>", "embed->a1.h1<q>"])
    scores = some_scores(graph, 0)
    mapped = group(Exchanged(circuit=circuit, scores=scores, positions=False, notes=()), 2)
    assert mapped.circuit.names() == ("embed->a0.h0<k>@all", "embed->a1.h1<q>@all")
    assert mapped.notes == (
        "1 edges into key and value inputs came in because other query heads of their group have them",
    )
    pair = scores.residual[0, 0, [graph.reader(0, "k", head) for head in (0, 1)]].sum()
    assert mapped.scores.residual[0, 0, mapped.circuit.graph.reader(0, "k", 0)] == pytest.approx(pair)
    with pytest.raises(CircuitError, match="grouped heads already"):
        group(mapped, 2)


def test_a_file_on_disk(tmp_path: Path) -> None:
    graph = Graph(**SHAPE)
    path = tmp_path / "circuit.json"
    write(path, some_circuit(graph, 3), some_scores(graph, 3), d_model=32)
    assert read(path).circuit == some_circuit(graph, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["circuit.json"]
    with pytest.raises(CircuitError, match="only with scores of the same graph"):
        write(path, some_circuit(graph, 3), some_scores(graph.with_spans(), 3), d_model=32)
    assert read(path).circuit == some_circuit(graph, 3)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a JSON file"),
        ("[1, 2", "not a JSON file"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "not a JSON file"),
        ("9" * 5000, "not a JSON file"),
        ('{"cfg": {}, "cfg": {}}', "'cfg' is there twice"),
        ('{"cfg": NaN}', "NaN"),
        ("{}", "the field cfg is missing"),
        ('{"cfg": {"n_layers": 2}}', "the field cfg.n_heads is missing"),
    ],
)
def test_a_file_that_is_none_gets_a_sentence(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(CircuitError, match=reason):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CircuitError, match="not a JSON file"):
        read(path)


EDGE = "input->a0.h0<q>"


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (("cfg", "n_layers"), 10**9, "n_layers to be a whole number from 1 to 1e"),
        (("cfg", "n_layers"), 10**6, "at most 1e"),
        (("cfg", "n_layers"), -1, "n_layers"),
        (("cfg", "n_layers"), "2", "n_layers"),
        (("cfg", "n_heads"), True, "n_heads"),
        (("cfg", "parallel_attn_mlp"), "yes", "parallel"),
        (("cfg", "parallel_attn_mlp"), True, "a0.h0->m0"),
        (("nodes", "a9.h0"), {"in_graph": True}, "there is no node 'a9.h0'"),
        (("nodes", "m0"), True, "nodes\\['m0'\\]"),
        (("edges", EDGE), None, EDGE),
        (("edges", EDGE, "score"), float("nan"), EDGE),
        (("edges", EDGE, "score"), float("inf"), EDGE),
        (("edges", EDGE, "score"), 10**400, EDGE),
        (("edges", EDGE, "score"), "1", EDGE),
        (("edges", EDGE, "score"), True, EDGE),
        (("edges", EDGE, "score"), None, EDGE),
        (("edges", EDGE, "in_graph"), 1, EDGE),
        (("edges", "input->a7.h0<q>"), {"score": 0.0, "in_graph": True}, "there is no edge .*a7.h0"),
        (("edges", "m1->m0"), {"score": 0.0, "in_graph": True}, "there is no edge 'm1->m0'"),
        (("positions",), 7, "positions must be"),
        (("positions", "edges"), [], "positions.edges must be"),
        (("positions", "edges", EDGE), {"score": 0.0, "in_graph": True}, "span '' does not exist"),
        (("positions", "edges", EDGE + "@c"), {"score": 0.0, "in_graph": True}, "span 'c' does not exist"),
        (("positions", "edges", "a0.h0<k>@b->a"), {"score": 0.0, "in_graph": True}, "there is no edge 'a0.h0<k>@b->a'"),
        (("positions", "graph", "spans"), "ab", "must be a list of names"),
        (("positions", "graph", "spans"), ["a", "a"], "unique"),
        (("positions", "graph", "spans"), ["a", 1], "must be a list of names"),
        (("positions", "graph", "n_layers"), 3, "another shape than cfg"),
        (("positions", "graph", "surprise"), 3, "not the record of a graph"),
        (("positions", "lengths"), [[1.0]], "rows of 2 numbers"),
        (("positions", "lengths"), [[1.0, -1.0]], "negative"),
        (("positions", "lengths"), [[1.0, "x"]], "a length in positions.lengths is 'x'"),
        (("positions", "method"), [], "positions.method must be"),
    ],
)
def test_a_hostile_field_is_named(where: tuple[str, ...], value: object, reason: str) -> None:
    data = written()
    inside = data
    for name in where[:-1]:
        inside = inside[name]
    inside[where[-1]] = value
    with pytest.raises(CircuitError, match=reason):
        from_json(data)


def test_positions_may_not_contradict_the_rest() -> None:
    data = written()
    data["edges"][EDGE]["in_graph"] = not data["edges"][EDGE]["in_graph"]
    with pytest.raises(CircuitError, match="disagree on whether 'input->a0.h0<q>' is in"):
        from_json(data)


def test_neurons_are_noted() -> None:
    data = written()
    data["nodes"]["m0"]["neurons"] = [1.0, 0.0]
    assert from_json(data).notes == ("the file chooses among neurons; whole nodes were read",)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.integers(0, 10_000), anything)
@settings(max_examples=200, deadline=None)
def test_any_damage_gives_a_circuit_or_a_sentence(seed: int, value: object) -> None:
    """Replace, remove or add one thing somewhere in a good file."""
    data = written(n_layers=1, n_heads=2, n_kv_heads=1)
    draw = np.random.default_rng(seed)
    inside: Any = data
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = keys[draw.integers(len(keys))]
        if not isinstance(inside[key], dict | list) or not inside[key] or draw.random() < 0.2:
            break
        inside = inside[key]
    if draw.random() < 0.2:
        del inside[key]
    elif isinstance(inside, dict) and draw.random() < 0.2:
        inside[str(value)[:20]] = inside.pop(key)
    else:
        inside[key] = value
    try:
        assert isinstance(from_json(data), Exchanged)
    except CircuitError as error:
        assert len(str(error)) < 1000  # noqa: PT017
