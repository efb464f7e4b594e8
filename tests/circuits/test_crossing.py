"""Scores of crossing edges: the closed form against z recomputed with one value, key or logit replaced."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caseback.circuits.ablate import Ablator
from caseback.circuits.graph import CHANNELS, Circuit
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.score import ScoreConfig, crossing_effects, score
from caseback.model.attention import AttentionCall
from caseback.model.edits import Set
from caseback.model.model import Model
from caseback.tasks.metrics import logit_diff, metric_of
from caseback.zoo import ZOO

from .plain import Plain, by_token, model_of, pairs_of

WIDTH, HEADS, GROUPS, DIM = 5, 4, 2, 3


def softmax(logit: Tensor, mask: Tensor, sinks: Tensor | None) -> Tensor:
    """Over s and, where there is one, the sink, which is left out of what is returned."""
    logit = logit.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return logit.softmax(dim=-1)
    sink = sinks.view(-1, 1, 1).expand(*logit.shape[:-1], 1)
    return torch.cat([logit, sink], dim=-1).softmax(dim=-1)[..., :-1]


class Drawn:
    """One attention call with random queries, keys and values in two runs, in float64."""

    def __init__(self, *, softcap: float | None = None, sinks: bool = False, window: int = WIDTH, size: float = 1.0):
        draw = torch.Generator().manual_seed(0)

        def random(heads: int) -> Tensor:
            return torch.randn((2, heads, WIDTH, DIM), generator=draw, dtype=torch.float64) * size

        q, k, v = random(HEADS), random(GROUPS), random(GROUPS)
        self.other = random(HEADS), random(GROUPS), random(GROUPS)
        options: dict[str, Any] = {"scaling": 0.7}
        if softcap is not None:
            options["softcap"] = softcap
        self.sinks = torch.linspace(-1, 1, HEADS, dtype=torch.float64) if sinks else None
        self.call = AttentionCall(nn.Identity(), q, k, v, None, options)
        self.u = random(HEADS)
        ones = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
        self.mask = ones.tril() & ones.triu(1 - window)
        self.pattern = softmax(self.logit(q, k), self.mask, self.sinks)

    def logit(self, q: Tensor, k: Tensor) -> Tensor:
        product = q @ k.repeat_interleave(HEADS // GROUPS, dim=1).transpose(-1, -2) * 0.7
        cap = self.call.options.get("softcap")
        return product if cap is None else cap * torch.tanh(product / cap)

    def effects(self) -> Tensor:
        return crossing_effects(self.call, self.pattern, self.u, self.other)

    def one_by_one(self) -> Tensor:
        """u_t · (z'_t − z_t) for each channel and pair of tokens, z' recomputed with that one thing replaced."""
        q, k, v = self.call.q, self.call.k, self.call.v
        usual = self.logit(q, k)
        by_query, by_key = self.logit(self.other[0], k), self.logit(q, self.other[1])
        out = torch.zeros((3, 2, HEADS, WIDTH, WIDTH), dtype=torch.float64)
        for b in range(2):
            for h in range(HEADS):
                values = v[b, h // 2]
                for t in range(WIDTH):
                    before = self.pattern[b, h, t] @ values
                    for s in range(WIDTH):
                        if not self.mask[t, s]:
                            continue
                        for c, changed in ((0, by_query), (1, by_key)):
                            row = usual[b, h, t].clone()
                            row[s] = changed[b, h, t, s]
                            sinks = None if self.sinks is None else self.sinks[h : h + 1]
                            pattern = softmax(row[None, None], self.mask[t], sinks)[0, 0]
                            out[c, b, h, t, s] = self.u[b, h, t] @ (pattern @ values - before)
                        moved = values.clone()
                        moved[s] = self.other[2][b, h // 2, s]
                        out[2, b, h, t, s] = self.u[b, h, t] @ (self.pattern[b, h, t] @ moved - before)
        return out


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "window": {"window": 2},
    "all": {"softcap": 2.0, "sinks": True, "window": 3},
    "sharp": {"size": 2.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_z_recomputed(kind: str) -> None:
    """Within 1e-10 of the largest in float64: grouped heads, softcap, sinks, a window; where some patterns are nearly
    1, what the others get of it when the logit falls is known to 1e-4 only."""
    drawn = Drawn(**KINDS[kind])
    found, expected = drawn.effects(), drawn.one_by_one()
    tolerance = 1e-4 if kind == "sharp" else 1e-10
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert not found[:, :, :, ~drawn.mask].any()
    assert bool((expected.abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_row_and_the_sink_still_sum_to_one(kind: str) -> None:
    """With every value 1 and u = 1, u · z is the row's sum: what it loses the sink gains, and without a sink nothing."""
    drawn = Drawn(**KINDS[kind])
    ones = torch.ones_like(drawn.call.v) / DIM
    call = replace(drawn.call, v=ones)
    drawn.call, drawn.other, drawn.u = call, (*drawn.other[:2], ones), torch.ones_like(drawn.u)
    found = drawn.effects()
    torch.testing.assert_close(found, drawn.one_by_one(), rtol=0, atol=1e-4 if kind == "sharp" else 1e-10)
    assert not found[2].any()
    if drawn.sinks is None:
        assert float(found.abs().max()) < (1e-4 if kind == "sharp" else 1e-12)
    else:
        moved = found[:2] + drawn.pattern.sum(dim=-1)[..., None]
        assert float(found.abs().max()) > 1e-3 and float(moved.max()) < 1 and float(moved.min()) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rise", [-100.0, -40.0, -1.0, 0.0, 1e-4, 1.0, 25.0, 40.0, 80.0, 300.0])
def test_a_logit_may_rise_or_fall_by_any_amount(rise: float, dtype: torch.dtype) -> None:
    """One of two tokens, at first 8 in the logit behind (or 40 behind the other), gets `rise` more; A' by hand."""
    for behind in (8.0, -2.0, 40.0):
        if dtype == torch.float16 and behind == 40.0:
            continue  # e^-40 is 0 in half precision: what is not there cannot be scaled up
        logit = torch.tensor([-behind, 0.0], dtype=torch.float64)
        pattern = logit.softmax(dim=0)
        expected = (logit + torch.tensor([rise, 0.0], dtype=torch.float64)).softmax(dim=0)[0] - pattern[0]
        q, k = torch.ones(1, 1, 1, 1).double(), logit.view(1, 1, 2, 1)
        key = k.clone()
        key[0, 0, 0] += rise
        v = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
        call = AttentionCall(nn.Identity(), q.to(dtype), k.to(dtype), v.to(dtype), None, {"scaling": 1.0})
        u = torch.ones(1, 1, 1, 1, dtype=dtype)
        found = crossing_effects(call, pattern.view(1, 1, 1, 2).to(dtype), u, (q.to(dtype), key.to(dtype), v.to(dtype)))
        assert bool(torch.isfinite(found).all())
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.06)
        assert float(found[1, 0, 0, 0, 0]) == pytest.approx(float(expected), abs=tolerance), (rise, behind)


