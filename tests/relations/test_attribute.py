"""The attribute lens: with the identity it is the logit lens; where the fact is known by construction it finds it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.batch import Batch
from caseback.reading.lens import logit_lens
from caseback.relations import attribute
from caseback.relations.attribute import Kind, attribute_lens, distracted

from .facts import FIRST, facts, operator, relation, samples
from .small import SAMPLES, affine_of, model_of


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt2"])
def test_the_identity_is_the_logit_lens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    batch = Batch.pad([[5, 9, 20, 33, 7], [6, 8, 40]])
    W, b = torch.eye(model.d_model), torch.zeros(model.d_model)
    whole = attribute_lens(model, W, b, batch, beta=1.0, objects=["w5", "w9"])
    monkeypatch.setattr(attribute, "LOGITS", 3 * model.d_vocab)  # three rows at a time
    parts = attribute_lens(model, W, b, batch, beta=1.0, objects=["w5", "w9"])
    lens = logit_lens(model, batch, sites=["resid_pre"], top=3, answers=[5, 9])
    for found in (whole, parts):
        assert found.layers == tuple(range(model.n_layers)) and found.object_ids == (5, 9)
        assert torch.equal(found.top_ids, lens.top_ids)
        assert torch.equal(found.object_ranks, lens.answer_ranks)
        torch.testing.assert_close(found.top_probs, lens.top_probs, equal_nan=True)
        torch.testing.assert_close(found.object_probs, lens.answer_probs, equal_nan=True)
    assert bool(whole.top_probs[:, 1, 3:].isnan().all()) and bool((whole.top_ids[:, 1, 3:] == -1).all())


def test_a_known_map_reads_its_object_where_the_subject_stands() -> None:
    zoo = affine_of()
    (subject, right), (_, wrong) = zoo.pairs[3], zoo.pairs[4]
    text = f"is {subject} the friend of the friend"
    lens = attribute_lens(zoo.model, zoo.W, zoo.b, text, beta=1.0, layers=[1, 0], top=2, objects=[right, wrong])
    assert lens.layers == (1, 0) and lens.top_ids.shape == (2, 1, 7, 2)
    assert lens.object_ranks[:, 0, 1, 0].tolist() == [0, 0]
    assert bool((lens.object_ranks[:, 0, 2:, 0] > 0).all())
    assert torch.equal(lens.top_ids[:, 0, 1, 0], torch.full((2,), lens.object_ids[0]))
    torch.testing.assert_close(lens.object_probs[:, 0, 1, 0], lens.top_probs[:, 0, 1, 0])
    scaled = attribute_lens(zoo.model, zoo.W / 4, zoo.b, text, beta=4.0, layers=[1, 0], top=2)
    assert scaled.object_probs.shape[-1] == 0
    torch.testing.assert_close(scaled.top_probs, lens.top_probs)
    two = attribute_lens(zoo.model, zoo.W, zoo.b, [text, "the friend"], beta=1.0)
    assert two.mask.sum(dim=1).tolist() == [7, 2]


def test_what_cannot_be_read_is_said() -> None:
    model = model_of("llama")
    W, b = torch.eye(model.d_model), torch.zeros(model.d_model)
    with pytest.raises(RelationError, match="'w5' and 'w5 w6' begin with the same token"):
        attribute_lens(model, W, b, "the w4", beta=1.0, objects=["w5", "w7", "w5 w6"])
    with pytest.raises(RelationError, match=r"layers 0 to 1, got \[2\]"):
        attribute_lens(model, W, b, "the w4", beta=1.0, layers=[2])
    with pytest.raises(RelationError, match="streams of width 48"):
        attribute_lens(model, W[:4, :4], b[:4], "the w4", beta=1.0)
    with pytest.raises(RelationError, match="top 0"):
        attribute_lens(model, W, b, "the w4", beta=1.0, top=0)


@pytest.mark.parametrize("kind", ["repetition", "instruction"])
def test_the_lens_reads_the_truth_that_a_falsehood_covers(kind: Kind) -> None:
    model = facts()
    W, b = operator(model)
    found = distracted(model, relation(), W, b, 1.0, 0, FIRST, samples(), kind, seed=1)
    assert found.n == found.asked == 24 and found.layer == 0
    assert all(wrong != right for wrong, right in zip(found.falsehoods, found.objects, strict=True))
    assert all(
        text.count(wrong) == (2 if kind == "repetition" else 1) for text, wrong in zip(found.prompts, found.falsehoods)
    )
    assert all(text.endswith(f"of {subject} is") for text, subject in zip(found.prompts, found.subjects, strict=True))
    assert found.recall("model").value == 0 and found.recall("model", falsehood=True).value == 1
    assert found.recall("lens").value == 1 and found.recall("lens", falsehood=True).value == 0
    assert found.by_layer("lens")[0] == found.recall("embedding").value == 1 and found.by_layer("lens", 3).shape == (
        model.n_layers,
    )
    assert found.recall("twin").value < 0.8 and found.recall("bias").value < 0.5
    assert found.recall("lens").low > found.recall("bias").high
    again = distracted(model, relation(), W, b, 1.0, 0, FIRST, samples(), kind, seed=1)
    assert again.falsehoods == found.falsehoods
    assert all(np.array_equal(again.ranks[name], found.ranks[name]) for name in found.ranks)


def test_an_operator_without_the_relation_is_at_its_bias() -> None:
    model = facts()
    W, b = operator(model)
    found = distracted(model, relation(), 0 * W, b, 1.0, 0, FIRST, samples())
    assert found.recall("lens").value == found.recall("twin").value == found.recall("bias").value < 0.5
    with pytest.raises(RelationError, match="no ranks of 'lense'; there are: model, lens, twin, embedding, bias"):
        found.recall("lense")


def test_the_embedding_is_no_layer_that_can_be_chosen() -> None:
    """There the falsehood cannot show, so a lens that is right nowhere else has found nothing."""
    model = facts()
    W, b = operator(model)
    found = distracted(model, relation(), W, b, 1.0, 0, FIRST, samples())
    worst = {name: np.where(np.arange(len(ranks))[:, None] > 0, 9, ranks) for name, ranks in found.ranks.items()}
    only = dataclasses.replace(found, ranks=worst)
    assert only.by_layer("lens")[0] == 1 and only.recall("lens").value == 0 and only.recall("embedding").value == 1


def test_samples_the_model_does_not_know_are_left_out() -> None:
    model = facts()
    W, b = operator(model)
    rows = samples()
    wrong = tuple(type(row)(subject=row.subject, object="object3") for row in rows[:3])
    found = distracted(model, relation(), W, b, 1.0, 0, FIRST, [*wrong, *rows[3:]])
    assert found.asked == 24 and found.n == 21
    untrained = model_of("llama")
    W, b = torch.eye(untrained.d_model), torch.zeros(untrained.d_model)
    with pytest.raises(RelationError, match="knows . of 16 samples"):
        distracted(untrained, relation(), W, b, 1.0, 0, "the w4 of {} is", SAMPLES)
