"""A run as one file: it comes back the same, and nothing else comes in."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from caseback.core import registry
from caseback.core.errors import StudyError
from caseback.study import Record, Study
from caseback.study.move import export_run, import_run

from . import toy


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "mine")


@pytest.fixture
def theirs(tmp_path):
    return Study(tmp_path / "theirs")


@pytest.fixture
def file(study, tmp_path):
    return export_run(study.run(toy.spec()), tmp_path / "run.zip")


def changed(file: Path, **parts: bytes | None) -> Path:
    """The file with some parts replaced (None: left out); names are given with `__` for `/` and `_dot_` for a dot."""
    new = file.with_name("changed.zip")
    names = {name.replace("__", "/").replace("_dot_", "."): content for name, content in parts.items()}
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(new, "w") as out:
        run = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = names.pop(name[len(run) + 1 :], old.read(name))
            if content is not None:
                out.writestr(name, content)
        for name, content in names.items():
            out.writestr(name if name.startswith("/") else f"{run}/{name}", content or b"")
    return new


def test_a_run_comes_back_the_same(study, theirs, file):
    mine = study.find("latest")
    assert not any("report" in name or "lock" in name for name in zipfile.ZipFile(file).namelist())
    found = import_run(theirs, file)
    assert found.path == theirs.path / "runs" / mine.id
    assert (found.spec, found.table, found.details) == (mine.spec, mine.table, mine.details)
    assert found.report.read_text() == mine.report.read_text()
    assert found.damage() == ()
    assert theirs.run(toy.spec()).id == mine.id  # the same request finds it
    assert import_run(theirs, file).id == mine.id  # again is no harm
    assert [row.id for row in theirs.runs()] == [mine.id]


def test_only_whole_finished_runs_are_sent(study, tmp_path):
    record = study.run(toy.spec())
    stage = record.path / "arrays" / "sum.safetensors"
    stage.write_bytes(stage.read_bytes()[:-1])
    with pytest.raises(StudyError, match="is damaged .*caseback resume"):
        export_run(record, tmp_path / "run.zip")
    (record.path / "result.json").unlink()
    with pytest.raises(StudyError, match="only a finished run is sent"):
        export_run(Record.open(record.path), tmp_path / "run.zip")
    assert not list(tmp_path.glob("*run.zip*"))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"report_dot_html": b"<script>"}, "a run has no file"),
        ({"arrays__..__..__x.safetensors": b""}, "a run has no file"),
        ({"/etc/passwd": b""}, "do not lie in one folder"),
        ({"spec_dot_json": None}, "no whole run"),
        ({"spec_dot_json": b"{}"}, "no whole run: spec.json is damaged"),
        ({"result_dot_json": None}, "no whole run: it is not finished"),
        ({"result_dot_json": b"{}"}, "no whole run: result.json is damaged .it does not say its format.$"),
        ({"events_dot_jsonl": b"nonsense"}, "no whole run: events.jsonl has no line that can be read"),
        ({"events_dot_jsonl": None}, "no whole run: events.jsonl has no line that can be read"),
        ({"arrays__sum.safetensors": None}, "a part it was made from is missing"),
        ({"arrays__sum.safetensors": b"no tensors"}, "no whole run: arrays/sum.safetensors is damaged"),
        ({"arrays__more.safetensors": b"no tensors"}, "no whole run: arrays/more.safetensors is damaged"),
        ({"environment_dot_json": None}, "no whole run"),
    ],
)
def test_what_is_no_run_is_refused_and_leaves_nothing(theirs, file, parts, said):
    with pytest.raises(StudyError, match=said):
        import_run(theirs, changed(file, **parts))
    assert theirs.ids() == ()
    assert not list(theirs.path.glob("runs/*")) and not list(theirs.path.glob("runs/.*"))


def test_other_files_are_refused(theirs, file, tmp_path):
    (tmp_path / "text.zip").write_text("this is no zip")
    whole = file.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("text.zip", "cut.zip", "empty.zip", "missing.zip"):
        with pytest.raises(StudyError, match="is no run|cannot be read"):
            import_run(theirs, tmp_path / name)
    assert theirs.ids() == ()


def test_sizes_are_bounded(theirs, file):
    with pytest.raises(StudyError, match="would take .* a run that is taken in has at most"):
        import_run(theirs, file, largest=100)
    assert theirs.ids() == ()


def test_a_run_of_the_same_name_with_other_content_stays(study, theirs, file):
    found = import_run(theirs, file)
    body = json.loads((found.path / "result.json").read_text())
    shutil.rmtree(study.find("latest").path / "arrays")  # the sender's copy does not matter any more
    body["table"]["mean"] = 7.0
    from caseback.study.files import write_json

    write_json(found.path / "result.json", {k: v for k, v in body.items() if k not in ("format", "sha256")})
    with pytest.raises(StudyError, match="another of that name with another content"):
        import_run(theirs, file)
    assert Record.open(found.path).table["mean"] == 7.0


def test_a_page_that_cannot_be_drawn_is_a_sentence(theirs, file, monkeypatch):
    monkeypatch.setitem(registry._OFFERS, ("report", "toy"), f"{__name__}:broken")
    with pytest.raises(StudyError, match="page cannot be drawn .KeyError"):
        import_run(theirs, file)
    assert theirs.ids() == ()


def broken(record):
    raise KeyError("nothing there")


def test_a_file_that_was_damaged_on_its_way_is_a_sentence(theirs, file, tmp_path):
    whole = file.read_bytes()
    for place in range(60, len(whole) // 2, max(1, len(whole) // 50)):
        broken = tmp_path / "broken.zip"
        broken.write_bytes(whole[:place] + bytes(255 - b for b in whole[place : place + 4]) + whole[place + 4 :])
        with pytest.raises(StudyError):
            import_run(theirs, broken)
    assert theirs.ids() == ()


def test_a_result_without_a_cost_is_refused(study, theirs, tmp_path):
    from caseback.study.files import write_json

    record = study.run(toy.spec())
    body = json.loads((record.path / "result.json").read_text())
    for cost in ({}, {"seconds": "x", "peak_memory_mb": 1}):
        write_json(record.path / "result.json", {**{k: body[k] for k in ("table", "details", "arrays")}, "cost": cost})
        with pytest.raises(StudyError, match="no whole run"):
            import_run(theirs, export_run(Record.open(record.path), tmp_path / "run.zip", force=True))
    assert theirs.ids() == ()


def test_a_file_that_is_there_is_not_written_over(study, tmp_path):
    record, there = study.run(toy.spec()), tmp_path / "notes.txt"
    there.write_text("precious")
    with pytest.raises(StudyError, match="is there already; name another file, or replace it with --force"):
        export_run(record, there)
    assert there.read_text() == "precious"
    assert zipfile.is_zipfile(export_run(record, there, force=True))


def test_a_result_that_was_changed_does_not_match_its_seal(study, theirs, file):
    content = (study.find("latest").path / "result.json").read_bytes()
    with pytest.raises(StudyError, match=r"no whole run: result.json is damaged .*does not match its SHA-256\)$"):
        import_run(theirs, changed(file, result_dot_json=content.replace(b'"n": 4', b'"n": 5')))
    assert theirs.ids() == ()


def test_a_run_with_a_torn_line_is_taken_in(study, theirs, file):
    content = (study.find("latest").path / "events.jsonl").read_bytes()
    found = import_run(theirs, changed(file, events_dot_jsonl=content + b'{"at": "2'))
    assert found.events[-1].kind == "unreadable"


def test_a_run_with_a_broken_result_says_how_to_mend_it(study, tmp_path):
    record = study.run(toy.spec())
    (record.path / "result.json").write_text("{")
    with pytest.raises(StudyError, match=f"result.json is damaged .*`caseback resume {record.id}`"):
        export_run(Record.open(record.path), tmp_path / "run.zip")
