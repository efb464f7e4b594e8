"""Patching grids: what a patch does is what the same edit does by itself, and the ends of the scale are where they should be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.circuits.check import random_pairs
from caseback.core.errors import FamilyError, ReadingError, SiteError
from caseback.model.edits import Call
from caseback.model.model import Model
from caseback.reading.columns import columns_of
from caseback.reading.patching import SITES, estimate_grid, grid_agreement, patch_grid
from caseback.reading.rows import Rows
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import logit_diff
from caseback.zoo.tiny import TINY, tiny


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


@cache
def pairs_of(name: str) -> PairBatch:
    return random_pairs(model_of(name))


def naive(name: str, site: str, direction: str, layer: int, head: int | None, span: str) -> np.ndarray:
    """One patch on one example at a time, by a read and an edit of `Model.run`."""
    model, pairs, out = model_of(name), pairs_of(name), []
    for row in range(pairs.n):
        one = pairs[[row]]
        into, other = (one.counterfactual, one.clean) if direction == "denoise" else (one.clean, one.counterfactual)
        whole = f"{site}.{layer}"
        given = model.run(other, read=[whole])[whole]
        start, end = one.clean.spans[span][0].tolist()

        def put(value: torch.Tensor, given=given, start=start, end=end) -> torch.Tensor:
            value = value.clone()
            if site == "pattern":
                value[:, head, start:end] = given[:, head, start:end]
            elif head is not None:
                value[:, start:end, head] = given[:, start:end, head]
            else:
                value[:, start:end] = given[:, start:end]
            return value

        logits = model.run(into, edit=[Call(whole, put)]).logits
        out.append(float(logit_diff(logits, one)))
    return np.array(out)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_grid_is_one_patch_at_a_time(name: str, site: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    direction = "denoise" if len(site) % 2 else "noise"
    grid = patch_grid(model, pairs, site, direction=direction, rows=7)
    assert grid.metric.shape == (2, grid.heads or 1, 3, 3) and grid.columns == ("same", "middle", "end")
    assert grid.heads == {"z": 4, "q": 4, "pattern": 4}.get(site, model.n_kv_heads if site in ("k", "v") else None)
    for layer in range(2):
        head = None if grid.heads is None else grid.heads - 1 - layer
        for column, span in enumerate(grid.columns):
            want = naive(name, site, direction, layer, head, span)
            np.testing.assert_allclose(grid.metric[layer, head or 0, column], want, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "olmo2", "bloom", "mixtral"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_whole_first_stream_gives_one(name: str, direction: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    grid = patch_grid(model, pairs, "resid_pre", direction=direction, columns="all")
    np.testing.assert_allclose(grid.effect, 1, atol=1e-4)  # at every layer: a stream is all there is
    np.testing.assert_allclose(grid.metric[0, 0, 0], grid.other, atol=2e-5)
    start, other = (pairs.clean, pairs.counterfactual)[:: 1 if direction == "noise" else -1]
    np.testing.assert_allclose(grid.start, logit_diff(model.logits(start), pairs), atol=1e-5)
    np.testing.assert_allclose(grid.other, logit_diff(model.logits(other), pairs), atol=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "z", "pattern"])
def test_nothing_and_ones_own_value_change_nothing(site: str) -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    own = replace(pairs, counterfactual=pairs.clean)
    np.testing.assert_allclose(patch_grid(model, own, site).change, 0, atol=1e-5)
    engine = Rows.of(model, pairs, pairs.clean, [0, 1], rows=8)
    given = model.run(pairs.counterfactual, read=[f"{site}.1"])[f"{site}.1"][None]
    nowhere = torch.zeros((2, *pairs.clean.mask.shape), dtype=torch.bool)
    found = engine.grid(site, 1, given, nowhere, None if site == "resid_pre" else model.n_heads)
    np.testing.assert_allclose(found, np.broadcast_to(engine.start, found.shape), atol=1e-5)


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family_computes_only_what_changes(name: str) -> None:
    """The same numbers with and without the tokens before a patch; families that cannot leave them out run whole prompts."""
    model = model_of(name)
    pairs = random_pairs(model)
    given = model.run(pairs.clean, read=["resid_pre.*"])
    where = columns_of(pairs.clean).where
    engine = Rows.of(model, pairs, pairs.counterfactual, [0, 1], rows=8)
    for layer in range(2):
        source = given[f"resid_pre.{layer}"]
        found = engine.grid("resid_pre", layer, source[None], where, None)[0]
        for column in (1, 2):
            mask = where[column][..., None]
            edit = Call(f"resid_pre.{layer}", lambda value, m=mask, s=source: torch.where(m, s, value))
            logits = model.run(pairs.counterfactual, edit=[edit]).logits
            np.testing.assert_allclose(found[column], logit_diff(logits, pairs), atol=5e-5)


def test_tokens_before_a_patch_are_left_out() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    engine = Rows.of(model, pairs, pairs.clean, [1], rows=64)
    assert len(engine.keys) == model.n_layers
    assert not Rows.of(model_of("bloom"), pairs_of("bloom"), pairs_of("bloom").clean, [1], rows=64).keys
    seen: list[int] = []
    handle = model.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    given = model.run(pairs.clean, read=["resid_pre.1"])["resid_pre.1"]
    seen.clear()
    engine.grid("resid_pre", 1, given[None], columns_of(pairs.clean).where[1:2], None)
    handle.remove()
    assert seen == [5]  # of 7 tokens, the span "middle" begins at the third


def test_a_span_that_is_the_same_in_both_has_no_effect_at_the_embedding() -> None:
    grid = patch_grid(model_of("llama"), pairs_of("llama"))
    np.testing.assert_allclose(grid.effect[0, 0, 0], 0, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_mid", "v"])
def test_how_rows_are_batched_changes_nothing(site: str) -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    whole = patch_grid(model, pairs, site, rows=64)
    for rows in (1, 2, 5):
        np.testing.assert_allclose(patch_grid(model, pairs, site, rows=rows).metric, whole.metric, atol=1e-5)
    one = patch_grid(model, pairs, site, layers=[1])
    np.testing.assert_allclose(one.metric[0], whole.metric[1], atol=1e-6)


def test_mean_and_zero() -> None:
    model, pairs = model_of("gpt2"), pairs_of("gpt2")
    zero = patch_grid(model, pairs, "z", direction="noise", source="zero", rows=4)
    mean = patch_grid(model, pairs, "z", direction="noise", source="mean", rows=2)
    where = columns_of(pairs.clean).where
    run = model.run(pairs.counterfactual, read=["z.1"])["z.1"]
    average = run[where[1]].mean(dim=0)[2]

    def put(given: torch.Tensor | float, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, :, 2][where[1]] = given
        return value

    for grid, given in ((zero, 0.0), (mean, average)):
        logits = model.run(pairs.clean, edit=[Call("z.1", lambda value, given=given: put(given, value))]).logits
        np.testing.assert_allclose(grid.metric[1, 2, 1], logit_diff(logits, pairs), atol=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z", "q", "k", "v", "pattern"])
def test_the_estimate_is_the_derivative(site: str) -> None:
    """Toward a source that is close by, it is the exact change (finite differences in the embedding)."""
    model, pairs = model_of("llama"), pairs_of("llama")
    grid = estimate_grid(model, pairs, site, rows=2)
    assert not grid.exact
    exact = patch_grid(model, pairs, site)
    np.testing.assert_allclose(grid.start, exact.start, atol=1e-5)
    engine = Rows.of(model, pairs, pairs.counterfactual, [1], rows=64)
    name = f"{site}.1"
    far, own = (model.run(batch, read=[name])[name] for batch in (pairs.clean, pairs.counterfactual))
    near = own + 1e-2 * (far - own)
    where = columns_of(pairs.clean).where
    up = engine.grid(site, 1, near[None], where, exact.heads)
    down = engine.grid(site, 1, (2 * own - near)[None], where, exact.heads)
    np.testing.assert_allclose((up - down) / 2e-2, grid.change[1], atol=2e-3 + 0.02 * np.abs(grid.change).max())
    found = grid_agreement(exact, grid)
    assert found.n == exact.effect.size and -1 <= found.spearman <= 1


def test_agreement_is_one_with_itself_and_minus_one_upside_down() -> None:
    grid = patch_grid(model_of("llama"), pairs_of("llama"), "q")
    assert grid_agreement(grid, grid).spearman == pytest.approx(1)
    upside_down = replace(grid, metric=2 * grid.start - grid.metric)
    assert grid_agreement(grid, upside_down).spearman == pytest.approx(-1)


@pytest.mark.parametrize("source", ["zero", "mean"])
def test_estimates_toward_zero_and_mean(source: str) -> None:
    """By hand: (what is put in − value) · gradient over the tokens of the last span."""
    model, pairs = model_of("llama"), pairs_of("llama")
    guess = estimate_grid(model, pairs, "mlp_out", direction="noise", source=source)
    grads = model.grad(pairs.clean, lambda logits: logit_diff(logits, pairs), at=["mlp_out.0@end"])
    other = model.run(pairs.counterfactual, read=["mlp_out.0@end"])["mlp_out.0@end"]
    given = other.mean(dim=0) if source == "mean" else 0
    want = ((given - grads.values["mlp_out.0@end"]) * grads["mlp_out.0@end"]).sum(-1)
    np.testing.assert_allclose(guess.change[0, 0, 2], want, atol=1e-4)
    exact = patch_grid(model, pairs, "mlp_out", direction="noise", source=source)
    assert grid_agreement(exact, guess).n == 6


def test_intervals_are_of_the_effects() -> None:
    grid = patch_grid(model_of("llama"), pairs_of("llama"), "v")
    intervals = grid.intervals()
    np.testing.assert_allclose([i.value for i in intervals], grid.effect.ravel())
    assert all(i.low <= i.value <= i.high for i in intervals)


def test_prob_diff_pairs() -> None:
    model, pairs = model_of("llama"), replace(pairs_of("llama"), metric="prob_diff")
    grid = patch_grid(model, pairs, columns="all")
    assert np.abs(grid.metric).max() <= 1
    np.testing.assert_allclose(grid.metric[0, 0, 0], grid.other, atol=1e-5)


def test_progress_ends() -> None:
    steps: list[tuple[str, int, int]] = []
    patch_grid(model_of("llama"), pairs_of("llama"), rows=2, progress=lambda *step: steps.append(step))
    assert steps[-1] == ("patch", 4, 4)


def test_refusals() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    with pytest.raises(ReadingError, match="denoising puts clean values in, not 'zero'"):
        patch_grid(model, pairs, source="zero")
    with pytest.raises(ReadingError, match="a pattern has no mean"):
        patch_grid(model, pairs, "pattern", direction="noise", source="mean")
    with pytest.raises(ReadingError, match="resid_final has no layers.*resid_pre, resid_mid"):
        patch_grid(model, pairs, "resid_final")
    with pytest.raises(SiteError, match="there is no site named 'residual'"):
        patch_grid(model, pairs, "residual")
    with pytest.raises(SiteError, match="has no site 'resid_mid'"):
        patch_grid(model_of("gpt_neox"), pairs_of("gpt_neox"), "resid_mid")
    with pytest.raises(FamilyError, match="bloom has no sites q"):
        patch_grid(model_of("bloom"), pairs_of("bloom"), "q")
    with pytest.raises(ReadingError, match="resid_pre has no layer 5; it has: 0, 1"):
        patch_grid(model, pairs, layers=[5])
    with pytest.raises(ReadingError, match="prompts of one length"):
        patch_grid(model, pairs, columns="tokens")
    with pytest.raises(ReadingError, match="they differ in site"):
        grid_agreement(patch_grid(model, pairs), patch_grid(model, pairs, "mlp_out"))
