"""The list of runs in SQLite: a cache of one row a run, so that two thousand runs list at once.

It is brought up to date when it is read: folders without a row are read, rows without a folder go, rows of runs that
were not finished are read again. Where it cannot be written (read-only folder, another version's file, a damaged file
in use) the list is made in memory instead, so a study can always be listed; a damaged file is replaced.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Row", "rows"]

_VERSION = 1
_COLUMNS = "id, method, model, task, created, status, headline, note"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run in the list."""

    id: str
    method: str
    model: str
    task: str
    created: str
    """UTC, ISO 8601."""
    status: str
    headline: Mapping[str, int | float]
    """The numbers of the result's table that stand alone (not in lists)."""
    note: str
    """Why the run failed or cannot be opened; empty otherwise."""


def rows(
    path: Path,
    ids: Sequence[str],
    read: Callable[[str], Row],
    *,
    method: str | None,
    model: str | None,
    task: str | None,
) -> tuple[Row, ...]:
    """The rows of these runs, newest first; `read` makes the row of one run from its folder."""
    where = {"method": method, "model": model, "task": task}
    if not ids:
        return ()
    try:
        return _rows(str(path), ids, read, where)
    except sqlite3.OperationalError:
        pass  # not writable, locked for long, or another version's
    except sqlite3.DatabaseError:
        with suppress(OSError, sqlite3.Error):
            path.unlink()
            return _rows(str(path), ids, read, where)
    return _rows(":memory:", ids, read, where)


def _rows(
    place: str, ids: Sequence[str], read: Callable[[str], Row], where: Mapping[str, str | None]
) -> tuple[Row, ...]:
    with closing(sqlite3.connect(place, timeout=5)) as base:
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.OperationalError("the index is of another version")
        base.execute("PRAGMA journal_mode = WAL")
        with base:
            if version == 0:
                base.execute(f"CREATE TABLE IF NOT EXISTS runs ({_COLUMNS.replace('id', 'id TEXT PRIMARY KEY', 1)})")
                base.execute(f"PRAGMA user_version = {_VERSION}")
            known = dict(base.execute("SELECT id, status FROM runs"))
            base.executemany("DELETE FROM runs WHERE id = ?", [(run,) for run in known.keys() - set(ids)])
            changing = [read(run) for run in ids if known.get(run) != "finished"]
            base.executemany(
                f"INSERT OR REPLACE INTO runs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(_flat, changing)
            )
        asked = [(column, text) for column, text in where.items() if text is not None]
        condition = " AND ".join(f"instr(lower({column}), lower(?)) > 0" for column, _ in asked) or "1"
        found = base.execute(
            f"SELECT {_COLUMNS} FROM runs WHERE {condition} ORDER BY id DESC", [text for _, text in asked]
        )
        return tuple(_row(values) for values in found)


def _flat(row: Row) -> tuple[str, ...]:
    return (row.id, row.method, row.model, row.task, row.created, row.status, json.dumps(row.headline), row.note)


def _row(values: Sequence[str]) -> Row:
    run, method, model, task, created, status, headline, note = values
    return Row(
        id=run,
        method=method,
        model=model,
        task=task,
        created=created,
        status=status,
        headline=json.loads(headline),
        note=note,
    )
