"""What goes on in a study folder while one looks: which runs are computed now, and how far they are.

Nothing is asked of the processes that compute. A run that is computed holds the lock of its folder and appends to its
events.jsonl; both can be read from outside, so runs begun in a terminal, from the page or by another user show alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caseback.study import Study
from caseback.study.claims import claim_ids
from caseback.study.resume import is_locked

__all__ = ["Events", "Watch"]

TAIL = 8192
"""Bytes at the end of events.jsonl in which the last progress is looked for."""
MOST = 1 << 20
"""Bytes of events read at once."""


@dataclass
class Watch:
    """A study folder, watched; `look` is called about once a second."""

    study: Study
    _ended: dict[str, bool] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """The runs computed now with their progress, and a `stamp` that changes whenever the list of runs, or of claims, does."""
        ids = self.study.ids()
        running = []
        for run in ids:
            if self._ended.get(run):
                continue
            folder = self.study.path / "runs" / run
            self._ended[run] = (folder / "result.json").exists()
            if is_locked(folder / "lock"):
                self._ended[run] = False  # the page is still to be written, or it is being mended
                running.append({"id": run, **_progress(folder)})
        self._ended = {run: self._ended[run] for run in ids if run in self._ended}
        ended = sum(self._ended.values())
        counts = f"{len(ids)} {ended} {len(claim_ids(self.study))}"
        return {"stamp": f"{counts} {' '.join(one['id'] for one in running)}", "running": running}


def _progress(folder: Path) -> dict[str, Any]:
    """Stage, steps done and in all, seconds of this session; {} before the first event."""
    found: dict[str, Any] = {}
    for event in _parsed(_tail(folder / "events.jsonl").split(b"\n")):
        if event.get("kind") in ("started", "resumed"):
            found = {}
        if event.get("kind") in ("progress", "stage-started"):
            found |= {name: event.get(name) for name in ("stage", "done", "total")}
        found["seconds"] = event.get("seconds")
    return found


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read(TAIL)
    except OSError:
        return b""


def _parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # blank, the rest of a line that begins before the tail, or one that was broken off
        if isinstance(event, dict):
            yield event


@dataclass
class Events:
    """The events of one run, as they come."""

    folder: Path
    _at: int = 0
    _rest: bytes = b""

    def more(self) -> tuple[list[dict[str, Any]], bool]:
        """The events since the last call, and whether any more can come: a process holds the run, or there is more to
        read."""
        held = is_locked(self.folder / "lock")  # before the reading, so that what a process wrote last is not missed
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(self._at)
                new = file.read(MOST)
        except OSError:
            return [], held
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return list(_parsed(lines)), held or len(new) == MOST
