"""Concepts: directions that are right where the map is known, at chance where there is nothing, and edits that follow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from caseback.core.errors import RelationError
from caseback.relations.causal import edited_tokens
from caseback.relations.concepts import classify, concepts, edit_concepts, swapped_tokens
from caseback.relations.observe import Observed, observe
from caseback.zoo.affine import CODE

from .facts import FIRST, SECOND, facts, operator, samples
from .small import SAMPLES, TEMPLATE, model_of


def relabelled(seen: Observed, objects: list[str]) -> Observed:
    prompts = tuple(
        dataclasses.replace(prompt, object=object) for prompt, object in zip(seen.prompts, objects, strict=True)
    )
    return dataclasses.replace(seen, prompts=prompts)


def test_a_concept_is_the_operator_turned_round() -> None:
    model = facts()
    seen = observe(model, samples(), FIRST)
    W, b = operator(model)
    made = concepts(W, b, seen, rank=8)
    assert made.objects == ("object0", "object1", "object2", "object3")
    for o, name in enumerate(made.objects):
        rows = [i for i, prompt in enumerate(seen.prompts) if prompt.object == name]
        v = torch.linalg.pinv(W) @ (seen.z[rows].mean(dim=0) - b)
        torch.testing.assert_close(made.vectors[o], v / v.norm(), atol=1e-5, rtol=1e-4)
        assert int(made.tokens[o]) == int(seen.token[rows[0]])
    # the first relation's part of a code is one coordinate an object
    torch.testing.assert_close(made.vectors[:, :4], torch.eye(4), atol=1e-4, rtol=0)
    assert made.index(seen.prompts).tolist() == [i % 4 for i in range(24)]
    with pytest.raises(RelationError, match="ranks lie between 1 and 64, got 65"):
        concepts(W, b, seen, rank=65)


@pytest.mark.parametrize(("second", "template"), [(False, FIRST), (True, SECOND)])
def test_objects_are_told_apart_on_other_subjects(second: bool, template: str) -> None:
    model = facts()
    seen = observe(model, samples(second), template)
    assert seen.known.all()
    W, b = operator(model, second=second)
    found = classify(model, W, b, 0, seen, ranks=(4, 8))
    assert found.accuracy().value == 1 and found.uncovered == 0 and len(found.subjects) == 24
    assert found.n_objects == (3 if second else 4)
    assert found.accuracy("random").value < 0.6 and found.accuracy("majority").value < 0.5
    assert set(found.ranks) <= {4, 8}


def test_at_chance_without_anything_to_find() -> None:
    model = facts()
    seen = observe(model, samples(), FIRST)
    W, b = operator(model)
    shuffled = [seen.prompts[i].object for i in np.random.default_rng(3).permutation(24)]
    for name in ("concepts", "centroid", "twin"):
        assert classify(model, W, b, 0, relabelled(seen, shuffled), ranks=(8,)).accuracy(name).value < 0.55
    # a map that holds the other relation only
    other, _ = operator(model, second=True)
    assert classify(model, other, b, 0, seen, ranks=(8,)).accuracy().value < 0.6


def test_what_cannot_be_covered_is_counted() -> None:
    model = facts()
    seen = observe(model, samples(), FIRST)
    W, b = operator(model)
    alone = [prompt.object if i else "alone" for i, prompt in enumerate(seen.prompts)]
    found = classify(model, W, b, 0, relabelled(seen, alone), ranks=(8,))
    assert found.uncovered == 1 and len(found.subjects) == 23 and "alone" not in found.objects
    twice = seen[[*range(24), 0, 5]]
    assert classify(model, W, b, 0, twice, ranks=(8,)).uncovered == 2
    with pytest.raises(RelationError, match="fewer than two objects have two known samples"):
        classify(model, W, b, 0, relabelled(seen, [f"one{i}" for i in range(24)]))
    untrained = model_of("llama")
    with pytest.raises(RelationError, match="are known; concepts need at least 4"):
        d = untrained.d_model
        classify(untrained, torch.eye(d), torch.zeros(d), 0, observe(untrained, SAMPLES, TEMPLATE))


def test_an_edit_makes_the_model_say_the_other_object() -> None:
    model = facts()
    seen = observe(model, samples(), FIRST)
    W, b = operator(model)
    found = edit_concepts(model, W, b, seen, rank=4, starts=[0, 1, 2], amounts=(None, 1.0), pairs=8)
    assert len(found.subjects) == 8 and all(a != z for a, z in zip(found.objects, found.targets, strict=True))
    assert found.right["onward"].shape == (3, 2, 8) and found.right["swap"].shape == (3, 1, 8)
    for name in ("single", "onward", "swap"):
        assert found.success(name).value == 1
        assert found.by_start(name)[0, 0] == 1
        assert found.by_start(name)[2, 0] == 0  # behind the head the subject's state is read no more
    assert found.success("random").value < 0.6
    with pytest.raises(RelationError, match="edits start at layers 0 to 2"):
        edit_concepts(model, W, b, seen, rank=4, starts=[3])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_edit_is_the_move_it_is_said_to_be(name: str) -> None:
    model = model_of(name)
    seen = observe(model, SAMPLES[:3], TEMPLATE, SAMPLES[3:5])
    remove, add = torch.nn.functional.normalize(
        torch.randn((2, model.d_model), generator=torch.Generator().manual_seed(0))
    )
    amounts = (None, 0.0, 3.0)
    for i, prompt in enumerate(seen.prompts):
        said = swapped_tokens(model, prompt, remove, add, starts=[0, 1], amounts=amounts, onward=False)
        for start in (0, 1):
            s = seen.s[i, start]
            sizes = torch.stack([s @ remove, torch.tensor(0.0), 3 * s.norm()])
            moved = s + sizes[:, None] * (add - remove)
            assert torch.equal(said[start], edited_tokens(model, prompt, [start], moved[None])[0])
        assert bool((said[:, 1] == seen.token[i]).all())
        onward = swapped_tokens(model, prompt, remove, add, starts=[0, 1], amounts=amounts, onward=True)
        assert torch.equal(onward[1], said[1])  # nothing comes after the last layer
        assert bool((onward[:, 1] == seen.token[i]).all())


def test_the_component_is_replaced() -> None:
    """s − (s·v)v + (s·v)w: where v and w are orthogonal, what was along v is along w."""
    model = facts()
    seen = observe(model, samples()[:1], FIRST)
    v, w = torch.eye(model.d_model)[:2]
    s = seen.s[0, 0]
    assert float(s[0]) == 1 and float(s[1]) == 0
    token = swapped_tokens(model, seen.prompts[0], v, w, starts=[0], amounts=(None,), onward=False)
    assert model.tokenizer.decode(token[0]) == "object1"
    assert float(s[CODE]) == 0
