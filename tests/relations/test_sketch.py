"""Operators along a few directions of z: what they keep, what they say they miss, and that the basis is worth finding."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.relations.judge import JudgeConfig, judge_split
from caseback.relations.operator import Operators, fit, svd
from caseback.relations.prompt import ask
from caseback.relations.sketch import PROBES, error_of, find_basis, probes
from caseback.zoo.affine import IMAGES, WIDTH

from .small import SAMPLES, TEMPLATE, affine_of, model_of, relation_of

FAMILIES = ["gpt2", "llama", "gpt_neox", "opt", "lfm2"]
"""gpt2 and opt learn their positions; the last has no exact cache."""
K = 12


def prompts_of(name: str) -> list:
    model, samples = model_of(name), SAMPLES[:3]
    return [ask(model, TEMPLATE, one, [other for other in samples if other is not one]) for one in samples]


@cache
def exact(name: str) -> Operators:
    return fit(model_of(name), SAMPLES[:3], TEMPLATE)


def sketched(name: str, sketch: int | Tensor, seed: int = 0) -> Operators:
    return fit(model_of(name), SAMPLES[:3], TEMPLATE, sketch=sketch, seed=seed)


def missed(W: Tensor, Q: Tensor) -> Tensor:
    """The relative error itself, of every layer."""
    return (W - Q @ (Q.T @ W)).flatten(1).norm(dim=1) / W.flatten(1).norm(dim=1)


def random_basis(d: int, k: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn((d, k), generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_directions_are_the_exact_operator(name: str) -> None:
    model, whole = model_of(name), exact(name)
    d = model.d_model
    found = sketched(name, find_basis(model, prompts_of(name), d))
    assert whole.basis is None and whole.error is None
    assert found.basis is not None and found.error is not None and found.W.shape == (model.n_layers, d, d)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(d), atol=1e-5, rtol=0)
    for layer in range(model.n_layers):
        torch.testing.assert_close(found.matrix(layer), whole.matrix(layer), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.b, whole.b, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.s, whole.s)
    torch.testing.assert_close(found.z, whole.z)
    assert float(found.error.max()) < 1e-5


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_says_what_the_exact_one_does_with_its_departure_from_the_mean_projected(name: str, beta: float) -> None:
    whole, found = exact(name), sketched(name, K)
    Q, mean = found.basis, whole.z.mean(dim=0)
    assert Q is not None and Q.shape == (whole.z.shape[1], K) and found.W.shape[1] == found.rank == K
    s = torch.randn((5, len(mean)), generator=torch.Generator().manual_seed(1))
    for layer in range(whole.n_layers):
        expected = mean + (whole.apply(layer, s, beta=beta) - mean) @ Q @ Q.T
        torch.testing.assert_close(found.apply(layer, s, beta=beta), expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.apply(layer, s, beta=beta, rank=K), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("k", [16, 20])
def test_a_map_of_that_rank_is_recovered(k: int) -> None:
    zoo = affine_of()
    found = fit(zoo.model, relation_of(zoo).samples[:5], zoo.template, sketch=k)
    assert found.error is not None
    for layer in (0, 1):
        torch.testing.assert_close(found.matrix(layer), zoo.W, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.b[layer], zoo.b, atol=1e-4, rtol=0)
        assert float(found.error[layer]) < 1e-3
    assert not found.W[2].any() and float(found.error[2]) == 0  # behind the head there is no map to miss


def test_a_map_of_a_higher_rank_is_not_and_the_error_says_so() -> None:
    zoo = affine_of()
    found = fit(zoo.model, relation_of(zoo).samples[:5], zoo.template, sketch=8)
    assert found.basis is not None and found.error is not None
    true = float(missed(zoo.W[None], found.basis))
    assert 0.4 < true < 0.8
    assert float(found.error[0]) == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_error_is_the_share_that_is_missed(name: str) -> None:
    whole, found = exact(name), sketched(name, K)
    assert found.basis is not None and found.error is not None
    true = missed(whole.W, found.basis)
    assert bool((true > 0.02).all())
    torch.testing.assert_close(found.error, true, atol=0, rtol=0.4)


def test_its_square_has_no_bias() -> None:
    """Of the mean operator: its probes are the same at every sample."""
    W, Q = exact("llama").W, random_basis(48, K)
    upper = torch.stack([(probes(Q, seed=seed) @ W).square().sum(dim=(1, 2)) / PROBES for seed in range(400)])
    true = (W - Q @ (Q.T @ W)).square().sum(dim=(1, 2))
    torch.testing.assert_close(upper.mean(dim=0), true, atol=0, rtol=0.03)
    torch.testing.assert_close(upper[0] / true, torch.ones(2), atol=0.5, rtol=0)
    rest = probes(Q, 4000) @ W
    torch.testing.assert_close(error_of(Q.T @ W, rest), missed(W, Q), atol=0, rtol=0.03)


def test_a_basis_that_sees_nothing_misses_all() -> None:
    zoo = affine_of()
    elsewhere = torch.eye(WIDTH)[:, [i for i in range(WIDTH) if i not in range(WIDTH)[IMAGES]]]
    found = fit(zoo.model, relation_of(zoo).samples[:5], zoo.template, sketch=elsewhere)
    assert found.error is not None
    torch.testing.assert_close(found.error[:2], torch.ones(2), atol=1e-6, rtol=0)
    assert float(found.W.abs().max()) < 1e-6
    mean = found.z.mean(dim=0)
    torch.testing.assert_close(found.apply(0, found.s[:, 0], beta=3.0), mean.expand(5, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_random_basis_misses_more_and_the_best_one_not_much_less(name: str) -> None:
    W = exact(name).W
    found, at_random = sketched(name, K), sketched(name, random_basis(W.shape[1], K))
    assert found.basis is not None and found.error is not None and at_random.error is not None
    true = missed(W, found.basis)
    assert bool((found.error < at_random.error).all())
    assert bool((true < missed(W, random_basis(W.shape[1], K))).all())
    best = torch.linalg.svd(W.transpose(0, 1).flatten(1))[0][:, :K]
    assert float(true.mean()) < 2 * float(missed(W, best).mean())


def test_what_follows_from_the_factors_is_what_follows_from_the_matrix() -> None:
    found = sketched("llama", K)
    delta = torch.randn((3, 48), generator=torch.Generator().manual_seed(2))
    for layer in range(found.n_layers):
        W = found.matrix(layer)
        U, S, V = found.svd(layer)
        assert U.shape == (48, K) and S.shape == (K,) and V.shape == (K, 48)
        torch.testing.assert_close(U @ torch.diag(S) @ V, W, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(S, svd(W)[1][:K], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.linear(layer, delta), delta @ W.T, atol=1e-4, rtol=1e-4)
        back = found.invert(layer, delta, ranks=[K])[0]
        torch.testing.assert_close(back, delta @ torch.linalg.pinv(W, rtol=1e-4).T, atol=1e-3, rtol=1e-2)
    with pytest.raises(RelationError, match=f"between 1 and {K}, got {K + 1}"):
        found.invert(0, delta, ranks=[K + 1])


@pytest.mark.parametrize("name", FAMILIES)
def test_it_depends_on_its_seed_and_not_on_the_rows_at_once(name: str) -> None:
    model, state = model_of(name), torch.get_rng_state()
    one, same, other = sketched(name, K), sketched(name, K), sketched(name, K, seed=1)
    assert one.basis is not None and same.basis is not None and other.basis is not None
    assert torch.equal(one.basis, same.basis) and torch.equal(one.W, same.W)
    assert float((one.basis - other.basis).abs().max()) > 0.01
    assert torch.equal(torch.get_rng_state(), state)
    few = fit(model, SAMPLES[:3], TEMPLATE, sketch=K, rows=5)
    assert few.basis is not None and few.error is not None and one.error is not None
    # the differences are rounding by ε: a basis of the same space to a hundredth
    assert float(missed(one.basis[None], few.basis)) < 0.01
    torch.testing.assert_close(few.error, one.error, atol=0, rtol=0.02)


def test_half_precision_has_a_worse_basis_and_says_so() -> None:
    """z's rounding shows in finite differences."""
    half, whole = fit(model_of("llama", torch.bfloat16), SAMPLES[:3], TEMPLATE, sketch=K), sketched("llama", K)
    assert half.basis is not None and half.error is not None and whole.basis is not None and whole.error is not None
    assert half.W.dtype == half.basis.dtype == half.b.dtype == torch.bfloat16
    W = exact("llama").W
    assert bool((missed(W, half.basis.float()) < 1.6 * missed(W, whole.basis)).all())
    torch.testing.assert_close(half.error, missed(W, half.basis.float()), atol=0, rtol=0.4)
    assert half.apply(0, half.s[:, 0]).dtype == torch.bfloat16


