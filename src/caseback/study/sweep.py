"""Many studies from one file: tasks × models × methods, here, in worker processes, or on Ray.

    [[run]]                       # any number of these
    method = "circuit"            # a method's name; the rest are its settings
    n = 40
    discover.points = 6
    [run.each]                    # every combination of these is a cell
    task = ["ioi", "capitals"]
    "discover.steps" = [1, 5]

A cell is an ordinary run of the study, so nothing about a sweep has to be remembered: the same file again reopens what
is finished and goes on with the rest. A worker that is killed takes one step of one cell with it; its cell is given out
again. A cell that cannot be carried out is reported with its reason, and the others go on.

Workers share the study folder (on Ray: a folder that all nodes see). Each keeps the model it loaded last.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal

from caseback.core import registry
from caseback.core.errors import CasebackError, StudyError
from caseback.core.progress import Progress, silent
from caseback.study.asked import config_of
from caseback.study.resume import Busy, Interrupted
from caseback.study.spec import flat
from caseback.study.store import Study

__all__ = ["Cell", "Executor", "Outcome", "carry_out", "read_sweep", "sweep"]

Executor = Literal["here", "processes", "ray"]
MOST = 10_000
"""Cells a file may ask for."""


@dataclass(frozen=True)
class Cell:
    """One study: a method and its settings."""

    method: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in flat(self.settings).items())])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a cell."""

    cell: Cell
    run: str | None
    """The finished run's id."""
    why: str
    """Why it failed; empty where it did not."""
    attempts: int


def read_sweep(path: Path) -> tuple[Cell, ...]:
    """The cells of a file, in order; raises StudyError with the place and the way out. Settings are checked, models are
    not loaded."""
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(f"{path} is not TOML ({error})") from error
    runs = body.get("run")
    whole = isinstance(runs, list) and runs and all(isinstance(run, dict) for run in runs)
    if not isinstance(runs, list) or not whole or body.keys() - {"run"}:
        raise StudyError(f"{path} holds {', '.join(body) or 'nothing'}; a sweep is one or more tables [[run]]")
    cells: list[Cell] = []
    for number, run in enumerate(runs):
        where = f"{path}: run {number + 1}"
        method = run.pop("method", None)
        if method not in registry.names("method"):
            has = "names no method" if method is None else f"has the method {method!r}"
            raise StudyError(f"{where} {has}; there are: {', '.join(registry.names('method'))}")
        each = run.pop("each", {})
        if not isinstance(each, dict) or not all(isinstance(values, list) and values for values in each.values()):
            raise StudyError(f"{where}: [run.each] names settings with a list of values each")
        if (n := _product(each)) + len(cells) > MOST:
            raise StudyError(f"{where} asks for {n} cells; a sweep has at most {MOST}")
        for chosen in itertools.product(*each.values()):
            settings = json.loads(json.dumps(run, default=str))
            for name, value in zip(each, chosen, strict=True):
                _put(settings, name, value, where)
            try:
                config_of(method, settings)
            except (CasebackError, OSError) as error:
                raise StudyError(f"{where}: {error}") from error
            if (cell := Cell(method, settings)) in cells:
                raise StudyError(f"{where} asks for a cell that stands there already: {cell}")
            cells.append(cell)
    return tuple(cells)


def _product(each: Mapping[str, Sequence[Any]]) -> int:
    n = 1
    for values in each.values():
        n *= len(values)
    return n


def _put(settings: dict[str, Any], name: str, value: Any, where: str) -> None:
    """settings["a"]["b"] = value for the name "a.b"."""
    *above, last = name.split(".")
    for part in above:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise StudyError(f"{where}: {name!r} stands in [run.each], but {part!r} is no table of settings")
    if last in settings:
        raise StudyError(f"{where}: {name!r} stands both in [run] and in [run.each]")
    settings[last] = value


# --- one cell --------------------------------------------------------------------------------------------------------

Models = dict[tuple[Any, ...], Any]


def carry_out(study: Study, cell: Cell, models: Models, progress: Progress = silent) -> str:
    """Run a cell; returns the run's id. `models` holds the model that was loaded last."""
    config = config_of(cell.method, cell.settings)
    key = tuple(getattr(config, name, None) for name in ("model", "dtype", "device", "twin", "seed"))
    key = key if getattr(config, "twin", False) else key[:-1]
    if key not in models:
        models.clear()
        if hasattr(config, "load_model"):
            models[key] = config.load_model(progress)
    return study.ask(cell.method, config, passed=cell.settings, progress=progress, model=models.get(key)).id


def _tried(study: Study, cell: Cell, models: Models, progress: Progress = silent) -> tuple[str | None, str, bool]:
    """(run, why it failed, whether it may be tried again)."""
    try:
        while True:
            try:
                return carry_out(study, cell, models, progress), "", False
            except Busy:  # another worker computes a run that this one needs too
                time.sleep(0.5)
    except CasebackError as error:
        return None, str(error), False
    except Exception as error:  # a defect or a machine out of memory: the other cells go on
        return None, f"{type(error).__name__}: {error}", True


