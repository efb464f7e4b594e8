"""From a circuit run to its payload (the schema is in `show.payload`).

A run speaks of edges by their index in `circuits.Graph`; a page draws lines between nodes. `edge_ends` turns the first
into the second as index arithmetic, and `circuit_payload` keeps the 20,000 edges that enter the circuits first, says
what that leaves out, rounds, and validates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from caseback.circuits.describe import describe
from caseback.circuits.discover import Discovery
from caseback.circuits.graph import Graph
from caseback.core.provenance import environment
from caseback.core.stages import Checkpoint
from caseback.show.payload import MAX_EDGES, MAX_PROMPTS, validate
from caseback.show.report import fragment, page
from caseback.study.spec import plain
from caseback.study.store import Record

__all__ = ["Ends", "circuit_payload", "drawn", "edge_ends", "notebook", "payload_of", "report"]


class Ends(NamedTuple):
    """Columns `channel`, `source` and `target` of some edges, as the payload numbers them."""

    channel: Int[np.ndarray, "n"]
    source: Int[np.ndarray, "n"]
    target: Int[np.ndarray, "n"]


def edge_ends(graph: Graph, index: Int[np.ndarray, "n"]) -> Ends:
    """What the edges of these indices join."""
    heads, groups = graph.n_heads, graph.n_groups
    per_layer = heads + groups + 1
    per_span = graph.n_layers * per_layer + 2
    channel, source, target = np.empty((3, len(index)), dtype=np.int64)

    residual = index < graph.n_residual
    span, writer, reader = np.unravel_index(index[residual], graph.residual_shape)
    kind, at = graph.reader_kind[reader], reader % graph.readers_per_layer
    place = np.choose(kind, [at, at, at - groups, at - groups, 0])  # a KV head's two inputs are one node
    channel[residual] = np.choose(kind, [1, 2, 3, 0, 0])
    target[residual] = per_span * span + np.where(
        kind == 4, per_span - 1, 1 + graph.reader_layer[reader] * per_layer + place
    )
    head = graph.writer_head[writer]
    place = 1 + graph.writer_layer[writer] * per_layer + np.where(head < 0, per_layer - 1, head)
    source[residual] = per_span * span + np.where(writer == 0, 0, place)

    c, layer, head, t, s = np.unravel_index(index[~residual] - graph.n_residual, graph.crossing_shape)
    channel[~residual] = 4 + c
    source[~residual] = per_span * s + 1 + layer * per_layer + heads + graph.group[head]
    target[~residual] = per_span * t + 1 + layer * per_layer + head
    return Ends(channel, source, target)


def circuit_payload(
    *,
    title: str,
    graph: Graph,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    index: Int[np.ndarray, "n"],
    score: Float[np.ndarray, "n"],
    rank: Int[np.ndarray, "n"],
    abs_score: float | None = None,
    prompts: Sequence[Mapping[str, Any]] = (),
    curve: Mapping[str, Any] | None = None,
    areas: Sequence[Mapping[str, Any]] = (),
    minimality: Mapping[str, Any] | None = None,
    completeness: Mapping[str, Any] | None = None,
    table: Sequence[Mapping[str, Any]] = (),
    validation: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The payload of one run; raises CasebackError naming the field that does not fit.

    Args:
        model: `id` and `revision`; the rest of the field comes from the graph. Likewise `task` without its `spans`.
        index, score, rank: the edges of the circuits, in any number and order; rank 1 enters first.
        abs_score: sum of |score| over the whole graph, to say how much the edges left out weigh.
        table: rows {edge: index, score, exact, low, high}; `minimality` has rows {edge: index, loss, low, high}.

    Every other field is as in the schema of `show.payload`; arrays and numpy numbers are welcome.
    """
    kept = np.lexsort((-np.abs(score), rank))[:MAX_EDGES]
    share = None if not abs_score else max(0.0, 1 - float(np.abs(score[kept]).sum()) / abs_score)
    if minimality is not None:
        minimality = {**minimality, "rows": _rows(graph, minimality["rows"])}
    payload = plain(
        {
            "kind": "circuit",
            "version": 1,
            "title": title,
            "model": {
                **model,
                "n_layers": graph.n_layers,
                "n_heads": graph.n_heads,
                "n_kv_heads": graph.n_groups,
                "parallel": graph.parallel,
            },
            "task": {**task, "spans": graph.spans},
            "prompts": list(prompts)[:MAX_PROMPTS],
            "edges": {**edge_ends(graph, index[kept])._asdict(), "score": _rounded(score[kept]), "rank": rank[kept]},
            "graph": {"edges": graph.n_edges, "abs_score": abs_score},
            "left_out": {"edges": graph.n_edges - len(kept), "abs_score_share": share},
            "curve": curve,
            "areas": areas,
            "minimality": minimality,
            "completeness": completeness,
            "table": _rows(graph, table),
            "validation": validation,
            "settings": settings or {},
            "environment": environment or {},
            "cost": cost or {},
            "notes": notes,
        }
    )
    validate(payload)
    return payload


def _rows(graph: Graph, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the graph's `edge` index → rows with the payload's channel, source and target."""
    ends = edge_ends(graph, np.array([row["edge"] for row in rows], dtype=np.int64))
    names = Ends._fields
    fields = ({k: v for k, v in row.items() if k != "edge"} for row in rows)
    return [
        dict(zip(names, end, strict=True)) | rest for end, rest in zip(zip(*ends, strict=True), fields, strict=True)
    ]


def _rounded(score: Float[np.ndarray, "n"]) -> list[float]:
    """Five significant digits: finer than any score is known, and a third of the file's size."""
    return [float(f"{value:.5g}") for value in score.tolist()]


def payload_of(
    view: Checkpoint, *, environment: Mapping[str, Any] | None = None, cost: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The payload of a study that `circuits.describe` has put down."""
    fields = {name: value for name, value in view.data.items() if name not in ("graph", "chosen", "forwards")}
    fields |= {**view.arrays, "graph": Graph.from_json(view.data["graph"]), "environment": environment, "cost": cost}
    return circuit_payload(**fields)


def drawn(record: Record) -> dict[str, Any]:
    """The payload of a recorded run."""
    spent = {**plain(record.cost), "forwards": record.table.get("forwards")}
    return payload_of(record.stage("view"), environment=record.environment, cost=spent)


def report(record: Record) -> str:
    """The page of a recorded run."""
    return page(drawn(record))


def notebook(found: Discovery) -> str:
    """A study as a notebook shows it."""
    return fragment(payload_of(describe(found), environment=environment(), cost={"forwards": found.forwards}))
