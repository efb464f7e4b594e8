"""Input attribution: exact on a linear model, complete on any, and nothing where nothing depends."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from caseback.circuits.check import random_pairs
from caseback.core.errors import ReadingError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading.inputs import METHODS, attribute_inputs
from caseback.zoo.tiny import tiny


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


@cache
def batch_of(name: str) -> Batch:
    return random_pairs(model_of(name)).clean


def difference(logits: Tensor) -> Tensor:
    return logits[:, 5] - logits[:, 9]


@cache
def linear() -> Model:
    """A GPT-2 whose norms have an epsilon so large that they are linear, and whose attention patterns are flat: without
    MLPs the logits are a linear function of the embedding stream."""
    hf = tiny("gpt2")
    hf.config.layer_norm_epsilon = 1e8
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "mlp.c_proj" in name:
                parameter.zero_()
            if "c_attn" in name:
                parameter[..., :96] = 0  # queries and keys: every token sees all before it alike
        for module in hf.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e8
                module.weight.mul_(1e4)
                module.bias.zero_()
    return Model(hf)


@pytest.mark.parametrize("baseline", ["mean", "zero", 7])
def test_every_method_is_exact_on_a_linear_model(baseline: str | int) -> None:
    model, batch = linear(), batch_of("gpt2")
    found = {method: attribute_inputs(model, batch, difference, method=method, baseline=baseline) for method in METHODS}
    scale = np.nanmax(np.abs(found["gradient"].scores))
    assert scale > 0.01
    for each in found.values():
        np.testing.assert_allclose(each.scores, found["occlusion"].scores, atol=2e-4 * max(scale, 1))
        np.testing.assert_allclose(each.completeness_error, 0, atol=1e-3 * max(scale, 1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "granite"])
def test_integrated_gradients_are_complete(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    coarse, fine = (attribute_inputs(model, batch, difference, steps=n, rows=50) for n in (2, 200))
    assert np.abs(fine.completeness_error).max() < 2e-2
    assert np.abs(fine.completeness_error).max() < np.abs(coarse.completeness_error).max()
    np.testing.assert_allclose(fine.metric, difference(model.logits(batch)), atol=1e-5)
    assert np.isnan(fine.scores[1, 5:]).all() and np.isfinite(fine.scores[batch.mask]).all()


def test_gradient_by_hand() -> None:
    model, batch = model_of("llama"), batch_of("llama")
    found = attribute_inputs(model, batch, difference, method="gradient", baseline="zero")
    grads = model.grad(batch, difference, at=["resid_pre.0"])
    want = (grads.values["resid_pre.0"] * grads["resid_pre.0"]).sum(-1)
    np.testing.assert_allclose(found.scores[batch.mask], want[batch.mask], atol=1e-4)
    assert found.steps is None


def test_occlusion_is_the_prompt_with_another_token() -> None:
    model, batch = model_of("gpt2"), batch_of("gpt2")
    found = attribute_inputs(model, batch, difference, method="occlusion", baseline=7, rows=4)
    for place in range(5):
        ids = batch.ids.clone()
        ids[:, place] = 7
        lost = difference(model.logits(batch)) - difference(model.logits(Batch(ids, batch.mask)))
        np.testing.assert_allclose(found.scores[:, place], lost, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_how_rows_are_batched_changes_nothing(method: str) -> None:
    model, batch = model_of("llama"), batch_of("llama")
    one, many = (attribute_inputs(model, batch, difference, method=method, steps=6, rows=n) for n in (1, 64))
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_at_their_baseline_have_no_score(method: str) -> None:
    model, batch = model_of("llama"), batch_of("llama")
    same = Batch(torch.where(torch.arange(7) == 2, 7, batch.ids), batch.mask)
    found = attribute_inputs(model, same, difference, method=method, baseline=7, steps=4)
    np.testing.assert_allclose(found.scores[:, 2], 0, atol=1e-5)


def test_bos_and_pad_are_the_tokenizers() -> None:
    model = Model(tiny("llama"))
    model.tokenizer = SimpleNamespace(bos_token_id=1, pad_token_id=None)
    by_name, by_id = (
        attribute_inputs(model, batch_of("llama"), difference, baseline=baseline, steps=2) for baseline in ("bos", 1)
    )
    np.testing.assert_allclose(by_name.scores, by_id.scores)
    with pytest.raises(ReadingError, match="has no pad token to compare with; use baseline='mean'"):
        attribute_inputs(model, batch_of("llama"), difference, baseline="pad")


def test_refusals() -> None:
    model, batch = model_of("llama"), batch_of("llama")
    with pytest.raises(ReadingError, match="no token 64 to compare with; this model has 64"):
        attribute_inputs(model, batch, difference, baseline=64)
    with pytest.raises(ReadingError, match="at least one step, got 0"):
        attribute_inputs(model, batch, difference, steps=0)
