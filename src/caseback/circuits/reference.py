"""What a removed edge carries instead: the value of its source in a reference.

`counterfactual` takes the same tokens of the counterfactual prompt; `mean` the mean over the reference prompts' tokens
of the same span; `zero` nothing. One rule for every edge: a removed residual edge gives its reader the reference value
of the writer's output, a removed crossing edge gives the head the reference query (q), key (k) or value (v) vector,
after rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.circuits.parts import Layer, Layout
from caseback.core.errors import CircuitError
from caseback.model.attention import AttentionCall
from caseback.model.batch import Batch
from caseback.model.hooks import clone_unless_grad
from caseback.model.model import Model
from caseback.model.run import execute
from caseback.tasks.encode import PairBatch

__all__ = ["Activations", "Mean", "Reference", "mean_reference", "record", "reference_of"]

Reference = Literal["counterfactual", "mean", "zero"]


@dataclass(frozen=True)
class Activations:
    """What the writers wrote and the heads compared, per layer; all tensors detached."""

    embed: Float[Tensor, "batch pos d"]
    z: list[Float[Tensor, "batch pos head value_dim"]]
    attn_out: list[Float[Tensor, "batch pos d"]]
    mlp_out: list[Float[Tensor, "batch pos d"]]
    q: list[Float[Tensor, "batch head pos key_dim"]]
    k: list[Float[Tensor, "batch kv_head pos key_dim"]]
    v: list[Float[Tensor, "batch kv_head pos value_dim"]]
    pattern: list[Float[Tensor, "batch head pos pos"]]
    inverse: list[Float[Tensor, "batch pos 1"]]
    """Scale of the norm behind the output projection; empty where there is none."""
    logits: Float[Tensor, "batch vocab"] | None = None

    def tensors(self) -> dict[str, list[Tensor]]:
        """Per layer, by name."""
        names = ("z", "attn_out", "mlp_out", "q", "k", "v", "inverse")
        return {name: getattr(self, name) for name in names}

    def stream(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """(resid_pre of every layer, resid_mid of every layer, resid_final), as sums of what was written."""
        pre, mid, now = [], [], self.embed
        for attn_out, mlp_out in zip(self.attn_out, self.mlp_out, strict=True):
            pre.append(now)
            mid.append(now + attn_out)
            now = mid[-1] + mlp_out
        return pre, mid, now


def record(model: Model, layers: list[Layer], batch: Batch) -> Activations:
    """One plain forward, everything an edge can carry kept."""
    kept: dict[tuple[str, int | None], Tensor] = {}
    inner: dict[int, tuple[AttentionCall, Tensor]] = {}

    def keep(key: tuple[str, int | None]):  # type: ignore[no-untyped-def]
        def tap(value: Tensor) -> Tensor:
            kept[key] = clone_unless_grad(value)
            return value

        return tap

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        z, pattern = call.eager(call.q, call.k, call.v)
        inner[call.layer] = (call, pattern)
        return z, pattern

    every = range(model.n_layers)
    keys = [("resid_pre", 0), *((name, layer) for name in ("z", "attn_out", "mlp_out") for layer in every)]
    logits = execute(model, batch, {key: keep(key) for key in keys}, attend=attend)
    z = [kept["z", layer] for layer in every]
    inverse = []
    for layer, part in enumerate(layers):
        if part.post_norm is not None:
            with torch.no_grad():
                inverse.append(part.post_norm.unit(part.o_proj(z[layer].flatten(-2)))[1])
    return Activations(
        embed=kept["resid_pre", 0],
        z=z,
        attn_out=[kept["attn_out", layer] for layer in every],
        mlp_out=[kept["mlp_out", layer] for layer in every],
        q=[inner[layer][0].q for layer in every],
        k=[inner[layer][0].k for layer in every],
        v=[inner[layer][0].v for layer in every],
        pattern=[inner[layer][1] for layer in every],
        inverse=inverse,
        logits=logits,
    )


@dataclass(frozen=True)
class Mean:
    """Mean activations of every span, over the tokens of the reference prompts in it."""

    spans: tuple[str, ...]
    embed: Float[Tensor, "span d"]
    layers: dict[str, list[Tensor]]
    """Name as in `Activations` → per layer [span, ...] (q, k, v: [span, head, dim])."""
    pattern: list[Float[Tensor, "head span_t span_s"]]
    """Mean attention from a token of one span to an earlier or the same token of another (the peap mode's mean pattern)."""
    counts: Float[Tensor, "span"]
    """Reference tokens behind each span's mean."""

    def at(self, span_of: Tensor) -> Activations:
        """Spread over a batch: every token gets its span's mean."""
        index = span_of.clamp(min=0)
        empty = [self.spans[s] for s in span_of[span_of >= 0].unique().tolist() if not self.counts[s]]
        if empty:
            raise CircuitError(
                f"the mean reference has no token in span {empty[0]!r}: it is empty in every reference prompt; "
                "use the counterfactual reference, or more pairs"
            )
        spread = {name: [value[index] for value in values] for name, values in self.layers.items()}
        heads_first = {name: [value.transpose(1, 2) for value in spread.pop(name)] for name in ("q", "k", "v")}
        causal = torch.ones((span_of.shape[1],) * 2, device=span_of.device).tril()
        pairs = index[:, :, None], index[:, None, :]
        pattern = [mean[:, *pairs].transpose(0, 1) * causal for mean in self.pattern]
        return Activations(embed=self.embed[index], pattern=pattern, logits=None, **spread, **heads_first)


def mean_reference(model: Model, layers: list[Layer], batches: Iterable[PairBatch], spans: tuple[str, ...]) -> Mean:
    """The mean over the counterfactual prompts of some pairs (of the discovery split, where the circuits are found)."""
    sums: dict[str, list[Tensor]] = {}
    embed, counts = torch.zeros(()), torch.zeros(len(spans), device=model.device)
    patterns, met = [torch.zeros(())] * model.n_layers, torch.zeros((len(spans), len(spans)), device=model.device)
    for pairs in batches:
        layout = Layout.of(pairs.clean.to(model.device), spans)
        found = record(model, layers, pairs.counterfactual)
        which = layout.span_of[layout.rows, layout.places]

        def total(value: Tensor, which: Tensor = which, layout: Layout = layout) -> Tensor:
            rows = layout.gather(value)
            return torch.zeros((len(spans), *rows.shape[1:]), device=rows.device).index_add_(0, which, rows.float())

        counts += torch.bincount(which, minlength=len(spans))
        embed = embed + total(found.embed)
        for name, values in found.tensors().items():
            new = [total(value.transpose(1, 2) if name in "qkv" else value) for value in values]
            sums[name] = [old + one for old, one in zip(sums[name], new, strict=True)] if name in sums else new

        member = torch.nn.functional.one_hot(layout.span_of.clamp(min=0), len(spans)) * (layout.span_of >= 0)[..., None]
        member = member.float()
        causal = torch.ones((member.shape[1],) * 2, device=member.device).tril()
        met += torch.einsum("ts,btx,bsy->xy", causal, member, member)
        patterns = [
            old + torch.einsum("bhts,btx,bsy->hxy", new.float(), member, member)
            for old, new in zip(patterns, found.pattern, strict=True)
        ]

    def mean(value: Tensor) -> Tensor:
        return (value / counts.clamp(min=1).view(-1, *[1] * (value.dim() - 1))).to(model.hf.dtype)

    means = {name: [mean(value) for value in values] for name, values in sums.items()}
    blocks = [(total / met.clamp(min=1)).to(model.hf.dtype) for total in patterns]
    return Mean(spans, mean(embed), means, blocks, counts)


def reference_of(
    model: Model, layers: list[Layer], pairs: PairBatch, layout: Layout, reference: Reference, mean: Mean | None = None
) -> Activations:
    """The reference activations of a batch; raises CircuitError for `mean` without means."""
    if reference == "counterfactual":
        return record(model, layers, pairs.counterfactual)
    if reference == "mean":
        if mean is None:
            raise CircuitError("the mean reference needs the pairs to average over: pass `mean=mean_reference(...)`")
        return _rebuilt(mean.at(layout.span_of), layers, model.write_scale)
    if reference == "zero":
        like = record(model, layers, pairs.counterfactual[:1])
        n, width = layout.span_of.shape

        def zeros(value: Tensor, *, positions: int) -> Tensor:
            shape = [n, *value.shape[1:]]
            shape[positions] = width
            return value.new_zeros(shape)

        parts = {
            name: [zeros(value, positions=2 if name in "qkv" else 1) for value in values]
            for name, values in like.tensors().items()
        }
        return _rebuilt(
            Activations(embed=zeros(like.embed, positions=1), pattern=[], logits=None, **parts),
            layers,
            model.write_scale,
        )
    raise CircuitError(f"there is no reference {reference!r}; there are: counterfactual, mean, zero")


def _rebuilt(found: Activations, layers: list[Layer], scale: float) -> Activations:
    """attn_out as the heads' shares plus biases, so that the stream is the sum of what the nodes write."""
    for layer, part in enumerate(layers):
        with torch.no_grad():
            written = part.o_proj(found.z[layer].flatten(-2))
            if part.post_norm is not None:
                centred = written - written.mean(dim=-1, keepdim=True) if part.post_norm.centred else written
                written = centred * found.inverse[layer] * part.post_norm.weight + part.post_norm.bias
            found.attn_out[layer] = written * scale
    return found
