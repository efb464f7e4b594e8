"""Prompts that begin alike: the rest after a cached beginning is what the whole prompt gives, on every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.zoo.tiny import TINY, tiny

from .small import model_of

UNCACHED = {"qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid", "lfm2", "gemma4_text:shared"}
"""Their layers keep a state that is no keys and values, or keys and values that other layers read."""


def prompt(n: int = 9) -> Tensor:
    return torch.randint(3, 64, (n,), generator=torch.Generator().manual_seed(0))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.filterwarnings("ignore")  # of some configurations, tiny as they are
@pytest.mark.parametrize("name", sorted(TINY))
def test_cached_and_whole_agree(name: str) -> None:
    model = Model(tiny(name))
    found = Prefix.of(model, prompt(), 6)
    assert (found.length == 0) == (name in UNCACHED)
    whole = Prefix(prompt(), 0, None).final(model)
    rest = found.final(model, 3)
    assert rest.shape == (3, 9 - found.length, model.d_model)
    assert close(rest, whole[:, found.length :].expand(3, -1, -1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_a_cache_serves_again_and_again(name: str, length: int) -> None:
    """The windows of gemma2 and mistral (4) are shorter and longer than what is cached."""
    model = model_of(name)
    found = Prefix.of(model, prompt(), length)
    assert found.length == length
    first = found.final(model)
    for n in (1, 4, 1, 2):
        assert close(found.final(model, n), first.expand(n, -1, -1))


def test_nothing_to_cache() -> None:
    found = Prefix.of(model_of("gpt2"), prompt(), 0)
    assert found.past(2) == {}
    assert found.batch(2).ids.tolist() == [prompt().tolist()] * 2


def test_a_cache_that_is_not_exact_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    past = Prefix.past

    def wrong(self: Prefix, n: int) -> dict[str, object]:
        given = past(self, n)
        if given:
            given["past_key_values"].layers[1].keys[..., 0, :] += 1
        return given

    model = model_of("llama")
    monkeypatch.setattr(Prefix, "past", wrong)
    assert Prefix.of(model, prompt(), 6).length == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = Model(tiny("gpt2").to(dtype))
    found = Prefix.of(model, prompt(), 6)
    assert found.length == 6
    whole = Prefix(prompt(), 0, None).final(model)[:, 6:]
    assert close(found.final(model), whole, 1e-12 if dtype == torch.float64 else 2e-2)


def test_it_leaves_nothing_behind() -> None:
    from .small import left_behind

    model = model_of("llama")
    Prefix.of(model, prompt(), 6).final(model, 2)
    assert not left_behind(model.hf)
