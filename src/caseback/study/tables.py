"""The tables of a run, for other tools: CSV, JSON Lines, and frames of pandas or polars where they are installed.

A run whose page is made of sections has their tables, named by the section's title. Any other has the lists of its result,
those of one length side by side (`result`, `result-2` …). A number with an interval becomes three columns,
`name`, `name low` and `name high`.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caseback.core.errors import StudyError
from caseback.study.store import Record

__all__ = ["Table", "frame", "named", "tables", "to_csv", "to_jsonl"]

FRAMES = ("pandas", "polars")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, in order."""

    name: str
    columns: Mapping[str, tuple[Any, ...]]

    @property
    def rows(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))


def tables(record: Record) -> dict[str, Table]:
    """All tables of a finished run, by name; StudyError where the run is not finished or damaged."""
    view = record.stage("view").data if "view" in record.result["arrays"] else {}
    if "sections" in view:
        shown = [section for section in view["sections"] if section.get("table")]
        found = [Table(name=section["title"], columns=_columns(section["table"])) for section in shown]
    else:
        groups: dict[int, dict[str, tuple[Any, ...]]] = {}
        for name, value in record.table.items():
            if isinstance(value, list) and value and not any(isinstance(item, list | dict) for item in value):
                groups.setdefault(len(value), {})[name] = tuple(value)
        found = [Table(name="result", columns=columns) for columns in groups.values()]
    named: dict[str, Table] = {}
    for table in found:
        name, again = table.name, 2
        while name in named:
            name, again = f"{table.name}-{again}", again + 1
        named[name] = Table(name=name, columns=table.columns)
    return named


def named(record: Record, name: str) -> Table:
    """One table of a run, by its name or the beginning of one only (upper and lower case alike); StudyError with those there
    are."""
    found = tables(record)
    fitting = [name] if name in found else [each for each in found if each.casefold().startswith(name.casefold())]
    if len(fitting) == 1:
        return found[fitting[0]]
    if fitting:
        raise StudyError(
            f"{name!r} is the beginning of {len(fitting)} tables ({', '.join(fitting)}); give more of the name"
        )
    raise StudyError(f"run {record.id} has no table {name!r}; it has: {', '.join(found) or 'none'}")


def _columns(table: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The columns of a page's table; intervals apart, equal names numbered."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, column in enumerate(table["columns"]):
        cells = [row[i] for row in table["rows"]]
        name, again = column["name"], 2
        while name in found:
            name, again = f"{column['name']} {again}", again + 1
        if any(isinstance(cell, list) for cell in cells):
            parts = [cell if isinstance(cell, list) else [cell, None, None] for cell in cells]
            for place, end in enumerate(("", " low", " high")):
                found[f"{name}{end}"] = tuple(part[place] for part in parts)
        else:
            found[name] = tuple(cells)
    return found


def to_csv(table: Table) -> str:
    """RFC 4180, a header line first; an unknown number is an empty cell. Text that a spreadsheet would run as a formula
    is kept as it is: open it as text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.columns)
    writer.writerows(zip(*table.columns.values(), strict=True))
    return out.getvalue()


def to_jsonl(table: Table) -> str:
    """An object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.rows)


def frame(table: Table, kind: str = "pandas") -> Any:
    """A DataFrame of pandas or polars; StudyError where that is not installed."""
    if kind not in FRAMES:
        raise StudyError(f"there are no frames of {kind!r}; there are: {', '.join(FRAMES)}")
    try:
        library = importlib.import_module(kind)
    except ImportError as error:
        raise StudyError(f"{kind} is not installed; `pip install {kind}`, or take CSV or JSON Lines") from error
    return library.DataFrame({name: list(values) for name, values in table.columns.items()})
