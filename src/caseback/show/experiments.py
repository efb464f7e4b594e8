"""The payload of an experiment's run, and its page: one shape for all experiments, so that one view draws them.

The schema, version 1 ("?": may be null or left out)
-----------------------------------------------------
kind, version   "experiment", 1
title, claim    str; the claim is the finding in one sentence
model           {id, revision?}
task            {name, description, metric, n: pairs asked for, kept: pairs answered right, measured: pairs behind the
                numbers, accuracy?, dropped: {reason: count}}
sections        [{title, text, curve?, points?, table?}], drawn in this order
    curve       {x, y: names of the axes, series: [{name, look, x, y, low?, high?}]}: the x axis is logarithmic, y is a
                share; look is one of LOOKS
    points      [{name, points: [[score, exact], …]}]: a cloud each, beside the line on which both are equal
    table       {columns: [{name, kind}], rows: [[cell, …], …]}: kind is one of KINDS; a cell is a text (kind "text"), a
                number, null where it is not known, or [value, low, high] for a number with its interval
settings, environment, cost     objects, shown as they are
notes           [str]

Numbers are finite or null. What `validate` accepts, the view can draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caseback.core.errors import CasebackError
from caseback.show.report import page
from caseback.study.spec import plain
from caseback.study.store import Record

__all__ = ["KINDS", "LOOKS", "report", "validate"]

KINDS = ("text", "count", "percent", "number", "signed")
"""How a column's cells are written."""
LOOKS = ("own", "induced", "proposed", "agnostic", "random", "complement")
"""Classes of lines in the style sheet."""


def report(record: Record) -> str:
    """The page of a recorded run."""
    cost = plain(record.cost)
    return page({**record.stage("view").data, "environment": dict(record.environment), "cost": cost})


def validate(payload: Mapping[str, Any]) -> None:
    """Raise CasebackError, naming the field, unless `payload` follows the schema."""
    _require(payload.get("kind") == "experiment" and payload.get("version") == 1, "kind", "is 'experiment', version 1")
    for name, kind in (("title", str), ("claim", str), ("sections", list), ("notes", list)):
        _require(isinstance(payload.get(name), kind), name, f"is of type {kind.__name__}")
    for name in ("model", "task", "settings", "environment", "cost"):
        _require(isinstance(payload.get(name), Mapping), name, "is an object")
    for name in ("name", "description", "metric"):
        _require(isinstance(payload["task"].get(name), str), f"task.{name}", "is a text")
    _require(isinstance(payload["model"].get("id"), str), "model.id", "is a text")
    for i, section in enumerate(payload["sections"]):
        where = f"sections[{i}]"
        for name in ("title", "text"):
            _require(isinstance(section.get(name), str), f"{where}.{name}", "is a text")
        if section.get("curve") is not None:
            _curve(section["curve"], f"{where}.curve")
        if section.get("table") is not None:
            _table(section["table"], f"{where}.table")
        for j, cloud in enumerate(section.get("points") or ()):
            pairs = all(len(point) == 2 for point in cloud["points"])
            _require(isinstance(cloud.get("name"), str) and pairs, f"{where}.points[{j}]", "is a name with pairs")


def _curve(curve: Mapping[str, Any], where: str) -> None:
    _require(bool(curve["series"]), f"{where}.series", "has at least one line")
    for i, line in enumerate(curve["series"]):
        columns = [line[name] for name in ("x", "y", "low", "high") if line.get(name) is not None]
        _require(len({len(column) for column in columns}) == 1, f"{where}.series[{i}]", "has columns of one length")
        _require(all(x is not None and x > 0 for x in line["x"]), f"{where}.series[{i}].x", "lies on a log axis")
        _require(line["look"] in LOOKS, f"{where}.series[{i}].look", f"is one of {', '.join(LOOKS)}")


def _table(table: Mapping[str, Any], where: str) -> None:
    kinds = [column["kind"] for column in table["columns"]]
    _require(set(kinds) <= set(KINDS), f"{where}.columns", f"have a kind among {', '.join(KINDS)}")
    for i, row in enumerate(table["rows"]):
        _require(len(row) == len(kinds), f"{where}.rows[{i}]", f"has a cell for each of {len(kinds)} columns")
        for kind, cell in zip(kinds, row, strict=True):
            numbers = cell if isinstance(cell, list) and len(cell) == 3 else [cell]
            fits = isinstance(cell, str) if kind == "text" else all(_known(x) for x in numbers)
            _require(fits, f"{where}.rows[{i}]", f"has cells of their column's kind, not {str(cell)[:60]!r} for {kind}")


def _known(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise CasebackError(f"this is no payload of an experiment: {where} {what} in one that is")
