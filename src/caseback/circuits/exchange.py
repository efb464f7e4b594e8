"""Circuits as the field exchanges them: the JSON of EAP-IG and MIB, with positions in an added field.

That format (github.com/hannamw/EAP-IG, `Graph.to_json`) knows one circuit for all positions and one key and value input
per query head: `{"cfg": {...}, "nodes": {name: {"in_graph"}}, "edges": {name: {"score", "in_graph"}}}` with names like
`input->a10.h7<q>`. What is written here is such a file, readable by its own tools: an edge is in where it is in at any
span, its score the signed sum over spans, that of a shared key or value input in equal parts to its query heads. Beside it
stands `positions`, which those tools pass over: the graph, the span lengths, and every edge that is in or has a score.
Reading takes `positions` where they are, and then gives back just what was written.

A file without them gives a circuit of one span with ungrouped heads; `group` maps it to a model's KV heads. Scores mean the
same on both sides: positive = ablating the edge lowers the metric (EAP-IG differentiates a loss, the negative metric, and
multiplies by corrupted minus clean). Files come from strangers: whatever is wrong with one is a CircuitError that names the
field or the edge.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.core.errors import CircuitError

__all__ = ["Exchanged", "from_json", "group", "read", "to_json", "write"]

MAX_PLACES = 100_000_000
"""Largest graph read from a file, in places of its arrays; a model of 70B parameters has 80 million a span."""
MAX_BYTES = 2_000_000_000
"""Largest file read."""


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What a file holds."""

    circuit: Circuit
    scores: Scores
    positions: bool
    """Whether the file says at which positions its edges are."""
    notes: tuple[str, ...]
    """What the file could not say, or what was lost in reading it, a sentence each."""


