"""Schemas: how large must a circuit be, under spans written by hand, induced, proposed by a language model, or none?

The paper's main figure (PEAP §5, arXiv 2502.04577): size against faithfulness, a curve for each schema. Circuits under
different spans compare by their mean number of token-level edges, and all are measured on the same held-out pairs:
those on which every schema can be laid. What a schema needs to know is learned from discovery pairs alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from caseback.circuits.evaluate import Measured, curve_sizes, measure
from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.circuits.reference import Mean
from caseback.circuits.score import ScoreConfig
from caseback.circuits.select import best_first, largest, prune, shuffled
from caseback.core.errors import CircuitError, TaskError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import faithfulness_intervals
from caseback.model.model import Model
from caseback.study.circuit import data_hash
from caseback.study.experiments.frame import (
    Experiment,
    ExperimentConfig,
    Finding,
    cell,
    mean_of,
    renamed,
    scored,
    sheet,
)
from caseback.tasks import PairBatch, Task
from caseback.tasks.aligner import Laid, lay_on
from caseback.tasks.induce import induce
from caseback.tasks.respan import read_aligner

__all__ = ["SCHEMAS", "SchemasConfig", "schemas"]

LEVELS = (0.5, 0.8, 0.9)
"""Shares of the answer for which the edges needed are told, as the paper's figures are read."""
KEPT, RANDOM = ("faithfulness", "low", "high"), ("random", "random_low", "random_high")
Rows = Sequence[Mapping[str, Any]]
"""A curve: a row a size."""
LABELS = {"hand": "by hand", "induced": "induced", "proposed": "proposed", "none": "without positions"}


