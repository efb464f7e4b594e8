"""How a finding is said in a terminal: its claim, its tables and heat maps, and where the page is."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer

from caseback.cli.heat import heat_lines, number, safe

if TYPE_CHECKING:
    from caseback.study import Record

__all__ = ["cell", "lines", "say"]

WIDTH = shutil.get_terminal_size((100, 24)).columns - 2


def say(record: Record, *, as_json: bool = False) -> None:
    """The claim, the tables, and where the page is; or the table as one JSON object."""
    if as_json:
        typer.echo(json.dumps(record.table))
        return
    view, table = record.stage("view").data, record.table
    asked = f": {table['n']} pairs, {table['kept']} answered right" if {"kept", "n"} <= table.keys() else ""
    typer.echo(f"{safe(table['task'])} on {safe(table['model'])}{asked}\n")
    typer.echo(safe(view["claim"]))
    for section in view["sections"]:
        if section.get("detail"):
            continue
        shown = [*_heats(section), *(lines(section["table"]) if section.get("table") else [])]
        if shown:
            typer.echo(f"\n{safe(section['title'])}")
        for line in shown:
            typer.echo(f"  {line}")
    if further := [safe(section["title"]) for section in view["sections"] if section.get("detail")]:
        typer.echo(f"\nOn the page: {', '.join(further)}.")
    typer.echo(f"\n{table['seconds']:.0f} s, {table['peak_memory_mb']:,.0f} MB")
    typer.echo(f"run {record.id}")
    typer.echo(f"page {record.report.resolve()}" if record.report else "no page was written")


FORMATS = {"count": "{:,.0f}", "percent": "{:.1%}", "number": "{:.3f}", "signed": "{:+.3g}"}


def lines(table: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """A table of a section as aligned lines; the widest column of text is wrapped until they fit, or is 24 wide."""
    kinds = [column["kind"] for column in table["columns"]]
    rows = [[column["name"] for column in table["columns"]]]
    rows += [[cell(content, kind) for content, kind in zip(row, kinds, strict=True)] for row in table["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(kinds))]
    texts = [i for i, kind in enumerate(kinds) if kind == "text"]
    while sum(widths) + 2 * len(widths) - 2 > width and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= 24:
            break
        others = max((widths[i] for i in texts if i != widest), default=24)
        widths[widest] -= max(1, min(sum(widths) + 2 * len(widths) - 2 - width, widths[widest] - max(24, others)))
    sides = ["<" if kind == "text" else ">" for kind in kinds]
    shown: list[str] = []
    for row in rows:
        parts = [[text] if len(text) <= space else textwrap.wrap(text, space) for text, space in zip(row, widths)]
        for line in zip_longest(*parts, fillvalue=""):
            padded = (f"{text:{side}{space}}" for text, side, space in zip(line, sides, widths))
            shown.append("  ".join(padded).rstrip())
    return shown


def cell(content: Any, kind: str) -> str:
    """A number of its kind, its interval behind it; text without what a terminal would act on."""
    if kind == "text":
        return safe(content)
    value, *ends = [number(part, FORMATS[kind]) for part in (content if isinstance(content, list) else [content])]
    return f"{value} [{', '.join(ends)}]" if ends else value


def _heats(section: Mapping[str, Any]) -> list[str]:
    """The section's heat maps, as wide as the terminal."""
    maps = [section["heat"]] if section.get("heat") else section.get("heats") or []
    shown: list[str] = []
    for one in maps:
        shown += ([safe(one["name"])] if one.get("name") else []) + [*heat_lines(one, WIDTH), ""]
    return shown
