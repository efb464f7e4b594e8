"""What is lost by ignoring positions: cancellation and overestimation (PEAP §2, arXiv 2502.04577).

The same EAP scores s of an edge, over positions p and prompts x, put together in different ways and then ranked:

    cancellation     Σ_x Σ_p |s|   against   Σ_x |Σ_p s|         opposite signs at different positions cancel
    overestimation   Σ_x Σ_p |s|   against   Σ_x max_p |s|       many small effects look like a large one

Two rankings differ by 1 − |top_K ∩ top_K′| / K. The control is the same aggregation Σ_x Σ_p |s| on disjoint thirds of
the prompts: how much a ranking moves with the prompts alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from caseback.circuits.graph import Graph
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.reference import mean_reference
from caseback.circuits.score import Flows, ScoreConfig, batches
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence import rank_overlap, top_difference
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch

__all__ = ["Aggregates", "Row", "aggregate", "compare"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Aggregates:
    """Σ_x of each aggregation over positions, for every residual edge, per third of the prompts."""

    graph: Graph
    values: Float[np.ndarray, "3 part writer reader"]
    """Σ_p |s|, |Σ_p s|, max_p |s|, each summed over the prompts of a part; parts are disjoint sets of prompts."""
    n: int
    """Prompts."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the best `share` of the edges."""

    name: str
    share: float
    difference: float
    """1 − |top ∩ top′| / K."""
    difference_control: float
    spearman: float
    """Rank correlation over the edges in both tops."""
    spearman_control: float


def aggregate(
    model: Model,
    pairs: PairBatch,
    config: ScoreConfig | None = None,
    *,
    parts: int = 3,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Aggregates:
    """Per-position scores of every residual edge, aggregated on the fly: no per-position array outlives its block of
    layers; `stages` saves the sums after every batch."""
    config = config or ScoreConfig()
    if pairs.n < parts:
        raise CircuitError(f"the control needs at least {parts} prompts, got {pairs.n}")
    graph, layers = graph_of(model, ("all",), grouped=config.grouped), layers_of(model)
    mean = (
        mean_reference(model, layers, batches(pairs, config.tokens), graph.spans)
        if config.reference == "mean"
        else None
    )
    chunks = list(batches(pairs, config.tokens))

    def added(state: Checkpoint | None, i: int) -> Checkpoint:
        values = state.arrays["values"] if state else np.zeros((3, parts, graph.n_writers, graph.n_readers))
        chunk, done = chunks[i], sum(each.n for each in chunks[:i])
        flows = Flows.of(model, layers, graph, _spanless(chunk).to(model.device), config, mean)
        part = torch.arange(done, done + chunk.n, device=flows.delta.device) * parts // pairs.n
        _add(values, flows, part)
        progress("score", done + chunk.n, pairs.n)
        return Checkpoint({"values": values})

    values = (stages or InMemory()).fold("score", len(chunks), added).arrays["values"]
    return Aggregates(graph=graph, values=values * graph.residual_allowed, n=pairs.n)


def _spanless(pairs: PairBatch) -> PairBatch:
    """The pairs with one span for everything."""
    return replace(pairs, clean=replace(pairs.clean, spans={}), counterfactual=replace(pairs.counterfactual, spans={}))


def _add(values: Float[np.ndarray, "3 part writer reader"], flows: Flows, part: torch.Tensor) -> None:
    graph, layout = flows.graph, flows.layout
    delta = flows.delta.transpose(0, 1)  # [token, writer, d]
    n = flows.metric.shape[0]

    def put(scores: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, readers: slice) -> None:
        """scores [token, writer, reader] of the tokens at `places` of prompts `rows`."""
        grid = scores.new_zeros((n, int(places.max()) + 1, *scores.shape[1:]))
        grid[rows, places] = scores
        size = grid.abs()
        for i, by_prompt in enumerate((size.sum(dim=1), grid.sum(dim=1).abs(), size.amax(dim=1))):
            for p in range(values.shape[1]):
                values[i, p, : scores.shape[1], readers] += by_prompt[part == p].sum(dim=0).double().cpu().numpy()

    for layer in range(graph.n_layers):
        readers = slice(layer * graph.readers_per_layer, (layer + 1) * graph.readers_per_layer)
        before = graph.writer(layer)
        put(delta[:, :before] @ flows.gradient[readers].permute(1, 2, 0), layout.rows, layout.places, readers)
    last = torch.einsum("bwd,bd->bw", delta[layout.last], flows.final)[..., None]
    each = torch.arange(n, device=last.device)
    put(last, each, torch.zeros_like(each), slice(graph.logits, graph.logits + 1))


def compare(found: Aggregates, *, shares: tuple[float, ...] = (0.01, 0.05, 0.1)) -> tuple[Row, ...]:
    """The published table: for each share of the edges, cancellation and overestimation with their controls."""
    flat = found.values[..., found.graph.residual_allowed]  # [3, part, edge]
    whole = flat.sum(axis=1)
    rows = []
    for name, other in (("cancellation", 1), ("overestimation", 2)):
        for share in shares:
            controls = [
                (top_difference(flat[0, a], flat[0, b], share=share), rank_overlap(flat[0, a], flat[0, b], share=share))
                for a in range(flat.shape[1])
                for b in range(a)
            ]
            difference, overlap = np.mean(controls, axis=0)
            rows.append(
                Row(
                    name=name,
                    share=share,
                    difference=top_difference(whole[0], whole[other], share=share),
                    difference_control=float(difference),
                    spearman=rank_overlap(whole[0], whole[other], share=share),
                    spearman_control=float(overlap),
                )
            )
    return tuple(rows)
