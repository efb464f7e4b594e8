"""A heat map of a page as lines of text: labels, columns that line up, and a count of what did not fit.

A terminal has no colour scale worth trusting and no room for forty tokens, so a cell says its text, or its number where it has
none, and what is too wide is left out from the middle: a prompt's first and last tokens matter most. Texts of a model pass one
door, as on the page: what a terminal would act on is shown as a replacement character.

Invariant: no line is wider than asked for, unless not even the first and the last column fit, and a column that is not shown is
counted.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["heat_lines", "number", "safe"]

FORMATS = {"count": "{:,.0f}", "percent": "{:.0%}", "number": "{:.3g}", "signed": "{:+.2g}"}
WIDEST = 14
"""Terminal cells a label or a cell's text may take; the rest is cut off with an ellipsis."""
SPACE = "  "


def heat_lines(heat: Mapping[str, Any], width: int) -> list[str]:
    """A heat map (`caseback.show.experiments`) as lines of at most `width` terminal cells: a line of column labels, a line for
    each row, and, where columns were left out or a note belongs to it, lines that say so.

    However narrow the terminal, the labels and the first and last column are there.

    >>> axes = {"x": {"name": "head", "labels": ["0", "1"]}, "y": {"name": "layer", "labels": ["7"]}}
    >>> heat_lines({**axes, "values": [[0.5, None]], "format": "percent", "scale": "sequential"}, 80)
    ['layer \\\\ head    0  1', '           7  50%  –']
    """
    x, y, texts = heat["x"], heat["y"], heat.get("texts")
    head = _fit(f"{y['name']} \\ {x['name']}", 2 * WIDEST)
    side = [head, *(_fit(label, 2 * WIDEST) for label in y["labels"])]
    columns = [
        [
            _fit(label, WIDEST),
            *(
                _fit(texts[i][j], WIDEST) if texts is not None else number(row[j], FORMATS[heat["format"]])
                for i, row in enumerate(heat["values"])
            ),
        ]
        for j, label in enumerate(x["labels"])
    ]
    labels, *shown = (_aligned(column, left=texts is not None and i > 0) for i, column in enumerate([side, *columns]))
    first, last = _kept([_cells(column[0]) for column in shown], width - _cells(labels[0]))
    dots = [["…"] * len(labels)] if first + last < len(shown) else []
    kept = [labels, *shown[:first], *dots, *shown[len(shown) - last :]]
    lines = [SPACE.join(row).rstrip() for row in zip(*kept, strict=True)]
    if dots:
        rest = len(shown) - first - last
        said = f"({rest} of {len(shown)} columns are left out; a wider terminal, the page and --json have them)"
        lines += textwrap.wrap(said, max(width, 20))
    return lines + textwrap.wrap(safe(heat.get("note") or ""), max(width, 20))


def _kept(widths: Sequence[int], room: int) -> tuple[int, int]:
    """How many columns from the left and from the right fit, taken in turns from the right; at least the first and the last."""
    if sum(widths) + len(SPACE) * len(widths) <= room or len(widths) <= 2:
        return len(widths), 0
    room -= len(SPACE) + 1  # the dots
    first = last = 0
    while first + last < len(widths):
        turn = len(widths) - 1 - last if last <= first else first
        room -= widths[turn] + len(SPACE)
        if room < 0 and first and last:
            break
        first, last = (first, last + 1) if last <= first else (first + 1, last)
    return first, last


def number(value: float | int | None, template: str) -> str:
    """A number as a template writes it; a dash where there is none, and no sign before a rounded zero."""
    if value is None:
        return "–"
    text = template.format(value)
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def _aligned(cells: Sequence[str], *, left: bool) -> list[str]:
    widest = max(map(_cells, cells))
    gaps = [" " * (widest - _cells(cell)) for cell in cells]
    return [cell + gap if left else gap + cell for cell, gap in zip(cells, gaps, strict=True)]


def safe(text: str) -> str:
    """Text without what a terminal would act on."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _fit(text: str, most: int) -> str:
    """Text without what a terminal would act on, cut to `most` terminal cells; nothing but spaces is marked."""
    text = "␣" * len(text) if text.isspace() and text.isprintable() else safe(text)
    if _cells(text) <= most:
        return text
    while _cells(text) > most - 1:
        text = text[: min(len(text) - 1, most)]
    return text + "…"


def _cells(text: str) -> int:
    """Terminal cells a text takes: none for a combining mark, two for a wide character."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
