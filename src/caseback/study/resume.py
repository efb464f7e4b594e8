"""A run while it is computed: stages that survive anything, events, one writer.

A run is a chain of named stages. A **stage is a fold**: state_0 = None, state_{i+1} = step(state_i, i); the state is
saved after every step, so a kill at any moment loses one step at most. A stage computed in one piece is a fold of one
step. When the run is begun again, every stage that is whole is read, one that is half done goes on where it stopped,
and one whose file is damaged is computed again, which an event says. Because a step sees the state exactly as it reads
back from disk, an interrupted run ends with the bytes of an uninterrupted one.

    <run>/spec.json  environment.json  events.jsonl  arrays/<stage>.safetensors  result.json  report.html  lock

A stage asked for while another one's step is computed is a **part** of that step. Parts are saved as any stage, under
`parts/<stage>/<step>/`, and are gone when the step is saved: so a long step loses little to a kill, and a finished run holds
nothing that only served to get there.

The run is finished when result.json lies there. One process at a time holds the lock (flock: the kernel releases it
even on kill -9).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caseback.core.errors import StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import peak_memory_mb
from caseback.study.files import (
    Checkpoint,
    Newer,
    Saved,
    cannot_write,
    read_checkpoint,
    write,
    write_checkpoint,
    write_json,
)
from caseback.study.spec import Spec, plain

__all__ = ["Busy", "Cost", "Event", "Interrupted", "RunFolder", "cost", "is_locked", "locked", "read_events"]

_TOOK = ("seconds", "cpu_seconds", "peak_memory_mb")
_STAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; its message says how to go on."""


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl."""

    at: str
    """UTC, ISO 8601."""
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run has taken so far, all sessions together, lost work included."""

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    """Greatest resident memory of the process, in MB (10^6 bytes)."""
    sessions: int
    """How often the run was begun or resumed."""


class Busy(StudyError):
    """Another process holds what was to be computed."""


