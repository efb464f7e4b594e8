"""A heat map in a terminal: columns line up, nothing is wider than the terminal, and what is left out is counted."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from caseback.cli.heat import heat_lines


def heat(values: Any, *, kind: str = "percent", **more: Any) -> dict[str, Any]:
    x, y = [f"t{j}" for j in range(len(values[0]))], [str(i) for i in range(len(values))]
    axes = {"x": {"name": "token", "labels": x}, "y": {"name": "layer", "labels": y}}
    return {**axes, "values": values, "format": kind, "scale": "sequential", **more}


def cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_numbers_line_up() -> None:
    assert heat_lines(heat([[0.5, None, 1.0], [0.004, -0.004, -0.25]]), 80) == [
        "layer \\ token   t0  t1    t2",
        "            0  50%   –  100%",
        "            1   0%  0%  -25%",
    ]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("count", "1,235  -0.5"),
        ("number", "1.23e+03  -0.5"),
        ("signed", "+1.2e+03  -0.5"),
        ("percent", "123457%  -50%"),
    ],
)
def test_numbers_are_of_their_kind(kind: str, shown: str) -> None:
    line = heat_lines(heat([[1234.57, -0.5]], kind=kind), 80)[1]
    assert line.split()[1] == shown.split()[0]
    assert line.split()[2] == ("0" if kind == "count" else shown.split()[1])


def test_texts_stand_in_place_of_numbers_and_harm_nothing() -> None:
    texts = [[" Tokyo", "東京", "\x1b[31mred\n"], ["a" * 50, "", " "]]
    lines = heat_lines(heat([[0.5] * 3] * 2, texts=texts), 80)
    assert lines == [
        "layer \\ token  t0              t1    t2",
        "            0   Tokyo          東京  �[31mred�",
        "            1  aaaaaaaaaaaaa…        ␣",
    ]


@pytest.mark.parametrize("width", [30, 41, 80, 120, 200])
def test_what_is_too_wide_is_left_out_from_the_middle(width: int) -> None:
    n = 60
    made = heat([[i / 3] * n for i in range(4)], note="The note, which is longer than a narrow terminal is wide.")
    lines = heat_lines(made, width)
    assert all(cells(line) <= width for line in lines)
    names = lines[0].split()[3:]
    assert names[0] == "t0"
    assert names[-1] == "t59"
    gap = names.index("…")
    left, right = names[:gap], names[gap + 1 :]
    assert left == [f"t{j}" for j in range(len(left))]
    assert right == [f"t{j}" for j in range(n - len(right), n)]
    assert 0 <= len(right) - len(left) <= 1
    rest = " ".join(lines[5:])
    assert rest.startswith(f"({n - len(left) - len(right)} of 60 columns are left out; ")
    assert rest.endswith("terminal is wide.")
    assert {line.split()[1 + gap] for line in lines[1:5]} == {"…"}


def test_everything_is_there_where_it_fits() -> None:
    lines = heat_lines(heat([[0.25] * 9] * 30), 80)
    assert len(lines) == 31
    assert not any("…" in line for line in lines)
    wide = max(map(cells, lines))
    assert heat_lines(heat([[0.25] * 9] * 30), wide) == lines
    assert heat_lines(heat([[0.25] * 9] * 30), wide - 1) != lines


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_however_narrow_the_ends_are_there(n: int) -> None:
    names = heat_lines(heat([[0.5] * n]), 3)[0].split()[3:]
    assert (names[0], names[-1]) == ("t0", f"t{n - 1}")


def test_labels_are_cut() -> None:
    made = heat([[0.5]])
    made["x"]["labels"], made["y"]["labels"] = ["x" * 40], ["\ty" * 40]
    first, second = heat_lines(made, 80)
    assert first.split()[-1] == "x" * 13 + "…"
    assert second.startswith("�y�y")
    assert "\t" not in second
