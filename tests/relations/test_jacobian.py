"""∂z/∂s of every layer from one backward: against autograd layer by layer, finite differences, and itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from caseback.model.batch import Batch
from caseback.model.edits import Set
from caseback.model.model import Model
from caseback.relations.jacobian import expand, rows_at_once
from caseback.relations.prompt import Prompt, ask
from caseback.relations.relation import Sample

from .small import SAMPLES, TEMPLATE, affine_of, model_of

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2", "falcon", "lfm2", "gemma4_text:shared"]
"""The last two have no exact cache."""
DOUBLE = ("gpt2", "gpt_neox")
"""Families that compute in float64 throughout; the norms of the others are float32."""


def model64(name: str) -> Model:
    return model_of(name, torch.float64)


def prompt_of(model: Model, template: str = TEMPLATE) -> Prompt:
    return ask(model, template, SAMPLES[0], SAMPLES[1:3])


@contextmanager
def hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def put(model: Model, prompt: Prompt, layer: int, s: Tensor, read: torch.nn.Module, at: int) -> Tensor:
    """The input of a module at a token when s stands at the subject's last token before a block: nothing but hooks."""
    seen: list[Tensor] = []

    def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        value = torch.cat([value[:, : prompt.at], s[None, None], value[:, prompt.at + 1 :]], dim=1)
        return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0, at])

    with hooked(model.blocks[layer], replace), hooked(read, keep):
        model.hf(input_ids=prompt.ids[None], use_cache=False)
    return seen[0]


def z_of(model: Model, prompt: Prompt, layer: int, s: Tensor) -> Tensor:
    return put(model, prompt, layer, s, model.module(model.family.final_norm), -1)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.filterwarnings("ignore:.*fall.*back")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_is_what_autograd_finds_for_it_alone(name: str) -> None:
    model = model64(name)
    prompt = prompt_of(model)
    found = expand(model, prompt)
    assert found.J.shape == (model.n_layers, model.d_model, model.d_model)
    for layer in range(model.n_layers):
        alone = torch.autograd.functional.jacobian(lambda s, l=layer: z_of(model, prompt, l, s), found.s[layer])
        assert close(found.J[layer], alone, 1e-10 if name in DOUBLE else 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_expansion_holds_where_it_was_made(name: str) -> None:
    """J s + b = z, and s and z are what the model itself has."""
    model = model64(name)
    prompt = prompt_of(model)
    found = expand(model, prompt)
    assert found.b.shape == found.s.shape
    for layer in range(model.n_layers):
        assert close(found.J[layer] @ found.s[layer] + found.b[layer], found.z, 1e-10)
    sites = [f"resid_pre.{layer}@{prompt.at}" for layer in range(model.n_layers)]
    batch = Batch(prompt.ids[None], torch.ones_like(prompt.ids[None], dtype=torch.bool))
    run = model.run(batch, read=[*sites, "resid_final@end"])
    tolerance = 1e-10 if name in DOUBLE else 1e-5
    assert close(found.s, torch.cat([run[site] for site in sites]), tolerance)
    assert close(found.z, run["resid_final@end"][0], tolerance)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_finite_differences_by_edited_runs(name: str) -> None:
    model = model64(name)
    prompt = prompt_of(model)
    found = expand(model, prompt)
    batch = Batch(prompt.ids[None], torch.ones_like(prompt.ids[None], dtype=torch.bool))
    step, tolerance = (1e-5, 1e-8) if name in DOUBLE else (1e-2, 3e-3)
    for layer in range(model.n_layers):
        site = f"resid_pre.{layer}@{prompt.at}"
        direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(layer)).double()
        ends = [
            model.run(batch, read=["resid_final@end"], edit=[Set(site, found.s[layer] + sign * step * direction)])
            for sign in (1, -1)
        ]
        slope = (ends[0]["resid_final@end"] - ends[1]["resid_final@end"])[0] / (2 * step)
        assert close(found.J[layer] @ direction, slope, tolerance)


def test_one_direction_is_not_enough_to_pass() -> None:
    """The layers' Jacobians differ, and so do those of two prompts: the tests above could fail."""
    model = model64("gpt2")
    found = expand(model, prompt_of(model))
    other = expand(model, ask(model, TEMPLATE, SAMPLES[5], SAMPLES[1:3]))
    assert not close(found.J[0], found.J[1], 0.1)
    assert not close(found.J[1], other.J[1], 0.1)


