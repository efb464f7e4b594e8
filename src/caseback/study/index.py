"""The list of runs in SQLite: a cache of one row a run, so that two thousand runs list at once.

It is brought up to date when it is read: folders without a row are read, rows without a folder go, rows of runs that
were not finished are read again. Words are found by FTS5 over everything that was asked. Where it cannot be written
(read-only folder, a newer version's file, a damaged file in use) the list is made in memory instead, so a study can
always be listed; a damaged or an older file is replaced.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EVERY", "Filter", "Row", "delete", "rows"]

_VERSION = 3
WAIT = 5.0
"""Seconds for another process to end its change."""
_COLUMNS = "id, method, model, task, created, status, headline, note, asked"
_TABLES = (
    "DROP TABLE IF EXISTS runs",
    "DROP TABLE IF EXISTS words",
    f"CREATE TABLE runs ({_COLUMNS.replace('id', 'id TEXT PRIMARY KEY', 1)}, stamp)",
    "CREATE VIRTUAL TABLE words USING fts5(id UNINDEXED, text, prefix = '2 3')",
    f"PRAGMA user_version = {_VERSION}",
)
_STATUS = _COLUMNS.split(", ").index("status")
_MARKS = ", ".join("?" * (len(_COLUMNS.split(",")) + 1))


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs are listed; None: all."""

    method: str | None = None
    """A part of the name, upper and lower case alike; so with model and task."""
    model: str | None = None
    task: str | None = None
    since: str | None = None
    """ISO 8601, UTC: a day, or a day and time. Runs made then or later."""
    until: str | None = None
    """Runs made before the end of that day, or before that time."""
    words: str | None = None
    """Beginnings of words that all occur in what was asked."""


EVERY = Filter()
Stamp = Callable[[str], str]
"""From a run to what changes when its files do."""


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
    asked: str = ""
    """The parameters, as JSON: what a search looks through."""


Read = Callable[[str], Row]


def rows(path: Path, ids: Sequence[str], read: Read, stamp: Stamp, wanted: Filter) -> tuple[Row, ...]:
    """The rows of these runs, newest first. `read` makes the row of one run from its folder; that of a finished one is read
    again when its `stamp` is another."""
    if not ids:
        return ()
    try:
        return _rows(str(path), ids, read, stamp, wanted)
    except sqlite3.OperationalError:
        pass  # not writable, locked for long, or a newer version's
    except (sqlite3.DatabaseError, ValueError):  # damaged, or what is in it is
        with suppress(OSError, sqlite3.Error):
            delete(path)
            return _rows(str(path), ids, read, stamp, wanted)
    return _rows(":memory:", ids, read, stamp, wanted)


def delete(path: Path) -> None:
    """Delete the list, and what SQLite keeps beside it, which would be played into the next one."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _rows(place: str, ids: Sequence[str], read: Read, stamp: Stamp, wanted: Filter) -> tuple[Row, ...]:
    stamps = {run: stamp(run) for run in ids}  # before a run is read, so that one that changes meanwhile is read again
    with closing(sqlite3.connect(place, timeout=WAIT)) as base:
        base.execute("PRAGMA journal_mode = WAL")
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.OperationalError("the index is of a newer version")
        if version < _VERSION:
            _make(base)
        known = {row[0]: row for row in base.execute(f"SELECT {_COLUMNS}, stamp FROM runs")}

        def settled(run: str) -> bool:
            return run in known and known[run][_STATUS] == "finished" and known[run][-1] == stamps[run]

        moving = ((*_flat(row), stamps[row.id]) for row in (read(run) for run in ids if not settled(run)))
        changed = [row for row in moving if row != known.get(row[0])]
        old = [(run,) for run in known.keys() - set(ids)] + [(row[0],) for row in changed]
        if old:
            with base:
                base.executemany("DELETE FROM runs WHERE id = ?", old)
                base.executemany("DELETE FROM words WHERE id = ?", old)
                base.executemany(f"INSERT OR REPLACE INTO runs ({_COLUMNS}, stamp) VALUES ({_MARKS})", changed)
                base.executemany(
                    "INSERT INTO words (id, text) VALUES (?, ?)", ((row[0], _text(_row(row[:-1]))) for row in changed)
                )
        condition, values = _condition(wanted)
        found = base.execute(f"SELECT {_COLUMNS} FROM runs WHERE {condition} ORDER BY id DESC", values)
        return tuple(_row(values) for values in found)


def _make(base: sqlite3.Connection) -> None:
    """Empty tables, unless another process made them meanwhile."""
    with base:
        base.execute("BEGIN IMMEDIATE")
        (version,) = base.execute("PRAGMA user_version").fetchone()
        for statement in _TABLES if version < _VERSION else ():
            base.execute(statement)


def _condition(wanted: Filter) -> tuple[str, list[str]]:
    """The filter in SQL, and its values."""
    parts, values = ["1"], []
    for column in ("method", "model", "task"):
        if (text := getattr(wanted, column)) is not None:
            parts.append(f"instr(lower({column}), lower(?)) > 0")
            values.append(text)
    if wanted.since is not None:
        parts.append("created >= ?")
        values.append(wanted.since)
    if wanted.until is not None:
        parts.append("created < ? || '~'")  # '~' sorts behind every digit, so a day holds its times
        values.append(wanted.until)
    if wanted.words is not None and (words := re.findall(r"\w+", wanted.words)):
        parts.append("id IN (SELECT id FROM words WHERE words MATCH ?)")
        values.append(" ".join(f'"{word}"*' for word in words))
    return " AND ".join(parts), values


def _flat(row: Row) -> tuple[str, ...]:
    headline = json.dumps(row.headline)
    return (row.id, row.method, row.model, row.task, row.created, row.status, headline, row.note, row.asked)


def _text(row: Row) -> str:
    """What a search looks through."""
    return " ".join((row.id, row.method, row.model, row.task, row.status, row.note, *row.headline, row.asked))


def _row(values: Sequence[str]) -> Row:
    run, method, model, task, created, status, headline, note, asked = values
    return Row(
        id=run,
        method=method,
        model=model,
        task=task,
        created=created,
        status=status,
        headline=json.loads(headline),
        note=note,
        asked=asked,
    )
