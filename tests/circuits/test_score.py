"""Scores of residual edges: identities that need no ground truth (notes 3.4), on every kind of family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caseback.circuits import ablate
from caseback.circuits.evaluate import measure
from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.patching import patch_edges, without
from caseback.circuits.reference import Activations, record, reference_of
from caseback.circuits.score import ScoreConfig, batches, score
from caseback.core.errors import CircuitError, FamilyError
from caseback.model.batch import Batch
from caseback.model.families import family_of
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of
from caseback.zoo.tiny import tiny

from .plain import FAMILIES, Plain, by_token, model_of, pairs_of

SHARED = ["llama", "gemma2", "olmo2", "gpt_oss", "phi3", "granite", "mixtral"]
"""Families whose tiny models share keys and values between heads."""


@cache
def scored(name: str, grouped: bool = True) -> Scores:
    return score(model_of(name), pairs_of(name), ScoreConfig(grouped=grouped))


def equal(found: Any, expected: Any, tolerance: float) -> bool:
    """Arrays equal up to a share of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


# --- node identity ---------------------------------------------------------------------------------------------------


def node_effects(model: Model, pairs: PairBatch, reference: Activations | None = None) -> np.ndarray:
    """Δ_u · ∂M/∂u of every writer, [row, token, writer]."""
    at = ["resid_pre.0", "z.*", "mlp_out.*"]
    clean = model.grad(pairs.clean, lambda logits: metric_of(pairs.metric)(logits, pairs), at=at)
    other = model.run(pairs.counterfactual, read=at)

    def effect(site: str) -> np.ndarray:
        return ((clean.values[site] - other[site]) * clean[site]).sum(dim=-1).double().numpy()

    columns = [effect("resid_pre.0")[..., None]]
    for layer in range(model.n_layers):
        columns += [effect(f"z.{layer}"), effect(f"mlp_out.{layer}")[..., None]]
    return np.concatenate(columns, axis=-1)


def by_span(values: np.ndarray, pairs: PairBatch) -> np.ndarray:
    """[row, token, writer] → [span, writer]: sum over a span's tokens, mean over rows."""
    out = np.zeros((len(pairs.clean.spans), values.shape[-1]))
    for number, ranges in enumerate(pairs.clean.spans.values()):
        for row, (start, end) in enumerate(ranges.tolist()):
            out[number] += values[row, start:end].sum(axis=0) / pairs.n
    return out


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_writer_s_edges_add_up_to_what_the_model_makes_of_it(name: str, grouped: bool) -> None:
    """Σ_v score(u → v, s) = Δ_u · ∂M/∂u at every span, within 5e-5 of the largest."""
    expected = by_span(node_effects(model_of(name), pairs_of(name)), pairs_of(name))
    assert equal(scored(name, grouped).residual.sum(axis=2), expected, 5e-5)
    assert equal(scored(name, grouped).nodes, expected, 5e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "gpt_oss"])
def test_the_same_token_by_token(name: str) -> None:
    model, pairs = model_of(name), by_token(pairs_of(name))
    expected = by_span(node_effects(model, pairs), pairs)
    assert equal(score(model, pairs).residual.sum(axis=2), expected, 5e-5)
    assert np.abs(expected).max(axis=1).min() > 1e-3, "every position matters"


# --- the gradient of an explicit gate --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_the_derivative_of_the_metric_with_respect_to_the_edge_s_gate(name: str) -> None:
    """Gates in the forward written edge by edge, all open: the gradient is the score (AutoCircuit's test), within 1e-4.

    Behind a post-norm a head's share is not linear in it, so there only the other writers' gates are scores.
    """
    model, pairs = model_of(name), pairs_of(name)
    graph = scored(name).graph
    gates = torch.ones(graph.residual_shape, requires_grad=True)
    crossing = torch.ones(graph.crossing_shape, dtype=torch.bool)
    logits = Plain(model, pairs).logits(gates, crossing)
    metric = metric_of(pairs.metric)(logits, pairs)
    (gradient,) = torch.autograd.grad(metric.mean(), gates)
    found, expected = scored(name).residual, gradient.double().numpy()
    if name in ("gemma2", "olmo2"):
        heads = graph.writer_head >= 0
        found, expected = found[:, ~heads], expected[:, ~heads]
    assert equal(found, expected, 1e-4)
    kinds = np.abs(expected).max(axis=(0, 1))[:-1].reshape(graph.n_layers, -1)
    assert (kinds > 1e-4).all(), "every reader is told apart"


