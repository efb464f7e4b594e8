"""What a study can do without: leftovers of killed writers, runs that were never finished, runs done again since.

Nothing is deleted by finding it: `find_waste` says what there is and why, `remove` deletes what it is given. A run that
some process holds is never waste.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caseback.core.errors import StudyError
from caseback.study.files import cannot_write, discard
from caseback.study.resume import is_locked, locked
from caseback.study.store import Record, Study

__all__ = ["Waste", "find_waste", "remove"]


@dataclass(frozen=True, kw_only=True)
class Waste:
    """A folder that can go."""

    path: Path
    why: str
    bytes: int


def find_waste(study: Study, *, unfinished: bool = False, superseded: bool = False) -> tuple[Waste, ...]:
    """Leftovers; with `unfinished` also runs that broke off, with `superseded` also finished runs of a request that has
    a newer finished one and that no other run cites. Runs that cannot be read are never among them: they are for a person to look at."""
    found = [_waste(left, "left by a process that was killed") for left in study.path.glob("runs/.new-*")]
    records = []
    for run in reversed(study.ids()):
        with suppress(StudyError):
            records.append(Record.open(study.path / "runs" / run))
    cited = "".join(map(_told, records))
    newest: set[str] = set()
    for record in records:
        status = record.status
        if status == "finished":
            again = record.spec.digest in newest and not is_locked(record.path / "lock")
            if superseded and again and record.id not in cited:
                found.append(_waste(record.path, "the same request was carried out again since"))
            newest.add(record.spec.digest)
        elif status in ("failed", "interrupted", "unfinished") and unfinished:
            found.append(_waste(record.path, f"never finished ({status})"))
    return tuple(found)


def _told(record: Record) -> str:
    """All a run asked and found, as text: what it cites is in it."""
    told: list[Any] = [record.spec.params]
    if record.status == "finished":
        told.append({**record.result["table"], "run": None})
    return json.dumps(told)


def remove(study: Study, waste: Iterable[Waste]) -> int:
    """Delete; returns the bytes that became free. A run that was taken up meanwhile stays."""
    freed = 0
    with locked(study.path / "lock", wait=30.0, busy=lambda: f"the study {study.path} is locked by another process"):
        for one in waste:
            if one.path.parent != study.path / "runs" or is_locked(one.path / "lock"):
                continue
            try:
                discard(one.path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise cannot_write(one.path, error) from error
            freed += one.bytes
    return freed


def _waste(path: Path, why: str) -> Waste:
    return Waste(path=path, why=why, bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
