"""The study: a folder of runs, found again by what they asked.

    <study>/runs/<id>/...      one folder a run; the folders are the truth
    <study>/index.sqlite       a list of them for quick browsing; may be deleted at any time
    <study>/lock               held for the moment in which a run is looked up or created

A run id is `date-time-method-task-hash`: readable, sortable, and its last four characters come from the spec's digest,
so the same request finds its run by name. The newest run of a request counts: finished → reopened, not finished →
resumed, none or `force` → a new folder, which appears whole (it is made under another name and renamed). The index is
brought up to date when it is read, so computing never waits for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caseback.core import registry
from caseback.core.errors import CasebackError, StudyError
from caseback.core.memory import TOO_MUCH, ran_out
from caseback.core.progress import Progress, silent
from caseback.core.provenance import environment, versions
from caseback.study.files import (
    Checkpoint,
    Newer,
    NotRead,
    Saved,
    cannot_write,
    discard,
    lost,
    read_checkpoint,
    read_json,
    write_json,
)
from caseback.study.index import EVERY, Filter, Row, delete, rows
from caseback.study.resume import Cost, Event, Interrupted, RunFolder, cost, is_locked, locked, read_events
from caseback.study.spec import Asked, Method, Spec

if TYPE_CHECKING:
    from caseback.model.model import Model

__all__ = ["Record", "Study"]


@dataclass(frozen=True)
class Record:
    """A run as it can be read: what was asked, what came out, what it took."""

    path: Path
    id: str
    spec: Spec
    created: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    """Of the packages the run began with."""

    @staticmethod
    def open(path: Path) -> Record:
        """The record in a run folder; StudyError where the folder or its spec is missing, damaged or too new."""
        body = read_json(path / "spec.json")
        try:
            spec = Spec(
                method=str(body["method"]),
                params=dict(body["params"]),
                task=str(body["task"]),
                model=dict(body["model"]),
                data=body["data"],
                passed=dict(body["passed"]),
            )
            return Record(path, path.name, spec, str(body["created"]), dict(body["versions"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(f"{path / 'spec.json'} is damaged ({type(error).__name__}: {error})") from error

    @property
    def status(self) -> str:
        """finished, running, interrupted (Ctrl-C), failed, unfinished (killed), or damaged."""
        if (self.path / "result.json").exists():
            return "damaged" if self.problem else "finished"
        if is_locked(self.path / "lock"):
            return "running"
        ends = [e.kind for e in self.events if e.kind in ("started", "resumed", "interrupted", "failed")]
        return ends[-1] if ends and ends[-1] in ("interrupted", "failed") else "unfinished"

    @property
    def problem(self) -> StudyError | None:
        """Why the result that is there cannot be read."""
        try:
            _ = self.result
        except StudyError as error:
            return error
        return None

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """result.json: `table`, `details`, `arrays`, `cost`."""
        path = self.path / "result.json"
        if not path.exists():
            raise StudyError(f"run {self.id} has no result yet; `caseback resume {self.id}` goes on with it")
        try:
            body = read_json(path)
            if not all(isinstance(body.get(part), dict) for part in ("table", "details", "arrays", "cost")):
                raise StudyError(f"{path} is damaged (a part is missing)")
        except Newer:
            raise
        except StudyError as error:
            raise StudyError(f"{error}; `caseback resume {self.id}` makes it again from what is saved") from error
        return body

    @property
    def table(self) -> dict[str, Any]:
        """The answer: run id, the method's table, then what it took."""
        took = self.result["cost"]
        table = {"run": self.id, **self.result["table"]}
        return {**table, "seconds": took["seconds"], "peak_memory_mb": took["peak_memory_mb"]}

    @property
    def details(self) -> Mapping[str, Any]:
        """What a view needs beside the table."""
        details: Mapping[str, Any] = self.result["details"]
        return details

    def stage(self, name: str) -> Checkpoint:
        """What a stage saved: its arrays and data."""
        path = self.path / "arrays" / f"{name}.safetensors"
        if not path.exists():
            if self.status == "finished" and name in self.result["arrays"]:
                raise StudyError(f"{path} is missing; `caseback resume {self.id}` computes it again")
            there = sorted(p.stem for p in path.parent.glob("*.safetensors"))
            raise StudyError(f"run {self.id} has saved no stage {name!r}; it has: {', '.join(there) or 'none'}")
        try:
            return read_checkpoint(path, owner=self.spec.digest).state
        except Newer:
            raise
        except StudyError as error:
            raise StudyError(f"{error}; `caseback resume {self.id}` computes it again") from error

    def saved(self) -> dict[str, Saved]:
        """Every stage on disk with its steps done and in all; a damaged one, which will be computed again, is left out."""
        found = {}
        for path in sorted(self.path.glob("arrays/*.safetensors")):
            with suppress(StudyError):
                found[path.stem] = read_checkpoint(path, owner=self.spec.digest)
        return found

    @property
    def events(self) -> tuple[Event, ...]:
        return read_events(self.path)

    @property
    def environment(self) -> Mapping[str, Any]:
        """Machine and package versions the run began with."""
        return read_json(self.path / "environment.json")

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        return cost(self.events)

    @property
    def report(self) -> Path | None:
        """The page, where there is one."""
        path = self.path / "report.html"
        return path if path.exists() else None

    def _repr_html_(self) -> str | None:
        """The run's page, as a notebook shows it; none where there is no page."""
        if self.status != "finished" or self.spec.method not in registry.names("report"):
            return None
        return str(registry.get("view", "record")(self))

    def damage(self) -> tuple[str, ...]:
        """What is wrong with the files a result was made from, one sentence each."""
        found = []
        for name, sha256 in self.result["arrays"].items():
            path = self.path / "arrays" / f"{name}.safetensors"
            try:
                if read_checkpoint(path, owner=self.spec.digest).sha256 != sha256:
                    found.append(f"{path} is not the one the result was made from")
            except StudyError as error:
                found.append(str(error))
        return tuple(found)


