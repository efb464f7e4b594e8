"""The ablated forward written edge by edge, with no plan and no shortcut: what `circuits.ablate` and `circuits.score` are held against.

Every reader gets a copy of its block for itself: in(v) is the sum over writers of g · current + (1 − g) · reference, one gate g
an edge and span, and the block's own modules make q, k, v or the MLP's output of it. Whoever has no incoming edge gives its
reference value. The references are read by `Model.run`, the means are taken token by token, and no weight is read by hand. As
gates are tensors, the derivative of the metric with respect to an edge's gate is autograd's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caseback.circuits.check import random_pairs
from caseback.circuits.graph import Circuit, Graph
from caseback.circuits.parts import graph_of
from caseback.model.attention import AttentionCall, listening
from caseback.model.hooks import module_at
from caseback.model.model import Model
from caseback.model.run import Run
from caseback.tasks.encode import PairBatch
from caseback.zoo.tiny import tiny

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "gpt_oss", "phi3", "granite", "mixtral"]
"""Grouped heads; fused; parallel; post-norms, softcap and window; wide QK-norm; sinks and experts; fused and grouped;
scaled writes; experts."""


@cache
def model_of(name: str) -> Model:
    """One tiny random model a family and process."""
    return Model(tiny(name))


@cache
def pairs_of(name: str, seed: int = 0) -> PairBatch:
    """Three random pairs of 7, 5 and 7 tokens in the spans "same" (2 tokens, equal in both prompts), "middle", "end" (1)."""
    return random_pairs(model_of(name), seed=seed)


def by_token(pairs: PairBatch) -> PairBatch:
    """Pairs of one length with a span for every token, the two prompts different everywhere."""
    rows = [row for row in range(pairs.n) if int(pairs.clean.lengths[row]) == pairs.clean.ids.shape[1]]
    pairs = pairs[rows]
    n, width = pairs.clean.ids.shape
    spans = {f"t{i}": torch.tensor([[i, i + 1]] * n) for i in range(width)}
    other = replace(pairs.counterfactual, ids=pairs.counterfactual.ids.roll(1, dims=1), spans=spans)
    return replace(pairs, clean=replace(pairs.clean, spans=spans), counterfactual=other)


def some_circuit(graph: Graph, share: float, seed: int) -> Circuit:
    """Each edge with probability `share`, and some nodes without any incoming edge."""
    draw = np.random.default_rng(seed)
    residual = draw.random(graph.residual_shape) < share
    residual &= draw.random((graph.n_spans, 1, graph.n_readers)) > 0.15
    crossing = draw.random(graph.crossing_shape) < share
    crossing &= draw.random((1, *graph.crossing_shape[1:4], 1)) > 0.15
    return Circuit.from_flat(graph, np.concatenate([residual.ravel(), crossing.ravel()]) & graph.allowed)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Equal up to a share of the largest value."""
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


class _Compared(Exception):  # noqa: N818 - a signal
    """The queries, keys and values are known; the rest of the block is not wanted."""


