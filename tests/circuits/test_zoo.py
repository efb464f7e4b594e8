"""Circuits of the zoo's models beyond what tests/zoo asks: faithfulness of the truth, controls at chance, what EAP misses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from caseback.circuits.evaluate import measure
from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.score import ScoreConfig, score
from caseback.circuits.select import best_first, shuffled, threshold, top_n
from caseback.model.model import Model
from caseback.zoo import ZOO, ZooModel


@pytest.fixture(scope="module", params=sorted(ZOO))
def zoo(request: pytest.FixtureRequest) -> ZooModel:
    return ZOO[request.param]()


@pytest.fixture(scope="module")
def scores(zoo: ZooModel) -> Scores:
    return score(zoo.model, zoo.task.discovery.encode(zoo.model))


def test_the_true_circuit_is_faithful_and_shuffled_ones_and_the_rest_are_not(zoo: ZooModel, scores: Scores) -> None:
    truth = Circuit.of(scores.graph, sorted(zoo.truth))
    n = truth.n_edges
    random = [top_n(shuffled(scores, seed)).circuit(n, pruned=False) for seed in range(3)]
    larger = [best_first(shuffled(scores, seed)).circuit(3 * n) for seed in range(3)]
    circuits = [truth, truth.complement, *random, *larger]
    found = measure(zoo.model, zoo.task.held_out.encode(zoo.model), circuits)
    mine, rest, *controls = [f.value for f in found.faithfulness()]
    assert mine == pytest.approx(1, abs=0.1)
    assert abs(rest) < 0.1
    assert np.abs(controls).max() < 0.1
    assert found.agreement[0].min() == 1 and found.agreement[1:].max() == 0
    assert found.kl[0].max() < 0.5 < found.kl[1:].min()


def test_shuffled_scores_find_the_circuit_at_chance(zoo: ZooModel, scores: Scores) -> None:
    truth = Circuit.of(scores.graph, sorted(zoo.truth))
    shared = [
        (top_n(shuffled(scores, seed)).circuit(truth.n_edges, pruned=False) & truth).n_edges for seed in range(20)
    ]
    assert np.mean(shared) < 0.1 * truth.n_edges


def test_thresholds_signs_and_merged_channels_find_it_too(zoo: ZooModel, scores: Scores) -> None:
    """Every edge of these circuits supports the answer; merged, the circuit's edges come with their heads' other channels."""
    truth = Circuit.of(scores.graph, sorted(zoo.truth))
    weakest = scores.flat[truth.edges].min()
    assert weakest > 0
    assert set(threshold(scores, float(weakest)).names()) == zoo.truth
    assert set(best_first(scores, sign="positive").circuit(truth.n_edges).names()) == zoo.truth
    assert not set(best_first(scores, sign="negative").circuit(truth.n_edges).names()) & zoo.truth
    merged = best_first(scores, merge="qkv")
    n = next(n for n in range(1, merged.n) if truth <= merged.circuit(n, pruned=False))
    assert n <= truth.n_edges


def saturated() -> ZooModel:
    """The planted model with its last head's queries eight times as strong: where the tag stands, its softmax is full."""
    zoo = ZOO["planted"]()
    hf = copy.deepcopy(zoo.model.hf)
    with torch.no_grad():
        hf.model.layers[2].self_attn.q_proj.weight.unflatten(0, (4, -1))[3].mul_(8)
    return ZooModel(
        name="saturated",
        description=zoo.description,
        model=Model(hf, zoo.model.tokenizer),
        task=zoo.task,
        truth=zoo.truth,
    )


def test_several_gradient_points_see_what_one_misses_at_a_full_softmax() -> None:
    """The key and query chains of the last head: the clean prompt's pattern no longer moves, so one point scores their
    residual edges at zero or with the wrong sign; the mean over points between the prompts ranks them where they belong."""
    zoo = saturated()
    pairs = zoo.task.discovery.encode(zoo.model)
    one, several = (score(zoo.model, pairs, ScoreConfig(steps=steps)) for steps in (1, 8))
    graph = one.graph
    chains = Circuit.of(
        graph,
        ["embed->a1.h0<v>@tag", "a1.h0->a2.h1<k>@relay", "embed->m0@end", "m0->a2.h3<q>@end"],
    )
    exact = measure(zoo.model, pairs, [Circuit.full(graph) - Circuit.of(graph, np.array([e])) for e in chains.edges])
    assert (exact.full.mean() - exact.metric.mean(axis=1)).min() > 1, "each of them matters"
    for steps, scores in ((1, one), (8, several)):
        rank = np.argsort(np.argsort(-np.abs(scores.flat)))
        worst = int(rank[chains.edges].max())
        assert (worst > 40) if steps == 1 else (worst < 20), (steps, worst)
    assert one.flat[chains.edges].max() < 0.01 < 0.3 < several.flat[chains.edges].min(), "one point has no right sign"
