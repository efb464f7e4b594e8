"""Measuring circuits: the ends of the scale, what stands beside the metric, and batches that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caseback.circuits.evaluate import Measured, curve_sizes, measure
from caseback.circuits.graph import Circuit
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.reference import mean_reference
from caseback.circuits.score import batches
from caseback.core.errors import CircuitError, FamilyError
from caseback.model.model import Model
from caseback.tasks.metrics import kl, logit_diff, prob_diff
from caseback.zoo.tiny import tiny

from .plain import Plain, model_of, pairs_of, some_circuit

NAME = "llama"


@pytest.fixture(scope="module")
def circuits() -> list[Circuit]:
    """Full, empty, and three between."""
    graph = graph_of(model_of(NAME), tuple(pairs_of(NAME).clean.spans))
    return [Circuit.full(graph), Circuit.empty(graph), *(some_circuit(graph, share, 0) for share in (0.2, 0.6, 0.95))]


@pytest.fixture(scope="module")
def found(circuits: list[Circuit]) -> Measured:
    return measure(model_of(NAME), pairs_of(NAME), circuits)


def test_the_full_circuit_is_the_model_and_the_empty_one_the_counterfactual_run(found: Measured) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    clean, other = model.logits(pairs.clean), model.logits(pairs.counterfactual)
    np.testing.assert_allclose(found.full, logit_diff(clean, pairs), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.empty, logit_diff(other, pairs), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.metric[0], found.full, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.metric[1], found.empty, rtol=1e-4, atol=1e-4)
    assert found.agreement[0].tolist() == [1, 1, 1]
    assert found.agreement[1].tolist() == (other.argmax(dim=-1) == clean.argmax(dim=-1)).double().tolist()
    np.testing.assert_allclose(found.kl[0], 0, atol=1e-6)
    np.testing.assert_allclose(found.kl[1], kl(other, clean), rtol=1e-4)
    assert found.ratio[0] == pytest.approx(1, abs=1e-4)
    assert [f.value for f in found.faithfulness()[:2]] == pytest.approx([1, 0], abs=1e-4)


def test_every_number_is_that_of_the_forward_written_edge_by_edge(found: Measured, circuits: list[Circuit]) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    plain, clean = Plain(model, pairs), model.logits(pairs.clean)
    for row, circuit in enumerate(circuits):
        logits = plain.circuit(circuit)
        np.testing.assert_allclose(found.metric[row], logit_diff(logits, pairs), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.kl[row], kl(logits, clean), rtol=2e-3, atol=1e-5)
        assert found.agreement[row].tolist() == (logits.argmax(dim=-1) == clean.argmax(dim=-1)).double().tolist()
    expected = (found.metric.mean(axis=1) - found.empty.mean()) / (found.full.mean() - found.empty.mean())
    np.testing.assert_allclose([f.value for f in found.faithfulness()], expected)
    np.testing.assert_allclose(found.ratio, found.metric.mean(axis=1) / found.full.mean())
    assert all(f.low <= f.value <= f.high for f in found.faithfulness())


def test_batches_and_order_change_nothing(found: Measured, circuits: list[Circuit]) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    seen: list[tuple[str, int, int]] = []
    for tokens in (1, 14):
        few = measure(model, pairs, circuits, tokens=tokens, progress=lambda *step: seen.append(step))
        for name, value in few.to_arrays().items():
            np.testing.assert_allclose(value, getattr(found, name), rtol=1e-3, atol=1e-4, err_msg=name)
    assert seen[-1] == ("evaluate", 15, 15) and [done for _, done, _ in seen[:15]] == list(range(1, 16))
    turned = measure(model, pairs[[2, 0, 1]], circuits[::-1])
    np.testing.assert_allclose(turned.metric, found.metric[::-1][:, [2, 0, 1]], rtol=1e-3, atol=1e-4)


def test_the_metric_is_the_task_s() -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    graph = graph_of(model, tuple(pairs.clean.spans))
    import dataclasses

    other = dataclasses.replace(pairs, metric="prob_diff")
    found = measure(model, other, [some_circuit(graph, 0.5, 0)])
    np.testing.assert_allclose(found.full, prob_diff(model.logits(pairs.clean), other), rtol=1e-4, atol=1e-6)
    assert np.abs(found.metric).max() <= 1


@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_other_references_have_their_own_empty_end(circuits: list[Circuit], reference: str) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    mean = mean_reference(model, layers_of(model), batches(pairs, 7), circuits[0].graph.spans)
    found = measure(model, pairs, circuits, reference=reference, mean=mean)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.metric[0], found.full, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.metric[1], found.empty, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = Plain(model, pairs, reference)
        np.testing.assert_allclose(found.empty, logit_diff(plain.circuit(circuits[1]), pairs), rtol=1e-3, atol=1e-3)


def test_rows_and_batches_of_measurements(found: Measured) -> None:
    some = found.rows([3, 1])
    assert some.metric.tolist() == found.metric[[3, 1]].tolist() and some.full is found.full
    assert found.rows(slice(2, None)).kl.tolist() == found.kl[2:].tolist()
    parts = [Measured(**{n: v[..., rows] for n, v in found.to_arrays().items()}) for rows in ([0], [1, 2])]
    joined = Measured.joined(parts)
    assert all(np.array_equal(value, getattr(found, name)) for name, value in joined.to_arrays().items())


def test_the_runs_of_a_batch_serve_all_circuits(circuits: list[Circuit]) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    before = model.cost.forwards
    measure(model, pairs, circuits)
    assert model.cost.forwards - before == (2 + len(circuits)) * pairs.n


def test_what_cannot_be_measured_is_refused(circuits: list[Circuit]) -> None:
    model, pairs = model_of(NAME), pairs_of(NAME)
    with pytest.raises(CircuitError, match="no circuit was given to measure"):
        measure(model, pairs, [])
    with pytest.raises(CircuitError, match="expand or rescore it"):
        measure(model, pairs, [circuits[0], circuits[0].collapse()])
    with pytest.raises(CircuitError, match="the mean reference needs the pairs to average over"):
        measure(model, pairs, circuits, reference="mean")
    with pytest.raises(FamilyError, match="falcon has no circuits"):
        measure(Model(tiny("falcon")), pairs, circuits)


@pytest.mark.parametrize("n_edges", [2, 3, 49, 50, 120, 70_000, 1_580_000])
@pytest.mark.parametrize("points", [2, 3, 12])
def test_the_sizes_of_a_curve_rise_from_few_edges_to_all(n_edges: int, points: int) -> None:
    sizes = curve_sizes(n_edges, points)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == n_edges and sizes[0] >= 1
    assert len(sizes) <= points
    if n_edges >= 10_000 and points > 2:
        assert len(sizes) == points and sizes[0] == 50 and sizes[-2] == n_edges // 2
        steps = np.diff(np.log(sizes[:-1]))
        assert steps.max() < 1.05 * steps.min() if len(steps) else True


def test_a_curve_of_one_point_or_a_graph_of_one_edge_is_refused() -> None:
    with pytest.raises(CircuitError, match="got 1 points, 100 edges"):
        curve_sizes(100, 1)
    with pytest.raises(CircuitError, match="got 12 points, 1 edges"):
        curve_sizes(1)