# --- many --------------------------------------------------------------------------------------------------------------


def sweep(
    study: Study,
    cells: Sequence[Cell],
    *,
    executor: Executor = "here",
    workers: int = 2,
    retries: int = 1,
    progress: Progress = silent,
) -> tuple[Outcome, ...]:
    """Carry out all cells; an outcome each, in order. A cell whose worker died, or that broke off for a reason that is not
    the request's, is tried `retries` times more."""
    if workers < 1 or retries < 0:
        raise StudyError(f"a sweep has at least 1 worker and 0 retries, not {workers} and {retries}")
    study.make()
    run: Callable[..., dict[int, Outcome]] = {"here": _here, "processes": _processes, "ray": _ray}[executor]
    done = run(study, cells, workers, retries, progress)
    return tuple(done[i] for i in range(len(cells)))


def _here(study: Study, cells: Sequence[Cell], workers: int, retries: int, progress: Progress) -> dict[int, Outcome]:
    models: Models = {}
    done = {}
    for i, cell in enumerate(cells):
        progress("cells", i, len(cells))
        attempt, again = 0, True
        while again and attempt <= retries:
            attempt += 1
            run, why, again = _tried(study, cell, models, progress)
        done[i] = Outcome(cell=cell, run=run, why=why, attempts=attempt)
    progress("cells", len(cells), len(cells))
    return done


def _processes(
    study: Study, cells: Sequence[Cell], workers: int, retries: int, progress: Progress
) -> dict[int, Outcome]:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    waiting = [(i, 1) for i in reversed(range(len(cells)))]
    held: dict[Any, tuple[Any, tuple[int, int]]] = {}
    """Pipe → its process and the cell it has, with the number of the attempt."""
    done: dict[int, Outcome] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)

    def begin() -> Any:
        mine, its = context.Pipe()
        process = context.Process(target=_serve, args=(its, str(study.path), threads), daemon=True)
        process.start()
        its.close()
        return mine, process

    def give(pipe: Any, process: Any) -> None:
        i, attempt = waiting.pop()
        held[pipe] = (process, (i, attempt))
        pipe.send((cells[i].method, dict(cells[i].settings)))

    try:
        for _ in range(min(workers, len(cells))):
            give(*begin())
        while held:
            progress("cells", len(done), len(cells))
            ready: list[Any] = connection.wait(list(held), timeout=1.0)
            for pipe in ready:
                process, (i, attempt) = held.pop(pipe)
                try:
                    run, why, again = pipe.recv()
                    dead = False
                except (EOFError, ConnectionError):
                    process.join()
                    run, why, again, dead = None, f"its worker ended with exit code {process.exitcode}", True, True
                if again and attempt <= retries:
                    waiting.append((i, attempt + 1))
                else:
                    done[i] = Outcome(cell=cells[i], run=run, why=why, attempts=attempt)
                if waiting:
                    give(*(begin() if dead else (pipe, process)))
                elif not dead:
                    pipe.send(None)
                    process.join()
        progress("cells", len(done), len(cells))
    finally:
        for process, _ in held.values():
            process.terminate()
    return done


def _serve(pipe: Any, study: str, threads: int) -> None:
    """A worker: cells come through the pipe, what became of them goes back."""
    import signal

    import torch

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # the run notes that it was stopped, and is not begun again
    torch.set_num_threads(threads)
    models: Models = {}
    while (asked := pipe.recv()) is not None:
        try:
            pipe.send(_tried(Study(study), Cell(*asked), models))
        except Interrupted as stopped:
            pipe.send((None, str(stopped), False))


def _ray(study: Study, cells: Sequence[Cell], workers: int, retries: int, progress: Progress) -> dict[int, Outcome]:
    try:
        import ray
    except ImportError as error:
        raise StudyError("Ray is not installed; `pip install caseback[ray]`, or use --workers alone") from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else workers, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=0)(_on_ray)
    path = str(study.path.resolve())
    done: dict[int, Outcome] = {}
    held = {remote.remote(path, cell.method, dict(cell.settings)): (i, 1) for i, cell in enumerate(cells)}
    while held:
        progress("cells", len(done), len(cells))
        ready, _ = ray.wait(list(held), timeout=1.0)
        for ref in ready:
            i, attempt = held.pop(ref)
            try:
                run, why, again = ray.get(ref)
            except ray.exceptions.RayError as error:
                run, why, again = None, f"its worker was lost ({type(error).__name__})", True
            if again and attempt <= retries:
                held[remote.remote(path, cells[i].method, dict(cells[i].settings))] = (i, attempt + 1)
            else:
                done[i] = Outcome(cell=cells[i], run=run, why=why, attempts=attempt)
    progress("cells", len(done), len(cells))
    return done


_KEPT: Models = {}
"""The model a Ray worker loaded last; Ray gives a worker one task after another."""


def _on_ray(study: str, method: str, settings: dict[str, Any]) -> tuple[str | None, str, bool]:
    return _tried(Study(study), Cell(method, settings), _KEPT)
