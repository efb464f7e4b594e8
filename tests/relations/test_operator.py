"""The operator: rank, inverse, random twin, decoding."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.batch import Batch
from caseback.model.run import execute
from caseback.relations.jacobian import expand
from caseback.relations.operator import Operators, decode, fit, invert, spectrum_twin
from caseback.relations.prompt import ask
from caseback.zoo.tiny import TINY

from .small import SAMPLES, TEMPLATE, affine_of, model_of, relation_of


@cache
def fitted() -> Operators:
    return fit(model_of("llama"), SAMPLES[:3], TEMPLATE)


def with_maps(W: torch.Tensor) -> Operators:
    """Operators of given maps, estimated on nothing in particular."""
    n, d, _ = W.shape
    other = {"b": torch.zeros(n, d), "s": torch.zeros(3, n, d), "z": torch.zeros(3, d)}
    return Operators(template=TEMPLATE, samples=SAMPLES[:3], shots=True, W=W, **other)


def rows(n: int, d: int = 48) -> torch.Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shots", [True, False])
def test_it_is_the_mean_of_expansions_each_asked_after_the_others(shots: bool) -> None:
    model = model_of("llama")
    found = fit(model, SAMPLES[:3], TEMPLATE, shots=shots)
    alone = []
    for i in range(3):
        others = [SAMPLES[j] for j in range(3) if j != i]
        alone.append(expand(model, ask(model, TEMPLATE, SAMPLES[i], others if shots else [])))
    torch.testing.assert_close(found.W, torch.stack([one.J for one in alone]).mean(dim=0))
    torch.testing.assert_close(found.b, torch.stack([one.b for one in alone]).mean(dim=0))
    torch.testing.assert_close(found.s, torch.stack([one.s for one in alone]))
    torch.testing.assert_close(found.z, torch.stack([one.z for one in alone]))
    assert found.examples == (SAMPLES[:3] if shots else ())


def test_full_rank_is_no_cut() -> None:
    found, s = fitted(), rows(5)
    for layer in range(found.n_layers):
        whole = found.apply(layer, s, beta=2.5)
        torch.testing.assert_close(whole, 2.5 * s @ found.W[layer].T + found.b[layer])
        torch.testing.assert_close(found.apply(layer, s, beta=2.5, rank=48), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.apply(layer, s, beta=0.0), found.b[layer].expand(5, -1))


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_a_cut_is_the_best_approximation_of_its_rank(rank: int) -> None:
    """Eckart and Young: what is lost are the other singular values, and no other map of that rank loses less."""
    found = fitted()
    W = found.W[0]
    values = torch.linalg.svdvals(W)
    cut = (found.apply(0, torch.eye(48), rank=rank) - found.b[0]).T
    assert torch.linalg.matrix_rank(cut, rtol=1e-4) == rank
    assert float((W - cut).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-3)
    for seed in range(5):
        side = torch.randn((48, rank), generator=torch.Generator().manual_seed(seed))
        other = torch.linalg.lstsq(side, W).solution  # the best map with that image
        assert float((W - side @ other).norm()) > float((W - cut).norm())


def test_the_inverse_of_a_full_rank_is_the_inverse() -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn((2, 6, 6), generator=draw) + 4 * torch.eye(6)
    found = with_maps(W)
    delta = rows(3, 6)
    back = found.invert(1, delta, ranks=[2, 6])
    assert back.shape == (2, 3, 6)
    torch.testing.assert_close(back[1], delta @ torch.linalg.inv(W[1]).T, atol=1e-4, rtol=1e-4)
    U, S, V = torch.linalg.svd(W[1])
    torch.testing.assert_close(back[0], delta @ (V[:2].T @ torch.diag(1 / S[:2]) @ U[:, :2].T).T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.apply(1, back[1]), delta, atol=1e-4, rtol=1e-4)


def test_the_inverse_of_less_than_full_rank_is_the_pseudo_inverse() -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn((8, 3), generator=draw) @ torch.randn((3, 8), generator=draw)
    found = with_maps(torch.stack([W, torch.zeros(8, 8)]))
    delta = rows(4, 8)
    expected = delta @ torch.linalg.pinv(W, rtol=1e-5).T
    for back in found.invert(0, delta, ranks=[3, 5, 8]):
        torch.testing.assert_close(back, expected, atol=1e-4, rtol=1e-4)
    assert not found.invert(1, delta, ranks=[1, 8]).any()
    svd = torch.linalg.svd(W)
    torch.testing.assert_close(invert((svd[0], svd[1], svd[2]), delta, ranks=[3])[0], expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_exist_is_refused() -> None:
    found = fitted()
    with pytest.raises(RelationError, match="no operator at layer 2; there are 0 to 1"):
        found.apply(2, rows(1))
    for rank in (0, 49):
        with pytest.raises(RelationError, match=f"between 1 and 48, got 4, {rank}"):
            found.invert(0, rows(1), ranks=[4, rank])
    with pytest.raises(RelationError, match="at least one training sample"):
        fit(model_of("llama"), [], TEMPLATE)


def test_a_twin_has_the_spectrum_and_nothing_else() -> None:
    W = fitted().W[0]
    twin = spectrum_twin(W, seed=3)
    torch.testing.assert_close(torch.linalg.svdvals(twin), torch.linalg.svdvals(W), atol=1e-4, rtol=1e-4)
    assert torch.equal(twin, spectrum_twin(W, seed=3))
    assert not torch.allclose(twin, spectrum_twin(W, seed=4), atol=1e-2)
    aligned = [float((twin * other).sum() / W.norm() ** 2) for other in (W, W.T)]
    assert max(map(abs, aligned)) < 0.2
    state = torch.get_rng_state()
    spectrum_twin(W, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(name for name in TINY if ":" not in name))
def test_decoding_the_final_stream_gives_the_models_own_token(name: str) -> None:
    model = model_of(name)
    ids = torch.randint(3, 64, (6, 7), generator=torch.Generator().manual_seed(1))
    kept: list[torch.Tensor] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value)
        return value

    logits = execute(model, Batch(ids, torch.ones_like(ids, dtype=torch.bool)), {("resid_final", None): keep})
    assert logits is not None
    said = decode(model, kept[0][:, -1])
    assert torch.equal(said, logits.argmax(dim=-1))
    assert len(set(said.tolist())) > 1
    assert torch.equal(decode(model, kept[0][:, -1].view(2, 3, -1), rows=2), said.view(2, 3))


def test_an_affine_model_is_recovered() -> None:
    zoo = affine_of()
    found = fit(zoo.model, relation_of(zoo).samples[:5], zoo.template)
    for layer in (0, 1):
        assert float((found.W[layer] - zoo.W).abs().max()) < 1e-6
        assert float((found.b[layer] - zoo.b).abs().max()) < 1e-6
        values = found.svd(layer)[1]
        assert float(values[zoo.rank - 1]) == pytest.approx(0.75, rel=1e-3)
        assert float(values[zoo.rank]) < 1e-5
    assert not found.W[2].any()