@pytest.mark.parametrize("rows", [1, 7, 48, 100])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_number_of_rows_at_once_changes_nothing(name: str, rows: int) -> None:
    model = model64(name)
    prompt = prompt_of(model)
    whole, found = expand(model, prompt), expand(model, prompt, rows=rows)
    for one, other in ((whole.J, found.J), (whole.s, found.s), (whole.z, found.z)):
        assert close(found=other, expected=one, tolerance=1e-10 if name in DOUBLE else 1e-5)


def test_rows_follow_what_the_machine_has_and_not_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert rows_at_once(model, 10, 2) == 192
    weights = sum(4 * parameter.numel() for parameter in model.hf.parameters())
    found = []
    for memory in (0, weights, weights + 2**20, weights + 2**21, weights + 2**22, weights + 2**26):
        monkeypatch.setattr("caseback.relations.jacobian._memory", lambda device, memory=memory: memory)
        found.append(rows_at_once(model, 10, 2))
    assert found == sorted(found) and found[0] == found[1] == 1 and 1 < found[3] < 192 == found[-1]
    assert {192 // rows & (192 // rows - 1) for rows in found[2:]} == {0}  # halved, some number of times


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_a_chain_where_the_subject_ends_the_prompt(name: str) -> None:
    """One token from the subject on: ∂z/∂s₀ = ∂z/∂s_ℓ · ∂s_ℓ/∂s₀. With more, attention leads around s_ℓ."""
    model = model64(name)
    end, tolerance = prompt_of(model, "the w4 of {}"), 1e-10 if name in DOUBLE else 1e-5
    assert end.at == len(end.ids) - 1
    for prompt, chained in ((end, True), (prompt_of(model), False)):
        found = expand(model, prompt)

        def s_1(s: Tensor, prompt: Prompt = prompt) -> Tensor:
            return put(model, prompt, 0, s, model.blocks[1], prompt.at)

        inner = torch.autograd.functional.jacobian(s_1, found.s[0])
        assert close(found.J[1] @ inner, found.J[0], tolerance) == chained


def test_a_prompt_that_begins_with_the_subject() -> None:
    model = model64("gpt2")
    prompt = ask(model, "{} is", Sample(subject="w9", object="x"))
    assert prompt.at == 0
    found = expand(model, prompt)
    for layer in range(model.n_layers):
        alone = torch.autograd.functional.jacobian(lambda s, l=layer: z_of(model, prompt, l, s), found.s[layer])
        assert close(found.J[layer], alone, 1e-10)


def test_an_affine_model_has_the_map_it_was_given() -> None:
    zoo = affine_of()
    for subject, _ in zoo.pairs[:3]:
        found = expand(zoo.model, ask(zoo.model, zoo.template, Sample(subject=subject, object="x")))
        for layer in (0, 1):
            assert float((found.J[layer] - zoo.W).abs().max()) < 1e-6
            assert float((found.b[layer] - zoo.b).abs().max()) < 1e-6
        assert not found.J[2].any()


@pytest.mark.parametrize("ends", [(-1,), (-2, -1), (-3, -1)])
def test_z_is_the_mean_of_the_streams_at_the_prompts_ends(ends: tuple[int, ...]) -> None:
    model = model64("gpt2")
    prompt = replace(prompt_of(model, "the w4 of {} is w5 w6"), ends=ends)
    found = expand(model, prompt)
    norm = model.module(model.family.final_norm)
    for layer in range(model.n_layers):
        z = lambda s, l=layer: torch.stack([put(model, prompt, l, s, norm, i) for i in ends]).mean(dim=0)  # noqa: E731
        assert close(found.z, z(found.s[layer]), 1e-10)
        assert close(found.J[layer], torch.autograd.functional.jacobian(z, found.s[layer]), 1e-10)


def test_weights_get_no_gradient_and_progress_is_told() -> None:
    model = model_of("gpt2")
    told: list[tuple[str, int, int]] = []
    before = (model.cost.forwards, model.cost.backwards)
    expand(model, prompt_of(model), rows=20, progress=lambda *step: told.append(step))
    assert told == [("jacobian", 20, 48), ("jacobian", 40, 48), ("jacobian", 48, 48)]
    assert model.cost.backwards - before[1] == 48
    assert model.cost.forwards - before[0] <= 48 + 3
    assert all(parameter.grad is None for parameter in model.hf.parameters())
