"""How a worker and the bench talk: one JSON object a line, over the worker's standard input and output.

The first line is the case; the worker makes everything ready and answers with facts. Each further line, {"job": name,
"save": file or null}, is answered when that job has run once: {"cpu": s, "wall": s}, or {"error": text}; its result
is kept in the file if one is named. Whatever a peer prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Ready", "serve", "versions"]


class Ready(NamedTuple):
    jobs: Mapping[str, Callable[[], np.ndarray]]
    facts: Mapping[str, Any]


def versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


def serve(prepare: Callable[[dict[str, Any]], Ready]) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    ready: Ready | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if ready is None:
                ready = prepare(asked)
                reply: dict[str, Any] = dict(ready.facts)
            else:
                began_cpu, began = time.process_time(), time.perf_counter()
                found = ready.jobs[asked["job"]]()
                reply = {"cpu": time.process_time() - began_cpu, "wall": time.perf_counter() - began}
                if asked["save"]:
                    np.save(asked["save"], found)
        except Exception as error:  # whatever stops a peer is its result
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
