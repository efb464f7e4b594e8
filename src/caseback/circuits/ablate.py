"""Running a model with nothing but a circuit: every edge outside it carries its source's reference value.

What a reader sees (notes by the same letters; Δ_u = current − reference output of writer u):

    in(v) = reference stream + Σ_{u kept} Δ_u         where few edges are kept
    in(v) = current stream   − Σ_{u removed} Δ_u      where few are removed           (the same thing)

Inside a head, per token pair: each logit takes the query and the key that are kept or their references, one softmax,
then the values kept or their references. A node none of whose incoming edges is kept gives its reference value. So the
empty circuit is the reference run and the full circuit the clean run, exactly.

The Hugging Face modules do the computing; they are only handed other inputs. Work follows the circuit: blocks it does
not touch are passed over, MLPs run on the tokens they are needed at, and sums run over kept (or removed) edges only.
Every override is counted, and one that did not fire raises.

`peap` mode repeats what the published PEAP code does instead inside heads: the pattern stays the current one, and a
removed span pair contributes reference pattern × reference value, not renormalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caseback.circuits.graph import Circuit, Graph
from caseback.circuits.parts import Layer, Layout
from caseback.circuits.reference import Mean, Reference, record, reference_of
from caseback.core.errors import CircuitError, SiteNotReached
from caseback.model.attention import AttentionCall
from caseback.model.hooks import Hooks, first_tensor, with_first_tensor
from caseback.model.model import Model
from caseback.model.run import execute, passing
from caseback.tasks.encode import PairBatch

__all__ = ["Ablator", "Mixing"]

Mixing = Literal["exact", "peap"]


@dataclass(frozen=True)
class _Plan:
    """What a circuit asks of every reader."""

    active: np.ndarray
    """[span, reader]: some incoming edge is kept."""
    whole: np.ndarray
    """[span, reader]: every incoming edge is kept."""
    from_stream: np.ndarray
    """[span, reader]: start from the current stream and take away, rather than from the reference and add."""
    weights: Tensor
    """[span, reader, writer]: +1 to add Δ, −1 to take it away."""

    @staticmethod
    def of(circuit: Circuit, like: Tensor) -> _Plan:
        graph = circuit.graph
        allowed = graph.residual_allowed
        kept = circuit.residual.sum(axis=1)
        total = allowed.sum(axis=0)
        from_stream = 2 * kept > total
        removed = (allowed & ~circuit.residual).astype(np.float32)
        weights = np.where(from_stream[:, None], -removed, circuit.residual.astype(np.float32))
        return _Plan(kept > 0, kept == total, from_stream, torch.tensor(weights).to(like).transpose(1, 2))


class Ablator:
    """A batch of pairs made ready: `logits(circuit)` is one ablated forward. The clean and the reference run are made
    once and shared by all circuits."""

    def __init__(
        self,
        model: Model,
        layers: list[Layer],
        graph: Graph,
        pairs: PairBatch,
        *,
        reference: Reference = "counterfactual",
        mixing: Mixing = "exact",
        mean: Mean | None = None,
    ):
        if not graph.grouped and graph.n_kv_heads < graph.n_heads:
            raise CircuitError(
                "circuits are ablated with key and value readers per KV head; score with grouped=True to evaluate"
            )
        if mixing == "peap" and reference == "zero":
            raise CircuitError(
                "the peap mode replaces removed blocks by reference pattern × reference value: use the "
                "counterfactual or the mean reference"
            )
        self.model, self.layers, self.graph, self.mixing = model, layers, graph, mixing
        self.block_output = model.block_output  # found out by a run of its own, before any override is in place
        self.pairs = pairs.to(model.device)
        self.layout = Layout.of(self.pairs.clean, graph.spans)
        self.reference_name = reference
        self.clean = record(model, layers, self.pairs.clean)
        self.reference = reference_of(model, layers, self.pairs, self.layout, reference, mean)
        if mixing == "peap" and not self.reference.pattern:
            self.reference.pattern.extend(self._mean_patterns())
        self.clean_streams, self.streams = self.clean.stream(), self.reference.stream()
        self.delta = self.clean.embed.new_empty((graph.n_writers, self.layout.n, model.d_model))

    @property
    def full(self) -> Float[Tensor, "batch vocab"]:
        """Logits of the whole model on the clean prompts."""
        assert self.clean.logits is not None
        return self.clean.logits

    def empty(self) -> Float[Tensor, "batch vocab"]:
        """Logits of the empty circuit, which is the reference run."""
        return self.reference.logits if self.reference.logits is not None else self.logits(Circuit.empty(self.graph))

    def logits(self, circuit: Circuit) -> Float[Tensor, "batch vocab"]:
        """Last-token logits with every edge outside the circuit ablated; raises SiteNotReached if any override did not
        fire."""
        if circuit.graph != self.graph:
            raise CircuitError(
                f"the circuit's graph has spans {', '.join(circuit.graph.spans)}, the batch's "
                f"{', '.join(self.graph.spans)}; expand or rescore it"
            )
        return _Forward(self, circuit).run()

    def _mean_patterns(self) -> list[Tensor]:
        """Patterns of the mean queries and keys, for the peap mode with the mean reference."""
        raise CircuitError("the peap mode needs a reference run with patterns: use the counterfactual reference")


class _Forward:
    """One ablated forward of one batch."""

    def __init__(self, owner: Ablator, circuit: Circuit):
        self.owner, self.circuit, self.graph = owner, circuit, owner.graph
        self.model, self.layout, self.delta = owner.model, owner.layout, owner.delta
        self.scale = owner.model.write_scale
        self.plan = _Plan.of(circuit, owner.delta)
        present = [s for s in range(self.graph.n_spans) if owner.layout.starts[s] < owner.layout.starts[s + 1]]
        self.present = np.isin(np.arange(self.graph.n_spans), present)
        used = self.plan.weights.abs().sum(dim=(0, 1)).cpu().numpy() > 0
        self.used = used
        """Writers whose Δ some reader needs."""
        self.known = np.zeros(self.graph.n_writers, dtype=bool)
        """Writers whose Δ stands in the buffer; the others' is zero."""
        self.silent = np.zeros(self.graph.n_writers, dtype=bool)
        """Writers without Δ whose place in the buffer holds zeros."""
        self.planned = self.fired = 0
        self.kinds = [self._kind(layer) for layer in range(self.graph.n_layers)]
        self.attending: dict[int, Callable[[AttentionCall], Tensor]] = {}

    def _kind(self, layer: int) -> Literal["idle", "whole", "partial"]:
        graph = self.graph
        readers = slice(layer * graph.readers_per_layer, (layer + 1) * graph.readers_per_layer)
        crossing = self.circuit.crossing[:, layer][..., self.present, :][..., self.present]
        allowed = graph.crossing_allowed[self.present][:, self.present]
        if self.plan.whole[self.present, readers].all() and (crossing == allowed).all():
            return "whole"
        if not self.plan.active[self.present, readers].any() and (
            self.owner.reference_name == "counterfactual" or not crossing.any()
        ):
            return "idle"
        return "partial"

    # --- the run -------------------------------------------------------------------------------------------------------------------

    def run(self) -> Tensor:
        owner, graph, streams = self.owner, self.graph, self.owner.clean_streams
        prefix = next((layer for layer, kind in enumerate(self.kinds) if kind != "whole"), graph.n_layers)
        with self.model.lock, Hooks() as hooks, torch.no_grad():
            self._set(0, 0, owner.clean.embed, owner.reference.embed)
            for layer in range(prefix):  # the blocks before the first ablated edge run as in the clean run: take that
                leaving = streams[0][layer + 1] if layer + 1 < graph.n_layers else streams[2]
                clean = passing(self.model, self._fires(lambda value, leaving=leaving: leaving))
                hooks.instead_of(self.model.blocks[layer], clean)
                inverse = owner.clean.inverse[layer] if owner.clean.inverse else None
                self._heads_written(layer, owner.clean.z[layer], inverse)
                self._set(graph.writer(layer), layer, owner.clean.mlp_out[layer], owner.reference.mlp_out[layer])
            for layer in range(prefix, graph.n_layers):
                if self.kinds[layer] == "idle":
                    added = owner.reference.attn_out[layer] + owner.reference.mlp_out[layer]
                    adding = passing(self.model, self._fires(lambda value, added=added: value + added))
                    hooks.instead_of(self.model.blocks[layer], adding)
                else:
                    _Block(self, layer).install(hooks)
            if not self.plan.whole[-1, graph.logits]:
                hooks.into(self.model.module(self.model.family.final_norm), self._fires(self._read_logits))
            try:
                logits = execute(self.model, owner.pairs.clean, {}, attend=self._attend)
            finally:
                self.attending.clear()  # these closures and this object hold each other, and much memory
        if self.fired != self.planned:
            raise SiteNotReached(
                f"{self.fired} of {self.planned} planned overrides fired in the ablated forward: the blocks of "
                f"{self.model.family.name} call their parts otherwise than its row says"
            )
        assert logits is not None
        return logits

    def _fires(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Plan one override, and note when it happens."""
        self.planned += 1

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.fired += 1
            return function(*args, **kwargs)

        return counted

    def _attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        own = self.attending.get(call.layer)
        return (call.eager(call.q, call.k, call.v)[0], None) if own is None else (own(call), None)

    # --- writers -------------------------------------------------------------------------------------------------------------------

    def _set(self, writer: int, layer: int, now: Tensor, reference: Tensor) -> None:
        if self.used[writer]:
            self.delta[writer] = self.layout.gather(now - reference)
            self.known[writer] = True

    def _heads_written(self, layer: int, z: Tensor, inverse: Tensor | None) -> None:
        """Δ of the layer's heads that some reader needs."""
        graph, owner, part = self.graph, self.owner, self.owner.layers[layer]
        first = graph.writer(layer, 0)
        writers = slice(first, first + graph.n_heads)
        if not self.used[writers].any():
            return
        if part.post_norm is None:
            heads = part.shares(self.layout.gather(z - owner.reference.z[layer]).transpose(0, 1), None, self.scale)
        else:
            assert inverse is not None
            now = part.shares(self.layout.gather(z).transpose(0, 1), self.layout.gather(inverse), self.scale)
            before = part.shares(
                self.layout.gather(owner.reference.z[layer]).transpose(0, 1),
                self.layout.gather(owner.reference.inverse[layer]),
                self.scale,
            )
            heads = now - before
        self.delta[writers] = heads
        self.known[writers] = True

    # --- readers -------------------------------------------------------------------------------------------------------------------

    def add(
        self, base: Tensor, span: int, tokens: slice | Tensor, readers: np.ndarray, first: int, after: int
    ) -> Float[Tensor, "reader token d"]:
        """Add ±Δ of the writers `first` … `after` − 1 to what some readers see, in place."""
        known = np.flatnonzero(self.known[first:after]) + first
        if not len(known):
            return base
        stop = int(known[-1]) + 1
        weights = self.plan.weights[span, torch.tensor(readers, device=base.device), first:stop]
        wanted = (weights != 0).any(dim=0).cpu().numpy() & self.known[first:stop]
        writers = np.flatnonzero(wanted)
        if not len(writers):
            return base
        if isinstance(tokens, slice) and 3 * len(writers) > stop - first:  # most of a range: its slice is a view
            self._silence(first, stop)
            delta = self.delta[first:stop, tokens]
        else:
            chosen = torch.tensor(writers, device=base.device)
            delta = self.delta[first:stop, tokens][chosen]
            weights = weights[:, chosen]
        base.view(len(base), -1).addmm_(weights, delta.flatten(1))
        return base

    def _silence(self, first: int, stop: int) -> None:
        """Writers of a range whose Δ was never set have none: make the buffer say so."""
        for writer in (np.flatnonzero(~(self.known[first:stop] | self.silent[first:stop])) + first).tolist():
            self.delta[writer] = 0
            self.silent[writer] = True

    def _read_logits(self, value: Tensor) -> Tensor:
        layout, graph = self.layout, self.graph
        rows, places = layout.rows[layout.last], layout.places[layout.last]
        start = value if self.plan.from_stream[-1, graph.logits] else self.owner.streams[2]
        new = self.add(start[rows, places][None], -1, layout.last, np.array([graph.logits]), 0, graph.n_writers)
        out = value.clone()
        out[rows, places] = new[0]
        return out


class _Block:
    """The overrides of one block that is partly in the circuit."""

    def __init__(self, forward: _Forward, layer: int):
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
        hooks.into(part.block, forward._fires(self._enter))
        if not self.heads_whole:
            for number, projection in enumerate(part.projections):
                hooks.instead_of(projection, forward._fires(lambda x, number=number: self._projected(number)))
            for norm in part.wide_norms:
                if norm is not None:
                    hooks.instead_of(norm, forward._fires(lambda x: x))
        forward.attending[self.layer] = forward._fires(self._attend)
        if part.post_norm is not None:
            hooks.into(part.post_norm.module, forward._fires(self._post_scale))
        hooks.out_of(part.writers[0], forward._fires(self._attended))
        if not self.mlp_whole:
            hooks.instead_of(part.mlp, forward._fires(self._mlp(part.mlp.forward)))
        hooks.out_of(part.writers[1], forward._fires(self._mlp_written))

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
        kept_rows = crossing.any(dim=0).any(dim=-1)[:, span].transpose(0, 1)  # [batch, head, pos]
        if bool((crossing.all(dim=(0, 1)) >= torch.tensor(graph.crossing_allowed).to(crossing.device)).all()):
            z = call.eager(*current)[0]
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
        self.z = torch.where(kept_rows.transpose(1, 2)[..., None], z, reference.z[layer])
        return self.z

    def _post_scale(self, value: Tensor) -> Tensor:
        assert self.part.post_norm is not None
        self.inverse = self.part.post_norm.unit(value)[1]
        return value

    def _attended(self, value: Tensor) -> Tensor:
        self.written = value if self.forward.scale == 1 else value * self.forward.scale
        self.forward._heads_written(self.layer, self.z, self.inverse)
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
        base = seen + wrote[rows, places]
        return self.forward.add(base, span, tokens, np.array([reader]), first, first + graph.n_heads)

    def _mlp_written(self, value: Tensor) -> Tensor:
        reference = self.owner.reference.mlp_out[self.layer]
        by_span = torch.tensor(self.forward.plan.active[:, self.mlp_reader]).to(value.device)
        active = by_span[self.layout.span_of.clamp(min=0)]  # [batch, pos]
        added = torch.where(active[..., None], value.reshape(reference.shape) * self.forward.scale, reference)
        self.forward._set(self.forward.graph.writer(self.layer), self.layer, added, reference)
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
