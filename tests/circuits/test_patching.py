"""Exact patching of single edges, and the sample it is done on."""

from __future__ import annotations

import numpy as np
import pytest

from caseback.circuits.graph import Circuit
from caseback.circuits.patching import patch_edges, sample_edges, without
from caseback.circuits.score import ScoreConfig, score
from caseback.core.errors import CircuitError
from caseback.tasks.metrics import logit_diff
from caseback.zoo import ZOO

from .plain import Plain, model_of, pairs_of


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_an_exact_effect_is_what_the_metric_loses_without_the_edge(name: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    scores = score(model, pairs)
    edges = sample_edges(scores, top=6, random=4, seed=0)
    steps: list[tuple[str, int, int]] = []
    found = patch_edges(model, pairs, scores, edges, n_top=6, progress=lambda *step: steps.append(step))
    plain = Plain(model, pairs)
    whole = logit_diff(model.logits(pairs.clean), pairs)
    for row, edge in enumerate(edges):
        lost = whole - logit_diff(plain.circuit(without(scores.graph, edge)), pairs)
        np.testing.assert_allclose(found.exact[row], lost, atol=1e-3)
    assert found.score.tolist() == scores.flat[edges].astype(float).tolist() and found.n_top == 6
    assert steps[-1] == ("patch", 30, 30)
    intervals = found.intervals()
    np.testing.assert_allclose([f.value for f in intervals], found.exact.mean(axis=1))
    assert found.agreement().n == 10 and found.agreement().k == 2


def test_on_a_known_circuit_scores_agree_with_exact_effects() -> None:
    """The copying model: the three edges of its circuit stand first, with the right sign, in both orders."""
    zoo = ZOO["copying"]()
    pairs = zoo.task.discovery.encode(zoo.model)
    scores = score(zoo.model, pairs, ScoreConfig(steps=4))
    edges = sample_edges(scores, top=10, random=10, seed=1)
    found = patch_edges(zoo.model, pairs[:8], scores, edges, n_top=10)
    assert {scores.graph.name(edge) for edge in edges[:3]} == zoo.truth
    exact = found.exact.mean(axis=1)
    assert exact[:3].min() > 1 and np.abs(exact[3:]).max() < 0.1
    agreement = found.agreement()
    assert agreement.pearson > 0.95 and agreement.recall >= 0.75


def test_the_sample_holds_the_best_and_then_others_at_random() -> None:
    scores = score(model_of("llama"), pairs_of("llama"))
    graph = scores.graph
    allowed = np.flatnonzero(graph.allowed)
    edges = sample_edges(scores, top=20, random=30, seed=0)
    order = allowed[np.argsort(-np.abs(scores.flat[allowed]), kind="stable")]
    assert edges[:20].tolist() == order[:20].tolist()
    assert len(set(edges.tolist())) == 50 and graph.allowed[edges].all()
    assert edges.tolist() == sample_edges(scores, top=20, random=30, seed=0).tolist()
    assert edges[20:].tolist() != sample_edges(scores, top=20, random=30, seed=1)[20:].tolist()
    every = sample_edges(scores, top=3, random=len(allowed) - 3, seed=0)
    assert sorted(every.tolist()) == allowed.tolist()
    flat = scores.with_flat(np.where(graph.allowed, -1.0, 0.0))
    assert sample_edges(flat, top=5, random=0, seed=0).tolist() == allowed[:5].tolist(), "ties go by index"


def test_random_edges_are_drawn_evenly() -> None:
    """Over many draws each of the others comes equally often: within 5 standard deviations."""
    scores = score(model_of("gpt_neox"), pairs_of("gpt_neox"))
    n = scores.graph.n_edges - 10
    counts = np.zeros(scores.graph.n_index, dtype=int)
    for seed in range(400):
        np.add.at(counts, sample_edges(scores, top=10, random=40, seed=seed)[10:], 1)
    drawn = counts[
        np.setdiff1d(np.flatnonzero(scores.graph.allowed), sample_edges(scores, top=10, random=1, seed=0)[:10])
    ]
    expected, deviation = 400 * 40 / n, (400 * 40 / n) ** 0.5
    assert len(drawn) == n and np.abs(drawn - expected).max() < 5 * deviation


@pytest.mark.parametrize(("top", "random"), [(-1, 5), (5, -1), (0, 0), (10**6, 0)])
def test_a_sample_the_graph_does_not_have_is_refused(top: int, random: int) -> None:
    scores = score(model_of("llama"), pairs_of("llama"))
    with pytest.raises(CircuitError, match=f"{top} top and {random} random edges were asked for; the graph has"):
        sample_edges(scores, top=top, random=random, seed=0)


def test_without_one_edge() -> None:
    graph = score(model_of("llama"), pairs_of("llama")).graph
    edge = graph.index("embed->m0@end")
    assert without(graph, edge) == Circuit.full(graph) - Circuit.of(graph, ["embed->m0@end"])
