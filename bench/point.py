"""One point of a measurement in a process of its own, whose peak memory is therefore that of this job.

`run(spec)` starts it; the process itself is `python -m bench.point SPEC`. The spec is plain JSON:

    job      "scoring" or "evaluation"
    model    "default", or a number of layers for a random Llama of the same widths
    pairs, tokens, rounds        (tokens only with a random model)
    circuit  a file; scoring writes the best-first circuit of 1% of its edges there, evaluation reads it
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.clock import ROOT, ratio

__all__ = ["run"]

SHARE = 0.01


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure one point; returns its peak memory before and after the job (MB), CPU seconds and their ratio to F."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.point", json.dumps(spec)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    from bench import cases
    from caseback.circuits.ablate import Ablator
    from caseback.circuits.graph import Circuit, Scores
    from caseback.circuits.parts import graph_of, layers_of
    from caseback.circuits.score import ScoreConfig, batches, score
    from caseback.circuits.select import best_first
    from caseback.core.provenance import peak_memory_mb

    torch.set_num_threads(1)
    default = spec["model"] == "default"
    model = cases.default_model() if default else cases.llama(spec["model"])
    pairs = (
        cases.ioi_pairs(model, spec["pairs"])
        if default
        else cases.random_pairs(model, spec["pairs"], tokens=spec["tokens"])
    )
    graph = graph_of(model, tuple(pairs.clean.spans))
    layers = layers_of(model)
    circuit = Circuit.from_arrays(graph, dict(np.load(spec["circuit"]))) if spec["job"] == "evaluation" else None

    found: list[Scores] = []

    def job() -> float:
        if circuit is None:
            return _cpu(lambda: found.append(score(model, pairs)))
        prepared = (Ablator(model, layers, graph, chunk) for chunk in batches(pairs, ScoreConfig().tokens))
        return sum(_cpu(partial(one.logits, circuit)) for one in prepared)  # the recorded runs are not counted

    model.logits(pairs.clean)
    before = peak_memory_mb()
    job()
    after = peak_memory_mb()
    rounds = [(job(), _cpu(lambda: model.logits(pairs.clean))) for _ in range(spec["rounds"])]
    seconds, forward = zip(*rounds, strict=True)
    if circuit is None and "circuit" in spec:
        best = best_first(found[0]).circuit(round(SHARE * graph.n_edges))
        np.savez_compressed(spec["circuit"], **best.to_arrays())
    return {
        "peak_mb": {"before": before, "after": after},
        "edges": graph.n_edges,
        "F_cpu_s": statistics.median(forward),
        "cpu_s": statistics.median(seconds),
        "in_F": ratio(seconds, forward).to_json(),
    }


def _cpu(job: Callable[[], Any]) -> float:
    began = time.process_time()
    job()
    return time.process_time() - began


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
