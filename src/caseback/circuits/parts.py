"""What circuits need of a model: each head's own weights, each norm as arithmetic, tokens in span order.

The Hugging Face modules stay as they are; this file reads their weights as [head, head_dim, d_model] views, recognises
a norm by probing it (so Gemma's 1 + weight needs no case of its own), and says by name which models circuits cannot be
exact on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caseback.circuits.graph import Graph
from caseback.core.errors import CircuitError, FamilyError
from caseback.core.memory import free_bytes
from caseback.model.batch import Batch
from caseback.model.hooks import module_at
from caseback.model.model import Model

__all__ = ["Layer", "Layout", "Norm", "graph_of", "layers_of", "require_memory"]

PLACE_BYTES = 32
"""Bytes for one place of a graph's arrays in the step that takes most: 4 of scores and 28 of a best-first selection."""

_HALF = (torch.float16, torch.bfloat16)


def _wide(x: Tensor) -> Tensor:
    """In float32 where squares would overflow or blur; the model's own norms do the same."""
    return x.float() if x.dtype in _HALF else x


@dataclass(frozen=True)
class Norm:
    """y = weight ⊙ n + bias with n = c(x)/√(mean c(x)² + eps), where c removes the mean (LayerNorm) or does nothing
    (RMSNorm)."""

    module: nn.Module
    weight: Float[Tensor, "d"]
    bias: Float[Tensor, "d"]
    eps: float
    centred: bool

    @staticmethod
    def of(module: nn.Module, d: int) -> Norm | None:
        """The norm a module computes, found by probing it; None where it is no such norm."""
        if any(isinstance(child, nn.Linear) for child in module.modules()):
            return None
        like = next(iter(module.parameters()), torch.zeros(()))
        own, module = module, copy.deepcopy(module).float()  # half precision would blur what the probes show
        with torch.no_grad():
            probe = torch.randn((4, d), generator=torch.Generator().manual_seed(0)).to(like.device)
            zero, one, signs = torch.zeros_like(probe[0]), torch.ones_like(probe[0]), torch.ones_like(probe[0])
            signs[::2] = -1
            bias, flat, swing = module(zero), module(1e3 * one), module(1e3 * signs)
            centred = bool(torch.allclose(flat, bias, atol=1e-4))
            weight = (swing - bias) * signs if centred else flat - bias
            if centred and d % 2:
                return None
            eps = next(
                (
                    float(vars(module)[name])
                    for name in ("eps", "variance_epsilon", "epsilon")
                    if isinstance(vars(module).get(name), float | int)
                ),
                None,
            )
            if eps is None:  # y = weight c/√(c² + eps) at a small c gives it away (OLMo keeps it nowhere)
                eps = 1e-6 * float(((weight * signs / (module(1e-3 * signs) - bias)).square() - 1).median())
            norm = Norm(own, weight.to(like), bias.to(like), eps, centred)
            n, _ = norm.unit(probe)
            return norm if torch.allclose(weight * n + bias, module(probe), rtol=1e-4, atol=1e-5) else None

    def unit(self, x: Float[Tensor, "*rows d"]) -> tuple[Tensor, Tensor]:
        """(n, 1/√(mean c(x)² + eps)), the second with a last axis of 1."""
        wide = _wide(x)
        wide = wide - wide.mean(dim=-1, keepdim=True) if self.centred else wide
        inverse = (wide.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return (wide * inverse).to(x.dtype), inverse.to(x.dtype)

    def scale(self, x: Float[Tensor, "*rows d"]) -> Tensor:
        """1/√(mean c(x)² + eps), with a last axis of 1."""
        if self.centred:
            square = _wide(x).var(dim=-1, keepdim=True, correction=0)
        else:
            wide = torch.float32 if x.dtype in _HALF else x.dtype
            square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
        return (square + self.eps).rsqrt().to(x.dtype)

    def fold(self, weight: Float[Tensor, "*rows d"]) -> Tensor:
        """A linear map that reads y, made to read n: W ⊙ weight, its mean over d removed where the norm removes x's."""
        folded = weight * self.weight
        return folded - folded.mean(dim=-1, keepdim=True) if self.centred else folded

    def pull_(self, g: Float[Tensor, "*rows token d"], x: Float[Tensor, "token d"], weight: float) -> None:
        """g = weight · Jᵀg in place, for gradients already folded: (g − n (n·g)/d) / scale, J the Jacobian at x."""
        n, inverse = self.unit(x)
        dot = torch.einsum("...td,td->...t", g, n)
        g.addcmul_(dot[..., None] / n.shape[-1], n, value=-1).mul_(inverse * weight)

    def push(self, delta: Float[Tensor, "*rows d"], n: Tensor, inverse: Tensor) -> Tensor:
        """J δ = weight ⊙ (c(δ) − n (n·δ)/d) / scale."""
        delta = delta - delta.mean(dim=-1, keepdim=True) if self.centred else delta
        return self.weight * inverse * torch.addcmul(delta, (delta * n).mean(dim=-1, keepdim=True), n, value=-1)


@dataclass(frozen=True)
class Layer:
    """One block's parts, per head. Views of the model's weights where its layout allows."""

    block: nn.Module
    attn_norm: Norm | None
    mlp_norm: Norm | None
    post_norm: Norm | None
    """Norm between the output projection and the stream."""
    projections: tuple[nn.Module, ...]
    columns: tuple[Int[Tensor, "_ _"], ...] | None
    """Columns of a fused projection that make q, k, v; None where there are three projections."""
    w_q: Float[Tensor, "head key_dim d"]
    w_k: Float[Tensor, "kv_head key_dim d"]
    w_v: Float[Tensor, "kv_head value_dim d"]
    b_q: Float[Tensor, "head key_dim"] | None
    b_k: Float[Tensor, "kv_head key_dim"] | None
    b_v: Float[Tensor, "kv_head value_dim"] | None
    w_o: Float[Tensor, "head value_dim d"]
    o_proj: nn.Module
    mlp: nn.Module
    writers: tuple[nn.Module, nn.Module]
    wide_norms: tuple[nn.Module | None, nn.Module | None, None]
    """Norms over all heads' queries, all heads' keys, behind the projections (OLMo 2): there a head's q depends on the
    others' rows."""

    def shares(
        self, z: Float[Tensor, "head token value_dim"], inverse: Tensor | None, scale: float
    ) -> Float[Tensor, "head token d"]:
        """What each head adds to the stream, biases left out: z W_O, shared out by the run's own norm scale where a
        post-norm follows."""
        written = torch.bmm(z, self.w_o)
        if self.post_norm is not None:
            assert inverse is not None
            written = (
                (written - written.mean(dim=-1, keepdim=True) if self.post_norm.centred else written)
                * inverse
                * self.post_norm.weight
            )
        return written if scale == 1 else written * scale


def graph_of(model: Model, spans: tuple[str, ...], *, grouped: bool = True) -> Graph:
    """The graph of a model under a schema; raises FamilyError where circuits are not exact on its family, CircuitError
    where its scores would not fit into the free memory."""
    require(model)
    graph = Graph(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        spans=spans,
        parallel=model.family.parallel,
        grouped=grouped,
    )
    require_memory(graph)
    return graph


def require_memory(graph: Graph) -> None:
    """Raise CircuitError, with the numbers, for a graph that cannot be scored and selected from in the free memory.

    Arithmetic alone: nothing of the graph's size is made. What is free is Linux's word for it; elsewhere, the machine's
    memory.
    """
    needed, free = PLACE_BYTES * graph.n_index, free_bytes()
    if needed <= free:
        return
    linear, square = graph.n_writers * graph.n_readers, 3 * graph.n_layers * graph.n_heads
    most = int((math.sqrt(linear**2 + 4 * square * free / PLACE_BYTES) - linear) / (2 * square))
    way = f"a schema of at most {most} spans fits" if most else "not one span fits: take a smaller model"
    raise CircuitError(
        f"a graph of {graph.n_spans} spans × {graph.n_writers:,} writers × {graph.n_readers:,} readers takes "
        f"{needed / 1e9:.2g} GB to score and select from, and {free / 1e9:.2g} GB are free; {way}"
    )


def require(model: Model) -> None:
    """Raise FamilyError, with the reason, for a family without circuits."""
    family = model.family
    if not family.circuits or family.attention != "registered" or family.post_scale or len(family.writes) != 2:
        raise FamilyError(
            f"{family.name} has no circuits: {family.why_not or 'its blocks are not attention plus MLP'}; `caseback "
            "model families` lists those that have"
        )


def layers_of(model: Model) -> list[Layer]:
    """The parts of every block; raises FamilyError, naming the block, for one that is not attention plus MLP behind RMS
    or layer norms."""
    require(model)
    return [_layer(model, number) for number in range(model.n_layers)]


def _layer(model: Model, number: int) -> Layer:
    family, block, d = model.family, model.blocks[number], model.d_model

    def refuse(what: str) -> FamilyError:
        return FamilyError(
            f"circuits need every block of {family.name} to be attention plus MLP, but {what} of block {number}"
        )

    def norm(path: str | None) -> Norm | None:
        if path is None:
            return None
        module = module_at(block, path)
        found = Norm.of(module, d) if module is not None else None
        if found is None:
            raise refuse(f"{path} is not an RMS or layer norm")
        return found

    attention, o_proj, mlp = model.attention(number), model.o_proj(number), module_at(block, family.mlp)
    writers = tuple(module_at(block, path) for path in family.writes)
    if attention is None or o_proj is None or mlp is None or None in writers:
        raise refuse("attention or MLP is missing")
    post_norm = None if writers[0] is attention else norm(family.writes[0])
    projections = tuple(model.projections(number))
    heads = (model.n_heads, model.n_kv_heads, model.n_kv_heads)
    if len(projections) == 1:
        columns = _columns(family.fused, model.n_heads, model.n_kv_heads, _weight(projections[0]).shape[0])
        weight, bias = _weight(projections[0]), _bias(projections[0])
        weights = [weight[c] for c in columns]
        biases = [None if bias is None else bias[c] for c in columns]
    else:
        columns = None
        weights = [_weight(p).unflatten(0, (n, -1)) for p, n in zip(projections, heads, strict=True)]
        flat = [_bias(p) for p in projections]
        biases = [None if b is None else b.unflatten(0, (n, -1)) for b, n in zip(flat, heads, strict=True)]
    return Layer(
        block=block,
        attn_norm=norm(family.attn_norm),
        mlp_norm=norm(family.mlp_norm),
        post_norm=post_norm,
        projections=projections,
        columns=columns,
        w_q=weights[0],
        w_k=weights[1],
        w_v=weights[2],
        b_q=biases[0],
        b_k=biases[1],
        b_v=biases[2],
        w_o=_weight(o_proj).unflatten(1, (model.n_heads, -1)).permute(1, 2, 0),
        o_proj=o_proj,
        mlp=mlp,
        writers=writers,  # type: ignore[arg-type]
        wide_norms=_wide_norms(attention, weights[0].shape[1], refuse),
    )


def _weight(module: Any) -> Float[Tensor, "out in"]:
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _bias(module: Any) -> Float[Tensor, "out"] | None:
    return None if module.bias is None else module.bias.detach()


def _wide_norms(
    attention: nn.Module, head_dim: int, refuse: Callable[[str], FamilyError]
) -> tuple[nn.Module | None, nn.Module | None, None]:
    wide = {}
    for name, child in attention.named_children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and weight.numel() > head_dim:
            wide[name] = child
    if unknown := set(wide) - {"q_norm", "k_norm"}:
        raise refuse(f"a norm over all heads ({', '.join(unknown)}) stands in the attention")
    return wide.get("q_norm"), wide.get("k_norm"), None


def _columns(fused: str, heads: int, kv_heads: int, width: int) -> tuple[Tensor, ...]:
    """Rows of a fused weight that make q [head, dim], k and v [kv_head, dim]."""
    dim = width // (heads + 2 * kv_heads)
    rows = torch.arange(width)
    if fused == "qkv":
        q, k, v = rows.split([heads * dim, kv_heads * dim, kv_heads * dim])
        return q.view(heads, dim), k.view(kv_heads, dim), v.view(kv_heads, dim)
    if fused in ("heads", "groups"):
        per_group = rows.view(kv_heads, heads // kv_heads + 2, dim)
        return per_group[:, :-2].reshape(heads, dim), per_group[:, -2], per_group[:, -1]
    raise FamilyError(f"circuits do not know the column order {fused!r} of a fused q, k, v projection")


@dataclass(frozen=True)
class Layout:
    """The real tokens of a batch, ordered by span, so that a span is a slice."""

    rows: Int[Tensor, "token"]
    places: Int[Tensor, "token"]
    starts: tuple[int, ...]
    """Span s is tokens starts[s] to starts[s + 1]."""
    span_of: Int[Tensor, "batch pos"]
    """Span of every token; -1 at padding."""
    lengths: Int[Tensor, "batch span"]
    last: Int[Tensor, "batch"]
    """Where each row's last token stands in this order."""

    @property
    def n(self) -> int:
        return len(self.rows)

    def slice(self, span: int) -> slice:
        return slice(self.starts[span], self.starts[span + 1])

    def gather(self, value: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "token *rest"]:
        return value[self.rows, self.places]

    @staticmethod
    def of(batch: Batch, spans: tuple[str, ...]) -> Layout:
        """Raises CircuitError where the spans do not cover every real token exactly once."""
        n, width = batch.ids.shape
        places = torch.arange(width, device=batch.ids.device)
        if len(spans) == 1 and spans[0] not in batch.spans:
            span_of = torch.where(batch.mask, 0, -1)
        else:
            missing = [name for name in spans if name not in batch.spans]
            if missing:
                raise CircuitError(f"the batch has no span {missing[0]!r}; it has: {', '.join(batch.spans) or 'none'}")
            span_of = torch.full((n, width), -1, device=batch.ids.device)
            covered = torch.zeros_like(span_of)
            for number, name in enumerate(spans):
                inside = (places >= batch.spans[name][:, :1]) & (places < batch.spans[name][:, 1:])
                span_of[inside] = number
                covered += inside
            wrong = ((covered != 1) & batch.mask) | (covered.bool() & ~batch.mask)
            if wrong.any():
                row, place = wrong.nonzero()[0].tolist()
                raise CircuitError(
                    f"token {place} of pair {row} lies in {int(covered[row, place])} spans; spans must cover every "
                    f"token once (spans: {', '.join(spans)})"
                )
        rows, where = batch.mask.nonzero(as_tuple=True)
        order = torch.argsort(span_of[rows, where], stable=True)
        rows, where = rows[order], where[order]
        counts = torch.bincount(span_of[rows, where], minlength=len(spans))
        starts = (0, *counts.cumsum(0).tolist())
        lengths = torch.stack([(span_of == s).sum(dim=1) for s in range(len(spans))], dim=1)
        is_last = where == batch.last.to(where.device)[rows]
        last = torch.empty(n, dtype=torch.long, device=rows.device)
        last[rows[is_last]] = is_last.nonzero()[:, 0]
        if bool((last < starts[-2]).any()):
            row = int((last < starts[-2]).nonzero()[0])
            raise CircuitError(
                f"the last token of pair {row} lies outside the last span, {spans[-1]!r}, where the logits are read"
            )
        return Layout(rows, where, starts, span_of, lengths, last)
