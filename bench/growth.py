"""Time and memory against tokens, pairs and layers, one thing varied at a time, each point in a process of its own.

The model is a Llama of SmolLM2-135M's widths with random weights, prompts are random tokens in nine spans. Scoring
does all edges; the evaluated circuit is the best-first one of 1% of the edges. Both cut a batch into parts of at most
320 tokens, which bounds the memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench import point
from bench.clock import write

__all__ = ["measure"]

BASE = {"layers": 30, "pairs": 4, "tokens": 20}
VARIED = {"tokens": (10, 20, 50, 100, 200), "pairs": (1, 4, 16, 32), "layers": (8, 15, 30, 60)}


def measure(rounds: int = 2) -> None:
    """Measure and write bench/results/growth.json."""
    known: dict[tuple[int, ...], dict[str, Any]] = {}
    series: dict[str, list[dict[str, Any]]] = {}
    for axis, values in VARIED.items():
        series[axis] = []
        for value in values:
            at = {**BASE, axis: value}
            key = tuple(at.values())
            if key not in known:
                known[key] = _point(at, rounds)
            row = {axis: value, **known[key]}
            series[axis].append(row)
            print(
                f"  {axis:6} {value:4}: " + "; ".join(f"{job} {_line(row[job])}" for job in ("scoring", "evaluation")),
                flush=True,
            )
    write("growth", {"base": BASE, "share_of_edges_evaluated": point.SHARE, "series": series})


def _point(at: dict[str, int], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "model": at["layers"],
            "pairs": at["pairs"],
            "tokens": at["tokens"],
            "rounds": rounds,
            "circuit": str(Path(folder) / "circuit.npz"),
        }
        return {job: point.run({"job": job, **spec}) for job in ("scoring", "evaluation")}


def _line(found: dict[str, Any]) -> str:
    return f"{found['cpu_s']:.2f} s = {found['in_F']['median']:.2f} F, {found['peak_mb']['after']:.0f} MB"
