"""A method small enough to be killed hundreds of times: a drawn table, a fold over its rows, a table at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.core import registry
from caseback.core.errors import TaskError
from caseback.study import Checkpoint, Record, RunFolder, Spec


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 4
    seed: int = 0
    sizes: tuple[int, ...] = (1, 10, 100)
    pause: float = 0.0
    fail: str = ""


class Toy:
    name = "toy"
    Config = Config

    def run(self, config: Config, run: RunFolder, progress: Any) -> None:
        if config.fail == "bad task":
            raise TaskError("row 3 has no answer")
        rows = run.stage("draw", lambda: draw(config)).arrays["rows"]

        def add(state: Checkpoint | None, i: int) -> Checkpoint:
            time.sleep(config.pause)
            if config.fail == "defect" and i == 2:
                raise ZeroDivisionError("a defect")
            if config.fail == "ctrl-c" and i == 2:
                raise KeyboardInterrupt
            total = state.arrays["total"] if state else np.zeros(rows.shape[1])
            seen = state.data["seen"] if state else []
            return Checkpoint({"total": np.sin(total) + rows[i]}, {"seen": [*seen, i], "bad": float("nan")})

        state = run.fold("sum", config.steps, add)
        means = run.stage("mean", lambda: Checkpoint({"mean": state.arrays["total"].mean(keepdims=True)}))
        mean = float(means.arrays["mean"][0])
        progress("last", 1, 1)
        table = {"model": "none", "task": run.spec.task, "n": config.steps, "mean": mean}
        lists = {"sizes": config.sizes, "low": [-np.inf, mean, 1.0], "high": [np.nan, mean, 2.0]}
        run.write_result({**table, **lists, "seen": state.data["seen"]}, details={"why": "because"})


def draw(config: Config) -> Checkpoint:
    rng = np.random.default_rng(config.seed)
    return Checkpoint({"rows": rng.normal(size=(config.steps, 50)), "kept": rng.random(config.steps) > 0.5})


def page(record: Record) -> str:
    return f"<!doctype html><title>toy</title><p>{record.table['mean']} {record.details['why']}"


METHOD = Toy()
registry.register("method", "toy", f"{__name__}:METHOD")
registry.register("report", "toy", f"{__name__}:page")


def spec(task: str = "The Task!", **params: Any) -> Spec:
    model = {"id": "org/toy", "revision": None, "files": {"model.safetensors": "00"}}
    return Spec.of("toy", Config(**params), task=task, model=model, data="d0", passed={"steps": "four"})
