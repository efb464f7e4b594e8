"""Models with a known circuit: they do what they say, the circuit is what brute force finds, and selection recovers it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from caseback.circuits.ablate import Ablator
from caseback.circuits.graph import Circuit
from caseback.circuits.parts import layers_of
from caseback.circuits.score import ScoreConfig, score
from caseback.circuits.select import best_first, top_n
from caseback.model.model import Model
from caseback.tasks.metrics import logit_diff, top1
from caseback.zoo import ZOO, ZooModel

LOOKS = {
    "copying": [(1, 2, "end", "name")],
    "induction": [(0, 1, "colour", "name"), (0, 1, "foil", "other"), (1, 2, "end", "colour")],
    "planted": [(0, 1, "relay", "cue"), (1, 0, "relay", "tag"), (2, 3, "end", "relay")],
}
"""(layer, head, from, to): where the heads of the circuit look."""


@pytest.fixture(scope="module", params=sorted(ZOO))
def zoo(request: pytest.FixtureRequest) -> ZooModel:
    return ZOO[request.param]()


def as_initialised(zoo: ZooModel) -> Model:
    """The same architecture with the random weights it had before anything was set."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(type(zoo.model.hf)(copy.deepcopy(zoo.model.hf.config)), zoo.model.tokenizer)


def test_it_answers_and_as_initialised_it_does_not(zoo: ZooModel) -> None:
    before = zoo.task.check(as_initialised(zoo))
    assert before.fit == zoo.task.n
    assert abs(before.mean) < 0.3
    assert 0.2 < before.accuracy < 0.8
    check = zoo.task.check(zoo.model)
    assert check.fit == zoo.task.n == 32
    assert check.accuracy == 1
    assert check.mean > 2
    assert float(check.values.min()) > 1
    pairs = zoo.task.encode(zoo.model)
    logits = zoo.model.logits(pairs.clean)
    assert bool(top1(logits, pairs).all())
    other = logit_diff(zoo.model.logits(pairs.counterfactual), pairs)
    assert float(other.mean()) < -1  # the counterfactual takes the reason away


def test_its_heads_look_where_they_should(zoo: ZooModel) -> None:
    batch = zoo.task.encode(zoo.model).clean
    run = zoo.model.run(batch, read=["pattern.*"])
    rows = torch.arange(batch.n)
    for layer, head, start, end in LOOKS[zoo.name]:
        looked = run[f"pattern.{layer}"][rows, head, batch.spans[start][:, 0], batch.spans[end][:, 0]]
        assert float(looked.min()) > 0.4, (layer, head, start, end)
        assert float(looked.max()) < 0.99, "a saturated softmax has no gradient"


def test_pairs_and_weights_depend_on_the_seed_alone(zoo: ZooModel) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = ZOO[zoo.name]()
    assert torch.equal(torch.get_rng_state(), state)
    assert again.task == zoo.task
    assert again.truth == zoo.truth
    other = ZOO[zoo.name](seed=1, n=8)
    assert other.task.n == 8
    weights, same, others = (dict(z.model.hf.named_parameters()) for z in (zoo, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    assert {pair.clean for pair in zoo.task.discovery.pairs}.isdisjoint(pair.clean for pair in zoo.task.held_out.pairs)


def test_the_circuit_is_what_brute_force_finds(zoo: ZooModel) -> None:
    """Each edge ablated alone: those of the circuit cost at least 1 logit, no other more than a twentieth of the least.

    Every edge of the smallest model; of the others the circuit's, the best scored and a random draw.
    """
    pairs = zoo.task.encode(zoo.model)
    scores = score(zoo.model, pairs)
    graph = scores.graph
    truth, full = Circuit.of(graph, sorted(zoo.truth)), Circuit.full(graph)
    pairs = pairs[:8]
    ablator = Ablator(zoo.model, layers_of(zoo.model), graph, pairs)
    edges = np.flatnonzero(graph.allowed)
    if len(edges) > 1000:
        best = edges[np.argsort(-np.abs(scores.flat[edges]))[:60]]
        edges = np.union1d(np.union1d(truth.edges, best), np.random.default_rng(0).choice(edges, 100, replace=False))
    whole = logit_diff(ablator.full, pairs).mean()
    without = [
        logit_diff(ablator.logits(full - Circuit.of(graph, edges[[i]])), pairs).mean() for i in range(len(edges))
    ]
    effect = np.array([float(whole - value) for value in without])
    least = effect[truth.flat[edges]].min()
    assert least > 1
    assert np.abs(effect[~truth.flat[edges]]).max() < least / 20
    assert float(logit_diff(ablator.logits(truth), pairs).mean()) == pytest.approx(float(whole), rel=0.15)
    lost = logit_diff(ablator.logits(truth.complement), pairs).mean()
    assert float(lost) == pytest.approx(float(logit_diff(ablator.empty(), pairs).mean()), abs=0.1)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_selection_recovers_it(zoo: ZooModel, seed: int, steps: int) -> None:
    """Precision and recall 1 at the right size; below it only circuit edges, above it all of them."""
    found = ZOO[zoo.name](seed=seed)
    task = found.task.discovery
    scores = score(found.model, task.encode(found.model), ScoreConfig(steps=steps))
    truth = Circuit.of(scores.graph, sorted(found.truth))
    size = truth.n_edges
    for ranking in (best_first(scores), top_n(scores)):
        assert set(ranking.circuit(size).names()) == found.truth
        assert ranking.circuit(size - 1, pruned=False) <= truth <= ranking.circuit(size + 5, pruned=False)
    held_out = found.task.held_out.encode(found.model)
    ablator = Ablator(found.model, layers_of(found.model), scores.graph, held_out)
    kept = float(logit_diff(ablator.logits(truth), held_out).mean())
    assert kept == pytest.approx(float(logit_diff(ablator.full, held_out).mean()), rel=0.15)