class Plain:
    """A batch of pairs on a model of any family with circuits: `logits(gates, crossing)`."""

    READS = ("resid_pre.0", "z.*", "attn_out.*", "mlp_out.*", "q.*", "k.*", "v.*", "pattern.*")

    def __init__(self, model: Model, pairs: PairBatch, reference: str = "counterfactual", mixing: str = "exact"):
        self.model, self.pairs, self.mixing = model, pairs, mixing
        self.graph = graph_of(model, tuple(pairs.clean.spans))
        self.span = torch.full(pairs.clean.ids.shape, 0)
        for number, ranges in enumerate(pairs.clean.spans.values()):
            for row, (start, end) in enumerate(ranges.tolist()):
                self.span[row, start:end] = number
        self.old = dict(model.run(pairs.counterfactual, read=self.READS).values)
        self.calls: dict[int, AttentionCall] = {}
        self.arguments = self._arguments()
        if reference == "zero":
            self.old = {site: torch.zeros_like(value) for site, value in self.old.items()}
        if reference == "mean":
            means = {True: self._mean_pattern, False: self._mean}
            self.old = {site: means["pattern" in site](value) for site, value in self.old.items()}
        clean, other = (model.run(batch, read=self.READS) for batch in (pairs.clean, pairs.counterfactual))
        self.new: dict[str, Tensor] = {}
        self.constant = [self._constant(layer, clean) for layer in range(model.n_layers)]
        """Attention's biases: they belong to no head."""
        self.old_scale: list[Tensor | None] = [None] * model.n_layers
        """The mean of the post-norms' scales, where the reference is a mean; a run has its own."""
        if reference == "mean":
            scales = [self.scale(layer, other[f"z.{layer}"]) for layer in range(model.n_layers)]
            self.old_scale = [None if scale is None else self._mean(scale) for scale in scales]

    def _mean(self, value: Tensor) -> Tensor:
        """Every token's value replaced by the mean over the tokens of its span, of all rows."""
        out, real = value.clone(), self.pairs.clean.mask
        for number in range(self.graph.n_spans):
            inside = (self.span == number) & real
            if inside.any():
                out[inside] = value[inside].mean(dim=0)
        return out

    def _mean_pattern(self, value: Tensor) -> Tensor:
        """Every pair of tokens gets the mean over the pairs of the same two spans, the later token looking at the earlier."""
        out, real = torch.zeros_like(value), self.pairs.clean.mask
        causal = torch.ones(value.shape[-2:], dtype=torch.bool).tril()
        for t in range(self.graph.n_spans):
            for s in range(t + 1):
                rows, columns = (self.span == t) & real, (self.span == s) & real
                inside = rows[:, :, None] & columns[:, None, :] & causal
                for head in range(value.shape[1]):
                    if inside.any():
                        out[:, head][inside] = value[:, head][inside].mean()
        return out

    @torch.no_grad()
    def _constant(self, layer: int, clean: Run) -> Tensor:
        shares = self.shares(layer, clean[f"z.{layer}"])
        constant = (clean[f"attn_out.{layer}"] - sum(shares))[self.pairs.clean.mask]
        assert float(constant.std(dim=0).max()) < 1e-4, "the same at every token"
        return constant[0] if float(constant.abs().max()) > 1e-4 else torch.zeros(self.model.d_model)

    def _arguments(self) -> list[tuple[Any, Any]]:
        """What each block is given beside the stream."""
        seen: list[tuple[Any, Any]] = []
        handles = [
            block.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args[1:], kwargs)), with_kwargs=True)
            for block in self.model.blocks
        ]
        with listening(self.model.hf, lambda call: call.eager(call.q, call.k, call.v)), torch.no_grad():
            self.model.hf(**self.model.arguments(self.pairs.clean), use_cache=False)
        for handle in handles:
            handle.remove()
        return seen

    # --- nodes ---------------------------------------------------------------------------------------------------------

    def compared(self, layer: int, stream: Tensor) -> AttentionCall:
        """The attention call the block itself makes of a stream."""

        def attend(call: AttentionCall) -> Any:
            self.calls[layer] = call
            raise _Compared

        rest, named = self.arguments[layer]
        named = {key: value for key, value in named.items() if key != "hidden_states"}
        try:
            with listening(self.model.hf, attend):
                self.model.blocks[layer](stream, *rest, **named)
        except _Compared:
            pass
        return self.calls[layer]

    def scale(self, layer: int, z: Tensor) -> Tensor | None:
        """Gain ⊙ scale of the norm behind the output projection, which is that of all heads together; None without."""
        model = self.model
        norm: Any = module_at(model.blocks[layer], model.family.writes[0])
        if norm is model.attention(layer):
            return None
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        total = model.o_proj(layer)(z.flatten(2))  # type: ignore[misc]
        gain = norm(torch.ones(model.d_model)).detach() * (1 + eps) ** 0.5
        return gain * (total.square().mean(dim=-1, keepdim=True) + eps).rsqrt()

    def shares(self, layer: int, z: Tensor, scale: Tensor | None = None) -> list[Tensor]:
        """What each head adds to the stream, by its output projection with the other heads silent."""
        model = self.model
        o_proj = model.o_proj(layer)
        assert o_proj is not None
        silent = o_proj(torch.zeros_like(z).flatten(2))
        written = []
        for head in range(model.n_heads):
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head]
            written.append(o_proj(alone.flatten(2)) - silent)
        scale = self.scale(layer, z) if scale is None else scale
        if scale is not None:
            written = [value * scale for value in written]
        return [value * model.write_scale for value in written]

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        family, block = self.model.family, self.model.blocks[layer]
        norm = module_at(block, family.mlp_norm) if family.mlp_norm else None
        mlp, write = module_at(block, family.mlp), module_at(block, family.writes[1])
        assert mlp is not None and write is not None
        out = mlp(stream if norm is None else norm(stream))
        out = out[0] if isinstance(out, tuple) else out
        return (out if write is mlp else write(out)) * self.model.write_scale

    # --- the forward ---------------------------------------------------------------------------------------------------

    def circuit(self, circuit: Circuit) -> Tensor:
        with torch.no_grad():
            return self.logits(torch.tensor(circuit.residual).float(), torch.tensor(circuit.crossing))

    def logits(self, gates: Tensor, crossing: Tensor) -> Tensor:
        """Gates [span, writer, reader], 1 = kept; crossing [3, layer, head, t, s], True = kept."""
        graph, model, span = self.graph, self.model, self.span
        old: list[Tensor] = [self.old["resid_pre.0"]]
        now: list[Tensor] = [model.run(self.pairs.clean, read=["resid_pre.0"], stop=0)["resid_pre.0"]]
        self.new = {}
        base: Tensor | float = 0.0

        def stream(reader: int) -> tuple[Tensor, Tensor]:
            """in(v), and at which tokens some incoming edge is kept."""
            allowed = [u for u in range(len(now)) if graph.residual_allowed[u, reader]]
            total = torch.zeros_like(now[0]) + base
            for u in allowed:
                gate = gates[span, u, reader][..., None]
                total = total + gate * now[u] + (1 - gate) * old[u]
            return total, (gates[:, allowed, reader] > 0).any(dim=1)[span]

        for layer in range(model.n_layers):
            q, k, v = (self.old[f"{name}.{layer}"].clone() for name in "qkv")
            for name, value, count in (("q", q, graph.n_heads), ("k", k, graph.n_kv_heads), ("v", v, graph.n_kv_heads)):
                for head in range(count):
                    total, active = stream(graph.reader(layer, name, head))
                    found = getattr(self.compared(layer, total), name).transpose(1, 2)
                    value[:, :, head] = torch.where(active[..., None], found[:, :, head], value[:, :, head])
            z = self.attend(layer, q, k, v, crossing[:, layer])
            self.new[f"z.{layer}"] = z
            written = self.shares(layer, z), self.shares(layer, self.old[f"z.{layer}"], self.old_scale[layer])
            parallel_base = base
            if not graph.parallel:
                now, old = now + written[0], old + written[1]
                base = base + self.constant[layer]
            total, active = stream(graph.reader(layer, "mlp"))
            added = torch.where(active[..., None], self.mlp(layer, total), self.old[f"mlp_out.{layer}"])
            if graph.parallel:
                now, old = now + written[0], old + written[1]
                base = parallel_base + self.constant[layer]
            now, old = [*now, added], [*old, self.old[f"mlp_out.{layer}"]]
            self.new[f"mlp_out.{layer}"] = added
        total, _ = stream(graph.logits)
        rows, last = torch.arange(self.pairs.n), self.pairs.clean.last
        self.new["resid_final"] = total
        return self.unembed(total)[rows, last]

    def unembed(self, stream: Tensor) -> Tensor:
        """From the last stream to the logits: the model's own way, by starting it at its last block with the block passed over."""
        family, model = self.model.family, self.model
        logits = model.module(family.unembed)(model.module(family.final_norm)(stream))
        config = model.config
        if family.logit_multiplier:
            logits = logits * getattr(config, family.logit_multiplier)
        if family.logit_divisor:
            logits = logits / getattr(config, family.logit_divisor)
        if family.logit_softcap and (cap := getattr(config, family.logit_softcap)):
            logits = cap * torch.tanh(logits / cap)
        return logits

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        """z from queries, keys, values [row, token, head, dim] and kept [3, head, span t, span s], head by head."""
        graph, span, out = self.graph, self.span, self.old[f"z.{layer}"].clone()
        q_, k_, v_ = (self.old[f"{name}.{layer}"] for name in "qkv")
        width = span.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        for head in range(graph.n_heads):
            group = int(graph.group[head])
            on = kept[:, head][:, span[:, :, None], span[:, None, :]] & causal  # [3, row, t, s]
            if self.mixing == "peap":
                block = on.all(dim=0)
                pattern = self.pattern(layer, head, q[:, :, head] @ k[:, :, group].transpose(1, 2))
                before = self.old[f"pattern.{layer}"][:, head]
                z = (pattern * block) @ v[:, :, group] + (before * ~block) @ v_[:, :, group]
            else:
                logit = torch.zeros(len(span), width, width)
                for use_q, qs in ((True, q), (False, q_)):
                    for use_k, ks in ((True, k), (False, k_)):
                        chosen = (on[0] == use_q) & (on[1] == use_k)
                        logit = torch.where(chosen, qs[:, :, head] @ ks[:, :, group].transpose(1, 2), logit)
                pattern = self.pattern(layer, head, logit)
                z = (pattern * on[2]) @ v[:, :, group] + (pattern * ~on[2]) @ v_[:, :, group]
            out[:, :, head] = torch.where(on.any(dim=0).any(dim=-1)[..., None], z, out[:, :, head])
        return out

    def pattern(self, layer: int, head: int, product: Tensor) -> Tensor:
        """Softmax of q·k [row, t, s] of one head with the family's scaling, softcap, mask and sink."""
        call = self.calls[layer]
        logit = product * call.scaling
        if call.options.get("softcap"):
            logit = call.options["softcap"] * (logit / call.options["softcap"]).tanh()
        assert call.mask is not None
        mask = call.mask.expand(-1, self.graph.n_heads, -1, -1)[:, head]
        weight = torch.where(mask < -1, 0.0, (logit - logit.amax(dim=-1, keepdim=True)).exp())
        total = weight.sum(dim=-1, keepdim=True)
        if (sinks := call.options.get("s_aux")) is not None:
            total = total + (sinks[head] - logit.amax(dim=-1, keepdim=True)).exp()
        return weight / total