# --- on models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "phi3", "olmo2"])
def test_scores_are_what_the_model_itself_makes_of_one_value_key_or_logit(name: str) -> None:
    """Keys and values are put in by edits and z is read; one logit is replaced in the pattern written out. Within 2e-5."""
    model, pairs = model_of(name), by_token(pairs_of(name))[[0]]
    plain, graph = Plain(model, pairs), graph_of(model, tuple(pairs.clean.spans))
    width, rep = graph.n_spans, graph.n_heads // graph.n_kv_heads
    u = model.grad(pairs.clean, lambda logits: metric_of(pairs.metric)(logits, pairs), at=["z.*"])
    clean = model.run(pairs.clean, read=["q.*", "k.*", "v.*", "z.*", "resid_pre.*"])
    expected = np.zeros(graph.crossing_shape)
    for layer in range(graph.n_layers):
        site, gradient = f"z.{layer}", u[f"z.{layer}"][0]

        def effect(z: Tensor, site: str = site, gradient: Tensor = gradient) -> np.ndarray:
            """−u_t · (z'_t − z_t), [head, t]."""
            return -((z - clean[site])[0] * gradient).sum(dim=-1).T.double().numpy()

        for s in range(width):
            for channel, name_ in ((1, "k"), (2, "v")):
                put = Set(f"{name_}.{layer}@{s}", plain.old[f"{name_}.{layer}"][:, s])
                found = effect(model.run(pairs.clean, read=[site], edit=[put])[site])
                expected[channel, layer, :, s:, s] = found[:, s:]
        plain.compared(layer, clean[f"resid_pre.{layer}"])
        for head in range(graph.n_heads):
            q, q_ = clean[f"q.{layer}"][:, :, head], plain.old[f"q.{layer}"][:, :, head]
            k, v = (clean[f"{c}.{layer}"][:, :, head // rep] for c in "kv")
            for s in range(width):
                product = q @ k.transpose(1, 2)
                product[..., s] = (q_ @ k.transpose(1, 2))[..., s]
                z = clean[site].clone()
                z[:, :, head] = plain.pattern(layer, head, product).detach() @ v
                expected[0, layer, head, s:, s] = effect(z)[head, s:]
    found = score(model, pairs).crossing
    for channel in range(3):
        scale = np.abs(expected[channel]).max()
        assert scale > 1e-3
        assert np.abs(found[channel] - expected[channel]).max() < 2e-5 * scale, CHANNELS[channel]


def test_gradient_points_change_u_alone() -> None:
    """EAP-IG leaves what a head compares to the two prompts: value scores stay linear in the mean gradient."""
    model, pairs = model_of("llama"), by_token(pairs_of("llama"))[[0]]
    one, four = score(model, pairs), score(model, pairs, ScoreConfig(steps=4))
    zero = one.crossing == 0
    assert (four.crossing[zero] == 0).all() and not np.allclose(one.crossing, four.crossing, rtol=0.01)


@pytest.mark.parametrize("zoo", ["copying", "planted"])
def test_removing_one_crossing_edge_changes_z_by_the_closed_form_and_the_metric_in_its_direction(zoo: str) -> None:
    """The full circuit without one edge between one-token spans, in float64 (the model files' norms and softmaxes stay
    in float32: 1e-6); the metric follows to first order only."""
    made = ZOO[zoo](n=4)
    model = Model(copy.deepcopy(made.model.hf).double(), made.model.tokenizer)
    pairs = made.task.encode(model)
    scores = score(model, pairs)
    graph = scores.graph
    ready = Ablator(model, layers_of(model), graph, pairs)
    full = Circuit.full(graph)
    layer, head, s, t = {"copying": (1, 2, "name", "end"), "planted": (2, 3, "relay", "end")}[zoo]
    rows, last = torch.arange(pairs.n), pairs.clean.last
    heard: dict[int, AttentionCall] = {}
    run = model.run(pairs.clean, read=[f"z.{layer}", f"pattern.{layer}", f"q.{layer}", f"k.{layer}", f"v.{layer}"])
    other = model.run(pairs.counterfactual, read=[f"{c}.{layer}" for c in "qkv"])
    q, k, v = (run[f"{c}.{layer}"].transpose(1, 2) for c in "qkv")
    module: Any = model.attention(layer)
    heard[layer] = AttentionCall(module, q, k, v, None, {"scaling": module.scaling})
    old = tuple(other[f"{c}.{layer}"].transpose(1, 2) for c in "qkv")
    at_end = run[f"z.{layer}"][rows, last, head]
    whole = logit_diff(ready.full, pairs)
    for channel, name in enumerate(CHANNELS):
        edge = f"a{layer}.h{head}<{name}>@{s}->{t}"
        seen: list[Tensor] = []
        o_proj = model.o_proj(layer)
        assert o_proj is not None
        handle = o_proj.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].detach()))
        logits = ready.logits(full - Circuit.of(graph, [edge]))
        handle.remove()
        change = seen[0].unflatten(-1, (graph.n_heads, -1))[rows, last, head] - at_end
        place = pairs.clean.spans[s][:, 0]
        for coordinate in range(change.shape[-1]):
            u = torch.zeros_like(run[f"z.{layer}"].transpose(1, 2))
            u[..., coordinate] = 1
            effects = crossing_effects(heard[layer], run[f"pattern.{layer}"], u, old)
            expected = effects[channel][rows, head, last, place]
            torch.testing.assert_close(change[:, coordinate], expected, rtol=0, atol=1e-6)
        lost = float((whole - logit_diff(logits, pairs)).mean())
        estimate = float(scores.flat[graph.index(edge)])
        if edge in made.truth:
            assert lost > 1 and estimate > 0.3 * lost
            assert abs(lost - estimate) > 1e-3, "first order only"
        else:
            assert abs(lost) < 0.1 and abs(estimate) < 0.1
