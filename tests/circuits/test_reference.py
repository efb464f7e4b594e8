"""References: what a removed edge carries, and that the mean over one prompt is that prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from caseback.circuits.ablate import Ablator
from caseback.circuits.check import random_pairs
from caseback.circuits.graph import Circuit, Graph
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.reference import mean_reference
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.zoo.tiny import tiny


def one_pair_by_token(model: Model) -> PairBatch:
    """One random pair, every token its own span."""
    pairs = random_pairs(model)[:1]
    spans = {f"t{i}": torch.tensor([[i, i + 1]]) for i in range(int(pairs.clean.lengths[0]))}
    clean, other = (Batch(side.ids, side.mask, spans) for side in (pairs.clean, pairs.counterfactual))
    return replace(pairs, clean=clean, counterfactual=other)


def half(graph: Graph) -> Circuit:
    return Circuit.from_flat(graph, graph.allowed & (np.random.default_rng(0).random(graph.n_index) < 0.5))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("mixing", ["exact", "peap"])
def test_the_mean_over_one_prompt_is_the_prompt(family: str, mixing: Literal["exact", "peap"]) -> None:
    model = Model(tiny(family))
    pairs, layers = one_pair_by_token(model), layers_of(model)
    graph = graph_of(model, tuple(pairs.clean.spans))
    mean = mean_reference(model, layers, [pairs], graph.spans)
    by_mean = Ablator(model, layers, graph, pairs, reference="mean", mixing=mixing, mean=mean).logits(half(graph))
    by_prompt = Ablator(model, layers, graph, pairs, mixing=mixing).logits(half(graph))
    assert torch.allclose(by_mean, by_prompt, rtol=1e-5, atol=2e-5 * float(by_prompt.abs().max()))


def test_mean_patterns_are_means_over_token_pairs() -> None:
    model = Model(tiny("llama"))
    pairs = random_pairs(model)
    layers, spans = layers_of(model), tuple(pairs.clean.spans)
    mean = mean_reference(model, layers, [pairs], spans)
    run = model.run(pairs.counterfactual, read=["pattern.1"])["pattern.1"]
    last = pairs.clean.last
    to_end = torch.stack([run[row, :, last[row], :2].mean(dim=-1) for row in range(pairs.n)]).mean(dim=0)
    assert torch.allclose(mean.pattern[1][:, spans.index("end"), spans.index("same")], to_end, atol=1e-6)
