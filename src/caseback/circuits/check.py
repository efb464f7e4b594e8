"""The identities circuits stand on, for `caseback model check`: without them on a family, no number about its circuits
would mean anything.

node      Σ_v score(u → v) = Δ_u · ∂M/∂u: a writer's edges add up to what the whole model makes of it
clean     removing edges whose source says the same in both prompts changes nothing
reference keeping edges whose source says the same in both prompts keeps nothing

The last two run the ablated forward in every block: the first span of the random prompts is the same in both, the
circuits differ from full and empty by half its edges.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caseback.circuits.ablate import Ablator
from caseback.circuits.graph import Circuit, Graph
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.score import Flows, ScoreConfig
from caseback.model.batch import Batch
from caseback.model.check import Identity
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch

__all__ = ["identities", "random_pairs"]

SPANS = ("same", "middle", "end")


def random_pairs(model: Model, *, seed: int = 0, n: int = 3, width: int = 7) -> PairBatch:
    """Random prompts of two lengths with three spans; the first span is the same in both prompts of a pair."""
    draw = torch.Generator().manual_seed(seed)
    clean, other = (torch.randint(3, model.d_vocab, (n, width), generator=draw) for _ in range(2))
    other[:, :2] = clean[:, :2]
    lengths = torch.tensor([width - 2 * (row % 2) for row in range(n)])
    mask = torch.arange(width) < lengths[:, None]
    ones = torch.ones_like(lengths)
    spans = {
        "same": torch.stack([0 * ones, 2 * ones], dim=1),
        "middle": torch.stack([2 * ones, lengths - 1], dim=1),
        "end": torch.stack([lengths - 1, lengths], dim=1),
    }
    # from the middle of the vocabulary: a tokenizer's first tokens may be reserved ones with equal, untrained rows
    answers, foils = torch.full((n, 1), model.d_vocab // 3), torch.full((n, 1), model.d_vocab // 2)
    return PairBatch(Batch(clean, mask, spans), Batch(other, mask, spans), answers, foils, "logit_diff").to(
        model.device
    )


def identities(model: Model, *, seed: int = 0) -> list[Identity]:
    """The three identities, as `caseback.model.check` reports them."""
    pairs, layers, graph = random_pairs(model, seed=seed), layers_of(model), graph_of(model, SPANS)
    ready = Ablator(model, layers, graph, pairs)
    half = _half_of_first_span(graph, seed)
    clean, reference = model.logits(pairs.clean), model.logits(pairs.counterfactual)
    found = [
        ("circuit node", "Σ_v score(u → v) = Δ_u · ∂M/∂u", _node_error(model, pairs, graph), 2e-4),
        (
            "circuit full",
            "full circuit without edges that carry no difference = clean run",
            _relative(ready.logits(Circuit.full(graph) - half), clean),
            2e-5,
        ),
        (
            "circuit none",
            "empty circuit with edges that carry no difference = counterfactual run",
            _relative(ready.logits(half), reference),
            2e-5,
        ),
    ]
    return [
        Identity(name=name, equation=equation, error=error, tolerance=tolerance)
        for name, equation, error, tolerance in found
    ]


def _half_of_first_span(graph: Graph, seed: int) -> Circuit:
    """Half of the edges that begin and end in the first span."""
    inside = np.zeros(graph.n_index, dtype=bool)
    whole = Circuit.from_flat(graph, inside)
    residual, crossing = whole.residual.copy(), whole.crossing.copy()
    residual[0], crossing[..., 0, 0] = True, True
    inside = np.concatenate([residual.ravel(), crossing.ravel()]) & graph.allowed
    return Circuit.from_flat(graph, inside & (np.random.default_rng(seed).random(graph.n_index) < 0.5))


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _node_error(model: Model, pairs: PairBatch, graph: Graph) -> float:
    edges = Flows.of(model, layers_of(model), graph, pairs, ScoreConfig()).residual() * graph.residual_allowed
    at = ["resid_pre.0", "z.*", "mlp_out.*"]
    clean = model.grad(pairs.clean, lambda logits: logits[:, pairs.answers[0, 0]] - logits[:, pairs.foils[0, 0]], at=at)
    other = model.run(pairs.counterfactual, read=at)

    def effect(site: str) -> Tensor:
        """Δ · ∂M/∂ at every position and head."""
        product = ((clean.values[site] - other[site]) * clean[site]).sum(dim=-1)
        return product * (pairs.clean.mask if product.dim() == 2 else pairs.clean.mask[..., None])

    nodes = [effect("resid_pre.0").sum()[None]]
    for layer in range(model.n_layers):
        nodes += [effect(f"z.{layer}").sum(dim=(0, 1)), effect(f"mlp_out.{layer}").sum()[None]]
    expected = torch.cat(nodes).double().cpu().numpy()
    return float(np.abs(edges.sum(axis=(0, 2)) - expected).max() / np.abs(expected).max())