def write(path: str | os.PathLike[str], circuit: Circuit, scores: Scores, *, d_model: int) -> None:
    """Write a circuit with its scores, whole or not at all. `d_model` is the width of the residual stream."""
    text = json.dumps(to_json(circuit, scores, d_model=d_model), allow_nan=False)
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Exchanged:
    """Read a circuit; raises CircuitError for a file that is not one, OSError where there is none."""
    if os.path.getsize(path) > MAX_BYTES:
        raise CircuitError(f"{path} is larger than {MAX_BYTES // 10**9} GB, which no circuit file is")
    try:
        data = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except CircuitError as error:
        raise CircuitError(f"{path} is not a circuit file: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"{path} is not a JSON file: {str(error)[:200]}") from None
    try:
        return from_json(data)
    except CircuitError as error:
        raise CircuitError(f"{path} is not a circuit file: {error}") from None


def to_json(circuit: Circuit, scores: Scores, *, d_model: int) -> dict[str, Any]:
    """A circuit with its scores as plain data of the exchange format."""
    graph = circuit.graph
    if scores.graph != graph:
        raise CircuitError("a circuit can be written only with scores of the same graph")
    heads = replace(graph.with_spans(), grouped=False)
    shared = _shared(heads, graph)
    shares = np.where(np.isin(heads.reader_kind, (1, 2)), graph.n_heads // graph.n_groups, 1)
    inside = np.asarray(circuit.residual.any(axis=0))[:, shared]
    worth = scores.with_flat(scores.flat).residual.sum(axis=0)[:, shared] / shares
    writers = ["input", *heads.writer_names[1:]]
    place = np.argwhere(heads.residual_allowed).tolist()
    edges = {
        f"{writers[w]}->{heads.reader_names[r]}": {"score": float(worth[w, r]), "in_graph": bool(inside[w, r])}
        for w, r in place
    }

    fed, reads = np.ones(graph.n_writers, dtype=bool), np.asarray(inside.any(axis=0))
    fed[heads.heads] = reads[heads.starts].any(axis=0)
    fed[[heads.writer(layer) for layer in range(graph.n_layers)]] = reads[heads.reader_kind == 3]
    nodes = {name: {"in_graph": bool(live)} for name, live in zip(writers, fed & inside.any(axis=1), strict=True)}

    told = np.flatnonzero(circuit.flat | (scores.flat != 0))
    positions = {
        "graph": graph.to_json(),
        "lengths": scores.lengths.tolist(),
        "method": dict(scores.method),
        "edges": {
            _theirs(graph.name(index)): {"score": score, "in_graph": live}
            for index, score, live in zip(
                told.tolist(), scores.flat[told].tolist(), circuit.flat[told].tolist(), strict=True
            )
        },
    }
    cfg = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }
    return {"cfg": cfg, "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": edges, "positions": positions}


def from_json(data: object) -> Exchanged:
    """The circuit in plain data of the exchange format; raises CircuitError, naming the field or the edge."""
    whole = _mapping(data, "the file")
    cfg = _mapping(_field(whole, "cfg"), "cfg")
    heads = _graph(
        {
            "n_layers": _field(cfg, "n_layers", "cfg."),
            "n_heads": _field(cfg, "n_heads", "cfg."),
            "n_kv_heads": _field(cfg, "n_heads", "cfg."),
            "spans": ["all"],
            "parallel": cfg.get("parallel_attn_mlp", False),
            "grouped": False,
        },
        "cfg",
    )
    notes = _check_nodes(_mapping(_field(whole, "nodes"), "nodes"), heads)
    scores, circuit = _edges(_mapping(_field(whole, "edges"), "edges"), heads, "edges")
    if "positions" in whole:
        return _with_positions(_mapping(whole["positions"], "positions"), circuit, notes)
    notes.append("the file says nothing of positions: all tokens are one span")
    if not circuit.crossing.any():
        used = circuit.residual[0].any(axis=1)[heads.heads]
        circuit = replace(circuit, crossing=np.broadcast_to(used[None, :, :, None, None], heads.crossing_shape).copy())
        notes.append("edges inside heads are not in the file: every head that is read has all of its own, unscored")
    return Exchanged(circuit=circuit, scores=scores, positions=False, notes=tuple(notes))


def group(exchanged: Exchanged, n_kv_heads: int) -> Exchanged:
    """The same with key and value inputs per KV head, as a model with grouped heads reads them.

    A KV head's edge is in where that of any of its query heads is, and its score is the sum of theirs. Where a file keeps
    an edge for some query heads of a group only, that choice is lost, and a note says how often.
    """
    circuit, scores = exchanged.circuit, exchanged.scores
    if circuit.graph.grouped:
        raise CircuitError("this circuit has grouped heads already")
    graph = replace(circuit.graph, n_kv_heads=n_kv_heads, grouped=True)
    shared = _shared(circuit.graph, graph)
    order = np.argsort(shared, kind="stable")
    first = np.flatnonzero(np.diff(shared[order], prepend=-1))
    residual = np.logical_or.reduceat(circuit.residual[:, :, order], first, axis=2)
    worth = np.add.reduceat(scores.residual[:, :, order], first, axis=2)
    lost = int((residual[:, :, shared] & ~circuit.residual).sum())
    note = f"{lost} edges into key and value inputs came in because other query heads of their group have them"
    return Exchanged(
        circuit=Circuit(graph=graph, residual=residual, crossing=circuit.crossing),
        scores=replace(scores, graph=graph, residual=worth),
        positions=exchanged.positions,
        notes=(*exchanged.notes, note) if lost else exchanged.notes,
    )


def _shared(heads: Graph, graph: Graph) -> Int[np.ndarray, "reader"]:
    """The reader of `graph` that stands for each reader of the same model with ungrouped heads."""
    shared = np.empty(heads.n_readers, dtype=np.int64)
    shared[heads.starts] = graph.starts
    for kind in (3, 4):
        shared[heads.reader_kind == kind] = np.flatnonzero(graph.reader_kind == kind)
    return shared


def _theirs(name: str) -> str:
    return "input" + name.removeprefix("embed") if name.startswith("embed->") else name


def _ours(name: str) -> str:
    return "embed" + name.removeprefix("input") if name.startswith("input->") else name


def _with_positions(data: Mapping[str, Any], agnostic: Circuit, notes: list[str]) -> Exchanged:
    """What the field `positions` holds, checked against what the rest of the file says."""
    graph = _graph(_mapping(_field(data, "graph", "positions."), "positions.graph"), "positions.graph")
    heads = agnostic.graph
    if replace(graph.with_spans(), grouped=False, n_kv_heads=graph.n_heads) != heads:
        raise CircuitError("positions.graph has another shape than cfg")
    scores, circuit = _edges(_mapping(_field(data, "edges", "positions."), "positions.edges"), graph, "positions.edges")
    inside = np.asarray(circuit.residual.any(axis=0))
    differ = inside[:, _shared(heads, graph)] != agnostic.residual[0]
    if differ.any():
        w, r = np.argwhere(differ)[0]
        name = _theirs(heads.name(w * heads.n_readers + r)).partition("@")[0]
        raise CircuitError(
            f"edges and positions.edges disagree on whether {name!r} is in ({int(differ.sum())} edges so)"
        )
    lengths = _lengths(_field(data, "lengths", "positions."), graph)
    method = _mapping(data.get("method", {}), "positions.method")
    return Exchanged(
        circuit=circuit,
        scores=replace(scores, lengths=lengths, method=dict(method)),
        positions=True,
        notes=tuple(notes),
    )


def _edges(edges: Mapping[str, Any], graph: Graph, field: str) -> tuple[Scores, Circuit]:
    """Scores and circuit from one entry an edge."""
    flat, inside = np.zeros(graph.n_index), np.zeros(graph.n_index, dtype=bool)
    for name, entry in edges.items():
        index = graph.index(_ours(name))
        if not isinstance(entry, dict) or not isinstance(entry.get("in_graph"), bool):
            raise CircuitError(f"{field}[{name[:200]!r}] needs a field 'in_graph' that is true or false")
        flat[index], inside[index] = (
            _number(entry.get("score"), f"the score in {field}[{name[:200]!r}]"),
            entry["in_graph"],
        )
    empty = Scores(
        graph=graph,
        residual=np.zeros(graph.residual_shape),
        crossing=np.zeros(graph.crossing_shape),
        lengths=np.zeros((0, graph.n_spans)),
    )
    return empty.with_flat(flat), Circuit.from_flat(graph, inside)


def _check_nodes(nodes: Mapping[str, Any], graph: Graph) -> list[str]:
    """Nodes follow from the edges; they are checked, and notes tell what they say beyond."""
    known = {"input", *graph.writer_names[1:], "logits"}
    neurons = False
    for name, entry in nodes.items():
        if name not in known:
            raise CircuitError(f"there is no node {name[:200]!r}; there are input, a0.h0, m0 ... and logits")
        if not isinstance(entry, dict) or not isinstance(entry.get("in_graph"), bool):
            raise CircuitError(f"nodes[{name!r}] needs a field 'in_graph' that is true or false")
        neurons |= "neurons" in entry
    return ["the file chooses among neurons; whole nodes were read"] if neurons else []


def _graph(data: Mapping[str, Any], field: str) -> Graph:
    """A graph whose arrays fit in memory."""
    for name in ("parallel", "grouped"):
        if not isinstance(data.get(name), bool):
            raise CircuitError(f"{field} needs {name} to be true or false, not {str(data.get(name))[:100]!r}")
    spans = data.get("spans")
    if not isinstance(spans, list) or not all(isinstance(span, str) for span in spans):
        raise CircuitError(f"{field}.spans must be a list of names, not {str(spans)[:100]!r}")
    for name in ("n_layers", "n_heads", "n_kv_heads"):
        value = data.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PLACES:
            raise CircuitError(f"{field} needs {name} to be a whole number from 1 to {MAX_PLACES:.0e}")
    graph = Graph.from_json(data)
    if graph.n_index > MAX_PLACES:
        raise CircuitError(
            f"{field} describes a graph of {graph.n_index:.3g} places; at most {MAX_PLACES:.0e} are read"
        )
    return graph


def _lengths(value: object, graph: Graph) -> np.ndarray:
    """Span lengths, one row an example."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == graph.n_spans for row in value):
        raise CircuitError(f"positions.lengths must be rows of {graph.n_spans} numbers, one a span")
    rows = [[_number(length, "a length in positions.lengths") for length in row] for row in value]
    if any(length < 0 for row in rows for length in row):
        raise CircuitError("a length in positions.lengths is negative")
    return np.array(rows, dtype=np.float64).reshape(len(rows), graph.n_spans)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CircuitError(f"{what} is {str(value)[:100]!r}, not a number")
    if isinstance(value, int) and value.bit_length() > 1000 or not math.isfinite(value):
        raise CircuitError(f"{what} is not a finite number")
    return float(value)


def _field(data: Mapping[str, Any], name: str, where: str = "") -> Any:
    if name not in data:
        raise CircuitError(f"the field {where}{name} is missing")
    return data[name]


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CircuitError(f"{what} must be a JSON object with named fields")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CircuitError(f"the field {twice[:200]!r} is there twice")
    return data


def _no_number(text: str) -> float:
    raise CircuitError(f"it holds {text}, which is not a number")
