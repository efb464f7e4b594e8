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

from caseback.circuits.block import Block
from caseback.circuits.graph import Circuit, Graph
from caseback.circuits.parts import Layer, Layout
from caseback.circuits.reference import Mean, Reference, record, reference_of
from caseback.core.errors import CircuitError, SiteNotReached
from caseback.model.attention import AttentionCall
from caseback.model.hooks import Hooks
from caseback.model.model import Model
from caseback.model.run import execute, passing
from caseback.tasks.encode import PairBatch

__all__ = ["Ablator", "Mixing", "require_patterns"]

Mixing = Literal["exact", "peap"]


def require_patterns(mixing: Mixing, reference: Reference) -> None:
    """Raise CircuitError where the mixing needs patterns that the reference has not."""
    if mixing == "peap" and reference == "zero":
        raise CircuitError(
            "the peap mode replaces removed blocks by reference pattern × reference value: use the "
            "counterfactual or the mean reference"
        )


@dataclass(frozen=True)
class Plan:
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
    def of(circuit: Circuit, like: Tensor) -> Plan:
        graph = circuit.graph
        allowed = graph.residual_allowed
        kept = circuit.residual.sum(axis=1)
        total = allowed.sum(axis=0)
        from_stream = 2 * kept > total
        removed = (allowed & ~circuit.residual).astype(np.float32)
        weights = np.where(from_stream[:, None], -removed, circuit.residual.astype(np.float32))
        return Plan(kept > 0, kept == total, from_stream, torch.tensor(weights).to(like).transpose(1, 2))


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
        require_patterns(mixing, reference)
        self.model, self.layers, self.graph, self.mixing = model, layers, graph, mixing
        self.block_output = model.block_output  # found out by a run of its own, before any override is in place
        self.pairs = pairs.to(model.device)
        self.layout = Layout.of(self.pairs.clean, graph.spans)
        self.reference_name = reference
        self.clean = record(model, layers, self.pairs.clean)
        self.reference = reference_of(model, layers, self.pairs, self.layout, reference, mean)
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
        return Forward(self, circuit).run()


class Forward:
    """One ablated forward of one batch."""

    def __init__(self, owner: Ablator, circuit: Circuit):
        self.owner, self.circuit, self.graph = owner, circuit, owner.graph
        self.model, self.layout, self.delta = owner.model, owner.layout, owner.delta
        self.scale = owner.model.write_scale
        self.plan = Plan.of(circuit, owner.delta)
        present = [s for s in range(self.graph.n_spans) if owner.layout.starts[s] < owner.layout.starts[s + 1]]
        self.present = np.isin(np.arange(self.graph.n_spans), present)
        self.used = (self.plan.weights != 0).flatten(0, 1).any(dim=0).cpu().numpy()
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
            self.set(0, 0, owner.clean.embed, owner.reference.embed)
            for layer in range(prefix):  # the blocks before the first ablated edge run as in the clean run: take that
                leaving = streams[0][layer + 1] if layer + 1 < graph.n_layers else streams[2]
                clean = passing(self.model, self.fires(lambda value, leaving=leaving: leaving))
                hooks.instead_of(self.model.blocks[layer], clean)
                inverse = owner.clean.inverse[layer] if owner.clean.inverse else None
                self.heads_written(layer, owner.clean.z[layer], inverse)
                self.set(graph.writer(layer), layer, owner.clean.mlp_out[layer], owner.reference.mlp_out[layer])
            for layer in range(prefix, graph.n_layers):
                if self.kinds[layer] == "idle":
                    added = owner.reference.attn_out[layer] + owner.reference.mlp_out[layer]
                    adding = passing(self.model, self.fires(lambda value, added=added: value + added))
                    hooks.instead_of(self.model.blocks[layer], adding)
                else:
                    Block(self, layer).install(hooks)
            if not self.plan.whole[-1, graph.logits]:
                hooks.into(self.model.module(self.model.family.final_norm), self.fires(self._read_logits))
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

    def fires(self, function: Callable[..., Any]) -> Callable[..., Any]:
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

    def set(self, writer: int, layer: int, now: Tensor, reference: Tensor) -> None:
        if self.used[writer]:
            self.delta[writer] = self.layout.gather(now - reference)
            self.known[writer] = True

    def heads_written(self, layer: int, z: Tensor, inverse: Tensor | None) -> None:
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
