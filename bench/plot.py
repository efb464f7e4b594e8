"""Lines on logarithmic axes as SVG text: no plotting library, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Panel", "draw"]

WIDTH, HEIGHT = 250, 200
LEFT, TOP, BETWEEN = 46, 34, 66
STYLES = (("#1b6ca8", ""), ("#b5442e", "6 3"), ("#666666", "2 3"))
"""Colour and dashes of the first, second and third line: told apart without colour too."""


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def draw(rows: Sequence[Sequence[Panel]]) -> str:
    """Panels on a grid; lines are named in the first panel of each row."""
    width = max(len(row) for row in rows) * (WIDTH + BETWEEN) + LEFT
    height = len(rows) * (HEIGHT + BETWEEN + 10) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, row in enumerate(rows):
        for place, panel in enumerate(row):
            at = f"translate({LEFT + place * (WIDTH + BETWEEN)} {TOP + number * (HEIGHT + BETWEEN + 10)})"
            parts += [f'<g transform="{at}">', *_panel(panel, legend=place == 0), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, *, legend: bool) -> list[str]:
    values = [value for line in panel.lines.values() for value in line]
    to_x, to_y = _axis(panel.x, 0, WIDTH), _axis(values, HEIGHT, 0)
    parts = [f'<text x="0" y="-14" font-weight="bold">{panel.title}</text>']
    for tick in _ticks(values):
        y = to_y(tick)
        parts.append(
            f'<path d="M0 {y:.1f}H{WIDTH}" stroke="#dddddd"/><text x="-6" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for value in panel.x:
        parts.append(f'<text x="{to_x(value):.1f}" y="{HEIGHT + 18}" text-anchor="middle">{value:g}</text>')
    for (colour, dashes), line in zip(STYLES, panel.lines.values(), strict=False):
        points = [(to_x(x), to_y(y)) for x, y in zip(panel.x, line, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    if legend:
        for number, ((colour, dashes), name) in enumerate(zip(STYLES, panel.lines, strict=False)):
            x, y = 10, 12 + 16 * number
            parts.append(f'<path d="M{x} {y}h26" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
            parts.append(f'<text x="{x + 32}" y="{y + 4}">{name}</text>')
    return parts


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(min(values) / 1.15), math.log(max(values) * 1.15)
    return lambda value: start + (end - start) * (math.log(value) - low) / (high - low)


def _ticks(values: Sequence[float]) -> list[float]:
    low, high = min(values) / 1.15, max(values) * 1.15
    steps = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10**power for power in powers for step in steps if low <= step * 10**power <= high]
