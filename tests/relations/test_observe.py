"""What the model says: states, answers, what counts as known, and the drawing of samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.core.errors import FamilyError, RelationError
from caseback.model.twin import random_twin
from caseback.relations import observe as module
from caseback.relations.observe import begins, draw, observe
from caseback.relations.relation import Sample

from .small import SAMPLES, TEMPLATE, affine_of, model_of, relation_of

UNEVEN = [Sample(subject=" ".join(f"w{10 + i + j}" for j in range(1 + i % 4)), object="w50") for i in range(9)]
"""Subjects of 1 to 4 tokens."""


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "bloom"])
def test_a_batch_of_uneven_prompts_is_each_alone(name: str) -> None:
    model = model_of(name)
    together = observe(model, UNEVEN, TEMPLATE, SAMPLES[:2])
    assert together.s.shape == (9, model.n_layers, model.d_model)
    for i, sample in enumerate(UNEVEN):
        alone = observe(model, [sample], TEMPLATE, SAMPLES[:2])
        torch.testing.assert_close(together.s[i], alone.s[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.z[i], alone.z[0], atol=1e-4, rtol=1e-4)
        assert together.token[i] == alone.token[0]
        assert together.prompts[i].text == alone.prompts[0].text


def test_the_size_of_batches_changes_nothing() -> None:
    model = model_of("gpt2")
    told: list[int] = []
    whole = observe(model, UNEVEN, TEMPLATE)
    parts = observe(model, UNEVEN, TEMPLATE, tokens=16, progress=lambda what, done, of: told.append(done))
    assert told[-1] == 9 and len(told) > 3
    torch.testing.assert_close(parts.s, whole.s, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.z, whole.z, atol=1e-4, rtol=1e-4)
    assert torch.equal(parts.token, whole.token)


def test_some_rows_of_it() -> None:
    model = model_of("gpt2")
    whole = observe(model, UNEVEN, TEMPLATE)
    part = whole[np.array([4, 1])]
    assert len(part) == 2
    assert [p.text for p in part.prompts] == [whole.prompts[4].text, whole.prompts[1].text]
    assert torch.equal(part.z, whole.z[[4, 1]])
    assert part.known.tolist() == whole.known[[4, 1]].tolist()


def test_an_affine_model_knows_all_and_its_random_twin_nothing() -> None:
    zoo = affine_of()
    samples = relation_of(zoo).samples
    seen = observe(zoo.model, samples[5:], zoo.template, samples[:5])
    assert seen.known.all()
    assert [zoo.model.tokenizer.decode([int(t)]) for t in seen.token] == [sample.object for sample in samples[5:]]
    twin = observe(random_twin(zoo.model), samples[5:], zoo.template, samples[:5])
    assert twin.known.mean() <= 0.1  # 1 of 85 words is right


def test_a_family_that_does_more_than_a_norm_and_an_unembedding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    monkeypatch.setattr(module, "decode", lambda model, z: (module_decode(model, z) + 1) % model.d_vocab)
    with pytest.raises(FamilyError, match="gpt2 does more between its final stream and its logits"):
        observe(model, UNEVEN, TEMPLATE)


module_decode = module.decode


def test_half_precision_in_which_logits_tie() -> None:
    assert len(observe(model_of("gpt2", torch.bfloat16), UNEVEN, TEMPLATE)) == 9


def test_no_samples() -> None:
    with pytest.raises(RelationError, match="no samples to ask"):
        observe(model_of("gpt2"), [], TEMPLATE)


@pytest.mark.parametrize(
    ("said", "object", "right"),
    [
        (" Par", "Paris", True),
        (" paris", "Paris", True),
        ("PARIS", "paris", True),
        (" S", "Santiago", True),
        (" Parisian", "Paris", False),
        (" aris", "Paris", False),
        (" ", "Paris", False),
        ("", "Paris", False),
        ("\n", "Paris", False),
    ],
)
def test_the_published_test_of_a_right_answer(said: str, object: str, right: bool) -> None:
    assert begins(said, object) == right


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=4, max_size=30, unique=True), st.data())
def test_a_draw_covers_objects_and_shares_no_subject(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    samples = [Sample(subject=f"s{a}", object=f"o{b}") for a, b in pairs]
    n, seed = data.draw(st.integers(2, len(samples) - 1)), data.draw(st.integers(0, 5))
    training, rest = draw(samples, n, seed=seed)
    subjects = {samples[i].subject for i in training}
    assert len(training) == len(subjects) == min(n, len({s.subject for s in samples}))
    assert not subjects & {samples[i].subject for i in rest}
    assert set(rest) == {i for i, sample in enumerate(samples) if sample.subject not in subjects}
    assert draw(samples, n, seed=seed) == (training, rest)


def test_a_draw_shows_every_object_before_any_twice() -> None:
    samples = [Sample(subject=f"s{i}", object=f"o{min(i, 3)}") for i in range(20)]
    for seed in range(10):
        for n in (2, 4, 6):
            counts = Counter(samples[i].object for i in draw(samples, n, seed=seed)[0])
            assert len(counts) == min(n, 4)
    assert len({tuple(draw(samples, 4, seed=seed)[0]) for seed in range(10)}) > 5


@pytest.mark.parametrize("n", [0, 1, 16, 20])
def test_a_draw_that_leaves_nothing(n: int) -> None:
    with pytest.raises(RelationError, match=f"{n} training samples were asked for of 16"):
        draw(SAMPLES, n, seed=0)
