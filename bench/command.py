"""`caseback circuit ioi --n 100` from start to end, controls and page included, as a user runs it: on all cores.

Wall time is what a user waits, and is only worth reading where nothing else ran; the CPU seconds beside it say what it
would be elsewhere.
"""

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
    seconds, cpu, outcome, load = [], [], {}, []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as study:
            load.append(os.getloadavg()[0])
            began, before = time.perf_counter(), os.times()
            command = [sys.executable, "-c", "from caseback.cli.app import main; main()", *COMMAND, "--out", study]
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(time.perf_counter() - began)
            after = os.times()
            cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
            outcome = json.loads(done.stdout)
    kept = {key: outcome[key] for key in ("n", "sizes", "forwards", "seconds", "peak_memory_mb")}
    found = {
        "measured": f"caseback {' '.join(COMMAND)}",
        "wall_s": min(seconds),
        "cpu_s": min(cpu),
        "load_before": min(load),
        "outcome": kept,
        "targets": {"wall_s": 300},
    }
    write("command", found)
    print(
        f"  {min(seconds):.0f} s, {min(cpu):.0f} CPU-s, {kept['forwards']:,} forwards, peak {kept['peak_memory_mb']:.0f} MB"
    )
