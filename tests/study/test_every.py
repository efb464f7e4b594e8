"""Every method of the registry survives kill -9: a method that joins needs a small request in every.py, nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from caseback.core import registry

HERE = Path(__file__).parent
KILLS = os.environ.get("CASEBACK_KILLS", "1")
"""Of each kind, a method: `CASEBACK_KILLS=8 pytest tests/study/test_every.py` kills more often."""


def every(*command: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, *command)
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=HERE)


def test_every_method_killed_anywhere_ends_as_if_it_had_not_been(memory: Path) -> None:
    ended = every("every.py", memory, "--kills", KILLS)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["different"] == []
    assert said["kills"].keys() == set(registry.names("method")) - {"toy", "bare", "trial"}, "those are of other tests"
    assert all(kills["calls"] >= 1 for kills in said["kills"].values()), said["kills"]
    assert sum(kills["clock"] for kills in said["kills"].values()) >= len(said["kills"]) // 2, said["kills"]


def test_a_method_without_a_request_is_named(tmp_path: Path) -> None:
    ended = every("-c", NEW, tmp_path)
    assert ended.returncode == 1
    assert "no small request for new: add one to REQUESTS in every.py" in ended.stderr


NEW = """
import every
every.registry.register("method", "new", "nowhere:METHOD")
every.main()
"""


def test_a_method_that_draws_from_a_generator_nobody_saves_is_caught(memory: Path) -> None:
    ended = every("-c", FORGETFUL, memory, "forgetful", "--kills", "6")
    assert ended.returncode == 0, ended.stderr
    assert any("sum/x" in each for each in json.loads(ended.stdout)["different"]), ended.stdout


FORGETFUL = """
from dataclasses import dataclass
import every, numpy as np
from caseback.study import Checkpoint, Spec

@dataclass(frozen=True)
class Config:
    seed: int = 0

class Forgetful:
    name, Config = "forgetful", Config
    def prepare(self, config, study, *, passed, progress, model=None):
        return Spec.of("forgetful", config, task="t"), {}
    def run(self, config, run, progress):
        draw = np.random.default_rng(config.seed)
        step = lambda state, i: Checkpoint({"x": (state.arrays["x"] if state else 0) + draw.normal(size=3)})
        run.write_result({"x": run.fold("sum", 12, step).arrays["x"]})

METHOD = Forgetful()
every.registry.register("method", "forgetful", "__main__:METHOD")
every.REQUESTS["forgetful"] = {}
every.main()
"""
