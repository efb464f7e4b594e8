"""Position-aware edge scores: what each edge carries, times what its reader makes of it.

Residual edge u → v at a token (EAP, arXiv 2310.10348; per position PEAP Eq. 1, arXiv 2502.04577), with Δ_u = z_u − z*_u
(clean minus reference):

    score = Δ_u · g_v,     g_v = ∂M/∂in(v)   the part of the gradient that flows through reader v alone

Crossing edge inside head h from token s to t (PEAP Eqs. 3–6 in closed form, notes by the same letters), u_t = ∂M/∂z_t,
A the clean pattern:

    V_ts = A_ts u_t·(v*_s − v_s)
    K_ts = c(q_t·(k*_s − k_s)/√d) (u_t·v_s − u_t·z_t)          c(δ) = A expm1 δ / (1 + A expm1 δ)
    Q_ts = c((q*_t − q_t)·k_s/√d) (u_t·v_s − u_t·z_t)          score = −V, −K, −Q

so a positive score supports the answer. One forward of the reference, one of the clean prompt, one backward; with
`steps` m > 1 the gradients are means over m points between the reference and the clean embedding (EAP-IG inputs, arXiv
2403.17806), which costs m forwards and backwards and still one product.

g_v needs no copies of the stream: the gradient at the q, k, v projections goes back through the head's own weight rows
and the norm's Jacobian, by hand. The tokens of a span lie side by side over the batch, so all edges of a span are one
matrix product. Cost: 3 forwards and 2·tokens·d·edges flops; memory (writers + readers)·tokens·d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caseback.circuits.graph import Graph, Scores
from caseback.circuits.parts import Layer, Layout, graph_of, layers_of
from caseback.circuits.reference import Activations, Mean, Reference, mean_reference, reference_of
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.model.attention import AttentionCall
from caseback.model.grad import Captured, capture
from caseback.model.model import Model
from caseback.model.taps import Key
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of
from caseback.tasks.task import Task

__all__ = ["ScoreConfig", "batches", "score"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How edges are scored."""

    reference: Reference = "counterfactual"
    """What a removed edge would carry instead."""
    steps: int = 1
    """1: EAP, the gradient at the clean prompt; m > 1: EAP-IG (inputs) with m gradient points k/m, k = 1 … m."""
    grouped: bool = True
    """Key and value readers per KV head; False: per query head."""
    tokens: int = 320
    """Tokens processed at a time; bounds the memory."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tokens < 1:
            raise CircuitError(f"steps and tokens are whole numbers of at least 1, not {self.steps} and {self.tokens}")
        if self.reference not in ("counterfactual", "mean", "zero"):
            raise CircuitError(f"there is no reference {self.reference!r}; there are: counterfactual, mean, zero")


OVERHEAD = 28
"""What a forward costs besides its tokens, in tokens: weights are read once however few there are."""


def by_length(pairs: PairBatch) -> tuple[PairBatch, np.ndarray]:
    """Short prompts first, so that a batch holds little padding; and where each pair went, to bring results back."""
    order = torch.argsort(pairs.clean.lengths, stable=True)
    return pairs[order.tolist()], torch.argsort(order).cpu().numpy()


def batches(pairs: PairBatch, tokens: int) -> Iterator[PairBatch]:
    """The pairs in order, cut where it costs least: at most `tokens` tokens a batch with padding (but at least one pair),
    each batch as many tokens as its rows times its longest, plus OVERHEAD."""
    lengths = pairs.clean.lengths.tolist()
    cost, starts = [0.0], [0]  # of the best way to cut the first i pairs; where its last batch starts
    for after in range(1, len(lengths) + 1):
        best, begin, width = math.inf, after - 1, 0
        for start in range(after - 1, -1, -1):
            width = max(width, lengths[start])
            room = (after - start) * width
            if room > tokens and start < after - 1:
                break
            if cost[start] + OVERHEAD + room < best:
                best, begin = cost[start] + OVERHEAD + room, start
        cost.append(best)
        starts.append(begin)
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    for start, after in pairwise(reversed(cuts)):
        yield pairs[start:after]


def encoded(model: Model, pairs: PairBatch | Task) -> PairBatch:
    """Pairs as this model's tokens: a task is encoded, a batch is taken as it is."""
    return pairs.encode(model) if isinstance(pairs, Task) else pairs


