"""A finding in a terminal: aligned tables, numbers with intervals, and nothing a terminal would act on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caseback.cli import say as say_module
from caseback.cli.say import cell, lines
from caseback.study.finding import heat, sheet

EVIL = "\x1b[31mred\u202e\r\n\x07"
SHOWN = "\ufffd[31mred\ufffd\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (1234, "count", "1,234"),
        (1234.0, "count", "1,234"),
        (0.5, "percent", "50.0%"),
        ([0.5, 0.25, 1], "percent", "50.0% [25.0%, 100.0%]"),
        ([0.5, None, 1.0], "percent", "50.0% [–, 100.0%]"),
        (None, "number", "–"),
        (-1e-17, "percent", "0.0%"),
        ([0.029, -1e-17, 0.1], "percent", "2.9% [0.0%, 10.0%]"),
        (-0.0001, "number", "0.000"),
        (-0.25, "percent", "-25.0%"),
        (0.0, "signed", "0"),
        (-2.5, "signed", "-2.5"),
        (1e-5, "signed", "+1e-05"),
        (EVIL, "text", SHOWN),
    ],
)
def test_cells(content: Any, kind: str, expected: str) -> None:
    assert cell(content, kind) == expected


def test_tables_line_up() -> None:
    table = sheet("text what, percent share, count n", [["one", [0.5, 0.25, 1], 7], ["longer", 0.25, 1000]])
    assert lines(table) == [
        "what                    share      n",
        "one     50.0% [25.0%, 100.0%]      7",
        "longer                  25.0%  1,000",
    ]
    assert lines(sheet("text what, count n", [])) == ["what  n"]


def record(view: dict[str, Any], table: dict[str, Any] | None = None, report: Path | None = None) -> Any:
    whole = {"task": "asked", "model": "m", "seconds": 1.2, "peak_memory_mb": 1234.0, **(table or {})}
    return SimpleNamespace(
        id="run-1",
        table=whole,
        report=report,
        stage=lambda name: SimpleNamespace(data=view if name == "view" else None),
    )


def test_long_texts_are_wrapped_to_the_terminal() -> None:
    long = "a sentence that goes on for quite a while, longer than there is room for in a line"
    table = sheet("text what, percent share, text run", [[long, 0.5, "20261122-201645-lens"], ["short", 0.25, "x"]])
    shown = lines(table, 60)
    assert max(map(len, shown)) <= 60
    assert shown[1].endswith("50.0%  20261122-201645-lens") and shown[2].startswith("quite a while")
    assert " ".join(line[:29].strip() for line in shown[1:-1]) == long
    assert shown[-1].startswith("short ")
    assert max(map(len, lines(table, 10))) == 24 + 2 + 5 + 2 + 20  # no column of text below 24


def said(capsys: pytest.CaptureFixture[str], *given: Any, **more: Any) -> str:
    say_module.say(record(*given, **more))
    return capsys.readouterr().out


def test_the_order_of_what_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one = heat(("head", ["0", "1"]), ("layer", ["7"]), [[0.5, 0.25]], format="percent")
    sections = [
        {"title": "Both", "text": "", "heat": one, "table": sheet("text what", [["a"]])},
        {"title": "Curve alone", "text": "", "curve": {}},
        {"title": "Left to the page", "text": "", "detail": True, "heat": one},
        {"title": "Small ones", "text": "", "heats": [{"name": "first", **one}, {"name": "second", **one}]},
    ]
    out = said(
        capsys, {"claim": "It is so.", "sections": sections}, {"kept": 3, "n": 4}, report=tmp_path / "report.html"
    )
    assert out.splitlines() == [
        "asked on m: 4 pairs, 3 answered right",
        "",
        "It is so.",
        "",
        "Both",
        r"  layer \ head    0    1",
        "             7  50%  25%",
        "  ",
        "  what",
        "  a",
        "",
        "Small ones",
        "  first",
        r"  layer \ head    0    1",
        "             7  50%  25%",
        "  ",
        "  second",
        r"  layer \ head    0    1",
        "             7  50%  25%",
        "  ",
        "",
        "On the page: Left to the page.",
        "",
        "1 s, 1,234 MB",
        "run run-1",
        f"page {tmp_path / 'report.html'}",
    ]
    assert said(capsys, {"claim": "", "sections": []}).endswith("no page was written\n")


def test_no_text_of_a_finding_reaches_the_terminal_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    one = heat((EVIL, [EVIL]), (EVIL, [EVIL]), [[0.5]], texts=[[EVIL]], note=EVIL)
    sections = [
        {"title": EVIL, "text": EVIL, "heat": one, "table": sheet("text a", [[EVIL]])},
        {"title": EVIL, "text": EVIL, "heats": [{"name": EVIL, **one}]},
    ]
    out = said(capsys, {"claim": EVIL, "sections": sections}, {"task": EVIL, "model": EVIL})
    assert not set("\x1b\u202e\r\x07") & set(out)
    assert out.splitlines()[0] == f"{SHOWN} on {SHOWN}"
    assert out.splitlines()[2] == SHOWN


def test_a_heat_map_is_no_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = heat(("token", [f"token{i}" for i in range(60)]), ("layer", ["0"]), [[0.1] * 60])
    out = said(capsys, {"claim": "", "sections": [{"title": "t", "text": "", "heat": one}]})
    assert max(map(len, out.splitlines())) <= say_module.WIDTH + 2
    assert "columns are left out" in out