# --- finite differences ----------------------------------------------------------------------------------------------


def blended(model: Model, clean: Activations, other: Activations, share: float) -> Activations:
    """clean + share (other − clean), everything an edge can carry."""

    def mix(a: Any, b: Any) -> Any:
        return [mix(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else torch.lerp(a, b, share)

    names = [*clean.tensors(), "embed", "pattern"]
    return replace(clean, **{n: mix(getattr(clean, n), getattr(other, n)) for n in names}, logits=None)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_score_is_the_slope_of_patching_one_edge_a_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full circuit without one edge, the reference ε of the way to the counterfactual: the central difference is
    −score up to O(ε²), for edges into queries, keys, values, MLPs and logits at each span."""
    model, pairs = model_of(name), pairs_of(name)
    scores = scored(name)
    graph = scores.graph
    readers = [graph.reader(1, "q", 2), graph.reader(1, "k", 1), graph.reader(1, "v", 0), graph.reader(1, "mlp")]
    edges = []
    for span in (1, 2):
        for reader in readers:
            column = np.abs(scores.residual[span, :, reader])
            edges += [(span, int(u), reader) for u in np.argsort(-column)[:2]]
    edges.append((2, int(np.argmax(np.abs(scores.residual[2, :, graph.logits]))), graph.logits))
    flat = [int(np.ravel_multi_index(edge, graph.residual_shape)) for edge in edges]
    circuits = [without(graph, edge) for edge in flat]
    share = 0.0

    def near(model: Model, layers: Any, pairs: PairBatch, *rest: Any, **more: Any) -> Activations:
        clean, other = record(model, layers, pairs.clean), reference_of(model, layers, pairs, *rest, **more)
        return blended(model, clean, other, share)

    monkeypatch.setattr(ablate, "reference_of", near)

    def metric(at: float) -> np.ndarray:
        nonlocal share
        share = at
        return measure(model, pairs, circuits).metric.mean(axis=1)

    expected = -scores.flat[flat]
    errors = [np.abs((metric(step) - metric(-step)) / (2 * step) - expected).max() for step in (0.4, 0.2, 0.1)]
    assert errors[2] < 0.005 * np.abs(expected).max()
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5, (
        "half the step, a quarter of the error"
    )


# --- where the first order is all there is ---------------------------------------------------------------------------


def linear_model() -> Model:
    """A tiny GPT-2 without norms, with linear MLPs, whose queries and keys are zero: z is the mean of the values so far."""
    hf: Any = tiny("gpt2")
    with torch.no_grad():
        for block in hf.transformer.h:
            block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
            for parameter in (block.attn.c_attn.weight, block.attn.c_attn.bias):
                parameter[..., : 2 * hf.config.hidden_size] = 0
    hf.transformer.ln_f = nn.Identity()
    return Model(hf, family=replace(family_of(hf.config), attn_norm=None, mlp_norm=None))


def test_on_a_linear_model_scores_are_exact_effects() -> None:
    """Every residual edge and every value edge, patched one by one, within 2e-5 of the largest; queries and keys do nothing.

    Where an edge is a reader's only one its removal also gives the node its reference value, which here is the same thing.
    """
    model = linear_model()
    pairs = pairs_of("gpt2")
    scores = score(model, pairs)
    graph = scores.graph
    edges = np.flatnonzero(graph.allowed)
    draw = np.random.default_rng(0).choice(len(edges), size=60, replace=False)
    best = np.argsort(-np.abs(scores.flat[edges]))[:60]
    edges = edges[np.union1d(draw, best)]
    found = patch_edges(model, pairs, scores, edges)
    assert equal(found.exact.mean(axis=1), found.score, 2e-5)
    assert np.abs(found.score).min() < 1e-9 < np.abs(found.score).max()
    assert not scores.crossing[:2].any() and not scores.residual[..., graph.reader_kind < 2].any()
    assert {"<v>@", "->m1@", "->logits@", "<v>@same->", "<v>@middle->end"} <= {
        part
        for part in ("<v>@", "->m1@", "->logits@", "<v>@same->", "<v>@middle->end")
        if any(part in graph.name(edge) for edge in edges)
    }


# --- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["zero", "mean"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_the_reference_is_what_the_differences_are_taken_to(name: str, reference: str) -> None:
    """Σ_v score(u → v) = (z_u − z*_u) · ∂M/∂u with z* zero, or the mean over the counterfactuals' tokens of the span."""
    model, pairs = model_of(name), pairs_of(name)
    scores = score(model, pairs, ScoreConfig(reference=reference))  # type: ignore[arg-type]
    at = ["resid_pre.0", "z.*", "mlp_out.*"]
    clean = model.grad(pairs.clean, lambda logits: metric_of(pairs.metric)(logits, pairs), at=at)
    old = dict(Plain(model, pairs, reference).old)
    expected = []
    for site in ["resid_pre.0", "z.0", "mlp_out.0", "z.1", "mlp_out.1"]:
        effect = ((clean.values[site] - old[site]) * clean[site]).sum(dim=-1).double().numpy()
        expected.append(effect if effect.ndim == 3 else effect[..., None])
    assert equal(scores.residual.sum(axis=2), by_span(np.concatenate(expected, axis=-1), pairs), 5e-5)
    assert scores.method["reference"] == reference


# --- aggregation -----------------------------------------------------------------------------------------------------


def without_spans(pairs: PairBatch) -> PairBatch:
    return replace(pairs, clean=replace(pairs.clean, spans={}), counterfactual=replace(pairs.counterfactual, spans={}))


def same(one: Scores, other: Scores, tolerance: float = 1e-5) -> bool:
    """Scores equal up to a share of the largest residual and the largest crossing score."""
    return equal(one.residual, other.residual, tolerance) and equal(one.crossing, other.crossing, tolerance)


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt_oss"])
def test_one_span_is_the_sum_over_spans_and_spans_are_sums_over_tokens(name: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    whole = score(model, without_spans(pairs))
    summed = scored(name).collapse()
    assert whole.graph.spans == ("all",)
    assert equal(whole.crossing, summed.crossing, 1e-5)
    assert equal(whole.residual, summed.residual, 1e-5)
    tokens = by_token(pairs)
    clean = replace(
        tokens.clean, spans={"a": torch.tensor([[0, 3]] * tokens.n), "b": torch.tensor([[3, 7]] * tokens.n)}
    )
    by_two, each = score(model, replace(tokens, clean=clean)), score(model, tokens)
    parts = [slice(0, 3), slice(3, 7)]
    assert equal(by_two.residual, np.stack([each.residual[part].sum(axis=0) for part in parts]), 1e-5)
    blocks = [[each.crossing[..., t, s].sum(axis=(3, 4)) for s in parts] for t in parts]
    assert equal(by_two.crossing, np.stack([np.stack(row, axis=-1) for row in blocks], axis=-2), 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "mixtral"])
def test_order_company_and_padding_change_no_score(name: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    usual = scored(name)
    assert same(score(model, pairs[[2, 0, 1]]), usual)
    for tokens in (1, 14):
        assert same(score(model, pairs, ScoreConfig(tokens=tokens)), usual)
    single = [score(model, pairs[[row]]) for row in range(pairs.n)]
    for part in ("residual", "crossing"):
        assert equal(np.mean([getattr(one, part) for one in single], axis=0), getattr(usual, part), 1e-5)

    def wider(batch: Batch) -> Batch:
        more = torch.full((batch.n, 3), 7)
        return Batch(torch.cat([batch.ids, more], dim=1), torch.cat([batch.mask, more < 0], dim=1), batch.spans)

    padded = replace(pairs, clean=wider(pairs.clean), counterfactual=wider(pairs.counterfactual))
    assert same(score(model, padded), usual)
    assert usual.lengths.tolist() == [[2, 4, 1], [2, 2, 1], [2, 4, 1]]


@pytest.mark.parametrize("name", SHARED)
def test_ungrouped_scores_of_a_kv_group_add_up_to_the_grouped_one(name: str) -> None:
    grouped, each = scored(name), scored(name, False)
    heads, groups = grouped.graph.n_heads, grouped.graph.n_groups
    assert each.graph.n_groups == heads == 2 * groups
    assert equal(each.crossing, grouped.crossing, 1e-5), "crossing edges are per query head either way"
    whole = np.abs(grouped.residual).max()
    for layer in range(grouped.graph.n_layers):
        for channel in "kv":
            one, many = grouped.graph.reader(layer, channel), each.graph.reader(layer, channel)
            parts = each.residual[..., many : many + heads].reshape(*each.residual.shape[:2], groups, 2)
            assert np.abs(parts.sum(axis=-1) - grouped.residual[..., one : one + groups]).max() < 2e-5 * whole
            assert np.abs(parts).max() > 1e-3 * whole
        for channel, count in (("q", heads), ("mlp", 1)):
            one, many = grouped.graph.reader(layer, channel), each.graph.reader(layer, channel)
            difference = each.residual[..., many : many + count] - grouped.residual[..., one : one + count]
            assert np.abs(difference).max() < 1e-5 * whole


# --- gradient points -------------------------------------------------------------------------------------------------


@cache
def points(name: str, steps: int) -> Scores:
    return score(model_of(name), pairs_of(name), ScoreConfig(steps=steps))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_more_gradient_points_converge_and_one_is_the_clean_prompt(name: str) -> None:
    """The mean over points k/m is a right-hand Riemann sum: its error falls like 1/m, and the embedding's edges then add
    up to M(clean) − M(counterfactual), as every path-integrated gradient does."""
    model, pairs = model_of(name), pairs_of(name)
    assert same(points(name, 1), scored(name), 1e-7)
    assert points(name, 1).method["name"] == "EAP" and points(name, 4).method["name"] == "EAP-IG (inputs)"
    limit = points(name, 64).flat
    errors = [np.abs(points(name, steps).flat - limit).mean() for steps in (1, 4, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    metric = metric_of(pairs.metric)
    difference = (metric(model.logits(pairs.clean), pairs) - metric(model.logits(pairs.counterfactual), pairs)).mean()
    total = [float(points(name, steps).residual[:, 0].sum()) for steps in (1, 16, 64)]
    gaps = [abs(value - float(difference)) for value in total]
    assert gaps[2] < 0.03 * abs(float(difference))
    assert gaps[2] < gaps[1] < gaps[0]


def test_scoring_costs_two_forwards_and_a_backward_a_pair_and_a_forward_and_backward_a_point() -> None:
    model, pairs = model_of("gpt2"), pairs_of("gpt2")
    for steps in (1, 3):
        before = (model.cost.forwards, model.cost.backwards)
        score(model, pairs, ScoreConfig(steps=steps))
        assert model.cost.forwards - before[0] == (1 + steps) * pairs.n
        assert model.cost.backwards - before[1] == steps * pairs.n


# --- what is left as it was, and what is refused ---------------------------------------------------------------------


def test_the_model_is_left_as_it_was_and_no_grad_outside_does_not_matter() -> None:
    model, pairs = Model(tiny("llama")), pairs_of("llama")
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with torch.no_grad():
        inside = [score(model, pairs, ScoreConfig(grouped=grouped)) for grouped in (True, False)]
    assert same(inside[0], scored("llama")) and same(inside[1], scored("llama", False))
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert all(layer.self_attn.num_key_value_groups == 2 for layer in model.hf.model.layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.hf.modules())


def test_a_failing_ungrouped_pass_puts_the_groups_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.models.llama.modeling_llama as llama

    model = Model(tiny("llama"))
    own = llama.eager_attention_forward

    def broken(module: Any, *args: Any, **kwargs: Any) -> Any:
        if module.num_key_value_groups == 1:
            raise KeyboardInterrupt
        return own(module, *args, **kwargs)

    monkeypatch.setattr(llama, "eager_attention_forward", broken)
    with pytest.raises(KeyboardInterrupt):
        score(model, pairs_of("llama"), ScoreConfig(grouped=False))
    assert all(layer.self_attn.num_key_value_groups == 2 for layer in model.hf.model.layers)


@pytest.mark.parametrize("reference", ["counterfactual", "mean", "zero"])
def test_half_precision_scores_and_circuits_agree_with_single(reference: str) -> None:
    """bfloat16 keeps 8 bits: scores correlate above .98, and the whole circuit is still the clean run."""
    pairs = pairs_of("llama")
    model = Model(tiny("llama").to(torch.bfloat16))
    config = ScoreConfig(reference=reference)  # type: ignore[arg-type]
    half, single = score(model, pairs, config), score(model_of("llama"), pairs, config)
    assert np.corrcoef(half.flat, single.flat)[0, 1] > 0.98
    assert half.residual.dtype == np.float32
    mean = None
    if reference == "mean":
        from caseback.circuits.parts import layers_of
        from caseback.circuits.reference import mean_reference

        mean = mean_reference(model, layers_of(model), batches(pairs, 100), single.graph.spans)
    circuits = [Circuit.full(single.graph), Circuit.full(single.graph) - Circuit.of(single.graph, ["embed->m1@end"])]
    found = measure(model, pairs, circuits, reference=reference, mean=mean)  # type: ignore[arg-type]
    assert np.abs(found.metric[0] - found.full).max() < 0.02 * np.abs(found.full).max()
    assert np.isfinite(found.metric).all()


def test_what_cannot_be_scored_is_refused_in_a_sentence() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    with pytest.raises(CircuitError, match="steps and tokens are whole numbers of at least 1, not 0 and 320"):
        ScoreConfig(steps=0)
    with pytest.raises(CircuitError, match="not 1 and -5"):
        ScoreConfig(tokens=-5)
    spans = dict(pairs.clean.spans)
    spans["end"] = spans["end"] + 1
    with pytest.raises(CircuitError, match=r"token 6 of pair 0 lies in 0 spans; spans must cover every token once"):
        score(model, replace(pairs, clean=replace(pairs.clean, spans=spans)))
    spans["end"] = spans["end"] - 2
    with pytest.raises(CircuitError, match=r"token 5 of pair 0 lies in 2 spans"):
        score(model, replace(pairs, clean=replace(pairs.clean, spans=spans)))
    spans = dict(pairs.clean.spans)
    spans["middle"], spans["end"] = spans["middle"].clone(), spans["end"].clone()
    spans["middle"][1, 1], spans["end"][1] = 5, 5  # row 1: the last token is in the middle, and there is no end
    with pytest.raises(CircuitError, match="the last token of pair 1 lies outside the last span, 'end'"):
        score(model, replace(pairs, clean=replace(pairs.clean, spans=spans)))
    for name, reason in (
        ("falcon", "its model file has attention code of its own"),
        ("deepseek_v3", "its keys and values are expanded from one latent vector"),
        ("qwen3_5_text", "has no circuits"),
    ):
        other = Model(tiny(name))
        with pytest.raises(FamilyError, match=reason):
            score(other, pairs)


def test_pairs_are_taken_a_few_at_a_time() -> None:
    pairs = pairs_of("llama")
    assert [chunk.n for chunk in batches(pairs, 1000)] == [3]
    assert [chunk.n for chunk in batches(pairs, 14)] == [2, 1]
    assert [chunk.n for chunk in batches(pairs, 1)] == [1, 1, 1]
    joined = torch.cat([chunk.answers for chunk in batches(pairs, 7)])
    assert torch.equal(joined, pairs.answers)
    assert isinstance(joined, Tensor)
