"""The edit by the inverse: right where the map is known, at chance where it should be, and made where it says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.batch import Batch
from caseback.model.edits import Set
from caseback.relations.causal import Edited, edit, edited_tokens, targets
from caseback.relations.observe import Observed, observe
from caseback.relations.operator import Operators, fit, spectrum_twin

from .small import SAMPLES, TEMPLATE, affine_of, model_of, relation_of


@cache
def judged(rank: int = 16) -> tuple[Operators, Observed]:
    zoo = affine_of(rank)
    samples = relation_of(zoo).samples
    seen = observe(zoo.model, samples[5:25], zoo.template, samples[:5])
    return fit(zoo.model, samples[:5], zoo.template), seen


@pytest.mark.filterwarnings("ignore:.*fall.*back")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "lfm2"])
@pytest.mark.parametrize("template", [TEMPLATE, "the w4 of {}"])
def test_all_layers_and_rows_at_once_are_each_edit_alone(name: str, template: str) -> None:
    model = model_of(name)
    [prompt] = observe(model, SAMPLES[:1], template, SAMPLES[1:3]).prompts
    new = 3 * torch.randn((2, 4, model.d_model), generator=torch.Generator().manual_seed(0))
    found = edited_tokens(model, prompt, [0, 1], new)
    batch = Batch(prompt.ids[None], torch.ones_like(prompt.ids[None], dtype=torch.bool))
    for layer in (0, 1):
        for row in range(4):
            run = model.run(batch, edit=[Set(f"resid_pre.{layer}@{prompt.at}", new[layer, row])])
            assert run.logits is not None
            assert int(run.logits[0].argmax()) == found[layer, row]
    assert template == TEMPLATE or len(set(found.flatten().tolist())) > 1


def test_the_states_themselves_change_nothing() -> None:
    model = model_of("gpt2")
    seen = observe(model, SAMPLES[:3], TEMPLATE, SAMPLES[3:5])
    for i, prompt in enumerate(seen.prompts):
        said = edited_tokens(model, prompt, [0, 1], seen.s[i][:, None])
        assert said.flatten().tolist() == [int(seen.token[i])] * 2


@pytest.mark.parametrize("rank", [4, 16])
def test_the_planted_rank_makes_every_edit_succeed(rank: int) -> None:
    operators, seen = judged(rank)
    target = targets(seen, seed=0)
    assert (target >= 0).all()
    ranks = (rank // 4, rank // 2, rank, 2 * rank, 64)
    found = edit(affine_of(rank).model, operators, seen, target, layers=[0, 1, 2], ranks=ranks)
    assert found.ranks == ranks and found.lre.shape == (3, 5, 20)
    assert found.lre[:2, 2:].all()
    assert found.lre[:2, 0].mean() < found.lre[:2, 1].mean() < 1
    assert found.choose(np.arange(20)) == (0, 2)
    assert found.swap[:2].all() and not found.swap[2].any()
    assert not found.lre[2].any(), "the subject has been read already"
    assert found.random.mean() < 0.1
    assert found.unembedding.mean() < 0.1


def test_edits_towards_shuffled_targets_are_at_chance() -> None:
    """Each z_j replaced by that of another sample, the success still counted at j."""
    operators, seen = judged()
    target = targets(seen, seed=0)
    shuffled = replace(seen, z=seen.z.roll(1, dims=0))
    found = edit(affine_of().model, operators, shuffled, target, layers=[0, 1], ranks=(8, 16))
    assert found.lre.mean() < 0.15


def test_random_twins_are_those_of_the_seed() -> None:
    """What `random` counts is the edit by W's random twin."""
    operators, seen = judged()
    model, target = affine_of().model, targets(seen, seed=0)
    found = edit(model, operators, seen, target, layers=[0], ranks=(16, 64), seed=5)
    W = torch.stack([spectrum_twin(operators.W[0], seed=5), *operators.W[1:]])
    twin = edit(model, replace(operators, W=W, _svd={}), seen, target, layers=[0], ranks=(16, 64), seed=9)
    assert np.array_equal(found.random, twin.lre)


def test_targets_differ_in_subject_object_and_answer() -> None:
    _, seen = judged()
    for seed in range(3):
        for i, j in enumerate(targets(seen, seed=seed).tolist()):
            one, other = seen.prompts[i], seen.prompts[j]
            assert one.subject != other.subject and one.object != other.object
            assert seen.token[i] != seen.token[j]
    assert targets(seen, seed=1).tolist() == targets(seen, seed=1).tolist()
    assert targets(seen, seed=1).tolist() != targets(seen, seed=2).tolist()
    same = replace(seen, token=torch.full_like(seen.token, 7))
    assert targets(same, seed=0).tolist() == [-1] * 20


def test_a_sample_without_a_target_is_not_edited() -> None:
    operators, seen = judged()
    target = targets(seen, seed=0)
    target[3] = -1
    found = edit(affine_of().model, operators, seen, target, layers=[0], ranks=(16,))
    assert not found.lre[..., 3].any() and not found.swap[..., 3].any()
    assert found.lre.sum() == 19


def test_ranks_wider_than_the_model_are_left_out_and_nothing_is_refused() -> None:
    operators, seen = judged()
    target = targets(seen, seed=0)
    found = edit(affine_of().model, operators, seen, target, layers=[0])
    assert found.ranks == (8, 16, 32, 64)
    for layers, ranks in (([], (8,)), ([0], (65,)), ([0], ())):
        with pytest.raises(RelationError, match="at least one layer and one rank"):
            edit(affine_of().model, operators, seen, target, layers=layers, ranks=ranks)


def test_the_choice_is_the_best_and_of_equals_the_lowest() -> None:
    lre = np.zeros((2, 3, 4), dtype=bool)
    lre[0, 2, :2] = lre[1, 0, :2] = True
    none = np.zeros((2, 4), dtype=bool)
    made = Edited(
        layers=(0, 2), ranks=(8, 16, 32), target=np.arange(4), lre=lre, swap=none, unembedding=none, random=lre
    )
    assert made.choose(np.arange(4)) == (0, 2)
    lre[1, 0, 2] = True
    assert made.choose(np.arange(4)) == (1, 0)
    assert made.choose(np.array([0, 1])) == (0, 2)
