"""Faithfulness and its controls: choices, ridge against its textbook form, right where known, at chance where it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.relations.faithful import BETAS, Answers, answers, cut_answers, prefix, random_answers, ridge
from caseback.relations.observe import Observed, observe
from caseback.relations.operator import Operators, fit

from .small import affine_of, model_of, relation_of


@cache
def judged(rank: int = 16) -> tuple[Operators, Observed]:
    """The affine relation: fitted on five samples, asked of the others."""
    zoo = affine_of(rank)
    samples = relation_of(zoo).samples
    seen = observe(zoo.model, samples[5:], zoo.template, samples[:5])
    return fit(zoo.model, samples[:5], zoo.template), seen


def made(right: np.ndarray, *, controls: dict[str, np.ndarray] | None = None) -> Answers:
    """Answers that are right where `right` [layer, beta, sample] says so; the model's token of sample i is i."""
    token = np.arange(right.shape[2])
    return Answers(
        token=token,
        lre=np.where(right, token, -1),
        betas=tuple(float(i) for i in range(right.shape[1])),
        controls={name: np.where(hit, token, -1) for name, hit in (controls or {}).items()},
    )


def test_an_affine_relation_is_decoded_without_fault() -> None:
    operators, seen = judged()
    found = answers(affine_of().model, operators, seen)
    assert found.strict.shape == (3, len(BETAS), 35)
    assert found.strict[:2, BETAS.index(1.0)].all()
    assert found.strict[2].mean() < 0.1  # the subject has been read already
    chance = {name: (tokens == found.token).mean(axis=1).max() for name, tokens in found.controls.items()}
    assert set(chance) == {"identity", "translation", "ridge", "bias"}
    assert max(chance.values()) <= 0.15, chance
    everything = np.arange(35)
    assert found.majority(everything, everything).mean() == pytest.approx(1 / 35)
    assert found.embedding(everything, everything).all()
    assert prefix(affine_of().model, found.lre[0, 2], seen).all()


def test_shuffled_subjects_are_at_chance() -> None:
    """Every state beside another sample's token: what is left is one in 35, the best of 3 layers and 12 β included."""
    operators, seen = judged()
    model = affine_of().model
    scores = []
    for seed in range(5):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(35))
        found = answers(model, operators, replace(seen, s=seen.s[order]))
        scores.append(found.strict.mean(axis=2).max())
    assert np.mean(scores) < 0.12


def test_random_directions_of_the_same_sizes_are_at_chance() -> None:
    operators, seen = judged()
    model = affine_of().model
    token = seen.token.numpy()
    scores = [(random_answers(model, operators, seen, 0, 1.0, seed=seed) == token).mean() for seed in range(10)]
    assert np.mean(scores) < 0.1
    again = random_answers(model, operators, seen, 0, 1.0, seed=3)
    assert np.array_equal(again, random_answers(model, operators, seen, 0, 1.0, seed=3))


