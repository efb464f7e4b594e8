"""Studies begun from the page: one process each, in a session of its own, so that Ctrl-C in the server's terminal and
a closed page leave it alone. What it computes is in the casebook; a server that is started later finds it there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from caseback.core.errors import StudyError
from caseback.show.casebook import find
from caseback.study import Study, files
from caseback.study.asked import config_of

__all__ = ["MOST", "Jobs"]

MOST = 4
"""Studies that are computed at once."""
KEPT = 40
"""Jobs that are remembered."""


@dataclass
class _Job:
    id: str
    what: dict[str, Any]
    folder: Path
    process: subprocess.Popen[bytes]
    stopping: bool = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def told(self) -> dict[str, Any]:
        """What the process says of itself; what the system says of it where it said nothing."""
        alive = self.alive  # before the reading, so that its last word is not missed
        try:
            said = json.loads((self.folder / "state.json").read_text("utf-8"))
        except (OSError, ValueError):
            said = {"state": "running", "stage": "begins"}
        if not alive and said["state"] == "running":
            said |= {
                "state": "failed",
                "error": f"its process ended without a word (exit code {self.process.returncode})",
            }
        return {"job": self.id, **self.what, **said, "stopping": self.stopping and alive}


class Jobs:
    """The processes a server has begun."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._jobs: dict[str, _Job] = {}
        self._lock = Lock()
        self._home: Path | None = None

    def start(self, method: str, params: Mapping[str, Any], *, force: bool = False) -> dict[str, Any]:
        """Begin a study, or reopen the run of the same request. Raises StudyError, or the method's own error, for settings
        that do not fit, before a process is begun."""
        try:
            config_of(method, params)
        except OSError as error:
            raise StudyError(f"{error.filename or method} cannot be read: {error.strerror or error}") from error
        return self._begin({"method": method, "params": dict(params), "force": force}, {"method": method})

    def resume(self, run: str) -> dict[str, Any]:
        """Go on with a run. Raises StudyError where it is finished or computed now."""
        record = find(self.study, run)
        if (status := record.status) in ("finished", "running"):
            raise StudyError(f"run {run} is {status}; there is nothing to go on with")
        return self._begin({"resume": run}, {"method": record.spec.method, "run": run})

    def cancel(self, job: str) -> dict[str, Any]:
        """Stop a job where it can be resumed. Raises StudyError for one that is not there."""
        with self._lock:
            found = self._jobs.get(job)
        if found is None:
            raise StudyError(f"there is no job {job!r:.80} of this server")
        if found.alive:
            found.stopping = True
            found.process.send_signal(signal.SIGINT)
        return found.told()

    def all(self) -> list[dict[str, Any]]:
        """Every job, the newest first."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [job.told() for job in reversed(jobs)]

    @property
    def running(self) -> int:
        """How many are computed now."""
        with self._lock:
            return sum(job.alive for job in self._jobs.values())

    def _begin(self, asked: Mapping[str, Any], what: dict[str, Any]) -> dict[str, Any]:
        if self.running >= MOST:
            raise StudyError(f"{MOST} studies are computed already; wait for one, or stop one")
        self.study.make()
        folder = self._folder() / (job := secrets.token_hex(4))
        folder.mkdir()
        files.write(folder / "asked.json", json.dumps({"study": str(self.study.path.resolve()), **asked}).encode())
        with (folder / "errors.txt").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "caseback.show.work", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},
            )
        with self._lock:
            self._jobs[job] = begun = _Job(job, what, folder, process)
            for old in [one.id for one in self._jobs.values() if not one.alive][: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old]
        return begun.told()

    def _folder(self) -> Path:
        """Where the processes tell how far they are."""
        with self._lock:
            if self._home is None:
                self._home = Path(tempfile.mkdtemp(prefix="caseback-view-"))
            return self._home

    def close(self) -> int:
        """How many studies go on without the server; where none does, what they told is deleted."""
        going_on = self.running
        if self._home is not None and not going_on:
            shutil.rmtree(self._home, ignore_errors=True)
        return going_on
