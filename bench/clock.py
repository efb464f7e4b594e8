"""Times that can be compared, and the files they are kept in.

Jobs are run by turns, round after round, after one run of each that is not counted. A ratio is taken within a round,
where both sides met the same neighbours, the same clock rate and the same caches; its median over rounds is the
figure. CPU seconds are the process's, so waiting for a core does not count; what a busy neighbour does to caches
does.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "ROOT", "Ratio", "Timing", "interleaved", "ratio", "read", "write"]

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one job, round by round."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"cpu_s": statistics.median(self.cpu), "wall_s": statistics.median(self.wall), "rounds": len(self.cpu)}


@dataclass(frozen=True)
class Ratio:
    """One job's time over another's: the median over rounds, the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"

    def to_json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


def interleaved(jobs: Mapping[str, Callable[[], Any]], *, rounds: int, warm: bool = True) -> dict[str, Timing]:
    """Run the jobs by turns, each once a round; every second round backwards."""
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(-1 if warm else 0, rounds):
        for name in list(jobs)[:: -1 if number % 2 else 1]:
            began_cpu, began = time.process_time(), time.perf_counter()
            jobs[name]()
            if number >= 0:
                cpu[name].append(time.process_time() - began_cpu)
                wall[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in jobs}


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """over / under, round by round."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


def write(name: str, values: Mapping[str, Any], *, command: str | None = None) -> None:
    """Keep a result with all it depends on."""
    from caseback.core.provenance import machine, versions

    RESULTS.mkdir(exist_ok=True)
    about = {
        "command": command or f"python -m bench {name}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), **machine()},
        "versions": versions(),
        "load_average": os.getloadavg(),
    }
    text = json.dumps(_rounded({**about, **values}), indent=1, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any] | None:
    """A result, or None where it was never measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _rounded(value: Any) -> Any:
    """Four digits of every number: the rest is noise, and would fill every diff."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, Ratio | Timing):
        return _rounded(value.to_json())
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