@pytest.mark.parametrize("rank", [4, 12])
def test_the_planted_rank_is_enough_and_no_smaller_one_is(rank: int) -> None:
    operators, seen = judged(rank)
    ranks = [rank // 4, rank // 2, rank, rank + 1, 64]
    found = cut_answers(affine_of(rank).model, operators, seen, 0, 1.0, ranks) == seen.token.numpy()
    assert found[2:].all()
    assert found[1].mean() < 1
    assert found[0].mean() < found[1].mean()


def test_each_answer_is_the_token_of_the_formula() -> None:
    """One sample, one layer, one β at a time, by the model's own modules."""
    operators, seen = judged()
    model = affine_of().model
    found = answers(model, operators, seen, betas=(0.5, 3.0))
    norm, unembed = model.hf.model.norm, model.hf.lm_head
    with torch.no_grad():
        for layer in range(3):
            for i in (0, 7):
                s, known = seen.s[i, layer], operators.s[:, layer]
                for number, beta in enumerate((0.5, 3.0)):
                    z = beta * operators.W[layer] @ s + operators.b[layer]
                    assert int(unembed(norm(z)).argmax()) == found.lre[layer, number, i]
                shift = s + operators.z.mean(dim=0) - known.mean(dim=0)
                for name, z in (("identity", s), ("translation", shift), ("bias", operators.b[layer])):
                    assert int(unembed(norm(z)).argmax()) == found.controls[name][layer, i]


def test_ridge_is_the_textbook_regression() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y, new = (torch.randn(shape, generator=draw) for shape in ((7, 4), (7, 4), (3, 4)))
    X, Y = x - x.mean(dim=0), y - y.mean(dim=0)
    penalty = 0.1 * (X**2).sum(dim=1).mean()
    B = torch.linalg.solve(X.T @ X + penalty * torch.eye(4), X.T @ Y)
    torch.testing.assert_close(ridge(x, y, new), y.mean(dim=0) + (new - x.mean(dim=0)) @ B, atol=1e-5, rtol=1e-5)


def test_ridge_recovers_a_map_from_enough_samples_and_the_mean_from_one() -> None:
    draw = torch.Generator().manual_seed(0)
    x, W, new = (torch.randn(shape, generator=draw) for shape in ((50, 6), (6, 6), (5, 6)))
    torch.testing.assert_close(ridge(x, x @ W, new, penalty=1e-6), new @ W, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ridge(x[:1], x[:1] @ W, new), (x[:1] @ W).expand(5, -1))


def test_the_choice_is_the_middle_of_the_good_layers_and_not_the_luckiest_cell() -> None:
    many = np.zeros((9, 5, 400), dtype=bool)  # so many samples that a standard error is small
    many[2:7, 1:4, :200] = True  # half right over five layers and three β
    many[0, 4] = True  # all right at one
    rows = np.arange(400)
    assert made(many).choose(rows) == (4, 2), "the middle of layers 3 to 5, where whole neighbourhoods are right"
    many[8, 3:] = True
    many[7, 3:] = True
    assert made(many).choose(rows) == (8, 4), "all right over two layers and β"
    few = np.zeros((7, 3, 4), dtype=bool)
    few[1:6, :, 0] = True
    few[3, :, 1] = True  # one sample more at one layer: within a standard error of the others
    assert made(few).choose([0, 1, 2, 3])[0] == 3
    assert made(np.zeros((3, 5, 4), dtype=bool)).choose([0]) == (1, 0)
    one = np.zeros((4, 1, 2), dtype=bool)  # a single β
    one[3] = True
    assert made(one).choose([0, 1]) == (3, 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_label_outside_the_chosen_rows_matters(seed: int) -> None:
    draw = np.random.default_rng(seed)
    token = draw.integers(0, 4, 20)
    names = ("identity", "bias")
    found = Answers(
        token=token,
        lre=draw.integers(0, 4, (5, 6, 20)),
        betas=BETAS[:6],
        controls={name: draw.integers(0, 4, (5, 20)) for name in names},
    )
    choose, report = np.arange(0, 20, 2), np.arange(1, 20, 2)
    other = token.copy()
    other[report] = draw.integers(0, 4, 10)
    mutated = replace(found, token=other)
    assert found.choose(choose) == mutated.choose(choose)
    for name in names:
        layer = int((found.controls[name][:, choose] == token[choose]).mean(axis=1).argmax())
        for one in (found, mutated):
            expected = one.controls[name][layer, report] == one.token[report]
            assert np.array_equal(one.control(name, choose, report), expected)
    [most] = [np.bincount(token[choose]).argmax()]
    assert np.array_equal(mutated.majority(choose, report), other[report] == most)


def test_every_control_has_its_own_best_layer() -> None:
    right = np.zeros((3, 1, 6), dtype=bool)
    hits = np.array([[1, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=bool)
    found = made(right, controls={"identity": hits})
    assert found.control("identity", np.array([0, 1, 2]), np.array([3, 4, 5])).tolist() == [False, False, False]
    assert found.control("identity", np.array([3, 4, 5]), np.array([0, 1, 2])).tolist() == [False, False, False]
    assert found.control("identity", np.array([0, 1, 5]), np.array([2, 3])).tolist() == [False, False]
    assert found.control("identity", np.array([0, 1, 5]), np.array([5])).tolist() == [True]


def test_a_token_that_begins_the_object_counts_only_there() -> None:
    operators, seen = judged()
    words: Sequence[str] = [prompt.object for prompt in seen.prompts]
    model = affine_of().model
    token = seen.token.numpy()
    assert prefix(model, token, seen).all()
    rolled = prefix(model, np.roll(token, 1), seen)
    expected = [words[i].startswith(words[i - 1]) for i in range(len(words))]
    assert rolled.tolist() == expected


def test_a_random_model_is_read_as_it_is() -> None:
    """Nothing is known about its answers, but what the operator says where it was made is what the model says there."""
    from .small import SAMPLES, TEMPLATE

    model = model_of("gpt2")
    operators = fit(model, SAMPLES[:1], TEMPLATE, shots=False)
    seen = observe(model, SAMPLES[:1], TEMPLATE)
    found = answers(model, operators, seen, betas=(1.0,))
    assert found.strict.all()