@dataclass(frozen=True, kw_only=True)
class SchemasConfig(ExperimentConfig):
    """Which schemas, and how finely their curves are drawn."""

    proposed: str | None = None
    """A schema file of `caseback schema propose` (or of any origin), as a further curve."""
    steps: int = 1
    """Gradient points: 1 is EAP, more is EAP-IG (inputs)."""
    points: int = 10
    """Sizes on each curve."""
    draws: int = 1
    """Shuffles of each schema's scores behind its random control."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise CircuitError(f"the random control takes at least 1 draw, not {self.draws}")

    def data(self, task: Task) -> str:
        if self.proposed is None:
            return data_hash(task)
        return sha256_json([data_hash(task), read_aligner(self.proposed).to_dict()])


@dataclass(frozen=True, eq=False)
class _Curve:
    """One schema: what is ranked, and where its circuits run."""

    name: str
    scores: Scores
    """Ranked; of one span where positions are ignored."""
    graph: Graph
    """In which circuits are measured."""
    weights: Float[np.ndarray, "index"]
    """Token-level edges of each edge of `graph`."""
    held_out: PairBatch
    mean: Mean | None

    def circuits(self, scores: Scores, limits: Sequence[float]) -> list[Circuit]:
        """Best first, the largest circuit within each number of token-level edges."""
        free = scores.graph != self.graph
        ranking = best_first(scores, crossing="free" if free else "scored")

        def lay(circuit: Circuit) -> Circuit:
            return prune(circuit.expand(self.graph)) if free else circuit

        return [lay(largest(ranking, lambda circuit: self.size(lay(circuit)), limit)) for limit in limits]

    def size(self, circuit: Circuit) -> float:
        return float(self.weights[circuit.flat].sum())


def schemas(config: SchemasConfig, model: Model, task: Task, stages: Stages, progress: Progress) -> Finding:
    """Size against faithfulness, a curve for each schema, all on the same pairs.

    Raises TaskError where no pair can be cut by every schema or a split is left empty.
    """
    laid, tasks = _laid(config, model, task)
    curves = _ranked(config, model, tasks, stages, progress)
    whole = math.ceil(curves[0].size(Circuit.full(curves[0].graph)))
    limits = [float(size) for size in curve_sizes(whole, config.points, first=min(100, whole // 4 or 1))]
    found = {curve.name: _measured(config, model, curve, limits, stages, progress) for curve in curves}
    needed = {
        name: [next((row["token_edges"] for row in rows if row["faithfulness"] >= level), None) for level in LEVELS]
        for name, rows in found.items()
    }
    spans = {curve.name: curve.scores.graph.n_spans for curve in curves}
    n, first = curves[0].held_out.n, LABELS[curves[0].name]

    def said(name: str) -> str:
        edges = needed[name][LEVELS.index(0.8)]
        return f"{'more than measured' if edges is None else f'{edges:,.0f}'} {LABELS[name]}"

    every = [row for rows in found.values() for row in rows]
    table = {"held_out": n, **{name: [row[name] for row in every] for name in every[0]}}
    table |= {"schemas": list(spans), "spans": list(spans.values())}
    table |= {f"needed_{100 * level:.0f}": [row[i] for row in needed.values()] for i, level in enumerate(LEVELS)}
    cuts = [
        [LABELS[name], laid[name].task.n, " · ".join(cut.schema.spans if cut.schema else ())]
        + ["|".join(text for _, text in cut.held_out.pairs[0].pieces)]
        for name, cut in tasks.items()
    ]
    notes = [
        "Schemas are induced, and edges scored and selected, on the discovery pairs; curves are measured on the "
        "held-out pairs that every schema fits.",
        f"Without positions: the scores under the spans {first}, summed over positions before they are ranked; a kept "
        "edge is in at every position, and a head that is read keeps all its attention.",
        f"Edges needed: the smallest measured circuit that keeps as much. The curves have at most {config.points} sizes "
        "each and need not rise steadily.",
        f"Random control: {config.draws} shuffle{'s'[: config.draws > 1]} of each schema's scores within edge type; "
        f"the curve drawn is that of the spans {first}.",
    ]
    for one, other in combinations(tasks, 2):
        if _cut(tasks[one]) == _cut(tasks[other]):
            notes.append(
                f"The spans {LABELS[one]} and those {LABELS[other]} cut every pair alike: one curve hides the other."
            )
    return Finding(
        claim=f"80 % of the answer takes this many token-level edges: {', '.join(map(said, needed))}.",
        table=table,
        sections=_sections(found, needed, spans, cuts, n),
        notes=notes,
        measured=n,
    )


def _sections(
    found: Mapping[str, Rows],
    needed: Mapping[str, list[float | None]],
    spans: Mapping[str, int],
    cuts: Sequence[Sequence[Any]],
    n: int,
) -> list[dict[str, Any]]:
    """All curves on one plot, what they need for a share of the answer, every circuit, and where the schemas cut."""

    def series(name: str, look: str, rows: Rows, *columns: str) -> dict[str, Any]:
        taken = zip(("x", "y", "low", "high"), ("token_edges", *columns), strict=True)
        return {"name": name, "look": look, **{axis: [row[column] for row in rows] for axis, column in taken}}

    looks = {"hand": "own", "none": "agnostic"}
    lines = [series(LABELS[name], looks.get(name, name), rows, *KEPT) for name, rows in found.items()]
    first, rows = next(iter(found.items()))
    lines.append(series(f"random, {LABELS[first]}", "random", rows, *RANDOM))
    levels = ", ".join(f"count edges for {level:.0%}" for level in LEVELS)
    return [
        {
            "title": "How much a circuit keeps, by schema",
            "text": "100 % is the whole model, 0 % the reference alone. Bands are 95 % intervals over "
            f"{n} held-out pairs, the same for all curves. A circuit's size is its mean number of token-level edges, so "
            "that circuits under different spans compare.",
            "curve": {"x": "token-level edges in the circuit", "y": "of the answer kept", "series": lines},
            "table": sheet(
                f"text schema, count spans, {levels}",
                [[LABELS[name], spans[name], *row] for name, row in needed.items()],
            ),
        },
        {
            "title": "Every circuit measured",
            "text": "Random: the same selector on scores shuffled within edge type, with as many token-level edges.",
            "table": sheet(
                "text schema, count edges, count token-level edges, percent kept, percent random",
                [
                    [LABELS[name], row["edges"], row["token_edges"], [row[c] for c in KEPT], [row[c] for c in RANDOM]]
                    for name, rows in found.items()
                    for row in rows
                ],
            ),
        },
        {
            "title": "The schemas on a prompt",
            "text": "Where each schema cuts the first held-out prompt.",
            "table": sheet("text schema, count pairs it fits, text spans, text prompt", cuts),
        },
    ]


def _laid(config: SchemasConfig, model: Model, task: Task) -> tuple[dict[str, Laid], dict[str, Task]]:
    """Every schema on the task, and the same on the pairs that all of them fit."""
    laid = {"hand": Laid(task=task)} if task.schema is not None else {}
    laid["induced"] = lay_on(induce(task.discovery, model), task, model)
    if config.proposed is not None:
        laid["proposed"] = lay_on(read_aligner(config.proposed), task, model)
    fit = [{(pair.clean, pair.counterfactual) for pair in one.task.pairs} for one in laid.values()]
    common = set.intersection(*fit)
    if not common:
        raise TaskError(f"no pair of {task.name!r} can be cut by all of the schemas {', '.join(laid)}; give more pairs")

    def shared(one: Task) -> Task:
        return one[[i for i, pair in enumerate(one.pairs) if (pair.clean, pair.counterfactual) in common]]

    return laid, {name: shared(one.task) for name, one in laid.items()}


def _cut(task: Task) -> list[list[tuple[int, int]]]:
    """Where the spans of every pair begin and end; empty ones do not count."""
    return [[(start, end) for _, start, end in pair.spans if start < end] for pair in task.pairs]


def _ranked(
    config: SchemasConfig, model: Model, tasks: Mapping[str, Task], stages: Stages, progress: Progress
) -> list[_Curve]:
    """The scores under each schema; last those of the first schema with positions summed away."""
    how = ScoreConfig(reference=config.reference, steps=config.steps, tokens=config.tokens)
    curves: list[_Curve] = []
    for name, task in tasks.items():
        discovery, held_out = task.discovery.encode(model), task.held_out.encode(model)
        mean = mean_of(model, discovery, how)
        scores = scored(f"score-{name}", model, discovery, how, mean, stages, progress)
        curves.append(_Curve(name, scores, scores.graph, scores.graph.weights(scores.lengths), held_out, mean))
    return [*curves, replace(curves[0], name="none", scores=curves[0].scores.collapse())]


def _measured(
    config: SchemasConfig, model: Model, curve: _Curve, limits: Sequence[float], stages: Stages, progress: Progress
) -> list[dict[str, Any]]:
    """The curve's circuits and their random controls on its held-out pairs, a row a size."""
    circuits: list[Circuit] = []
    for circuit in curve.circuits(curve.scores, limits):
        if circuit.n_edges > (circuits[-1].n_edges if circuits else 0):
            circuits.append(circuit)
    if not circuits:
        raise CircuitError("no edge leads from the embedding to the logits: are the counterfactuals any different?")
    sizes = [curve.size(circuit) for circuit in circuits]
    random = [
        circuit
        for draw in range(config.draws)
        for circuit in curve.circuits(shuffled(curve.scores, config.seed + draw), sizes)
    ]
    how: dict[str, Any] = {"reference": config.reference, "mean": curve.mean, "tokens": config.tokens}
    stage = f"evaluate-{curve.name}"

    def run() -> Checkpoint:
        watch = renamed(progress, stage)
        return Checkpoint(measure(model, curve.held_out, [*circuits, *random], **how, progress=watch).to_arrays())

    found = Measured(**stages.stage(stage, run).arrays)
    k = len(circuits)
    drawn = found.metric[k:].reshape(config.draws, k, -1).mean(axis=0)
    control = faithfulness_intervals(drawn, found.full, found.empty)
    rows = []
    for circuit, size, kept, other in zip(
        circuits, sizes, found.rows(slice(0, k)).faithfulness(), control, strict=True
    ):
        edges = circuit.n_edges if curve.graph == curve.scores.graph else circuit.collapse().n_edges
        row = {"schema": curve.name, "edges": edges, "token_edges": round(size, 3)}
        row |= dict(zip(KEPT, cell(kept), strict=True))
        rows.append(row | dict(zip(RANDOM, cell(other), strict=True)))
    return rows


SCHEMAS = Experiment("schemas", SchemasConfig, "Circuits by schema", schemas)
