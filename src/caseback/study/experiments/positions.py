"""Positions: do rankings differ when an edge's scores at all positions are put together in one or another way?

PEAP's first figure (§2, arXiv 2502.04577), whose arithmetic is `circuits.positions`: cancellation and overestimation,
each beside the same aggregation on other prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from caseback.circuits.parts import graph_of
from caseback.circuits.positions import Aggregates, aggregate, compare
from caseback.circuits.score import ScoreConfig
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.model.model import Model
from caseback.study.experiments.frame import Experiment, ExperimentConfig, Finding, sheet
from caseback.tasks import Task

__all__ = ["POSITIONS", "PositionsConfig", "positions"]


@dataclass(frozen=True, kw_only=True)
class PositionsConfig(ExperimentConfig):
    """Which scores are ranked."""

    steps: int = 1
    """Gradient points: 1 is EAP, the published choice; more is EAP-IG (inputs)."""


def positions(config: PositionsConfig, model: Model, task: Task, stages: Stages, progress: Progress) -> Finding:
    """The published table: how far rankings of the same scores differ when they are put together otherwise.

    All pairs that are answered right are used: nothing is chosen here, so nothing is held out.
    """
    pairs = task.encode(model)
    how = ScoreConfig(reference=config.reference, steps=config.steps, tokens=config.tokens)
    graph = graph_of(model, ("all",), grouped=how.grouped)

    def summed() -> Checkpoint:
        return Checkpoint({"values": aggregate(model, pairs, how, stages=stages, progress=progress).values})

    values = stages.stage("aggregate", summed).arrays["values"]
    rows = compare(Aggregates(graph=graph, values=values, n=pairs.n))
    names = ("name", "share", "difference", "difference_control", "spearman", "spearman_control")
    cells = [[getattr(row, name) for name in names] for row in rows]
    first = {row.name: row for row in reversed(rows)}
    cancelled, overestimated = first["cancellation"], first["overestimation"]
    edges = int(graph.residual_allowed.sum())
    claim = (
        f"Of the best {cancelled.share:.0%} of the edges, ignoring positions replaces {cancelled.difference:.1%} by "
        f"cancellation and {overestimated.difference:.1%} by overestimation; other prompts of the same task replace "
        f"{cancelled.difference_control:.1%}."
    )
    kinds = "text compared, percent best, percent set difference, percent control, number ρ, number ρ control"
    section = {
        "title": "Rankings that differ only in how positions are put together",
        "text": f"{edges:,} residual edges, scored at every position of {pairs.n} prompts. Set difference: the share of "
        "the best edges by Σ|s| that another aggregation has not among its own best. ρ: Spearman's correlation of the "
        "two rankings over the edges that are among the best of both. Control: Σ|s| on one third of the prompts "
        "against another third.",
        "table": sheet(kinds, cells),
    }
    notes = [
        "Cancellation compares Σ_x Σ_p |s| with Σ_x |Σ_p s|, overestimation with Σ_x max_p |s|, where s is an edge's "
        "score at position p of prompt x.",
        f"The control compares thirds of {pairs.n // 3} prompts; the fewer they are, the more they differ by chance.",
    ]
    columns = dict(zip(("aggregation", *names[1:]), map(list, zip(*cells, strict=True)), strict=True))
    table = {"edges": edges, **columns}
    return Finding(claim=claim, table=table, sections=[section], notes=notes, measured=pairs.n)


POSITIONS = Experiment("positions", PositionsConfig, "What ignoring positions does to a ranking", positions)
