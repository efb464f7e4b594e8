"""One block that is partly in a circuit: its modules stay the model's own and are handed other inputs.

Order of events in a block: the stream comes in and every reader's input is put together (`_read`); the projections
give q, k, v made from those inputs; attention mixes current and reference logits and values as the kept crossing edges
say; what the heads wrote is noted; the MLP runs on the tokens it is needed at; what it wrote is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import SiteNotReached
from caseback.model.attention import AttentionCall
from caseback.model.hooks import Hooks, first_tensor, with_first_tensor

if TYPE_CHECKING:
    from caseback.circuits.ablate import Forward

__all__ = ["Block"]


class Block:
    """The overrides of one block that is partly in the circuit."""

    def __init__(self, forward: Forward, layer: int):
        self.forward, self.layer = forward, layer
        owner, graph = forward.owner, forward.graph
        self.owner, self.part, self.layout = owner, owner.layers[layer], owner.layout
        first = layer * graph.readers_per_layer
        self.readers = np.arange(first, first + graph.readers_per_layer - 1)
        self.mlp_reader = first + graph.readers_per_layer - 1
        self.heads_whole = bool(forward.plan.whole[np.ix_(forward.present, self.readers)].all())
        self.mlp_whole = bool(forward.plan.whole[forward.present, self.mlp_reader].all())
        self.mlp_spans = np.flatnonzero(forward.plan.active[:, self.mlp_reader] & forward.present).tolist()
        self.pre = self.written = torch.zeros(())
        self.seen: dict[int, Tensor] = {}
        """What the MLP sees of the writers before the block, per span."""
        self.raw: dict[str, Tensor] = {}
        self.z = torch.zeros(())
        self.inverse: Tensor | None = None

    def install(self, hooks: Hooks) -> None:
        forward, part = self.forward, self.part
        # before they are stood in for
        self.wide_norms = [None if norm is None else norm.forward for norm in part.wide_norms]
        hooks.into(part.block, forward.fires(self._enter))
        if not self.heads_whole:
            for number, projection in enumerate(part.projections):
                hooks.instead_of(projection, forward.fires(lambda x, number=number: self._projected(number)))
            for norm in part.wide_norms:
                if norm is not None:
                    hooks.instead_of(norm, forward.fires(lambda x: x))
        forward.attending[self.layer] = forward.fires(self._attend)
        if part.post_norm is not None:
            hooks.into(part.post_norm.module, forward.fires(self._post_scale))
        hooks.out_of(part.writers[0], forward.fires(self._attended))
        if not self.mlp_whole:
            hooks.instead_of(part.mlp, forward.fires(self._mlp(part.mlp.forward)))
        hooks.out_of(part.writers[1], forward.fires(self._mlp_written))

    # --- attention -----------------------------------------------------------------------------------------------------------------

    def _enter(self, value: Tensor) -> Tensor:
        self.pre = value
        self._read()
        return value

    def _read(self) -> None:
        """What the block's readers see of the writers before it, in one pass over Δ; the MLP's share is for later."""
        run, layout = self.forward, self.layout
        now, before = layout.gather(self.pre), layout.gather(self.owner.streams[0][self.layer])
        active = run.plan.active & run.present[:, None]
        readers = [] if self.heads_whole else self.readers.tolist()
        readers = [reader for reader in readers if active[:, reader].any()]
        n_heads = len(readers)
        if self.mlp_spans and not self.mlp_whole:
            readers.append(self.mlp_reader)
        chosen = np.array(readers, dtype=np.int64)
        parts, where = [], []
        for s in np.flatnonzero(active[:, chosen].any(axis=1)).tolist():
            tokens = layout.slice(s)
            from_stream = torch.tensor(run.plan.from_stream[s, chosen], device=now.device)
            base = torch.stack([before[tokens], now[tokens]])[from_stream.long()]
            run.add(base, s, tokens, chosen, 0, run.graph.writer(self.layer, 0))
            if len(chosen) > n_heads:
                self.seen[s] = base[n_heads:]
            if active[s, chosen[:n_heads]].any():
                parts.append(base[:n_heads])
                where.append(torch.arange(tokens.start, tokens.stop, device=now.device))
        if not self.heads_whole:
            self._project(chosen[:n_heads], parts, where)

    def _project(self, chosen: np.ndarray, parts: list[Tensor], where: list[Tensor]) -> None:
        """q, k, v of every active reader from its own input; zero elsewhere (the reference stands in later)."""
        graph, part, layout = self.forward.graph, self.part, self.layout
        weights, biases = (part.w_q, part.w_k, part.w_v), (part.b_q, part.b_k, part.b_v)
        n, width = self.pre.shape[:2]
        self.raw = {name: self.pre.new_zeros((n, width, *w.shape[:2])) for name, w in zip("qkv", weights, strict=True)}
        if not parts:
            return
        seen, tokens = torch.cat(parts, dim=1), torch.cat(where)
        rows, places = layout.rows[tokens], layout.places[tokens]
        norm = part.attn_norm
        inverse = seen.new_ones(()) if norm is None else norm.scale(seen)
        ends = self.readers[0] + np.cumsum([0, graph.n_heads, graph.n_groups, graph.n_groups])
        for i, (name, w, b, wide) in enumerate(zip("qkv", weights, biases, self.wide_norms, strict=True)):
            first, after = np.searchsorted(chosen, ends[i : i + 2]).tolist()  # readers are in order: a slice a channel
            if first == after:
                continue
            x, heads = seen[first:after], torch.tensor(chosen[first:after] - ends[i], device=seen.device)
            if wide is None:
                own = w[heads]
                y = torch.bmm(x, (own if norm is None else norm.fold(own)).transpose(1, 2))
                if norm is not None:  # W norm(x): weight and bias folded into W, the scale put on the product
                    y = y * inverse[first:after] + (own @ norm.bias)[:, None]
                y = y if b is None else y + b[heads][:, None]
            else:  # a norm over all heads: every head's rows from this reader's input, then this head's part
                x = x if norm is None else norm.module(x)
                flat = wide(torch.nn.functional.linear(x, w.flatten(0, 1), None if b is None else b.flatten()))
                y = flat.unflatten(-1, w.shape[:2])[torch.arange(len(heads), device=x.device), :, heads]
            self.raw[name][rows[:, None], places[:, None], heads] = y.transpose(0, 1)

    def _projected(self, number: int) -> Tensor:
        if self.part.columns is None:
            return self.raw["qkv"[number]].flatten(2)
        width = sum(columns.numel() for columns in self.part.columns)
        out = self.pre.new_zeros((*self.pre.shape[:2], width))
        for name, columns in zip("qkv", self.part.columns, strict=True):
            out[..., columns.flatten().to(out.device)] = self.raw[name].flatten(2)
        return out

    def _attend(self, call: AttentionCall) -> Tensor:
        """z with q, k, v of silent readers at their reference, and every logit and value as the kept crossing edges
        say."""
        forward, graph, reference, layer = self.forward, self.forward.graph, self.owner.reference, self.layer
        span = self.layout.span_of.clamp(min=0)
        rep = call.q.shape[1] // call.k.shape[1]
        current = []
        offset = 0
        for now, old, count in zip(
            (call.q, call.k, call.v),
            (reference.q, reference.k, reference.v),
            (graph.n_heads, graph.n_groups, graph.n_groups),
            strict=True,
        ):
            by_span = torch.tensor(forward.plan.active[:, self.readers[offset : offset + count]]).to(now.device)
            active = by_span[span].transpose(1, 2)  # [batch, head, pos]
            current.append(torch.where(active[..., None], now, old[layer]))
            offset += count
        crossing = torch.tensor(forward.circuit.crossing[:, layer]).to(call.q.device)
        if bool((crossing.all(dim=(0, 1)) >= torch.tensor(graph.crossing_allowed).to(crossing.device)).all()):
            self.z = call.eager(*current)[0]
        else:
            masks = crossing[:, :, span[:, :, None], span[:, None, :]].transpose(1, 2)  # [3, batch, head, t, s]
            q, k, v = current[0], *(value.repeat_interleave(rep, dim=1) for value in current[1:])
            q_, k_, v_ = (
                reference.q[layer],
                *(value[layer].repeat_interleave(rep, dim=1) for value in (reference.k, reference.v)),
            )
            if self.owner.mixing == "peap":
                kept = masks.all(dim=0)
                pattern = _softmax(call, q @ k.transpose(-1, -2))
                z = ((pattern * kept) @ v + (reference.pattern[layer] * ~kept) @ v_).transpose(1, 2)
            else:
                on_q, on_k, on_v = masks
                logit = torch.where(on_k, q @ k.transpose(-1, -2), q @ k_.transpose(-1, -2))
                logit_ = torch.where(on_k, q_ @ k.transpose(-1, -2), q_ @ k_.transpose(-1, -2))
                pattern = _softmax(call, torch.where(on_q, logit, logit_))
                z = ((pattern * on_v) @ v + (pattern * ~on_v) @ v_).transpose(1, 2)
            # token by token: an edge from a span that is empty in a row, or that lies ahead, keeps nothing alive there
            kept_rows = masks.any(dim=0).tril().any(dim=-1)  # [batch, head, t]
            self.z = torch.where(kept_rows.transpose(1, 2)[..., None], z, reference.z[layer])
        return self.z

    def _post_scale(self, value: Tensor) -> Tensor:
        assert self.part.post_norm is not None
        self.inverse = self.part.post_norm.unit(value)[1]
        return value

    def _attended(self, value: Tensor) -> Tensor:
        self.written = value if self.forward.scale == 1 else value * self.forward.scale
        self.forward.heads_written(self.layer, self.z, self.inverse)
        return value

    # --- MLP -----------------------------------------------------------------------------------------------------------------------

    def _mlp(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The MLP on the tokens where some incoming edge is kept, each seeing what its edges bring; zero elsewhere (the
        reference stands in afterwards)."""

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            layout = self.layout
            # without active tokens run it on some all the same: its output's form is its own business
            spans = self.mlp_spans or np.flatnonzero(self.forward.present)[:1].tolist()
            seen = torch.cat([self._with_own_heads(s) for s in spans], dim=1)
            where = torch.cat([torch.arange(layout.starts[s], layout.starts[s + 1]) for s in spans]).to(x.device)
            output = own(seen if self.part.mlp_norm is None else self.part.mlp_norm.module(seen), *args, **kwargs)
            some = first_tensor(output)
            all_tokens = some.new_zeros((*self.pre.shape[:2], some.shape[-1]))
            all_tokens[layout.rows[where], layout.places[where]] = some.reshape(-1, some.shape[-1])
            return with_first_tensor(output, all_tokens.reshape(*x.shape[:-1], -1))  # OPT flattens its tokens

        return forward

    def _with_own_heads(self, span: int) -> Float[Tensor, "1 token d"]:
        """What the MLP sees at a span: what it saw before the block, and of the block's own attention what is kept."""
        tokens, graph = self.layout.slice(span), self.forward.graph
        rows, places = self.layout.rows[tokens], self.layout.places[tokens]
        seen = self.seen.get(span)
        if seen is None:  # no edge is kept here
            return self.pre[rows, places][None]
        if graph.parallel:
            return seen
        reader, first = self.mlp_reader, graph.writer(self.layer, 0)
        wrote = (
            self.written if self.forward.plan.from_stream[span, reader] else self.owner.reference.attn_out[self.layer]
        )
        if not wrote.dim():
            raise SiteNotReached(
                f"block {self.layer} ran its MLP before its attention wrote anything: it calls its parts otherwise than "
                f"the row of {self.forward.model.family.name} says"
            )
        base = seen + wrote[rows, places]
        return self.forward.add(base, span, tokens, np.array([reader]), first, first + graph.n_heads)

    def _mlp_written(self, value: Tensor) -> Tensor:
        reference = self.owner.reference.mlp_out[self.layer]
        by_span = torch.tensor(self.forward.plan.active[:, self.mlp_reader]).to(value.device)
        active = by_span[self.layout.span_of.clamp(min=0)]  # [batch, pos]
        added = torch.where(active[..., None], value.reshape(reference.shape) * self.forward.scale, reference)
        self.forward.set(self.forward.graph.writer(self.layer), self.layer, added, reference)
        return (added if self.forward.scale == 1 else added / self.forward.scale).reshape(value.shape)


def _softmax(call: AttentionCall, product: Float[Tensor, "batch head t s"]) -> Float[Tensor, "batch head t s"]:
    """q·k → pattern, with the family's scaling, softcap, mask and sinks (as its eager attention does; `model check`
    compares the two)."""
    logit = product * call.scaling
    if (cap := call.options.get("softcap")) is not None:
        logit = cap * torch.tanh(logit / cap)
    if call.mask is not None:
        logit = logit + call.mask[..., : logit.shape[-1]]
    sinks = call.options.get("s_aux")
    if sinks is None:
        return torch.softmax(logit, dim=-1, dtype=torch.float32).to(product.dtype)
    with_sink = torch.cat([logit, sinks.view(1, -1, 1, 1).expand(*logit.shape[:3], 1).to(logit)], dim=-1)
    return torch.softmax(with_sink, dim=-1, dtype=torch.float32)[..., :-1].to(product.dtype)
