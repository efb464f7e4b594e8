"""The examples run, from anywhere, and show what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from .pages import ROOT


def example(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / name))["main"]


def test_a_known_circuit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("known_circuit.py")("copying", str(tmp_path / "page.html"))
    assert "3 of 3 edges found" in capsys.readouterr().out
    assert "<iframe" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.default_model
def test_the_answer_moves_to_the_last_word(capsys: pytest.CaptureFixture[str]) -> None:
    example("where_the_answer_is.py")("14")
    first, *_, last, words = capsys.readouterr().out.splitlines()
    mary, to = words.index("Mary"), words.rindex("to")
    assert (first[mary], first[to]) == ("█", " ")
    assert last.ljust(to + 1)[to] == "█"


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text("utf-8")
    assert all(f'"{path.name}"' in tested for path in (ROOT / "examples").glob("*.py"))
