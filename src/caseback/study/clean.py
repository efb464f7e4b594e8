"""What a study can do without: leftovers of killed writers, runs that were never finished, runs done again since.

Nothing is deleted by finding it: `find_waste` says what there is and why, `remove` deletes what it is given. A run that
some process holds is never waste.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caseback.core.errors import StudyError
from caseback.study.files import Newer, NotRead, cannot_write, discard
from caseback.study.resume import is_locked, locked
from caseback.study.store import Record, Study

__all__ = ["Waste", "find_waste", "remove"]


@dataclass(frozen=True, kw_only=True)
class Waste:
    """A run's folder, or a claim's file, that can go."""

    path: Path
    why: str
    bytes: int


def find_waste(
    study: Study, *, unfinished: bool = False, superseded: bool = False, damaged: bool = False
) -> tuple[Waste, ...]:
    """Leftovers; with `unfinished` also runs that broke off, with `superseded` also finished runs of a request that has
    a newer finished one and that no other run cites, with `damaged` folders that do not say any more what was asked, and
    claims that do not say what they claim. What a newer caseback wrote, and what the operating system does not let us read,
    is never among them; nor is a run of which only the result or an array is damaged, since resuming mends it."""
    found = [_waste(left, "left by a process that was killed") for left in study.path.glob("runs/.new-*")]
    records = []
    for run in reversed(study.ids()):
        path = study.path / "runs" / run
        try:
            records.append(Record.open(path))
        except (Newer, NotRead):
            continue
        except StudyError as error:
            if damaged and not is_locked(path / "lock"):
                found.append(_waste(path, str(error)))
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
    return (*found, *(_damaged_claims(study) if damaged else ()))


def _damaged_claims(study: Study) -> Iterator[Waste]:
    from caseback.study.claims import claim_ids, read_claim

    for name in claim_ids(study):
        try:
            read_claim(study, name)
        except (Newer, NotRead):
            continue
        except StudyError as error:
            yield _waste(study.path / "claims" / f"{name}.json", str(error.__cause__ or error))


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
            of_claims = one.path.parent == study.path / "claims"
            if not of_claims and (one.path.parent != study.path / "runs" or is_locked(one.path / "lock")):
                continue
            try:
                if not of_claims:
                    discard(one.path)
                elif one.path.is_dir() and not one.path.is_symlink():
                    shutil.rmtree(one.path)
                else:
                    one.path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise cannot_write(one.path, error) from error
            freed += one.bytes
    return freed


def _waste(path: Path, why: str) -> Waste:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Waste(path=path, why=why, bytes=sum(file.stat().st_size for file in files))
