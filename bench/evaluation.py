"""One circuit evaluation, a forward in which everything outside the circuit carries its reference value, against a plain
forward.

The clean and the reference run are recorded once a batch and serve every circuit; their cost stands apart. Circuits
are the best-first ones of the batch's own scores.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench import cases
from bench.clock import interleaved, ratio, write
from caseback.circuits.ablate import Ablator
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.score import score
from caseback.circuits.select import best_first, shuffled

__all__ = ["measure"]

SHARES = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.2, 0.5)


def measure(rounds: int = 9) -> None:
    """Measure and write bench/results/evaluation.json."""
    torch.set_num_threads(1)
    model = cases.default_model()
    pairs = cases.ioi_pairs(model, 8)
    graph, layers = graph_of(model, tuple(pairs.clean.spans)), layers_of(model)
    scores = score(model, pairs)
    rankings = {"circuit": best_first(scores), "shuffled": best_first(shuffled(scores, 0))}
    ready = Ablator(model, layers, graph, pairs)
    jobs: dict[str, Any] = {
        "F": lambda: model.logits(pairs.clean),
        "recording": lambda: Ablator(model, layers, graph, pairs),
    }
    circuits = {}
    for share in SHARES:
        for kind, ranking in rankings.items():
            circuits[kind, share] = ranking.circuit(round(share * graph.n_edges))
            jobs[f"{kind} {share}"] = partial(ready.logits, circuits[kind, share])
    times = interleaved(jobs, rounds=rounds)
    rows = [
        {
            "selector": kind,
            "share": share,
            "taken": round(share * graph.n_edges),
            "edges": circuit.n_edges,
            "in_F": ratio(times[f"{kind} {share}"].cpu, times["F"].cpu),
        }
        for (kind, share), circuit in circuits.items()
    ]
    found = {
        "model": model.name,
        "pairs": pairs.n,
        "tokens": {"real": int(pairs.clean.mask.sum()), "width": pairs.clean.ids.shape[1]},
        "edges": graph.n_edges,
        "F": times["F"],
        "recording_in_2F": ratio(times["recording"].cpu, [2 * f for f in times["F"].cpu]),
        "sizes": rows,
        "targets": {"in_F": 1.6, "up_to_share": 0.05},
    }
    write("evaluation", found)
    print(f"  both recorded runs together: {found['recording_in_2F']} × 2F")
    for row in rows:
        print(f"  {row['selector']:9} {row['share']:8.2%} of the edges ({row['edges']:7,} live): {row['in_F']} F")
