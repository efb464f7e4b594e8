"""From scores to circuits: rank every edge once, and each prefix of the ranking is a circuit.

**Best first** (PEAP's selector, arXiv 2502.04577 App. C). Start at the logits of the last span. Again and again take the
best edge into a node that is already reached; its source is then reached too, and the edges into the source become
candidates. A residual edge reaches the writer it comes from, a crossing edge the reader it starts at. The order does not
depend on when one stops, so one pass gives the circuit of every size.

Written with a heap of edges this costs a Python step per edge. Here the steps are per *node*. Edges are replaced by
their ranks by score, unique whole numbers (best 0; ties by edge index). Prim's algorithm over nodes gives the order
n_0, n_1, ... in which nodes are reached and the rank k_i of the edge that reached n_i. That fixes where every other edge
falls: between reaching n_j and n_{j+1} the heap pops just the candidates better than k_{j+1}. So an edge of rank r into
n_i is popped in the first interval j >= i with k_{j+1} >= r; that j is found for all edges at once in log2(nodes) steps
over a table of range maxima, and sorting by (j, r) gives the order. The test compares it with the heap.

Cost: the sort of all edges, one array operation over the nodes and one over the writers of a span for each node, and
log2(nodes) passes over the edges. With S spans the residual edges grow as S, the crossing edges as S^2, the nodes as S
and the search over nodes as S^2, its constant small: the sort and the passes are most of the time.

Merged mode (`merge="qkv"`, as PEAP has it): the attention input of a KV group at a span (q of its heads, k, v) is one
node, an edge into it is worth the best of its channels, and all are taken or left together; so are the three channels of a
crossing edge, which reaches the group's input at both its spans (PEAP's reaches the source span only, which leaves the
query without inputs). The unit of a ranking is then the merged edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from caseback.circuits.graph import Circuit, Graph, Scores, split_flat
from caseback.core.errors import CircuitError

__all__ = ["Merge", "Ranking", "Sign", "best_first", "entries", "largest", "prune", "shuffled", "threshold", "top_n"]

Merge = Literal["separate", "qkv"]
"""Whether the channels q, k, v are taken apart or together."""
Sign = Literal["absolute", "positive", "negative"]
"""What is best: the largest |score|, the largest score, the smallest score."""

_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The order in which edges enter a circuit."""

    graph: Graph
    rank: Int[np.ndarray, "index"]
    """When each edge is taken, from 0; edges of one unit share it; a large number where it never is."""
    n: int
    """Units in the ranking: edges, or merged edges."""

    def circuit(self, n: int, *, pruned: bool = True) -> Circuit:
        """The first n units, without their dead ends unless `pruned=False`. Raises CircuitError when there are fewer."""
        if not 0 <= n <= self.n:
            raise CircuitError(f"a circuit of the {n} best edges was asked for; this ranking has 0 to {self.n}")
        circuit = Circuit.from_flat(self.graph, self.rank < n)
        return prune(circuit) if pruned else circuit

    def circuits(self, sizes: Iterable[int], *, pruned: bool = True) -> tuple[Circuit, ...]:
        """One circuit a size, each holding the smaller ones."""
        return tuple(self.circuit(n, pruned=pruned) for n in sizes)

    def edges(self, n: int) -> Int[np.ndarray, "edges"]:
        """Indices of the edges of the first n units, best first."""
        first = np.flatnonzero(self.rank < n)
        return first[np.argsort(self.rank[first], kind="stable")]


def best_first(
    scores: Scores,
    *,
    merge: Merge = "separate",
    sign: Sign = "absolute",
    crossing: Literal["scored", "free"] = "scored",
) -> Ranking:
    """Rank by growing the circuit from the logits of the last span, best edge first.

    `crossing="free"` takes a head's crossing edges before anything else once its output is reached, which is what a
    selector does that ignores positions. Edges from which no path leads to those logits are not ranked.
    """
    graph, units = scores.graph, _Units(scores.graph, merge)
    residual, across, n_units = units.ranked(_worth(scores, sign, crossing))
    reached, ends = _reach(graph, units, residual, across)

    # When the node was reached that each unit leads into, in the shapes of the units
    into_reader = np.broadcast_to(reached[:, None, units.reader_node], residual.shape)
    into_head = np.broadcast_to(reached[:, graph.heads].transpose(1, 2, 0)[None, ..., None], across.shape)
    rank = np.concatenate([residual.ravel(), across.ravel()])
    since = np.concatenate([into_reader.ravel(), into_head.ravel()])
    taken = np.flatnonzero((rank != _NEVER) & (since != _NEVER))
    rank, since = rank[taken], since[taken]
    order = np.argsort(_interval(since, rank, ends).astype(np.int64) * n_units + rank)

    place = np.full(residual.size + across.size, _NEVER, dtype=np.int32)
    place[taken[order]] = np.arange(len(taken), dtype=np.int32)
    return Ranking(graph=graph, rank=units.spread(place), n=len(taken))


