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
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.clock import ROOT, interleaved, ratio

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
    from caseback.circuits.graph import Circuit
    from caseback.circuits.parts import graph_of, layers_of
    from caseback.circuits.score import batches, score
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
    model.logits(pairs.clean)
    before = peak_memory_mb()
    jobs: dict[str, Callable[[], Any]] = {"F": lambda: model.logits(pairs.clean)}
    if spec["job"] == "scoring":
        scores = score(model, pairs)
        peak = peak_memory_mb()
        if "circuit" in spec:
            np.savez_compressed(spec["circuit"], **best_first(scores).circuit(round(SHARE * graph.n_edges)).to_arrays())
        jobs["job"] = lambda: score(model, pairs)
    else:
        circuit = Circuit.from_arrays(graph, dict(np.load(spec["circuit"])))
        ready = [Ablator(model, layers_of(model), graph, chunk) for chunk in batches(pairs, 320)]
        for one in ready:
            one.logits(circuit)
        peak = peak_memory_mb()
        jobs["job"] = lambda: [one.logits(circuit) for one in ready]
    times = interleaved(jobs, rounds=spec["rounds"], warm=False)
    return {
        "peak_mb": {"before": before, "after": peak},
        "edges": graph.n_edges,
        "F_cpu_s": times["F"].to_json()["cpu_s"],
        "cpu_s": times["job"].to_json()["cpu_s"],
        "in_F": ratio(times["job"].cpu, times["F"].cpu).to_json(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
