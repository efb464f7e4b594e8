"""Tables for other tools: every cell arrives, intervals become columns."""

from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest

from caseback.core import registry
from caseback.core.errors import StudyError
from caseback.study import Checkpoint, Record, Spec, Study
from caseback.study.finding import sheet
from caseback.study.tables import frame, named, tables, to_csv, to_jsonl

from . import toy


class Sheets:
    name = "sheets"
    Config = toy.Config

    def run(self, config, run, progress):
        first = sheet(
            "text what, percent share, percent share", [['a,\n"b"', [0.5, 0.25, 1.0], 0.1], ["=1", 0.5, None]]
        )
        sections = [
            {"title": "Both", "table": first},
            {"title": "Curve"},
            {"title": "Both", "table": sheet("count n", [[1]])},
        ]
        run.stage("view", lambda: Checkpoint({"x": np.zeros(1)}, {"sections": sections}))
        run.write_result({"n": 2, "sizes": [1, 2], "low": [None, 0.5], "nested": [[1], [2]], "words": ["x", "y", "z"]})


METHOD = Sheets()


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._OFFERS, ("method", "sheets"), f"{__name__}:METHOD")
    return Study(tmp_path / "casebook").run(Spec.of("sheets", toy.Config(), task="t"))


def test_all_tables_are_there(record):
    found = tables(record)
    assert list(found) == ["Both", "Both-2"]
    assert list(found["Both"].columns) == ["what", "share", "share low", "share high", "share 2"]
    assert list(found["Both"].rows)[1] == {
        "what": "=1",
        "share": 0.5,
        "share low": None,
        "share high": None,
        "share 2": None,
    }


def test_without_a_page_lists_of_one_length_stand_side_by_side(tmp_path):
    found = tables(Study(tmp_path / "casebook").run(toy.spec()))
    assert {name: list(table.columns) for name, table in found.items()} == {
        "result": ["sizes", "low", "high"],
        "result-2": ["seen"],
    }


def test_csv_and_json_lines_read_back(record):
    both = tables(record)["Both"]
    head, *rows = csv.reader(io.StringIO(to_csv(both)))
    assert head == list(both.columns)
    assert rows == [['a,\n"b"', "0.5", "0.25", "1.0", "0.1"], ["=1", "0.5", "", "", ""]]
    assert [json.loads(line) for line in to_jsonl(both).splitlines()] == list(both.rows)


def test_frames_where_they_are_installed(record, monkeypatch):
    made = {}

    class Library:
        @staticmethod
        def DataFrame(columns):
            made.update(columns)
            return "a frame"

    monkeypatch.setitem(sys.modules, "pandas", Library)
    monkeypatch.setitem(sys.modules, "polars", None)
    assert frame(tables(record)["Both-2"]) == "a frame"
    assert made == {"n": [1]}
    with pytest.raises(StudyError, match="polars is not installed; `pip install polars`"):
        frame(tables(record)["Both-2"], "polars")
    with pytest.raises(StudyError, match="no frames of 'excel'; there are: pandas, polars"):
        frame(tables(record)["Both-2"], "excel")


def test_the_beginning_of_a_name_is_enough(record):
    assert named(record, "Both").name == "Both"
    assert named(record, "both-").name == "Both-2"
    with pytest.raises(StudyError, match=r"'bo' is the beginning of 2 tables \(Both, Both-2\)"):
        named(record, "bo")
    with pytest.raises(StudyError, match="no table 'x'; it has: Both, Both-2"):
        named(record, "x")


def test_a_damaged_run_has_no_tables(record):
    view = record.path / "arrays" / "view.safetensors"
    content = view.read_bytes()
    view.write_bytes(content[:-1])
    with pytest.raises(StudyError, match=f"view.safetensors is damaged .*`caseback resume {record.id}`"):
        tables(Record.open(record.path))
    view.unlink()
    with pytest.raises(StudyError, match=f"view.safetensors is missing; `caseback resume {record.id}`"):
        tables(Record.open(record.path))
    view.write_bytes(content)
    (record.path / "result.json").write_text("{}")
    with pytest.raises(StudyError, match=f"result.json is damaged .*`caseback resume {record.id}`"):
        tables(Record.open(record.path))
