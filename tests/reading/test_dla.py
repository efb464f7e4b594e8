"""Direct logit attribution: the terms sum to the metric, and each is the one a hand calculation gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.circuits.check import random_pairs
from caseback.core.errors import FamilyError, ReadingError
from caseback.model.batch import Batch
from caseback.model.edits import Scale
from caseback.model.model import Model
from caseback.reading.dla import attribute_logits
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import logit_diff
from caseback.zoo.tiny import tiny

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2", "phi", "granite", "cohere", "opt", "bloom", "gptj"]
FAMILIES += ["mixtral", "gpt_oss", "deepseek_v2", "hyperclovax", "afmoe", "phimoe"]


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


def several(pairs: PairBatch) -> PairBatch:
    """Two answers in some rows, one in others."""
    answers = torch.tensor([[5, 9], [5, -1], [7, 5]])
    return replace(pairs, answers=answers, foils=torch.tensor([[11], [12], [13]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_terms_sum_to_the_metric(name: str) -> None:
    model = model_of(name)
    pairs = several(random_pairs(model))
    found = attribute_logits(model, pairs, rows=2)
    np.testing.assert_allclose(found.terms.sum(axis=0), found.total, atol=1e-4 * max(1, np.abs(found.terms).max()))
    assert found.error <= 1e-4 * max(1, np.abs(found.terms).max())
    actual = logit_diff(model.logits(pairs.clean), pairs).numpy()
    np.testing.assert_allclose(found.metric, actual, atol=1e-4)
    if found.softcap is None:
        np.testing.assert_allclose(found.total, found.metric, atol=1e-4)
    assert found.heads.shape == (model.n_layers, model.n_heads, 3)
    if found.sources is not None:
        np.testing.assert_allclose(found.sources.sum(axis=2), found.heads, atol=1e-4)
        assert found.columns == ("same", "middle", "end")


def test_a_soft_cap_is_said_and_the_logit_before_it_attributed() -> None:
    model = model_of("gemma2")
    pairs = random_pairs(model)
    found = attribute_logits(model, pairs)
    cap = found.softcap
    assert cap == 20.0
    logits = model.logits(pairs.clean).double()
    before = cap * torch.atanh(logits / cap)
    np.testing.assert_allclose(found.total, logit_diff(before, pairs), atol=1e-2)
    assert np.abs(found.total - found.metric).max() > 1e-2
    assert attribute_logits(model_of("llama"), random_pairs(model_of("llama"))).softcap is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_a_last_heads_term_is_what_it_adds_when_the_norms_do_not_move(name: str) -> None:
    """Hand calculation from attn_out with one head silenced, for the last layer of a model without post-norm; with one, the
    heads and their bias add up to attention's own term."""
    model = model_of(name)
    pairs = random_pairs(model)
    found = attribute_logits(model, pairs)
    layer, batch = model.n_layers - 1, pairs.clean
    whole = model.run(batch, read=["resid_final@end", f"attn_out.{layer}@end"])
    final = model.module(model.family.final_norm)
    unembed = model.module(model.family.unembed)
    x = whole["resid_final@end"].clone().requires_grad_()
    eps = next(getattr(final, k) for k in ("variance_epsilon", "eps") if hasattr(final, k))
    centred = x - x.mean(-1, keepdim=True) if name == "gpt2" else x
    frozen = (centred.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
    bias = final.bias if name == "gpt2" else 0
    logits = unembed(centred * frozen * final.weight + bias)
    (g,) = torch.autograd.grad(logit_diff(logits, pairs).sum(), x)
    attention = (g * whole[f"attn_out.{layer}@end"]).sum(-1)
    np.testing.assert_allclose(found.heads[layer].sum(0) + found.attn_biases[layer], attention, atol=1e-4)
    if name != "olmo2":
        silent = model.run(batch, read=[f"attn_out.{layer}@end"], edit=[Scale(f"z.{layer}.1", 0.0)])
        lost = (g * (whole[f"attn_out.{layer}@end"] - silent[f"attn_out.{layer}@end"])).sum(-1)
        np.testing.assert_allclose(found.heads[layer, 1], lost, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "opt", "granite"])
def test_neurons_sum_to_their_mlp(name: str) -> None:
    model = model_of(name)
    found = attribute_logits(model, random_pairs(model), neurons=1)
    assert found.neurons is not None and found.neuron_bias is not None and found.neurons_of == 1
    np.testing.assert_allclose(found.neurons.sum(axis=0) + found.neuron_bias, found.mlps[1], atol=1e-4)
    assert found.neurons.shape[0] > model.n_heads


def test_one_answer_alone_and_other_columns() -> None:
    model = model_of("llama")
    pairs = random_pairs(model, n=1)
    found = attribute_logits(model, pairs, of="answers", columns="tokens")
    np.testing.assert_allclose(found.metric, model.logits(pairs.clean)[:, model.d_vocab // 3], atol=1e-5)
    np.testing.assert_allclose(found.total, found.metric, atol=1e-4)
    assert found.columns == tuple("0123456")
    assert found.of == "answers"


def test_intervals_name_every_term() -> None:
    model = model_of("gpt2")
    found = attribute_logits(model, random_pairs(model))
    intervals = found.intervals()
    assert list(intervals) == list(found.names) and len(intervals) == len(found.terms)
    assert intervals["a1.h2"].value == pytest.approx(found.heads[1, 2].mean())
    assert intervals["a1.h2"].n == 3


def test_answers_that_are_foils_have_no_attribution() -> None:
    model = model_of("llama")
    pairs = random_pairs(model)
    found = attribute_logits(model, replace(pairs, foils=pairs.answers))
    np.testing.assert_array_equal(found.terms, 0)


def test_half_precision_is_held_to_its_own_round_off() -> None:
    model = Model(tiny("llama").bfloat16())
    found = attribute_logits(model, random_pairs(model))
    assert 0 < found.error < 0.5


def test_refusals() -> None:
    with pytest.raises(FamilyError, match=r"lfm2 cannot be split over heads: .*softmax"):
        attribute_logits(model_of("lfm2"), random_pairs(model_of("lfm2")))
    with pytest.raises(FamilyError, match="gemma4_text cannot be split"):
        attribute_logits(model_of("gemma4_text"), random_pairs(model_of("gemma4_text")))
    model = model_of("llama")
    pairs = random_pairs(model)
    with pytest.raises(ReadingError, match=r"'prob_diff' is not linear.*of='logit_diff'"):
        attribute_logits(model, replace(pairs, metric="prob_diff"))
    with pytest.raises(ReadingError, match=r"layer 7 has no single row.*0, 1"):
        attribute_logits(model, pairs, neurons=7)
    with pytest.raises(ReadingError, match="one length, these have 5 to 7"):
        attribute_logits(model, pairs, columns="tokens")
    bare = Batch(pairs.clean.ids, pairs.clean.mask)
    with pytest.raises(ReadingError, match="need pairs with spans"):
        attribute_logits(model, replace(pairs, clean=bare), columns="spans")


def test_terms_that_do_not_sum_are_refused() -> None:
    model = Model(tiny("llama"))
    model.family = replace(model.family, writes=("self_attn", "self_attn"))
    with pytest.raises(ReadingError, match="differ from its metric by"):
        attribute_logits(model, random_pairs(model))
