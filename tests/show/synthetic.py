"""Invented payloads for tests: SmolLM2's shape and a plausible story, but no number in them was measured."""

from __future__ import annotations

import heapq
from functools import cache
from typing import Any

import numpy as np

from caseback.circuits.graph import Graph
from caseback.show.circuit import circuit_payload

SPANS = ("bos", "prefix", "IO", "and", "S1", "S1+1", "action1", "S2", "action2", "to")
GRAPH = Graph(n_layers=30, n_heads=9, n_kv_heads=3, spans=SPANS)


def _prompt(
    io: str, s: str, verb: str, place: str, action: str, thing: str, others: tuple[str, str, str]
) -> dict[str, Any]:
    def tokens(a: str, b: str, c: str) -> list[str]:
        words = f"{a} and {b} {verb} to the {place} , {c} {action} a {thing} to".split()
        return ["<|endoftext|>", "When", *(word if word == "," else f" {word}" for word in words)]

    return {
        "tokens": tokens(io, s, s),
        "counterfactual": tokens(*others),
        "spans": _RANGES,
        "answers": [f" {io}"],
        "foils": [f" {s}"],
        "metric": 3.1,
    }


_RANGES = (
    ("bos", 0, 1),
    ("prefix", 1, 2),
    ("IO", 2, 3),
    ("and", 3, 4),
    ("S1", 4, 5),
    ("S1+1", 5, 6),
    ("action1", 6, 10),
    ("S2", 10, 11),
    ("action2", 11, 14),
    ("to", 14, 15),
)


