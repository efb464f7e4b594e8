"""The graph whose edges a circuit keeps: what may read from what, in a transformer cut into spans.

A *writer* (the embedding, a head, an MLP) adds to the residual stream of one span; a *reader* (a head's query, key or
value input, an MLP, the logits) reads it there. A **residual edge** (writer, reader, span) joins the two inside a span.
A **crossing edge** (channel, layer, head, t, s) lies inside one head and carries span s to span t: it starts at the
head's query input at t (channel q) or at its KV group's key or value input at s (channels k, v) and ends at the head's
output at t. So a path from the embedding to the logits enters a head by a residual edge and leaves
it by a crossing one.

Nothing here is an object per edge. An edge is a place in two dense arrays, `residual[span, writer, reader]` and
`crossing[channel, layer, head, t, s]`; its *index* is its place in the one after the other, both raveled. Scores and
circuits are such arrays over the same graph. The invariant: a place the graph does not allow is in no circuit.

With grouped KV heads (the default) a key or value reader belongs to a KV head; `grouped=False` gives every query head
its own. Crossing edges are per query head either way. A graph of one span ignores positions. Conventions are PEAP's
(arXiv 2502.04577), except that the logits are read at the last span only, where the metric looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from caseback.core.errors import CircuitError

__all__ = ["CHANNELS", "Circuit", "Graph", "Scores", "split_flat"]

CHANNELS = ("q", "k", "v")
"""The channels of a crossing edge, in array order."""

_ARROW = "->"


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Every edge of a model cut into spans, as index arithmetic.

    Writers, in order: the embedding, then per layer its heads and its MLP. Readers, in order: per layer q of every
    head, k of every KV head, v of every KV head, the MLP; last the logits.
    """

    n_layers: int
    """Blocks, at least 1."""
    n_heads: int
    """Query heads a block."""
    n_kv_heads: int
    """Key/value heads a block; divides `n_heads`."""
    spans: tuple[str, ...] = ("all",)
    """Names of the spans in order, unique, without '->'. One span: the graph ignores positions."""
    parallel: bool = False
    """Parallel blocks: an MLP does not read the heads of its own layer."""
    grouped: bool = True
    """Key and value readers per KV head; False: per query head."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "n_kv_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CircuitError(f"a graph needs {name} to be a whole number of at least 1, not {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise CircuitError(f"{self.n_heads} heads cannot be shared by {self.n_kv_heads} KV heads evenly")
        if not self.spans or not all(self.spans) or len(set(self.spans)) < len(self.spans):
            raise CircuitError(f"the spans of a graph must be unique and named, at least one; got {list(self.spans)}")
        if arrows := [span for span in self.spans if _ARROW in span]:
            raise CircuitError(f"the span name {arrows[0]!r} contains '->', which parts an edge's ends: rename it")

    @property
    def n_spans(self) -> int:
        return len(self.spans)

    @property
    def n_groups(self) -> int:
        """Key (and value) readers a layer: KV heads when grouped, else heads."""
        return self.n_kv_heads if self.grouped else self.n_heads

    @property
    def n_writers(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def readers_per_layer(self) -> int:
        return self.n_heads + 2 * self.n_groups + 1

    @property
    def n_readers(self) -> int:
        return self.n_layers * self.readers_per_layer + 1

    @property
    def residual_shape(self) -> tuple[int, int, int]:  # (span, writer, reader)
        return self.n_spans, self.n_writers, self.n_readers

    @property
    def crossing_shape(self) -> tuple[int, int, int, int, int]:  # (channel, layer, head, span t, span s)
        return 3, self.n_layers, self.n_heads, self.n_spans, self.n_spans

    @property
    def n_residual(self) -> int:
        """Places of the residual array, allowed or not: the index of the first crossing edge."""
        return self.n_spans * self.n_writers * self.n_readers

    @property
    def n_index(self) -> int:
        """Places in all; an edge's index is below it."""
        return self.n_residual + 3 * self.n_layers * self.n_heads * self.n_spans**2

    @cached_property
    def n_edges(self) -> int:
        """Edges the graph allows."""
        return int(self.allowed.sum())

    def writer(self, layer: int, head: int | None = None) -> int:
        """Index of a head's output, or of the layer's MLP when `head` is None. The embedding is writer 0."""
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if head is None else head)

    def reader(self, layer: int, channel: str, head: int = 0) -> int:
        """Index of a reader: "q" of a head, "k" or "v" of a KV head (`group[head]` of a query head), or "mlp"."""
        offset = {
            "q": 0,
            "k": self.n_heads,
            "v": self.n_heads + self.n_groups,
            "mlp": self.n_heads + 2 * self.n_groups,
        }[channel]
        return layer * self.readers_per_layer + offset + (0 if channel == "mlp" else head)

    @property
    def logits(self) -> int:
        """Index of the logits reader, the last."""
        return self.n_readers - 1

    @cached_property
    def group(self) -> Int[np.ndarray, "head"]:
        """The key/value reader of every query head."""
        return _frozen(np.arange(self.n_heads) // (self.n_heads // self.n_groups))

    @cached_property
    def writer_layer(self) -> Int[np.ndarray, "writer"]:
        """Layer of every writer; -1 for the embedding."""
        return _frozen((np.arange(self.n_writers) - 1) // (self.n_heads + 1))

    @cached_property
    def writer_head(self) -> Int[np.ndarray, "writer"]:
        """Head of every writer; -1 for the embedding and the MLPs."""
        head = (np.arange(self.n_writers) - 1) % (self.n_heads + 1)
        head[(head == self.n_heads) | (np.arange(self.n_writers) == 0)] = -1
        return _frozen(head)

    @cached_property
    def reader_layer(self) -> Int[np.ndarray, "reader"]:
        """Layer of every reader; `n_layers` for the logits."""
        return _frozen(np.arange(self.n_readers) // self.readers_per_layer)

    @cached_property
    def reader_kind(self) -> Int[np.ndarray, "reader"]:
        """Kind of every reader: 0 q, 1 k, 2 v, 3 MLP, 4 logits."""
        layer = np.repeat([0, 1, 2, 3], [self.n_heads, self.n_groups, self.n_groups, 1])
        return _frozen(np.append(np.tile(layer, self.n_layers), 4))

    @cached_property
    def starts(self) -> Int[np.ndarray, "3 layer head"]:
        """The reader at which a head's crossing edges start, per channel."""
        layer = np.arange(self.n_layers)[:, None] * self.readers_per_layer
        k = layer + self.n_heads + self.group
        return _frozen(np.stack([layer + np.arange(self.n_heads), k, k + self.n_groups]))

    @cached_property
    def heads(self) -> Int[np.ndarray, "layer head"]:
        """The writer of every head, where its crossing edges end."""
        return _frozen(1 + np.arange(self.n_layers)[:, None] * (self.n_heads + 1) + np.arange(self.n_heads))

    @cached_property
    def residual_allowed(self) -> Bool[np.ndarray, "writer reader"]:
        """Which writer comes before which reader."""
        writer, reader = self.writer_layer[:, None], self.reader_layer[None]
        own = (self.writer_head >= 0)[:, None] & (self.reader_kind == 3)[None] & (writer == reader)
        return _frozen(writer < reader if self.parallel else (writer < reader) | own)

    @cached_property
    def crossing_allowed(self) -> Bool[np.ndarray, "span_t span_s"]:
        """A span is reached from itself and from those before it."""
        return _frozen(np.tri(self.n_spans, dtype=bool))

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "index"]:
        """Which places are edges: `residual_allowed` in every span, but the logits are read at the last only."""
        residual = np.repeat(self.residual_allowed[None], self.n_spans, axis=0)
        residual[:-1, :, self.logits] = False
        crossing = np.broadcast_to(self.crossing_allowed, self.crossing_shape)
        return _frozen(np.concatenate([residual.ravel(), crossing.ravel()]))

    @cached_property
    def edge_type(self) -> Int[np.ndarray, "index"]:
        """0 q, 1 k, 2 v, 3 MLP, 4 logits: residual edges by reader; 5 q, 6 k, 7 v: crossing edges by channel."""
        residual = np.broadcast_to(self.reader_kind.astype(np.int8), self.residual_shape)
        crossing = np.broadcast_to(np.arange(5, 8, dtype=np.int8)[:, None, None, None, None], self.crossing_shape)
        return _frozen(np.concatenate([residual.ravel(), crossing.ravel()]))

    def weights(self, lengths: Float[np.ndarray, "example span"]) -> Float[np.ndarray, "index"]:
        """Token-level edges an edge stands for, mean over examples.

        A residual edge at span s counts |s|; a crossing edge counts |s||t|, and n(n+1)/2 inside a span of n tokens.
        """
        if lengths.shape[1] != self.n_spans:
            raise CircuitError(f"span lengths for {lengths.shape[1]} spans were given to a graph of {self.n_spans}")
        tokens = lengths.astype(np.float64)
        pairs = np.einsum("et,es->ts", tokens, tokens) / len(tokens)
        np.fill_diagonal(pairs, (tokens * (tokens + 1) / 2).mean(axis=0))
        residual = np.broadcast_to(tokens.mean(axis=0)[:, None, None], self.residual_shape)
        crossing = np.broadcast_to(pairs, self.crossing_shape)
        return np.concatenate([residual.ravel(), crossing.ravel()])

    @cached_property
    def writer_names(self) -> tuple[str, ...]:
        """ "embed", "a3.h2", "m5"."""
        layers = range(self.n_layers)
        return ("embed", *(name for n in layers for name in (*(f"a{n}.h{h}" for h in range(self.n_heads)), f"m{n}")))

    @cached_property
    def reader_names(self) -> tuple[str, ...]:
        """ "a3.h2<q>", "a3.h1<k>" (a KV head when grouped), "m5", "logits"."""
        names: list[str] = []
        for n in range(self.n_layers):
            names += [f"a{n}.h{h}<q>" for h in range(self.n_heads)]
            names += [f"a{n}.h{h}<{c}>" for c in "kv" for h in range(self.n_groups)]
            names.append(f"m{n}")
        return (*names, "logits")

    def name(self, index: int | np.integer) -> str:
        """Name of an edge: "a9.h9->a10.h7<q>@S2" (residual, at S2), "a10.h7<k>@IO->end" (crossing, IO to end)."""
        if index < self.n_residual:
            s, w, r = np.unravel_index(index, self.residual_shape)
            return f"{self.writer_names[w]}{_ARROW}{self.reader_names[r]}@{self.spans[s]}"
        c, layer, head, t, s = np.unravel_index(index - self.n_residual, self.crossing_shape)
        return f"a{layer}.h{head}<{CHANNELS[c]}>@{self.spans[s]}{_ARROW}{self.spans[t]}"

    def index(self, name: str) -> int:
        """Index of the edge of that name; with one span '@...' may be left out. Raises CircuitError, naming it."""
        ends, at, where = name.partition("@")
        source, arrow, end = ends.partition(_ARROW)
        unnamed = not at and self.n_spans == 1
        if arrow:
            span = 0 if unnamed else self._place(name, "span", where)
            writer, reader = self._place(name, "source", source), self._place(name, "end", end)
            index = (span * self.n_writers + writer) * self.n_readers + reader
        else:
            before, _, after = (self.spans[0], "", self.spans[0]) if unnamed else where.partition(_ARROW)
            head = self._place(name, "head input", ends)
            s, t = self._place(name, "span", before), self._place(name, "span", after)
            index = self.n_residual + (head * self.n_spans + t) * self.n_spans + s
        if not self.allowed[index]:
            last = "; the logits are read at the last span only" if end == "logits" else ""
            raise CircuitError(f"there is no edge {name[:200]!r}: its source does not come before its end{last}")
        return index

    def _place(self, name: str, kind: str, part: str) -> int:
        number = self._tables[kind].get(part)
        if number is None:
            size = f"{self.n_layers} layers of {self.n_heads} heads with {self.n_groups} key/value inputs"
            exist = {
                "span": ", ".join(self.spans[:50]),
                "source": f"embed, a0.h0 and m0 to {self.writer_names[-1]}",
                "end": f"a0.h0<q>, a0.h0<k>, a0.h0<v>, m0 ... and logits in {size}",
                "head input": f"a0.h0<q>, a0.h0<k>, a0.h0<v> ... in {size}",
            }[kind]
            raise CircuitError(
                f"there is no edge {name[:200]!r}: {kind} {part[:100]!r} does not exist; there are {exist}"
            )
        return number

    @cached_property
    def _tables(self) -> dict[str, dict[str, int]]:
        """Name → number, for every part of an edge's name."""
        layers, heads = range(self.n_layers), range(self.n_heads)
        starts = (f"a{layer}.h{head}<{c}>" for c in CHANNELS for layer in layers for head in heads)
        parts = {"span": self.spans, "source": self.writer_names, "end": self.reader_names, "head input": starts}
        return {kind: {name: i for i, name in enumerate(names)} for kind, names in parts.items()}

    def with_spans(self, spans: tuple[str, ...] = ("all",)) -> Graph:
        """The same model under other spans; without an argument, under one."""
        return replace(self, spans=spans)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `from_json`."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"spans": list(self.spans)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Graph:
        """Raises CircuitError when a field is missing, unknown or of the wrong type."""
        try:
            return Graph(**{**data, "spans": tuple(data["spans"])})
        except (KeyError, TypeError) as error:
            raise CircuitError(f"not the record of a graph ({str(error)[:200]}): {str(data)[:200]}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One number per edge; positive = the edge supports the answer."""

    graph: Graph
    residual: Float[np.ndarray, "span writer reader"]
    """Signed sum over the span's tokens, mean over examples; in metric units."""
    crossing: Float[np.ndarray, "3 layer head span_t span_s"]
    """Likewise, summed over token pairs; channels q, k, v."""
    lengths: Float[np.ndarray, "example span"]
    """Tokens of each span in each example the scores are a mean of."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """How they were made, as plain JSON data."""

    def __post_init__(self) -> None:
        _check_shapes(self.graph, self.residual, self.crossing)

    @property
    def n(self) -> int:  # examples behind the scores
        return len(self.lengths)

    @property
    def nodes(self) -> Float[np.ndarray, "span writer"]:
        """Node attribution Δ_u · ∂M/∂u per span: what all readers make of a writer (exact for the scores' gradient)."""
        return (self.residual * self.graph.residual_allowed).sum(axis=2)

    @cached_property
    def flat(self) -> Float[np.ndarray, "index"]:
        """All scores by edge index; 0 where there is no edge. Raises CircuitError when a score is not finite."""
        flat = np.concatenate([self.residual.ravel(), self.crossing.ravel()])
        bad = np.flatnonzero(self.graph.allowed & ~np.isfinite(flat))
        if len(bad):
            name = self.graph.name(bad[0])
            raise CircuitError(f"scores must be finite; that of {name} is {flat[bad[0]]} ({len(bad)} edges so)")
        flat[~self.graph.allowed] = 0
        return _frozen(flat)

    def with_flat(self, flat: Float[np.ndarray, "index"]) -> Scores:
        """The same record with other numbers, given by edge index."""
        residual, crossing = split_flat(self.graph, flat)
        return replace(self, residual=residual, crossing=crossing)

    def collapse(self) -> Scores:
        """The one-span scores: signed sums over positions, as a method that ignores positions has them."""
        return replace(
            self,
            graph=self.graph.with_spans(),
            residual=self.residual.sum(axis=0, keepdims=True),
            crossing=self.crossing.sum(axis=(3, 4), keepdims=True),
            lengths=self.lengths.sum(axis=1, keepdims=True),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays; with `graph.to_json()` and `method` all that `from_arrays` needs."""
        return {"residual": self.residual, "crossing": self.crossing, "lengths": self.lengths}

    @staticmethod
    def from_arrays(graph: Graph, arrays: Mapping[str, np.ndarray], method: Mapping[str, Any]) -> Scores:
        arrays = {name: arrays[name] for name in ("residual", "crossing", "lengths")}
        return Scores(graph=graph, method=dict(method), **arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit:
    """A set of edges. Circuits over equal graphs compare, hash and combine (`|`, `&`, `-`, `<=`) as sets."""

    graph: Graph
    residual: Bool[np.ndarray, "span writer reader"]
    crossing: Bool[np.ndarray, "3 layer head span_t span_s"]

    def __post_init__(self) -> None:
        _check_shapes(self.graph, self.residual, self.crossing)
        extra = np.flatnonzero(self.flat & ~self.graph.allowed)
        if len(extra):
            name = self.graph.name(extra[0])
            raise CircuitError(f"{name} is no edge of this graph: its source does not come before its end")

    @staticmethod
    def full(graph: Graph) -> Circuit:
        """Every edge: the model itself."""
        return Circuit.from_flat(graph, graph.allowed)

    @staticmethod
    def empty(graph: Graph) -> Circuit:
        """No edge: the reference run."""
        return Circuit.from_flat(graph, np.zeros(graph.n_index, dtype=bool))

    @staticmethod
    def from_flat(graph: Graph, flat: Bool[np.ndarray, "index"]) -> Circuit:
        """A circuit from one truth value per edge index."""
        residual, crossing = split_flat(graph, flat)
        return Circuit(graph=graph, residual=residual, crossing=crossing)

    @staticmethod
    def of(graph: Graph, edges: Iterable[str] | Int[np.ndarray, "n_edges"]) -> Circuit:
        """A circuit of the edges with these names, or indices."""
        flat = np.zeros(graph.n_index, dtype=bool)
        flat[edges if isinstance(edges, np.ndarray) else [graph.index(name) for name in edges]] = True
        return Circuit.from_flat(graph, flat)

    @cached_property
    def flat(self) -> Bool[np.ndarray, "index"]:
        """Which edges are in, by index."""
        return _frozen(np.concatenate([self.residual.ravel(), self.crossing.ravel()]))

    @cached_property
    def n_edges(self) -> int:
        """Edges of the abstract graph that are in."""
        return int(self.flat.sum())

    @property
    def edges(self) -> Int[np.ndarray, "n_edges"]:
        """Indices of the edges that are in, ascending."""
        return np.flatnonzero(self.flat)

    def names(self) -> tuple[str, ...]:  # of the edges that are in; for small circuits
        return tuple(self.graph.name(index) for index in self.edges)

    def size(self, lengths: Float[np.ndarray, "example span"]) -> float:
        """Token-level edges, mean over examples (`Graph.weights`); of a one-span circuit, `expand` it first."""
        return float(self.graph.weights(lengths)[self.flat].sum())

    @property
    def complement(self) -> Circuit:
        """Every edge of the graph that is not in."""
        return Circuit.from_flat(self.graph, self.graph.allowed & ~self.flat)

    def expand(self, graph: Graph) -> Circuit:
        """This one-span circuit in a graph with spans.

        Every residual edge is in at every span (into the logits: at the last), and all crossing edges of every head
        that some kept edge reads from: within a head positions are free, as in PEAP's non-positional variant. Raises
        CircuitError when this circuit has several spans or another model's shape.
        """
        if self.graph != graph.with_spans(self.graph.spans) or self.graph.n_spans != 1:
            raise CircuitError(f"only a one-span circuit of the same model can be expanded, not one of {self.graph}")
        used = self.residual[0].any(axis=1)[graph.heads]
        residual = np.broadcast_to(self.residual, graph.residual_shape)
        crossing = np.broadcast_to(used[None, :, :, None, None], graph.crossing_shape)
        return Circuit.from_flat(graph, np.concatenate([residual.ravel(), crossing.ravel()]) & graph.allowed)

    def collapse(self) -> Circuit:
        """The one-span circuit that has an edge where this one has it at any span."""
        residual, crossing = self.residual.any(axis=0), self.crossing.any(axis=(3, 4))
        return Circuit.from_flat(self.graph.with_spans(), np.concatenate([residual.ravel(), crossing.ravel()]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays; with `graph.to_json()` all that `from_arrays` needs."""
        return {"residual": self.residual, "crossing": self.crossing}

    @staticmethod
    def from_arrays(graph: Graph, arrays: Mapping[str, np.ndarray]) -> Circuit:
        """Raises CircuitError when the arrays are not of this graph."""
        return Circuit(graph=graph, residual=arrays["residual"], crossing=arrays["crossing"])

    def _other(self, other: Circuit) -> Bool[np.ndarray, "index"]:
        if other.graph != self.graph:
            raise CircuitError("circuits over different graphs cannot be combined: expand or collapse one of them")
        return other.flat

    def __or__(self, other: Circuit) -> Circuit:
        return Circuit.from_flat(self.graph, self.flat | self._other(other))

    def __and__(self, other: Circuit) -> Circuit:
        return Circuit.from_flat(self.graph, self.flat & self._other(other))

    def __sub__(self, other: Circuit) -> Circuit:
        return Circuit.from_flat(self.graph, self.flat & ~self._other(other))

    def __le__(self, other: Circuit) -> bool:
        return not (self.flat & ~self._other(other)).any()

    def __contains__(self, edge: int | np.integer | str) -> bool:
        return bool(self.flat[self.graph.index(edge) if isinstance(edge, str) else edge])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and np.array_equal(self.flat, other.flat)

    def __hash__(self) -> int:
        return hash((self.graph, self.flat.tobytes()))

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges, spans {', '.join(self.graph.spans)})"


def split_flat(graph: Graph, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One array by edge index → (residual, crossing)."""
    residual, crossing = np.split(flat, [graph.n_residual])
    return residual.reshape(graph.residual_shape), crossing.reshape(graph.crossing_shape)


def _check_shapes(graph: Graph, residual: np.ndarray, crossing: np.ndarray) -> None:
    shapes = {"residual": (residual, graph.residual_shape), "crossing": (crossing, graph.crossing_shape)}
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise CircuitError(f"the {name} edges of this graph have the shape {shape}, not {array.shape}")