class Study:
    """A folder of runs: makes them, finds them, goes on with them."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """The study at `path`, else where CASEBACK_STUDY says, else ./casebook; the folder is made by the first run.

        Raises StudyError for what is no folder.
        """
        self.path = Path(path or os.environ.get("CASEBACK_STUDY") or "casebook")
        if self.path.exists() and not self.path.is_dir():
            raise StudyError(f"there is no study folder {self.path}: it is a file")
        self._runs = self.path / "runs"

    def run(
        self,
        spec: Spec,
        *,
        progress: Progress = silent,
        force: bool = False,
        have: Mapping[str, Any] | None = None,
    ) -> Record:
        """Carry out a spec, or reopen the finished run of the same spec; `force` begins a new one.

        `have` hands the method what is loaded already, under names the method knows (`model`, `task`).
        """
        method: Method = registry.get("method", spec.method)
        self.make()
        with locked(self.path / "lock", wait=30.0, busy=lambda: f"the study {self.path} is locked by another process"):
            record = None if force else self._same(spec)
            new = record is None
            if record is None:
                record = self._create(spec)
        if record.status == "finished" and not self._lacks_report(record):
            return record
        return self._compute(record, method, progress=progress, have=have or {}, new=new)

    def ask(
        self,
        method: str,
        config: Any,
        *,
        passed: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        force: bool = False,
        model: Model | None = None,
    ) -> Record:
        """Carry out what a method is asked by its config: load the model (unless it is given), prepare, run."""
        found: Asked = registry.get("method", method)
        spec, have = found.prepare(config, self, passed=passed or {}, progress=progress, model=model)
        return self.run(spec, progress=progress, force=force, have=have)

    def finished(self, spec: Spec) -> bool:
        """Whether the newest run of this request is finished."""
        record = self._same(spec)
        return record is not None and record.status == "finished"

    def resume(self, run: str, *, progress: Progress = silent, have: Mapping[str, Any] | None = None) -> Record:
        """Go on with a run that was not finished, or whose files were damaged since; a sound finished run is returned
        as it is.
        """
        record = self.find(run)
        method: Method = registry.get("method", record.spec.method)
        return self._compute(record, method, progress=progress, have=have or {}, new=False)

    def find(self, run: str) -> Record:
        """The run with this id, an unambiguous beginning of one, "latest", or the path of its folder."""
        if os.sep in run and (Path(run) / "spec.json").exists():
            return Record.open(Path(run))
        ids = self.ids()
        if not ids:
            raise StudyError(
                f"there are no runs in {self.path}; choose another study folder with --study DIR or CASEBACK_STUDY"
            )
        fitting = [ids[-1]] if run == "latest" else [run] if run in ids else [i for i in ids if i.startswith(run)]
        if len(fitting) == 1:
            try:
                return Record.open(self._runs / fitting[0])
            except (Newer, NotRead):
                raise
            except StudyError as error:
                raise lost(error) from error
        shown = ", ".join((fitting or ids)[-5:])
        if fitting:
            raise StudyError(f"{run!r} is the beginning of {len(fitting)} runs ({shown}); give more of the id")
        raise StudyError(f"there is no run {run!r} in {self.path}; the newest are {shown}")

    def ids(self) -> tuple[str, ...]:
        """Ids of all runs, oldest first."""
        try:
            names = [
                entry.name for entry in os.scandir(self._runs) if entry.is_dir() and not entry.name.startswith(".")
            ]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(names))

    def runs(self, wanted: Filter = EVERY) -> tuple[Row, ...]:
        """The list of runs, newest first."""
        return rows(self.path / "index.sqlite", self.ids(), self._row, self._stamp, wanted)

    def make(self) -> None:
        """Make the folder; StudyError where that cannot be done."""
        self._make(self._runs)

    def reindex(self) -> int:
        """Rebuild the index from the folders; returns the number of runs in it."""
        delete(self.path / "index.sqlite")
        return len(self.runs())

    def report(self, record: Record) -> str:
        """The run's page as HTML, made anew from its record."""
        render = registry.get("report", record.spec.method)
        return str(render(record))

    def _stamp(self, run: str) -> str:
        """Changes when a finished run's files do, without reading them."""
        seen = []
        for name in ("spec.json", "result.json"):
            try:
                file = os.stat(f"{self._runs}/{run}/{name}")
                seen.append(f"{file.st_mtime_ns}-{file.st_size}")
            except OSError:
                seen.append("")
        return " ".join(seen)

    def _row(self, run: str) -> Row:
        try:
            record = Record.open(self._runs / run)
        except StudyError as error:
            return Row(
                id=run, method="", model="", task="", created="", status="damaged", headline={}, note=str(lost(error))
            )
        spec, status, note = record.spec, record.status, ""
        headline: dict[str, Any] = {}
        if status == "finished":
            numbers = record.result["table"].items()
            headline = {k: v for k, v in numbers if isinstance(v, (int, float)) and not isinstance(v, bool)}
        elif status == "damaged":
            note = str(record.problem)
        elif status == "failed":
            note = str([e.data.get("error") for e in record.events if e.kind == "failed"][-1])
        return Row(
            id=run,
            method=spec.method,
            model=str(spec.model.get("id", "")),
            task=spec.task,
            created=record.created,
            status=status,
            headline=headline,
            note=note,
            asked=json.dumps(spec.params, ensure_ascii=False),
        )

    def _same(self, spec: Spec) -> Record | None:
        for run in reversed(self.ids()):
            if run.endswith(spec.digest[:4]):
                try:
                    record = Record.open(self._runs / run)
                except StudyError:
                    continue  # a damaged spec answers to nothing; `caseback runs` shows it
                if record.spec.digest == spec.digest:
                    return record
        return None

    def _create(self, spec: Spec) -> Record:
        """A new folder with its spec, under the study's lock; leftovers of killed creations are swept."""
        for left in self._runs.glob(".new-*"):
            shutil.rmtree(left)
        now = datetime.now(UTC)
        stamp, taken = now, {run[:15] for run in self.ids()}
        while f"{stamp:%Y%m%d-%H%M%S}" in taken:  # one run a second, so that ids sort by time
            stamp += timedelta(seconds=1)
        path = self._runs / f"{stamp:%Y%m%d-%H%M%S}-{_slug(spec.method)}-{_slug(spec.task)}-{spec.digest[:4]}"
        draft = self._runs / f".new-{path.name}"
        self._make(draft / "arrays")
        write_json(
            draft / "spec.json",
            {
                "created": now.isoformat(timespec="milliseconds"),
                "method": spec.method,
                "task": spec.task,
                "params": spec.params,
                "passed": spec.passed,
                "seed": spec.params.get("seed"),
                "model": spec.model,
                "data": spec.data,
                "digest": spec.digest,
                "versions": versions(),
            },
        )
        write_json(draft / "environment.json", environment())
        draft.rename(path)
        return Record.open(path)

    def _compute(
        self, record: Record, method: Method, *, progress: Progress, have: Mapping[str, Any], new: bool
    ) -> Record:
        """Run the method under the run's lock, unless its result is there and sound; then see to the report."""
        config = record.spec.config(method.Config)
        busy = f"run {record.id} is being computed by another process; wait for it, or begin another with --force"
        with locked(record.path / "lock", wait=1.0, busy=lambda: busy):
            record = Record.open(record.path)
            run = RunFolder(record.path, record.spec, progress=progress, have=have)
            if isinstance(newer := record.problem, Newer):
                raise newer  # not to be made anew in an older way
            if record.status != "finished" or record.damage():
                self._begin(record, run, new)
                try:
                    method.run(config, run, run.progress)
                    if not (record.path / "result.json").exists():
                        raise RuntimeError(f"the method {record.spec.method!r} ended without a result")
                except KeyboardInterrupt:
                    self._note(run, "interrupted")
                    say = f"run {record.id} was stopped; `caseback resume {record.id}` goes on with it"
                    raise Interrupted(say) from None
                except Exception as error:
                    if new and isinstance(error, CasebackError) and not any(record.path.glob("arrays/*.safetensors")):
                        discard(record.path)  # the request was at fault and nothing was computed: leave nothing
                    else:
                        own = isinstance(error, CasebackError)
                        said = str(error) if own else TOO_MUCH if ran_out(error) else f"{type(error).__name__}: {error}"
                        self._note(run, "failed", error=said)
                    if ran_out(error):
                        raise StudyError(f"{TOO_MUCH}; `caseback resume {record.id}` tries again") from error
                    raise
                record = Record.open(record.path)
            if self._lacks_report(record):
                run.write_report(self.report(record))
            return record

    def _begin(self, record: Record, run: RunFolder, new: bool) -> None:
        then, now = record.versions, versions()
        changed = {
            name: [then.get(name), now.get(name)] for name in then.keys() | now if then.get(name) != now.get(name)
        }
        run.event("started" if new else "resumed", pid=os.getpid(), changed_versions=changed)

    def _lacks_report(self, record: Record) -> bool:
        return record.report is None and record.spec.method in registry.names("report")

    def _note(self, run: RunFolder, kind: str, **data: Any) -> None:
        """An event on the way out of a run that broke off; what broke it off matters more than this line."""
        with suppress(StudyError):
            run.event(kind, **data)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not self.path.is_dir():
                raise StudyError(
                    f"the study folder {self.path} cannot be made ({error.strerror}); "
                    "choose another with --study DIR or CASEBACK_STUDY"
                ) from error
            raise cannot_write(folder, error) from error


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].strip("-") or "x"