def top_n(scores: Scores, *, merge: Merge = "separate", sign: Sign = "absolute") -> Ranking:
    """Rank by score alone, wherever the edge lies; pruning then takes out what hangs in the air."""
    units = _Units(scores.graph, merge)
    residual, across, n_units = units.ranked(_worth(scores, sign, "scored"))
    return Ranking(graph=scores.graph, rank=units.spread(np.concatenate([residual.ravel(), across.ravel()])), n=n_units)


def threshold(
    scores: Scores, tau: float, *, merge: Merge = "separate", sign: Sign = "absolute", pruned: bool = True
) -> Circuit:
    """Every edge (unit) worth at least tau."""
    graph, units = scores.graph, _Units(scores.graph, merge)
    worth = units.worth(_worth(scores, sign, "scored"))
    circuit = Circuit.from_flat(graph, units.spread(worth >= tau) & graph.allowed)
    return prune(circuit) if pruned else circuit


def largest(ranking: Ranking, size: Callable[[Circuit], float], limit: float) -> Circuit:
    """The largest circuit of a ranking whose `size` is at most `limit`; `size` must not shrink when a circuit grows.

    For circuits of equal size by different selectors: `largest(r, lambda c: c.size(lengths), limit)`, or with
    `c.expand(graph).size(lengths)` where the ranking ignores positions.
    """
    low, high = 0, ranking.n
    while low < high:
        middle = (low + high + 1) // 2
        if size(ranking.circuit(middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    return ranking.circuit(low)


def shuffled(scores: Scores, seed: int) -> Scores:
    """The scores dealt out anew within each edge type (`Graph.edge_type`): the random control of a selector."""
    draw, graph = np.random.default_rng(seed), scores.graph
    flat = scores.flat.copy()
    for kind in range(8):
        places = np.flatnonzero((graph.edge_type == kind) & graph.allowed)
        flat[places] = draw.permutation(flat[places])
    return scores.with_flat(flat)


def prune(circuit: Circuit) -> Circuit:
    """The circuit without dead ends: what remains lies on a path from the embedding to the logits of the last span.

    A node counts as reached when any kept edge from a reached node leads into it: a reader by a residual edge, a head's
    output by a crossing edge whose starting reader is reached, an MLP's output by its input. The embedding is the only
    source: what a node outputs when all it reads is ablated is no signal. So pruning changes nothing under
    counterfactual ablation, where such a node gives just its counterfactual output; under mean and zero ablation it
    also removes the constant that the node makes of the references it reads. One sweep up and one down the layers is the
    fix point, because a path that leads to a kept edge is kept with it.
    """
    graph = circuit.graph
    spans, writers, readers = graph.residual_shape
    from_embedding = np.zeros((spans, writers), dtype=bool)
    from_embedding[:, 0] = True
    reader_fed = np.zeros((spans, readers), dtype=bool)
    for layer in range(graph.n_layers):
        first, mlp, out = graph.reader(layer, "q"), graph.reader(layer, "mlp"), graph.writer(layer)
        reads = circuit.residual[:, :out, first:mlp] & from_embedding[:, :out, None]
        reader_fed[:, first:mlp] = reads.any(axis=1)
        live = circuit.crossing[:, layer] & _starts(reader_fed, graph, layer)
        from_embedding[:, graph.heads[layer]] = live.any(axis=(0, 3)).T
        reader_fed[:, mlp] = (circuit.residual[:, :out, mlp] & from_embedding[:, :out]).any(axis=1)
        from_embedding[:, out] = reader_fed[:, mlp]

    to_logits = np.zeros((spans, readers), dtype=bool)
    to_logits[-1, graph.logits] = True
    writer_read = np.zeros((spans, writers), dtype=bool)
    for layer in reversed(range(graph.n_layers)):
        mlp, out = graph.reader(layer, "mlp"), graph.writer(layer)
        writer_read[:, out] = (circuit.residual[:, out, mlp + 1 :] & to_logits[:, mlp + 1 :]).any(axis=1)
        to_logits[:, mlp] = writer_read[:, out]
        heads = slice(out - graph.n_heads, out)
        writer_read[:, heads] = (circuit.residual[:, heads, mlp:] & to_logits[:, None, mlp:]).any(axis=2)
        live = circuit.crossing[:, layer] & writer_read[:, heads].T[None, :, :, None]
        to_logits[:, graph.starts[0, layer]] = live[0].any(axis=2).T
        for channel in (1, 2):
            first = graph.starts[channel, layer, 0]
            inputs = live[channel].any(axis=1).reshape(graph.n_groups, -1, spans).any(axis=1)
            to_logits[:, first : first + graph.n_groups] = inputs.T

    residual = circuit.residual & from_embedding[:, :, None] & to_logits[:, None, :]
    crossing = np.empty_like(circuit.crossing)
    for layer in range(graph.n_layers):
        ends = writer_read[:, graph.heads[layer]].T[None, :, :, None]
        crossing[:, layer] = circuit.crossing[:, layer] & _starts(reader_fed, graph, layer) & ends
    return Circuit(graph=graph, residual=residual, crossing=crossing)


def entries(ranking: Ranking) -> Int[np.ndarray, "index"]:
    """When each edge comes alive: the smallest n whose pruned circuit holds it, less one; a large number where none does.

    An edge lives once a path of taken edges leads from the embedding to its source and one from its end to the logits:
    entry = max(rank, the best worst rank to the source, and from the end on). Two sweeps over the layers.
    """
    graph = ranking.graph
    residual, crossing = (part.astype(np.int64) for part in split_flat(graph, ranking.rank))
    spans, writers, readers = graph.residual_shape
    up = np.full((spans, writers), _NEVER, dtype=np.int64)  # from the embedding to a writer
    up[:, 0] = -1
    start = np.full((spans, readers), _NEVER, dtype=np.int64)  # from the embedding to a reader
    down = np.full((spans, readers), _NEVER, dtype=np.int64)  # from a reader to the logits
    down[-1, graph.logits] = -1
    leave = np.full((spans, writers), _NEVER, dtype=np.int64)  # from a writer to the logits
    for layer in range(graph.n_layers):
        mlp, heads = graph.reader(layer, "mlp"), graph.heads[layer]
        own = slice(layer * graph.readers_per_layer, mlp)
        start[:, own] = np.maximum(residual[:, :, own], up[:, :, None]).min(axis=1)
        begin = start[:, graph.starts[:, layer]]  # [span, channel, head]
        by_head = begin.transpose(1, 2, 0)  # [channel, head, span]
        across = np.where(np.arange(3)[:, None, None, None] == 0, by_head[..., :, None], by_head[..., None, :])
        up[:, heads] = np.maximum(crossing[:, layer], across).min(axis=(0, 3)).T
        start[:, mlp] = np.maximum(residual[:, :, mlp], up).min(axis=1)
        up[:, graph.writer(layer)] = start[:, mlp]
    start[:, graph.logits] = np.maximum(residual[:, :, graph.logits], up).min(axis=1)
    end = np.empty(crossing.shape, dtype=np.int64)
    for layer in reversed(range(graph.n_layers)):
        mlp, heads = graph.reader(layer, "mlp"), graph.heads[layer]
        after = slice(mlp + 1, None)
        leave[:, graph.writer(layer)] = np.maximum(residual[:, graph.writer(layer), after], down[:, after]).min(axis=1)
        down[:, mlp] = leave[:, graph.writer(layer)]
        leave[:, heads] = np.maximum(residual[:, heads, mlp:], down[:, None, mlp:]).min(axis=2)
        end[:, layer] = np.maximum(crossing[:, layer], leave[:, heads].T[None, :, :, None])
        for c in range(3):
            for head in range(graph.n_heads):
                best = end[c, layer, head].min(axis=1 if c == 0 else 0)
                reader = graph.starts[c, layer, head]
                down[:, reader] = np.minimum(down[:, reader], best)
    alive_residual = np.maximum(np.maximum(residual, up[:, :, None]), down[:, None])
    begin = np.moveaxis(start[:, graph.starts], 0, -1)  # [channel, layer, head, span]
    alive_crossing = np.maximum(
        end, np.where(np.arange(3)[:, None, None, None, None] == 0, begin[..., :, None], begin[..., None, :])
    )
    return np.minimum(np.concatenate([alive_residual.ravel(), alive_crossing.ravel()]), _NEVER)


def _starts(fed: np.ndarray, graph: Graph, layer: int) -> np.ndarray:
    """Whether the reader at which each crossing edge of a layer starts is fed: Bool[channel, head, span t, span s]."""
    q, k, v = fed[:, graph.starts[:, layer]].transpose(1, 2, 0)  # each Bool[head, span]
    shape = (graph.n_heads, graph.n_spans, graph.n_spans)
    at_t, k_at_s, v_at_s = q[:, :, None], k[:, None, :], v[:, None, :]
    return np.stack([np.broadcast_to(start, shape) for start in (at_t, k_at_s, v_at_s)])


def _worth(scores: Scores, sign: Sign, crossing: Literal["scored", "free"]) -> Float[np.ndarray, "index"]:
    """What selection maximises, by edge index."""
    flat = scores.flat
    worth = np.abs(flat) if sign == "absolute" else flat.copy() if sign == "positive" else -flat
    if crossing == "free":
        worth[scores.graph.n_residual :] = np.inf
    return worth


class _Units:
    """What is taken or left together: single edges, or the edges into one attention input.

    Units are places too: `residual[span, writer, unit reader]` and `crossing[channel or 1, layer, head, t, s]`. The
    nodes of a span are its writers, its attention inputs and, last, the logits; an MLP's input and output are one node.
    """

    def __init__(self, graph: Graph, merge: Merge) -> None:
        self.graph = graph
        self.merged = merge == "qkv"
        kind, layer = graph.reader_kind, graph.reader_layer
        if self.merged:
            inputs = np.concatenate([graph.group, np.tile(np.arange(graph.n_groups), 2), [graph.n_groups]])
            per_layer = graph.n_groups + 1
            offsets = np.append(np.tile(inputs, graph.n_layers), 0)
            self.unit = layer * per_layer + offsets
            """The unit reader of every reader."""
        else:
            self.unit = np.arange(graph.n_readers)
        self.by_unit = np.argsort(self.unit, kind="stable")
        self.first = np.flatnonzero(np.diff(self.unit[self.by_unit], prepend=-1))
        """Where each unit reader starts in `by_unit`."""
        first = self.by_unit[self.first]
        mlp = kind[first] == 3
        self.reader_node = graph.n_writers + np.cumsum(~mlp) - 1
        """Node of every unit reader."""
        self.reader_node[mlp] = 1 + layer[first][mlp] * (graph.n_heads + 1) + graph.n_heads
        self.n_nodes = int(self.reader_node.max()) + 1
        self.residual_shape = (graph.n_spans, graph.n_writers, len(first))
        self.crossing_shape = (1 if self.merged else 3, *graph.crossing_shape[1:])

    def worth(self, worth: Float[np.ndarray, "index"]) -> Float[np.ndarray, "unit"]:
        """The worth of every unit, the best of its edges; residual units first."""
        if not self.merged:
            return worth
        graph = self.graph
        residual = worth[: graph.n_residual].reshape(graph.residual_shape)[:, :, self.by_unit]
        crossing = worth[graph.n_residual :].reshape(graph.crossing_shape)
        return np.concatenate([np.maximum.reduceat(residual, self.first, axis=2).ravel(), crossing.max(axis=0).ravel()])

    def ranked(self, worth: Float[np.ndarray, "index"]) -> tuple[np.ndarray, np.ndarray, int]:
        """Units replaced by their place in the order of worth: (residual ranks, crossing ranks, number of units)."""
        graph = self.graph
        allowed = graph.allowed
        if self.merged:
            residual = allowed[: graph.n_residual].reshape(graph.residual_shape)[:, :, self.by_unit[self.first]]
            allowed = np.concatenate(
                [residual.ravel(), np.broadcast_to(graph.crossing_allowed, self.crossing_shape).ravel()]
            )
        places = np.flatnonzero(allowed)
        rank = np.full(len(allowed), _NEVER, dtype=np.int32)
        rank[places[np.argsort(-self.worth(worth)[places], kind="stable")]] = np.arange(len(places), dtype=np.int32)
        split = int(np.prod(self.residual_shape))
        return rank[:split].reshape(self.residual_shape), rank[split:].reshape(self.crossing_shape), len(places)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value a unit → one value an edge index."""
        if not self.merged:
            return values
        split = int(np.prod(self.residual_shape))
        residual = values[:split].reshape(self.residual_shape)[:, :, self.unit]
        crossing = np.broadcast_to(values[split:].reshape(self.crossing_shape), self.graph.crossing_shape)
        return np.concatenate([residual.ravel(), crossing.ravel()])


def _reach(
    graph: Graph, units: _Units, residual: np.ndarray, across: np.ndarray
) -> tuple[Int[np.ndarray, "span node"], Int[np.ndarray, "reached"]]:
    """Prim's algorithm from the logits of the last span: when each node is reached, and the rank that ends each interval.

    `ends[j]` is the rank of the edge that reached node j + 1, or -1 where the edge before reached two nodes at once.
    """
    into_reader = np.ascontiguousarray(residual.transpose(0, 2, 1))  # Int[span, unit reader, writer]
    start = units.reader_node[units.unit[graph.starts]]  # Int[channel, layer, head], the node of the starting reader
    query = across[0].min(axis=-1)  # Int[layer, head, t]: the best edge from a query input
    reader_at = {int(node): reader for reader, node in enumerate(units.reader_node)}
    best = np.full((graph.n_spans, units.n_nodes), _NEVER, dtype=np.int32)
    done = np.zeros_like(best)  # _NEVER at reached nodes: keeps them out of `best`
    reached = np.full_like(best, _NEVER)

    ends: list[int] = []
    rank, news = _NEVER, [(graph.n_spans - 1) * units.n_nodes + units.n_nodes - 1]
    while rank != _NEVER or not ends:
        for i, place in enumerate(news):
            reached.flat[place] = len(ends)
            ends.append(rank if i == 0 else -1)
            best.flat[place] = done.flat[place] = _NEVER
        for place in news:
            span, node = divmod(int(place), units.n_nodes)
            if (reader := reader_at.get(node)) is not None:
                near = best[span, : graph.n_writers]
                np.minimum(near, into_reader[span, reader], out=near)
                np.maximum(near, done[span, : graph.n_writers], out=near)
            elif node:
                layer, head = divmod(node - 1, graph.n_heads + 1)
                best[span, start[0, layer, head]] = max(
                    min(best[span, start[0, layer, head]], query[layer, head, span]), done[span, start[0, layer, head]]
                )
                for channel in (0,) if units.merged else (1, 2):
                    at = start[channel, layer, head]
                    far = best[: span + 1, at]
                    np.minimum(far, across[channel, layer, head, span, : span + 1], out=far)
                    np.maximum(far, done[: span + 1, at], out=far)
        rank = int(best.min())
        news = np.flatnonzero(best == rank).tolist()
    return reached, np.array([*ends[1:], _NEVER], dtype=np.int32)


def _interval(
    since: Int[np.ndarray, "edge"], rank: Int[np.ndarray, "edge"], ends: Int[np.ndarray, "interval"]
) -> Int[np.ndarray, "edge"]:
    """The first interval j >= since with ends[j] >= rank, for all edges at once, by binary lifting over range maxima."""
    maxima = [ends]  # maxima[p][j] = max(ends[j : j + 2**p]), _NEVER past the end
    while 2 ** len(maxima) < len(ends):
        last, step = maxima[-1], 2 ** (len(maxima) - 1)
        shifted = np.full_like(last, _NEVER)
        shifted[:-step] = last[step:]
        maxima.append(np.maximum(last, shifted))
    at = since.copy()
    for power in reversed(range(len(maxima))):
        at += (maxima[power][at] < rank).astype(at.dtype) << power
    return at
