"""The payload of an experiment's run, and its page: one shape for all experiments, so that one view draws them.

The schema, version 1 ("?": may be null or left out)
-----------------------------------------------------
kind, version   "experiment", 1
title, claim    str; the claim is the finding in one sentence
model           {id, revision?}
task            {name, description, metric, n: pairs asked for, kept: pairs answered right, measured: pairs behind the
                numbers, accuracy?, dropped: {reason: count}}
sections        [{title, text, detail?, curve?, points?, heat?, heats?, table?}], drawn in this order; a terminal leaves out
                those with detail true, and names them
    curve       {x, y: names of the axes, axis?, format?, series: [{name, look, x, y, low?, high?}]}: the x axis is "log"
                (the default) or "linear" (a layer; may begin at 0), y is written as `format` (default "percent": a
                share); look is one of LOOKS
    points      [{name, points: [[score, exact], …]}]: a cloud each, beside the line on which both are equal
    heat        {x, y: {name, labels: [str]}, values: [[number, …], …], low?, high?, texts?: [[str, …], …], format, scale,
                note?}: a row of values for each label of y, from the top, and a cell for each label of x; low and high
                are the cells' intervals, texts stand in the cells in place of the values (a top token), of the same
                shape all; format is one of KINDS but text; scale is one of SCALES
    heats       [{name, …as heat}]: small ones side by side, of one format and on one scale, from the least to the
                greatest value of all. A page has at most MAX_CELLS cells
    table       {columns: [{name, kind}], rows: [[cell, …], …]}: kind is one of KINDS; a cell is a text (kind "text"), a
                number, null where it is not known, or [value, low, high] for a number with its interval
settings, environment, cost     objects, shown as they are
notes           [str]

Numbers are finite or null. What `validate` accepts, the view can draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from caseback.core.errors import CasebackError
from caseback.show.report import page
from caseback.study.spec import plain
from caseback.study.store import Record

__all__ = ["KINDS", "LOOKS", "MAX_CELLS", "SCALES", "drawn", "report", "validate"]

KINDS = ("text", "count", "percent", "number", "signed")
"""How a column's cells are written."""
LOOKS = ("own", "second", "third", "control", "induced", "proposed", "agnostic", "random", "complement")
"""Classes of lines in the style sheet; several lines may be of one look, their names stand at their ends."""
SCALES = ("sequential", "diverging")
"""How a heat map is coloured: from the least value (of counts and shares: from 0) to the greatest, or by sign and size on a
scale that is the same on both sides of 0."""
MAX_CELLS = 20_000
"""More cells than this make a page that no browser scrolls smoothly."""


def drawn(record: Record) -> dict[str, Any]:
    """The payload of a recorded run."""
    cost = plain(record.cost)
    return {**record.stage("view").data, "environment": dict(record.environment), "cost": cost}


def report(record: Record) -> str:
    """The page of a recorded run."""
    return page(drawn(record))


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
    cells = 0
    for i, section in enumerate(payload["sections"]):
        where = f"sections[{i}]"
        for name in ("title", "text"):
            _require(isinstance(section.get(name), str), f"{where}.{name}", "is a text")
        _require(
            isinstance(section.get("detail"), bool | None), f"{where}.detail", "is true or false where it is there"
        )
        if section.get("curve") is not None:
            _curve(section["curve"], f"{where}.curve")
        if section.get("table") is not None:
            _table(section["table"], f"{where}.table")
        for j, cloud in enumerate(section.get("points") or ()):
            pairs = all(len(point) == 2 for point in cloud["points"])
            _require(isinstance(cloud.get("name"), str) and pairs, f"{where}.points[{j}]", "is a name with pairs")
        if section.get("heat") is not None:
            cells += _heat(section["heat"], f"{where}.heat")
        if section.get("heats") is not None:
            cells += _heats(section["heats"], f"{where}.heats")
    if cells > MAX_CELLS:
        raise CasebackError(
            f"the heat maps have {cells:,} cells and a page holds at most {MAX_CELLS:,}; show fewer layers, heads or "
            "positions on it"
        )


def _curve(curve: Mapping[str, Any], where: str) -> None:
    axis = curve.get("axis") or "log"
    _require(axis in ("log", "linear"), f"{where}.axis", "is log or linear")
    _require((curve.get("format") or "percent") in KINDS[1:], f"{where}.format", f"is one of {', '.join(KINDS[1:])}")
    _require(bool(curve["series"]), f"{where}.series", "has at least one line")
    for i, line in enumerate(curve["series"]):
        columns = [line[name] for name in ("x", "y", "low", "high") if line.get(name) is not None]
        _require(len({len(column) for column in columns}) == 1, f"{where}.series[{i}]", "has columns of one length")
        lies = all(x is not None and _known(x) and (x > 0 or axis == "linear") for x in line["x"])
        _require(lies, f"{where}.series[{i}].x", f"lies on a {axis} axis")
        known = all(_known(y) for column in columns for y in column)
        _require(known, f"{where}.series[{i}]", "has numbers, finite or null")
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


def _heats(heats: Sequence[Mapping[str, Any]], where: str) -> int:
    _require(bool(heats), where, "has at least one heat map")
    for i, heat in enumerate(heats):
        _require(isinstance(heat.get("name"), str), f"{where}[{i}].name", "is a text")
    cells = sum(_heat(heat, f"{where}[{i}]") for i, heat in enumerate(heats))
    for name in ("format", "scale"):
        _require(len({heat[name] for heat in heats}) == 1, where, f"have one {name}, as they share one legend")
    return cells


def _heat(heat: Mapping[str, Any], where: str) -> int:
    """Check one heat map; its number of cells."""
    for name in ("x", "y"):
        axis = heat.get(name)
        _require(
            isinstance(axis, Mapping) and isinstance(axis.get("name"), str), f"{where}.{name}", "is {name, labels}"
        )
        _texts(heat[name].get("labels"), f"{where}.{name}.labels")
    rows, columns = len(heat["y"]["labels"]), len(heat["x"]["labels"])
    shape = f"has {rows} rows (one a label of y) of {columns} cells (one a label of x)"
    for name in ("values", "low", "high", "texts"):
        if heat.get(name) is None and name != "values":
            continue
        _require(isinstance(heat.get(name), list) and len(heat[name]) == rows, f"{where}.{name}", shape)
        for row in heat[name]:
            _require(isinstance(row, list) and len(row) == columns, f"{where}.{name}", shape)
            if name == "texts":
                _texts(row, f"{where}.texts")
            else:
                _require(all(map(_known, row)), f"{where}.{name}", "holds numbers, finite or null")
    _require(heat.get("format") in KINDS[1:], f"{where}.format", f"is one of {', '.join(KINDS[1:])}")
    _require(heat.get("scale") in SCALES, f"{where}.scale", f"is one of {', '.join(SCALES)}")
    _require(isinstance(heat.get("note"), str | None), f"{where}.note", "is a text where there is one")
    return rows * columns


def _texts(texts: Any, where: str) -> None:
    known = isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
    _require(known, where, "holds texts, at least one")


def _known(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise CasebackError(f"this is no payload of an experiment: {where} {what} in one that is")
