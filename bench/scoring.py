"""Scoring all residual edges per position plus all crossing edges, against the least it can cost.

The floor of edge attribution is a forward of the counterfactual prompts, one of the clean prompts and a backward that
asks for no weight gradient, about 3F, plus the products of the edges themselves. Those flops are taken at the rate
this machine multiplies large square matrices at, on one thread, in the same rounds.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from bench import cases, point
from bench.clock import Ratio, interleaved, ratio, write
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.reference import record
from caseback.circuits.score import Flows, ScoreConfig, score

__all__ = ["measure"]

SQUARE = 1536
"""Side of the matrices whose product gives the machine's rate."""


def measure(rounds: int = 9) -> None:
    """Measure and write bench/results/scoring.json."""
    model = cases.default_model()
    pairs = cases.ioi_pairs(model, 8)
    graph, layers, config = graph_of(model, tuple(pairs.clean.spans)), layers_of(model), ScoreConfig()
    flops = cases.edge_flops(model, pairs)
    flows = Flows.of(model, layers, graph, pairs, config)
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    jobs = {
        "F": lambda: model.logits(pairs.clean),
        "matmul": lambda: a @ b,
        "scoring": lambda: score(model, pairs, config),
        "reference run": lambda: record(model, layers, pairs.counterfactual),
        "residual products": flows.residual,
        "crossing edges": flows.crossing,
    }
    torch.set_num_threads(1)
    times = interleaved(jobs, rounds=rounds)
    floor = [3 * f + flops * m / (2 * SQUARE**3) for f, m in zip(times["F"].cpu, times["matmul"].cpu, strict=True)]
    found: dict[str, Any] = {
        "model": model.name,
        "pairs": pairs.n,
        "tokens": {"real": int(pairs.clean.mask.sum()), "width": pairs.clean.ids.shape[1]},
        "edges": graph.n_edges,
        "edge_gflops": flops / 1e9,
        "matmul_gflops_per_s": 2 * SQUARE**3 / times["matmul"].to_json()["cpu_s"] / 1e9,
        "times": {name: time for name, time in times.items()},
        "over_floor": ratio(times["scoring"].cpu, floor),
        "over_3F": ratio(times["scoring"].cpu, [3 * f for f in times["F"].cpu]),
        "parts_in_F": {
            name: ratio(times[name].cpu, times["F"].cpu)
            for name in ("reference run", "residual products", "crossing edges")
        },
        "targets": {"over_floor": 1.5, "peak_mb": 2500},
    }
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    all_cores = interleaved({name: jobs[name] for name in ("F", "scoring")}, rounds=max(rounds // 2, 2))
    found["all_threads"] = {
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "times": all_cores,
        "wall_over_3F": ratio(all_cores["scoring"].wall, [3 * f for f in all_cores["F"].wall]),
    }
    torch.set_num_threads(1)
    found["peak_mb"] = point.run({"job": "scoring", "model": "default", "pairs": 8, "rounds": 1})["peak_mb"]
    write("scoring", found)
    report(found)


def report(found: dict[str, Any]) -> None:
    over, three = found["over_floor"], found["over_3F"]
    assert isinstance(over, Ratio) and isinstance(three, Ratio)
    print(f"  {over} × (3F + products), {three} × 3F; peak {found['peak_mb']['after']:.0f} MB")
    print("  " + ", ".join(f"{name} {part} F" for name, part in found["parts_in_F"].items()))
    print(f"  wall on {found['all_threads']['threads']} threads: {found['all_threads']['wall_over_3F']} × 3F")