class RunFolder:
    """A run's folder, held by this process: what a method gets to compute with."""

    def __init__(self, path: Path, spec: Spec, *, progress: Progress, have: Mapping[str, Any]) -> None:
        self.path = path
        self.id = path.name
        self.spec = spec
        self.have = have
        """Things the caller has at hand already (a loaded model, a task); a resumed run has none."""
        self._watch = progress
        self._stages: dict[str, str] = {}
        self._within: tuple[str, ...] = ()
        """Stage and step that are being computed, and those around them, outermost first."""
        self._folder = path / "arrays"
        """Where the stages lie that are asked for now."""
        self._begun = time.perf_counter()
        self._cpu = time.process_time()
        self._told = -1.0
        self._seen: set[Path] = set()
        for left in (*path.glob(".*.tmp"), *path.glob("arrays/.*.tmp"), *path.glob("parts/**/.*.tmp")):
            left.unlink()  # of a writer that was killed: the lock is ours now

    @property
    def study(self) -> Path:
        """The study folder it lies in, where it finds the runs it cites."""
        return self.path.resolve().parents[1]

    def stage(self, name: str, compute: Callable[[], Checkpoint]) -> Checkpoint:
        """The stage's saved state, computed and saved if it is not there yet."""
        return self.fold(name, 1, lambda state, i: compute())

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        """The state after `steps` steps, each saved; `step(state, i)` gets None at i = 0 and must depend on nothing
        else that changes.
        """
        if not _STAGE.fullmatch(name) or steps < 1:
            raise ValueError(
                f"a stage has a name of lower-case letters, digits, . _ - and at least one step; got {name!r}, {steps}"
            )
        path, told = self._folder / f"{name}.safetensors", "/".join((*self._within, name))
        parts = self.path.joinpath("parts", *self._within, name)
        if self._within:
            if path in self._seen:  # a stage may be asked for again; two parts of one name would be one by mistake
                raise ValueError(f"the part {told!r} was asked for before")
            self._seen.add(path)
        saved = self._read(told, path, steps)
        if saved and saved.done == steps:
            self.event("stage-reopened", stage=told)
        else:
            _make(self._folder)
            self.event("stage-started", stage=told, done=saved.done if saved else 0, total=steps)
            while saved is None or saved.done < steps:
                done = saved.done if saved else 0
                self.progress(name, done, steps)
                with self._computing(name, done):
                    state = step(saved.state if saved else None, done)
                saved = write_checkpoint(path, state, done=done + 1, steps=steps, owner=self.spec.digest)
                _drop(parts)
            self.event("stage-finished", stage=told)
        _drop(parts)  # of a process that was killed before it could
        self.progress(name, steps, steps)
        if not self._within:
            self._stages[name] = saved.sha256
        return saved.state

    @contextmanager
    def _computing(self, name: str, step: int) -> Iterator[None]:
        """Stages asked for in the block are parts of this step."""
        outer = self._within, self._folder
        self._within = (*self._within, name, str(step))
        self._folder = self.path.joinpath("parts", *self._within)
        try:
            yield
        finally:
            self._within, self._folder = outer

    def _read(self, name: str, path: Path, steps: int) -> Saved | None:
        if not path.exists():
            return None
        try:
            saved = read_checkpoint(path, owner=self.spec.digest)
        except Newer:
            raise
        except StudyError as error:
            self.event("damaged", stage=name, why=str(error), then="the stage is computed again")
            return None
        if saved.steps != steps:
            self.event(
                "damaged", stage=name, why=f"it has {saved.steps} steps, {steps} were asked for", then="it begins again"
            )
            return None
        return saved

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show progress, and record it at most once a second."""
        self._watch(stage, done, total)
        now = time.perf_counter()
        if now - self._told >= 1:
            self._told = now
            self.event("progress", stage=stage, done=done, total=total)

    def event(self, kind: str, **data: Any) -> None:
        """Append one line to events.jsonl: what happened, when, and the cost of this session so far."""
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "seconds": round(time.perf_counter() - self._begun, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            **plain(data),
        }
        path = self.path / "events.jsonl"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                cut = (
                    size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                )  # a line a full disk or a power cut broke off
                os.write(descriptor, (b"\n" if cut else b"") + json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot_write(path, error) from error

    def confirm(self, *, model: Mapping[str, Any] | None = None, data: str | None = None) -> None:
        """Refuse to go on with another model or other data than the run began with."""
        files, expected = dict((model or {}).get("files") or {}), dict(self.spec.model.get("files") or {})
        other = sorted(name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name))
        if model is not None and other:
            raise StudyError(
                f"run {self.id} began with other model files ({', '.join(other)} differ); "
                "give it the model it began with, or begin a new run"
            )
        if data is not None and data != self.spec.data:
            raise StudyError(
                f"run {self.id} began with other data than {self.spec.task!r} gives now; "
                "give it the file it began with, or begin a new run"
            )

    def write_result(self, table: Mapping[str, Any], *, details: Mapping[str, Any] | None = None) -> None:
        """Finish the run: `table` is the answer a user reads, without run id and cost; `details` is what a view needs
        beside it.
        """
        self.event("result")
        content = {
            "table": table,
            "details": details or {},
            "arrays": self._stages,
            "cost": cost(read_events(self.path)),
        }
        write_json(self.path / "result.json", content)

    def write_report(self, html: str) -> None:
        """Put report.html in its place."""
        write(self.path / "report.html", html.encode(errors="replace"))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _drop(folder: Path) -> None:
    """Delete a folder of parts, and those above it that are empty then."""
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
        with suppress(OSError):  # another stage's parts are in it
            folder.parent.rmdir()
    except OSError as error:
        raise cannot_write(folder, error) from error


def read_events(path: Path) -> tuple[Event, ...]:
    """All events of a run folder; a line that cannot be read is an event of kind "unreadable"."""
    try:
        lines = (path / "events.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if not all(isinstance(data.get(name, 0), int | float) for name in _TOOK):
                raise ValueError("what it took is no number")
            events.append(Event(str(data.pop("at")), str(data.pop("kind")), data))
        except (ValueError, KeyError, AttributeError):
            events.append(Event("", "unreadable", {"line": number}))
    return tuple(events)


def cost(events: tuple[Event, ...]) -> Cost:
    """Each session's last event says what the session took."""
    seconds = cpu = memory = 0.0
    sessions = 0
    last: Mapping[str, Any] = {}
    for event in (*events, Event("", "started", {})):
        if event.kind in ("started", "resumed"):
            seconds += last.get("seconds", 0.0)
            cpu += last.get("cpu_seconds", 0.0)
            sessions += bool(last)
        if event.kind != "unreadable":
            last = event.data
            memory = max(memory, last.get("peak_memory_mb", 0.0))
    return Cost(seconds=round(seconds, 3), cpu_seconds=round(cpu, 3), peak_memory_mb=memory, sessions=sessions)


@contextmanager
def locked(path: Path, *, wait: float, busy: Callable[[], str]) -> Iterator[None]:
    """Hold a lock file for the block; Busy(busy()) when another holds it for longer than `wait` seconds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(busy()) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now (a moment's shared lock tells; writers wait longer than that)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