def scores(graph: Graph, seed: int) -> np.ndarray:
    """A score per edge: heavy-tailed noise that grows towards the end of the prompt, and a few planted paths."""
    rng = np.random.default_rng(seed)
    flat = np.clip(rng.standard_t(2.2, graph.n_index) * 6e-4, -0.04, 0.04)
    residual = flat[: graph.n_residual].reshape(graph.residual_shape)
    crossing = flat[graph.n_residual :].reshape(graph.crossing_shape)
    S = {name: i for i, name in enumerate(graph.spans)}
    busy = np.array([0.2, 0.3, 2.0, 0.3, 1.5, 0.8, 0.6, 2.0, 0.5, 4.0])[: graph.n_spans]
    residual *= busy[:, None, None]
    crossing *= busy[None, None, None, :, None] * 3
    movers, inhibition, duplicate = [(22, 3), (24, 6), (26, 1), (27, 8)], [(15, 2), (17, 5), (18, 0)], [(3, 1), (6, 4)]
    for layer, head in movers:
        strong = rng.uniform(0.15, 0.6) * (-1 if (layer, head) == (27, 8) else 1)
        residual[S["to"], graph.writer(layer, head), graph.logits] = strong
        crossing[2, layer, head, S["to"], S["IO"]] = strong * 0.8
        crossing[1, layer, head, S["to"], S["S2"]] = -strong * 0.2
        crossing[0, layer, head, S["to"], S["IO"]] = strong * 0.5
        residual[S["IO"], 0, graph.reader(layer, "v", head // 3)] = strong * 0.4
        for la, h in inhibition:
            residual[S["to"], graph.writer(la, h), graph.reader(layer, "q", head)] = strong * rng.uniform(0.2, 0.5)
    for layer, head in inhibition:
        crossing[2, layer, head, S["to"], S["S2"]] = rng.uniform(0.1, 0.3)
        for la, h in duplicate:
            residual[S["S2"], graph.writer(la, h), graph.reader(layer, "v", head // 3)] = rng.uniform(0.05, 0.2)
    for layer, head in duplicate:
        crossing[1, layer, head, S["S2"], S["S1"]] = rng.uniform(0.1, 0.25)
        residual[S["S1"], 0, graph.reader(layer, "k", head // 3)] = rng.uniform(0.05, 0.15)
        residual[S["S2"], 0, graph.reader(layer, "q", head)] = rng.uniform(0.05, 0.15)
    for layer in range(graph.n_layers):
        residual[S["to"], graph.writer(layer), graph.logits] = rng.normal(0, 0.12) * (layer / graph.n_layers) ** 2
        residual[S["S2"], 0, graph.reader(layer, "mlp")] = rng.normal(0, 0.05)
    flat[~graph.allowed] = 0
    return flat


def best_first(graph: Graph, flat: np.ndarray, n: int) -> np.ndarray:
    """Indices of the first n edges, walking back from the logits, always along the strongest edge at hand."""
    residual = flat[: graph.n_residual].reshape(graph.residual_shape)
    crossing = flat[graph.n_residual :].reshape(graph.crossing_shape)
    heap: list[tuple[float, int, tuple[str, int, int]]] = []
    seen: set[tuple[str, int, int]] = set()

    def reach(node: tuple[str, int, int]) -> None:
        """Offer the edges that end in a reader ("in", span, reader) or in a head's output ("out", span, writer)."""
        if node in seen:
            return
        seen.add(node)
        kind, span, what = node
        if kind == "in":
            for writer in np.argsort(-np.abs(residual[span, :, what]))[:120].tolist():
                if graph.residual_allowed[writer, what]:
                    index = int(np.ravel_multi_index((span, writer, what), graph.residual_shape))
                    heapq.heappush(heap, (-abs(flat[index]), index, ("out", span, writer)))
        elif graph.writer_head[what] >= 0:
            layer, head = int(graph.writer_layer[what]), int(graph.writer_head[what])
            for c in range(3):
                for s in range(span + 1):
                    index = graph.n_residual + int(
                        np.ravel_multi_index((c, layer, head, span, s), graph.crossing_shape)
                    )
                    start = ("in", span if c == 0 else s, int(graph.starts[c, layer, head]))
                    heapq.heappush(heap, (-abs(crossing[c, layer, head, span, s]), index, start))
        elif what > 0:
            reach(("in", span, graph.reader(int(graph.writer_layer[what]), "mlp")))

    reach(("in", graph.n_spans - 1, graph.logits))
    taken: list[int] = []
    while heap and len(taken) < n:
        _, index, source = heapq.heappop(heap)
        taken.append(index)
        reach(source)
    return np.array(taken, dtype=np.int64)


def curve(sizes: list[int], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = np.log10(np.array(sizes, dtype=float))

    def rising(middle: float, steep: float, top: float) -> np.ndarray:
        return top / (1 + np.exp(-steep * (x - middle))) + rng.normal(0, 0.012, len(x))

    own, agnostic, random = rising(2.1, 2.6, 1.02), rising(3.2, 2.2, 0.99), rising(5.2, 2.4, 0.95)
    width = np.clip(0.11 - 0.012 * x, 0.02, 1)
    return {
        "edges": sizes,
        "sizes": sizes,
        "token_edges": [n * 2.13 for n in sizes],
        "faithfulness": own,
        "low": own - width,
        "high": own + 0.9 * width,
        "random": random,
        "random_low": random - 0.05,
        "random_high": random + 0.05,
        "agnostic": agnostic,
        "agnostic_low": agnostic - width,
        "agnostic_high": agnostic + width,
        "ratio": 0.05 + 0.95 * own,
        "agreement": np.clip(own, 0, 1),
        "kl": 2.4 * np.exp(-x),
        "level": 0.95,
    }


@cache
def _edges(graph: Graph, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    flat = scores(graph, seed)
    return flat, best_first(graph, flat, n)


def payload(n_edges: int = 20_000, *, graph: Graph = GRAPH, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A whole invented run; `changes` replace arguments of `circuit_payload`."""
    rng = np.random.default_rng(seed)
    flat, index = _edges(graph, n_edges, seed)
    top = index[np.argsort(-np.abs(flat[index]))[:60]]
    exact = flat[top] * rng.normal(0.92, 0.22, len(top)) + rng.normal(0, 0.012, len(top))
    sample = rng.normal(0, 0.02, (300, 2))
    sample[:, 1] = 0.9 * sample[:, 0] + 0.4 * sample[:, 1]
    losses = 0.3 * np.exp(-np.arange(30) / 6) - 0.01
    task = {
        "name": "ioi",
        "description": "Indirect object identification, ABBA: the name that was named once",
        "metric": "logit_diff",
        "n": 200,
        "held_out": 93,
        "accuracy": 0.935,
        "dropped": {"wrong answer": 13, "bad tokenisation": 1},
    }
    fields: dict[str, Any] = {
        "title": "Which edges tell who gets the drink",
        "graph": graph,
        "model": {"id": "SmolLM2-135M-Instruct", "revision": "invented"},
        "task": task,
        "index": index,
        "score": flat[index],
        "rank": np.arange(1, len(index) + 1),
        "abs_score": float(np.abs(flat).sum()),
        "prompts": [
            _prompt("Mary", "John", "went", "store", "gave", "drink", ("Alice", "Peter", "Carol")),
            _prompt("Sarah", "Paul", "walked", "park", "handed", "ball", ("Lucy", "Mark", "Anna")),
        ],
        "curve": curve([5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000], seed),
        "areas": [
            {"name": "this circuit", "cpr_linear": 0.987, "cpr_log": 0.61, "cmd_linear": 0.02, "cmd_log": 0.39},
            {"name": "without positions", "cpr_linear": 0.91, "cpr_log": 0.34, "cmd_linear": 0.09, "cmd_log": 0.66},
            {"name": "random, same size", "cpr_linear": 0.11, "cpr_log": 0.04, "cmd_linear": 0.89, "cmd_log": 0.96},
        ],
        "minimality": {
            "edges": 200,
            "rows": [
                {"edge": edge, "loss": loss, "low": loss - 0.02, "high": loss + 0.02}
                for edge, loss in zip(top[:30], losses, strict=False)
            ],
        },
        "completeness": {
            "edges": [100, 1000, 10_000],
            "faithfulness": [0.93, 0.55, 0.04],
            "low": [0.9, 0.5, 0.0],
            "high": [0.96, 0.6, 0.08],
        },
        "table": [
            {"edge": edge, "score": flat[edge], "exact": x, "low": x - 0.03, "high": x + 0.03}
            for edge, x in zip(top, exact, strict=True)
        ],
        "validation": {"pearson": 0.94, "spearman": 0.88, "sign_agreement": 0.93, "n": 500, "sample": sample},
        "settings": {
            "scores": "EAP",
            "ablation": "counterfactual",
            "selector": "best-first",
            "grouped": True,
            "seed": 0,
        },
        "environment": {"caseback": "0.1.0", "torch": "2.13.0", "python": "3.11", "device": "cpu", "dtype": "float32"},
        "cost": {"forwards": 7312, "backwards": 300, "seconds": 171.4, "peak_memory_mb": 1873.0},
        "notes": ["Every number on this page is invented; it exists to test the drawing."],
    }
    return circuit_payload(**{**fields, **changes})


def hostile() -> list[str]:
    """Text that would like to be more than text."""
    return [
        "</script><script>window.pwned = 1</script>",
        "<img src=x onerror='window.pwned=1'>",
        "<!--<script>",
        "]]> --> <![CDATA[ ' \" ` ${window.pwned=1} {title} %s",
        "\u202etxet desrever\u202c \u2066isolated\u2069",
        "\x1b[31mred\x1b[0m \x00 \x07 bell",
        "line\u2028separator\u2029paragraph\n\r\t",
        "zero\u200bwidth\ufeff \ud83d lone surrogate",
        "javascript:window.pwned=1",
        "&lt;b&gt;&amp;",
        "a" * 500,
        "Z̸̡̛̗͙̯̞̦̹̖̪͍̆̅̑̓͑̈́̚͜͝a̷l̶g̵o " + "\u0301" * 60,
    ]
