"""The random twin: the same machine with other numbers, made without touching anybody's random state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from caseback.core.errors import LoadError
from caseback.model.check import check
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.zoo.tiny import tiny

from .conftest import tiny_tokenizer
from .small import FAMILIES, batch_of, model_of


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_row_fits_the_twin(name: str) -> None:
    report = check(random_twin(model_of(name)))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_same_shapes_other_weights(name: str) -> None:
    model = model_of(name)
    twin = random_twin(model)
    ours, theirs = dict(model.hf.named_parameters()), dict(twin.hf.named_parameters())
    assert {key: (p.shape, p.dtype) for key, p in ours.items()} == {
        key: (p.shape, p.dtype) for key, p in theirs.items()
    }
    assert not {p.untyped_storage().data_ptr() for p in ours.values()} & {
        p.untyped_storage().data_ptr() for p in theirs.values()
    }
    assert all(not torch.equal(ours[key], theirs[key]) for key in ours if ours[key].ndim > 1)
    assert not any(p.requires_grad for p in theirs.values())
    assert not twin.hf.training
    assert twin.family is model.family
    assert twin.config is not model.config
    assert not torch.allclose(twin.logits(batch_of(model)), model.logits(batch_of(model)), atol=1e-3)


def test_weights_follow_the_seed_and_nothing_else() -> None:
    model = model_of("llama")

    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(3)  # whatever the global state is
        return dict(random_twin(model, seed=seed).hf.state_dict())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_global_random_states_are_where_they_were() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    random_twin(model_of("llama"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_default_dtype_are_kept(dtype: torch.dtype) -> None:
    twin = random_twin(Model(tiny("llama").to(dtype)))
    assert {p.dtype for p in twin.hf.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_its_source_says_what_it_is() -> None:
    model = model_of("llama")
    twin, other = random_twin(model), random_twin(model, seed=7)
    assert other.name == f"random twin of {model.name}, seed 7"
    assert twin.source.revision is None
    assert len({source.sha256 for source in (model.source, twin.source, other.source)}) == 3
    assert twin.source == random_twin(model).source
    assert random_twin(model_of("gpt2")).source.sha256 != twin.source.sha256
    assert not set(twin.source.files.values()) & set(model.source.files.values())


def test_the_tokenizer_is_shared() -> None:
    model = Model(tiny("llama"), tiny_tokenizer())
    assert random_twin(model).tokenizer is model.tokenizer


def test_no_weight_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))

    def refuse(self: Any, *rest: Any) -> Any:
        raise AssertionError("a weight of the model was copied")

    for kind in (torch.nn.Module, torch.nn.Parameter):
        monkeypatch.setattr(kind, "__deepcopy__", refuse, raising=False)
    monkeypatch.setattr(torch.nn.Module, "state_dict", refuse)
    random_twin(model)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(LoadError, match=rf"seed of a random twin is a whole number from 0 to 2\^63 - 1; got {seed}"):
        random_twin(model_of("llama"), seed=seed)


def test_packed_weights_are_refused() -> None:
    model = Model(tiny("llama"))
    model.hf.config.quantization_config = {"quant_method": "some"}
    with pytest.raises(LoadError, match="has packed weights, which have no random twin"):
        random_twin(model)
