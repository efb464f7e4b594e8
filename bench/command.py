"""`caseback circuit ioi --n 100` from start to end, controls and page included, as a user runs it: all cores, wall time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

from bench.clock import ROOT, write

__all__ = ["measure"]

COMMAND = ("circuit", "ioi", "--n", "100", "--json")


def measure(rounds: int = 1) -> None:
    """Measure and write bench/results/command.json."""
    seconds, outcome, load = [], {}, []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as study:
            load.append(os.getloadavg()[0])
            began = time.perf_counter()
            command = [sys.executable, "-c", "from caseback.cli.app import main; main()", *COMMAND, "--out", study]
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(time.perf_counter() - began)
            outcome = json.loads(done.stdout)
    kept = {key: outcome[key] for key in ("n", "sizes", "forwards", "seconds", "peak_memory_mb")}
    found = {
        "measured": f"caseback {' '.join(COMMAND)}",
        "wall_s": min(seconds),
        "all_wall_s": seconds,
        "load_before": load,
        "outcome": kept,
        "targets": {"wall_s": 300},
    }
    write("command", found)
    print(f"  {min(seconds):.0f} s, {kept['forwards']:,} forwards, peak {kept['peak_memory_mb']:.0f} MB")
