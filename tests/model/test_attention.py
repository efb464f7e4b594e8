"""The registered attention: it changes no logit, shows what the model file computes, and is heard in its own context only."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caseback.core.errors import FamilyError
from caseback.model.attention import AttentionCall, listening
from caseback.model.model import Model
from caseback.model.run import execute
from caseback.zoo.tiny import tiny

from .small import ATTENDING, batch_of, left_behind, model_of


@pytest.mark.parametrize("name", ATTENDING)
def test_listening_changes_no_logit_and_every_layer_is_heard_once(name: str) -> None:
    model, batch = model_of(name), batch_of(model_of(name))
    plain = model.logits(batch)
    before = model.hf.config._attn_implementation
    heard: list[AttentionCall] = []

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        heard.append(call)
        return call.eager(call.q, call.k, call.v)

    logits = execute(model, batch, {}, attend=attend)
    assert logits is not None
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    assert [call.layer for call in heard] == [0, 1]
    assert model.hf.config._attn_implementation == before


@pytest.mark.parametrize("name", ATTENDING)
def test_the_pattern_is_causal_sums_to_one_and_makes_z(name: str) -> None:
    """Less than one under a sink, and never more than the window's tokens."""
    model, batch = model_of(name), batch_of(model_of(name))
    run = model.run(batch, read=["q.*", "k.*", "v.*", "pattern.*", "z.*"])
    for layer in (0, 1):
        pattern = run[f"pattern.{layer}"]
        rows = pattern.sum(dim=-1)[batch.mask[:, None].expand(-1, model.n_heads, -1)]
        if name == "gpt_oss":
            assert bool((rows < 1).all()) and bool((rows > 0).all())
        else:
            torch.testing.assert_close(rows, torch.ones_like(rows))
        assert bool((pattern.triu(1) == 0).all()) and bool((pattern >= 0).all())
        values = run[f"v.{layer}"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
        made = torch.einsum("bhts,bshd->bthd", pattern, values)
        torch.testing.assert_close(made[batch.mask], run[f"z.{layer}"][batch.mask], rtol=1e-4, atol=1e-5)


def test_sliding_layers_look_no_further_than_their_window() -> None:
    model = model_of("gemma2")
    run = model.run(batch_of(model), read=["pattern.*"])
    assert bool((run["pattern.0"].tril(-4) == 0).all()), "a window of 4"
    assert bool((run["pattern.1"][:1].tril(-4) > 0).any())


def test_the_scaling_is_the_family_s() -> None:
    scales: dict[str, float] = {}
    for name in ("llama", "gemma2", "granite", "phi3"):
        model = model_of(name)

        def attend(call: AttentionCall, name: str = name) -> tuple[Tensor, Tensor | None]:
            scales[name] = call.scaling
            return call.eager(call.q, call.k, call.v)

        execute(model, batch_of(model), {}, attend=attend)
    assert scales == pytest.approx({"llama": 1 / 4, "gemma2": 1 / 3, "granite": 0.4, "phi3": 12**-0.5})


def test_a_family_with_attention_of_its_own_is_refused_by_name_and_left_as_it_was() -> None:
    hf = tiny("falcon")
    before = hf.config._attn_implementation
    with (
        pytest.raises(FamilyError, match="FalconForCausalLM does not take a registered attention"),
        listening(hf, _never),
    ):
        pass
    assert hf.config._attn_implementation == before


def test_an_exception_inside_gives_the_implementation_back() -> None:
    hf = tiny("llama")
    with pytest.raises(KeyboardInterrupt), listening(hf, _never):
        assert hf.config._attn_implementation == "caseback"
        raise KeyboardInterrupt
    assert hf.config._attn_implementation == "sdpa"


def test_without_a_listener_the_registered_attention_is_the_model_file_s_eager_one() -> None:
    model = Model(tiny("gpt_oss"))
    plain = model.logits(batch_of(model))
    model.hf.set_attn_implementation("caseback")
    torch.testing.assert_close(model.logits(batch_of(model)), plain, rtol=1e-4, atol=1e-5)
    assert model.run(batch_of(model), read=["pattern.0"])["pattern.0"].shape == (3, 4, 8, 8)
    assert model.hf.config._attn_implementation == "caseback", "it is what it was before"


def test_a_listener_is_heard_in_its_own_context_only() -> None:
    """Another thread that runs the very model while one listens is answered by the model file's own attention."""
    model = Model(tiny("llama"))
    batch = batch_of(model)
    plain = model.logits(batch)
    heard, found = [], []

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        heard.append(threading.get_ident())
        z, pattern = call.eager(call.q, call.k, call.v)
        return z * 0, pattern

    def elsewhere() -> None:
        with torch.no_grad():
            found.append(model.hf(**model.arguments(batch), use_cache=False).logits)

    with listening(model.hf, attend), torch.no_grad():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        here = model.hf(**model.arguments(batch), use_cache=False).logits
    assert set(heard) == {threading.get_ident()}
    rows = torch.arange(batch.n)
    torch.testing.assert_close(found[0][rows, batch.last], plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(here[rows, batch.last], plain, atol=1e-2)
    contextvars.copy_context().run(elsewhere)
    torch.testing.assert_close(found[1][rows, batch.last], plain, rtol=1e-4, atol=1e-5)
    assert not left_behind(model.hf)


def test_a_model_file_without_eager_attention_is_refused() -> None:
    zeros = torch.zeros(1, 1, 1, 4)
    call = AttentionCall(nn.Identity(), zeros, zeros, zeros, None, {})
    with pytest.raises(FamilyError, match="Identity has no eager attention of its own to delegate to"):
        call.eager(zeros, zeros, zeros)
    assert call.scaling == 0.5
    module: Any = nn.Identity()
    module.scaling = 0.3
    assert AttentionCall(module, zeros, zeros, zeros, None, {"scaling": 0.7}).scaling == 0.7
    assert AttentionCall(module, zeros, zeros, zeros, None, {}).scaling == 0.3


def _never(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    raise AssertionError("nobody should call")