def span_names(pairs: PairBatch) -> tuple[str, ...]:
    """The spans of a batch in order; one for everything where it has none."""
    return tuple(pairs.clean.spans) or ("all",)


def score(
    model: Model,
    pairs: PairBatch | Task,
    config: ScoreConfig | None = None,
    *,
    mean: Mean | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score every edge of the graph on some pairs: signed sums inside spans, signed mean over pairs (PEAP Eq. 8).

    `mean` gives the means of the "mean" reference; without it they are taken over these pairs. Raises FamilyError where
    circuits are not exact on the model's family and CircuitError where spans do not cover the prompts.
    """
    config = config or ScoreConfig()
    pairs = encoded(model, pairs)
    # says what is wrong with which pair, before they are put in another order
    Layout.of(pairs.clean, span_names(pairs))
    pairs, place = by_length(pairs)
    graph = graph_of(model, span_names(pairs), grouped=config.grouped)
    layers = layers_of(model)
    residual, crossing = np.zeros(graph.residual_shape), np.zeros(graph.crossing_shape)
    lengths: list[np.ndarray] = []
    if config.reference == "mean" and mean is None:
        mean = mean_reference(model, layers, batches(pairs, config.tokens), graph.spans)
    done = 0
    for chunk in batches(pairs, config.tokens):
        found = Flows.of(model, layers, graph, chunk.to(model.device), config, mean)
        residual += found.residual()
        crossing += found.crossing()
        lengths.append(found.layout.lengths.cpu().numpy())
        del found  # or two batches' flows stand side by side
        done += chunk.n
        progress("score", done, pairs.n)
    residual *= graph.residual_allowed
    residual[:-1, :, graph.logits] = 0
    return Scores(
        graph=graph,
        residual=(residual / pairs.n).astype(np.float32),
        crossing=(crossing * graph.crossing_allowed / pairs.n).astype(np.float32),
        lengths=np.concatenate(lengths).astype(np.float64)[place],
        method={"name": "EAP" if config.steps == 1 else "EAP-IG (inputs)", "metric": pairs.metric, **asdict(config)},
    )


@dataclass(frozen=True)
class Flows:
    """Δ of every writer and g of every reader at every token of a batch, and what the heads compared."""

    graph: Graph
    layout: Layout
    delta: Float[Tensor, "writer token d"]
    gradient: Float[Tensor, "reader token d"]
    """All readers but the logits."""
    final: Float[Tensor, "batch d"]
    """g of the logits, at each row's last token."""
    calls: list[AttentionCall]
    patterns: list[Float[Tensor, "batch head pos pos"]]
    u: list[Float[Tensor, "batch pos head value_dim"]]
    reference: Activations
    metric: Float[Tensor, "batch"]

    @staticmethod
    def of(
        model: Model, layers: list[Layer], graph: Graph, pairs: PairBatch, config: ScoreConfig, mean: Mean | None = None
    ) -> Flows:
        """Run the batch: the reference, the clean prompts with gradients (and the points between)."""
        layout = Layout.of(pairs.clean, graph.spans)
        reference = reference_of(model, layers, pairs, layout, config.reference, mean)
        readers = model.hf.get_input_embeddings().weight.new_empty((graph.n_readers - 1, layout.n, model.d_model))
        tap = _Pass(model, layers, graph, pairs, layout)
        tap.run(None, readers, weight=1 / config.steps)  # the clean prompt itself first, then the points before it
        delta, clean_embed, calls, patterns = tap.delta(reference), tap.clean_embed, tap.calls, tap.patterns
        metric = tap.metric
        for step in range(config.steps - 1, 0, -1):
            embed = torch.lerp(reference.embed, clean_embed, step / config.steps)
            tap.run(embed, readers, weight=1 / config.steps)
        return Flows(graph, layout, delta, readers, tap.final, calls, patterns, tap.u, reference, metric)

    def residual(self) -> Float[np.ndarray, "span writer reader"]:
        """Σ over tokens and pairs of Δ_u · g_v: one product per span and block of layers."""
        graph, per = self.graph, self.graph.readers_per_layer
        out = self.delta.new_zeros(graph.residual_shape)
        block = 4
        for first in range(0, graph.n_layers, block):
            after = min(first + block, graph.n_layers)
            n_before = graph.writer(after - 1) if not graph.parallel else graph.writer(after - 1, 0)
            readers = slice(first * per, after * per)
            for s in range(graph.n_spans):
                tokens = self.layout.slice(s)
                if tokens.start == tokens.stop:
                    continue
                a, b = self.delta[:n_before, tokens].flatten(1), self.gradient[readers, tokens].flatten(1)
                out[s, :n_before, readers] = a @ b.T
        out[-1, :, graph.logits] = torch.einsum("wbd,bd->w", self.delta[:, self.layout.last], self.final)
        return out.double().cpu().numpy()

    def crossing(self) -> Float[np.ndarray, "3 layer head span_t span_s"]:
        """Σ over token pairs and prompts of −Q, −K, −V."""
        graph = self.graph
        span_of = self.layout.span_of
        member = torch.nn.functional.one_hot(span_of.clamp(min=0), graph.n_spans) * (span_of >= 0)[..., None]
        member = member.to(self.delta)
        out = np.zeros(graph.crossing_shape)
        for layer, (call, pattern, u) in enumerate(zip(self.calls, self.patterns, self.u, strict=True)):
            reference = (self.reference.q[layer], self.reference.k[layer], self.reference.v[layer])
            effects = crossing_effects(call, pattern, u.transpose(1, 2), reference)
            out[:, layer] = -torch.einsum("cbhts,btx,bsy->chxy", effects, member, member).double().cpu().numpy()
        return out


def crossing_effects(
    call: AttentionCall,
    pattern: Float[Tensor, "batch head t s"],
    u: Float[Tensor, "batch head t value_dim"],
    reference: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, "3 batch head t s"]:
    """Exact change of u_t·z_t when one query-key logit takes q*, one key is k*, one value is v* (see the head of this
    file). Where A is 1 within round-off, what the other tokens would get is lost: the smaller 1 − A, the less is known of
    a logit that falls, and at A = 1 the change counts as 0."""
    A, rep = pattern, call.q.shape[1] // call.k.shape[1]
    q, k, v = (
        call.q.detach(),
        call.k.detach().repeat_interleave(rep, dim=1),
        call.v.detach().repeat_interleave(rep, dim=1),
    )
    q_, k_, v_ = reference[0], reference[1].repeat_interleave(rep, dim=1), reference[2].repeat_interleave(rep, dim=1)
    logit = q @ k.transpose(-1, -2) * call.scaling
    uv = u @ v.transpose(-1, -2)
    toward = uv - (A * uv).sum(dim=-1, keepdim=True)  # u_t·v_s − u_t·z_t
    cap = call.options.get("softcap")

    def c(other: Tensor) -> Tensor:
        delta = other - logit if cap is None else cap * (torch.tanh(other / cap) - torch.tanh(logit / cap))
        fall = -delta.abs()  # numerator and denominator times e^-δ where δ > 0, so that nothing overflows
        part = -A * torch.expm1(fall)
        changed = torch.where(delta > 0, part / (fall.exp() + part), part / (part - 1))
        return torch.where((A > 0) & (A < 1), changed, 0.0)

    Q = c(q_ @ k.transpose(-1, -2) * call.scaling) * toward
    K = c(q @ k_.transpose(-1, -2) * call.scaling) * toward
    V = A * (u @ (v_ - v).transpose(-1, -2))
    return torch.stack([Q, K, V])


def _ungrouped(call: AttentionCall, posts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The family's attention with a key and a value for every query head."""
    module: Any = call.module
    groups = module.num_key_value_groups
    module.num_key_value_groups = 1
    try:
        return call.eager(posts["q"], posts["k"], posts["v"])
    finally:
        module.num_key_value_groups = groups


class _Pass:
    """One forward and backward with everything kept that the readers' gradients need."""

    def __init__(self, model: Model, layers: list[Layer], graph: Graph, pairs: PairBatch, layout: Layout):
        self.model, self.layers, self.graph, self.pairs, self.layout = model, layers, graph, pairs, layout
        self.by_head = (
            not graph.grouped
            and model.n_kv_heads < model.n_heads
            or any(norm is not None for layer in layers for norm in layer.wide_norms)
        )
        """Whether q, k, v must be pulled back reader by reader (a local vector-Jacobian product each)."""
        self.calls: list[AttentionCall] = []
        self.patterns: list[Tensor] = []
        self.final = torch.zeros(())
        self.u: list[Tensor] = []

    def run(self, embed: Tensor | None, readers: Float[Tensor, "reader token d"], *, weight: float) -> None:
        """Add this point's reader gradients, times `weight`, to `readers`; keep calls, patterns and values of this
        point."""
        model, every = self.model, range(self.model.n_layers)
        inner: dict[int, tuple[AttentionCall, Tensor, dict[str, Tensor]]] = {}

        def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            posts = {"q": call.q, "k": call.k, "v": call.v}
            rep = call.q.shape[1] // call.k.shape[1]
            if not self.graph.grouped and rep > 1:
                posts |= {name: posts[name].repeat_interleave(rep, dim=1) for name in "kv"}
                z, pattern = _ungrouped(call, posts)
            else:
                z, pattern = call.eager(call.q, call.k, call.v)
            inner[call.layer] = (call, pattern, posts)
            return z, pattern

        raw = ["qkv_raw"] if self.layers[0].columns is not None else ["q_raw", "k_raw", "v_raw"]
        valued = ["resid_pre", "attn_out", "mlp_out"]
        wanted = [*raw, "mlp_in", "z"]
        at: list[Key] = [*((name, layer) for name in wanted for layer in every), ("resid_final", None)]
        keys: list[Key] = [*((name, layer) for name in valued for layer in every), *at]
        kept = capture(model, self.pairs.clean, keys, embed=embed, attend=attend)
        with torch.enable_grad():  # also inside a caller's no_grad
            metric = metric_of(self.pairs.metric)(kept.logits, self.pairs)
            total = metric.sum()
        targets = [kept.values[key] for key in at]
        if self.by_head:
            targets += [inner[layer][2][name] for layer in every for name in "qkv"]
        found = torch.autograd.grad(total, targets, retain_graph=self.by_head)
        gradient = dict(zip(at, found, strict=False))
        posts = iter(found[len(at) :])
        model.cost.backwards += self.pairs.n
        first = not self.u
        for layer in every:
            part = self.layers[layer]
            pre = kept.values["resid_pre", layer].detach()
            mid = pre if self.graph.parallel else pre + kept.values["attn_out", layer].detach()
            block = readers[layer * self.graph.readers_per_layer :][: self.graph.readers_per_layer]
            out = block if first else torch.empty_like(block)
            if self.by_head:
                self._heads_by_vjp(kept, layer, inner[layer][2], dict(zip("qkv", posts, strict=False)), raw, out[:-1])
            else:
                self._heads(gradient, layer, raw, out[:-1])
            mlp = self.layout.gather(gradient["mlp_in", layer])
            out[-1] = mlp if part.mlp_norm is None else part.mlp_norm.fold(mlp)
            for norm, readers_of, x in ((part.attn_norm, out[:-1], pre), (part.mlp_norm, out[-1:], mid)):
                if norm is None:
                    readers_of *= weight
                else:
                    norm.pull_(readers_of, self.layout.gather(x), weight)
            if not first:
                block += out
        last = torch.arange(self.pairs.n), self.pairs.clean.last
        self.final = self.final + weight * gradient["resid_final", None][last]
        new_u = [gradient["z", layer] * weight for layer in every]
        self.u = [old + new for old, new in zip(self.u, new_u, strict=True)] if self.u else new_u
        self.calls = [inner[layer][0] for layer in every]
        self.patterns = [inner[layer][1].detach() for layer in every]
        self.values = {key: value.detach() for key, value in kept.values.items()}
        self.clean_embed, self.metric = self.values["resid_pre", 0], metric.detach()

    def _heads(
        self, gradient: dict[Key, Tensor], layer: int, raw: Sequence[str], out: Float[Tensor, "reader token d"]
    ) -> None:
        """out = W_q[h]ᵀ ∂M/∂q_h and the like for k and v, the norm's weight folded in."""
        part = self.layers[layer]
        weights = (part.w_q, part.w_k, part.w_v)
        if part.columns is not None:
            flat = self.layout.gather(gradient["qkv_raw", layer])
            found = [flat[:, columns] for columns in part.columns]
        else:
            found = [
                self.layout.gather(gradient[name, layer]).unflatten(-1, (w.shape[0], -1))
                for name, w in zip(raw, weights, strict=True)
            ]
        for g, w, rows in zip(found, weights, out.split([w.shape[0] for w in weights]), strict=True):
            torch.bmm(g.transpose(0, 1), w if part.attn_norm is None else part.attn_norm.fold(w), out=rows)

    def _heads_by_vjp(
        self,
        kept: Captured,
        layer: int,
        posts: dict[str, Tensor],
        gradients: dict[str, Tensor],
        raw: Sequence[str],
        out: Float[Tensor, "reader token d"],
    ) -> None:
        """The same by one local vector-Jacobian product a reader, from the head's q, k or v back to the projection:
        right also where a norm spans the heads and where query heads share a key or value."""
        part, readers = self.layers[layer], iter(out)
        for number, (name, w) in enumerate(zip("qkv", (part.w_q, part.w_k, part.w_v), strict=True)):
            source = kept.values[raw[0] if part.columns is not None else raw[number], layer]
            flat = w.flatten(0, 1) if part.attn_norm is None else part.attn_norm.fold(w.flatten(0, 1))
            for head in range(posts[name].shape[1]):
                cotangent = torch.zeros_like(gradients[name])
                cotangent[:, head] = gradients[name][:, head]
                (pulled,) = torch.autograd.grad(posts[name], source, cotangent, retain_graph=True)
                rows = self.layout.gather(pulled)
                rows = rows[:, part.columns[number].flatten()] if part.columns is not None else rows
                torch.mm(rows, flat, out=next(readers))

    def delta(self, reference: Activations) -> Float[Tensor, "writer token d"]:
        """Δ_u = clean − reference of every writer; a head's passes the Jacobian of a norm that follows it."""
        graph, gather, scale = self.graph, self.layout.gather, self.model.write_scale
        out = self.clean_embed.new_empty((graph.n_writers, self.layout.n, self.model.d_model))
        out[0] = gather(self.clean_embed - reference.embed)
        for layer, part in enumerate(self.layers):
            first = graph.writer(layer, 0)
            z = gather(self.values["z", layer] - reference.z[layer]).transpose(0, 1)
            heads = out[first : first + graph.n_heads]
            torch.bmm(z, part.w_o, out=heads)
            if part.post_norm is not None:
                with torch.no_grad():
                    n, inverse = part.post_norm.unit(gather(part.o_proj(self.values["z", layer].flatten(-2))))
                heads.copy_(part.post_norm.push(heads, n, inverse))
            if scale != 1:
                heads *= scale
            out[first + graph.n_heads] = gather(self.values["mlp_out", layer] - reference.mlp_out[layer])
        return out
