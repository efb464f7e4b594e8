"""How a finding is said in a terminal: its claim, its tables and heat maps, and where the page is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from caseback.cli.heat import heat_lines, number, safe

if TYPE_CHECKING:
    from caseback.study import Record

__all__ = ["cell", "lines", "say"]

WIDTH = shutil.get_terminal_size((100, 24)).columns - 2


def say(record: Record) -> None:
    """The claim, the tables, and where the page is."""
    view, table = record.stage("view").data, record.table
    asked = f": {table['n']} pairs, {table['kept']} answered right" if "kept" in table else ""
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


def lines(table: Mapping[str, Any]) -> list[str]:
    """A table of a section as aligned lines."""
    kinds = [column["kind"] for column in table["columns"]]
    rows = [[column["name"] for column in table["columns"]]]
    rows += [[cell(content, kind) for content, kind in zip(row, kinds, strict=True)] for row in table["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(kinds))]
    sides = ["<" if kind == "text" else ">" for kind in kinds]
    return [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths)).rstrip() for row in rows
    ]


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
