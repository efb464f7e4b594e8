"""Sweeps: every plan gives what it gives in a run of its own, and the prefix plans share is run once."""

from __future__ import annotations

import pytest
import torch

from caseback.core.errors import SiteError
from caseback.model.edits import Add, Edit, Patch, Scale, Set
from caseback.model.model import Model
from caseback.model.run import counting
from caseback.zoo.tiny import tiny

from .small import batch_of, left_behind, model_of


def plans_of(model: Model) -> list[list[Edit]]:
    """Plans that begin in both layers, at heads, positions and spans, with one and with several edits, and with none."""
    other = model.run(batch_of(model, seed=1), read=["resid_pre.1", "z.0.2@end"])
    return [
        [Scale("z.1.0", 0.0)],
        [Scale("mlp_out.0@end", 0.0)],
        [],
        [Set("resid_post.1@-2", 0.5), Scale("z.0.3", 2.0)],
        [Patch("z.0.2@end", other["z.0.2@end"])],
        [Patch("resid_pre.1", other["resid_pre.1"])],
        [Scale("z.*.1@middle", 0.0), Add("mlp_out.1@first[0]", 1.0)],
        [Scale("final_norm_out", 2.0)],
        [Scale("resid_pre.0@0", 0.0)],
    ]


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon"])
def test_a_sweep_equals_single_runs(name: str, rows: int) -> None:
    model = model_of(name)
    batch, plans = batch_of(model), plans_of(model)
    found = model.sweep(batch, plans, rows=rows)
    assert found.shape == (len(plans), batch.n, model.d_vocab)
    for plan, logits in zip(plans, found, strict=True):
        torch.testing.assert_close(logits, model.run(batch, edit=plan).logits, rtol=1e-4, atol=1e-4)
    assert not left_behind(model.hf)


def test_inner_sites_too() -> None:
    model = model_of("llama")
    batch = batch_of(model)
    plans: list[list[Edit]] = [[Scale(f"pattern.{layer}.{head}", 0.0)] for layer in (0, 1) for head in range(4)]
    plans.append([Scale("k.1.0@middle", 0.0), Scale("q.1.3", 2.0)])
    for plan, logits in zip(plans, model.sweep(batch, plans, rows=8), strict=True):
        torch.testing.assert_close(logits, model.run(batch, edit=plan).logits, rtol=1e-4, atol=1e-4)


def test_the_prefix_of_late_plans_is_not_run_again() -> None:
    model = Model(tiny("llama"))
    calls = [0, 0]

    def count(layer: int) -> None:
        own = model.hf.model.layers[layer].mlp.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            calls[layer] += 1
            return own(x)

        model.hf.model.layers[layer].mlp.forward = forward

    assert model.block_output is None, "found out by a run of its own"
    count(0)
    count(1)
    late: list[list[Edit]] = [[Scale(f"z.1.{head}", 0.0)] for head in range(4)]
    with counting(model) as spent:
        model.sweep(batch_of(model), late, rows=6)
    assert calls == [1, 2], "one prefix for two batches of plans"
    assert spent.forwards == 3 + 4 * 3


def test_a_sweep_of_nothing_and_a_wrong_plan_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(SiteError, match="a sweep needs at least one plan"):
        model.sweep(batch_of(model), [])
    with pytest.raises(SiteError, match="site 'z.7': this model has z at layers 0 to 1"):
        model.sweep(batch_of(model), [[Scale("z.0", 0.0)], [Scale("z.7", 0.0)]])
    with pytest.raises(SiteError, match="the two runs differ in rows or length"):
        model.sweep(batch_of(model), [[Patch("z.0.1@end", torch.zeros(2, 16))]])
    assert not left_behind(model.hf)
