"""Cancellation and overestimation: aggregations of per-position scores, by hand and on planted ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from caseback.circuits.graph import Graph
from caseback.circuits.positions import Aggregates, aggregate, compare
from caseback.circuits.score import ScoreConfig, score
from caseback.core.errors import CircuitError
from caseback.tasks.encode import PairBatch

from .plain import model_of, pairs_of


def one_by_token(pairs: PairBatch, row: int) -> PairBatch:
    """One pair with a span for every token."""
    one = pairs[[row]]
    spans = {f"t{i}": torch.tensor([[i, i + 1]]) for i in range(int(one.clean.lengths[0]))}
    clean, other = (replace(side, spans=spans) for side in (one.clean, one.counterfactual))
    return replace(one, clean=clean, counterfactual=other)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("tokens", [7, 320])
def test_aggregates_are_sums_over_positions_and_prompts(name: str, tokens: int) -> None:
    """Σ_p |s|, |Σ_p s|, max_p |s| of each prompt's token scores, in the part its place among the prompts gives it."""
    model, pairs = model_of(name), pairs_of(name)
    found = aggregate(model, pairs, ScoreConfig(tokens=tokens))
    assert found.graph.spans == ("all",) and found.n == 3 and found.values.shape[:2] == (3, 3)
    for row in range(pairs.n):
        scores = score(model, one_by_token(pairs, row)).residual.astype(float)
        expected = [np.abs(scores).sum(axis=0), np.abs(scores.sum(axis=0)), np.abs(scores).max(axis=0)]
        for i in range(3):
            scale = expected[i].max()
            assert np.abs(found.values[i, row] - expected[i]).max() < 2e-5 * scale
    sums, net, most = found.values
    assert (sums >= net - 1e-6).all() and (sums >= most - 1e-6).all() and (net < 0.9 * sums).any()
    two = aggregate(model, pairs, parts=2)
    np.testing.assert_allclose(two.values[:, 0], found.values[:, :2].sum(axis=1), rtol=1e-3, atol=1e-5)


def test_other_references_and_ungrouped_scores_too() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    usual = aggregate(model, pairs)
    zero = aggregate(model, pairs, ScoreConfig(reference="zero"))
    mean = aggregate(model, pairs, ScoreConfig(reference="mean"))
    assert not np.allclose(usual.values, zero.values) and not np.allclose(usual.values, mean.values)
    assert aggregate(model, pairs, ScoreConfig(grouped=False)).graph.n_groups == 4
    with pytest.raises(CircuitError, match="the control needs at least 3 prompts, got 2"):
        aggregate(model, pairs[:2])


def planted(cancelling: int, spread: int) -> Aggregates:
    """100 edges with the same ranking in each part, but the first `cancelling` have sums near zero and the next `spread`
    have a small greatest position; both are among the best by Σ|s|."""
    graph = Graph(n_layers=2, n_heads=4, n_kv_heads=4)
    n = int(graph.residual_allowed.sum())
    strength = np.linspace(2, 1, n)
    values = np.zeros((3, 3, graph.n_writers, graph.n_readers))
    net, most = strength.copy(), strength.copy()
    net[:cancelling] = 0.01
    most[cancelling : cancelling + spread] = 0.01
    for part in range(3):
        for i, row in enumerate((strength, net, most)):
            values[i, part][graph.residual_allowed] = row
    return Aggregates(graph=graph, values=values, n=30)


def test_the_table_counts_the_edges_that_position_sums_lose() -> None:
    found = planted(cancelling=3, spread=5)
    n = int(found.graph.residual_allowed.sum())
    rows = {(row.name, row.share): row for row in compare(found, shares=(0.1, 0.5))}
    assert list(rows) == [
        ("cancellation", 0.1),
        ("cancellation", 0.5),
        ("overestimation", 0.1),
        ("overestimation", 0.5),
    ]
    for share in (0.1, 0.5):
        k = round(share * n)
        assert rows["cancellation", share].difference == pytest.approx(3 / k)
        assert rows["overestimation", share].difference == pytest.approx(5 / k)
        for name in ("cancellation", "overestimation"):
            assert rows[name, share].difference_control == 0
            assert rows[name, share].spearman == pytest.approx(1)
            assert rows[name, share].spearman_control == pytest.approx(1)


def test_the_control_is_how_much_the_prompts_alone_move_a_ranking() -> None:
    found = planted(0, 0)
    draw = np.random.default_rng(0)
    values = found.values.copy()
    values[0] = draw.random(values[0].shape) * (values[0] > 0)
    (row,) = compare(replace(found, values=values), shares=(0.2,))[:1]
    assert 0.6 < row.difference_control < 0.95, "unrelated rankings differ by 1 − share"


def test_on_random_models_positions_matter() -> None:
    """At a tenth of the edges, sums that ignore the sign of positions rank otherwise than sums that do not."""
    rows = compare(aggregate(model_of("llama"), pairs_of("llama")), shares=(0.1,))
    assert {row.name for row in rows} == {"cancellation", "overestimation"}
    assert all(0 < row.difference < 1 for row in rows)