def test_it_costs_what_it_says() -> None:
    model = model_of("llama")
    before = (model.cost.forwards, model.cost.backwards)
    sketched("llama", K)
    assert model.cost.backwards - before[1] == 3 * (K + PROBES)
    moved = 3 * (2 * K // 3 + 1)
    assert model.cost.forwards - before[0] <= moved + 3 * 4  # and each prompt's beginning, tried, and its expansion


def test_whole_objects_have_a_basis_too() -> None:
    model = model_of("llama")
    whole = fit(model, SAMPLES[:3], TEMPLATE, whole=True)
    found = fit(model, SAMPLES[:3], TEMPLATE, whole=True, sketch=K)
    assert found.basis is not None
    Q = found.basis
    for layer in range(2):
        torch.testing.assert_close(found.matrix(layer), Q @ Q.T @ whole.W[layer], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("k", [-1, 0, 48, 49])
def test_other_numbers_of_directions_are_refused(k: int) -> None:
    with pytest.raises(RelationError, match=f"1 to 47 of the 48 directions .* not {k}; without a sketch"):
        sketched("llama", k)
    if k != 48:
        with pytest.raises(RelationError, match=f"1 to 48 directions, not {k}"):
            find_basis(model_of("llama"), prompts_of("llama"), k)


def test_a_relation_is_judged_by_a_sketch() -> None:
    zoo = affine_of()
    relation = relation_of(zoo)
    for k, right, error in ((16, 1.0, 0.0), (8, 0.0, 0.6)):
        split = judge_split(zoo.model, relation, JudgeConfig(pairs=6, sketch=k))
        assert float(split.arrays["strict"].mean()) >= right
        assert split.chosen["sketch_error"] == pytest.approx(error, abs=0.15)
        assert split.arrays["W"].shape == (WIDTH, WIDTH) and split.arrays["singular"].shape == (k,)
        assert split.arrays["cut_ranks"].tolist() == [rank for rank in (8, 16) if rank <= k]
        assert split.arrays["edited"].shape[1] == len(split.arrays["cut_ranks"])
    assert "sketch_error" not in judge_split(zoo.model, relation, JudgeConfig(pairs=6)).chosen


def test_a_sketch_that_cannot_be_judged_is_refused() -> None:
    for k in (-3, 0, 7):
        with pytest.raises(RelationError, match=f"at least 8 directions, the smallest rank of an edit, not {k}"):
            JudgeConfig(sketch=k)
    zoo = affine_of()
    with pytest.raises(RelationError, match="1 to 63 of the 64 directions"):
        judge_split(zoo.model, relation_of(zoo), JudgeConfig(pairs=6, sketch=64))
