"""The study: the same request finds its run, everything damaged says so, and everything else still opens."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from caseback.core import registry
from caseback.core.errors import CasebackError, StudyError, TaskError
from caseback.study import Filter, Interrupted, Study, files, store

from . import toy

HERE = Path(__file__).parent


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "casebook")


def test_a_run_becomes_a_record(study):
    told = []
    record = study.run(toy.spec(), progress=lambda *where: told.append(where), have={"model": object()})
    assert re.fullmatch(r"\d{8}-\d{6}-toy-the-task-[0-9a-f]{4}", record.id)
    assert record.id.endswith(record.spec.digest[:4])
    assert record.status == "finished"
    assert record.spec == toy.spec()
    assert record.spec.config(toy.Config) == toy.Config()
    table = record.table
    assert next(iter(table)) == "run"
    assert table["run"] == record.id
    assert list(table)[-2:] == ["seconds", "peak_memory_mb"]
    assert table["low"] == [None, table["mean"], 1.0]
    assert table["seen"] == [0, 1, 2, 3]
    assert record.details == {"why": "because"}
    assert record.stage("draw").arrays["rows"].shape == (4, 50)
    assert record.report is not None
    assert str(table["mean"]) in record.report.read_text()
    assert ("sum", 4, 4) in told
    assert ("last", 1, 1) in told
    spec = json.loads((record.path / "spec.json").read_text())
    assert spec["seed"] == 0
    assert spec["passed"] == {"steps": "four"}
    assert spec["versions"]["numpy"] == np.__version__
    assert record.environment["machine"]["cpus"] >= 1
    assert record.cost.sessions == 1
    assert record.cost.seconds > 0
    assert not list(record.path.rglob("*.tmp"))
    assert not list(record.path.parent.glob(".new-*"))


def test_the_same_request_is_reopened_and_force_begins_anew(study):
    first = study.run(toy.spec())
    assert study.run(toy.spec("another name for it")).id == first.id
    other = study.run(toy.spec(steps=5))
    assert other.id != first.id
    forced = study.run(toy.spec(), force=True)
    assert forced.id > first.id
    assert forced.table["mean"] == first.table["mean"]
    assert study.run(toy.spec()).id == forced.id
    assert len(study.ids()) == 3


def test_ctrl_c_leaves_a_run_that_goes_on(study, monkeypatch):
    # The request is the same one: what interrupts it is not a parameter.
    monkeypatch.setattr(toy.METHOD, "run", interrupting(toy.METHOD.run), raising=False)
    with pytest.raises(Interrupted, match="caseback resume .*-toy-the-task-") as stopped:
        study.run(toy.spec())
    assert isinstance(stopped.value, KeyboardInterrupt)
    record = study.find("latest")
    assert record.status == "interrupted"
    assert record.events[-1].kind == "interrupted"
    with pytest.raises(StudyError, match=f"no result yet; `caseback resume {record.id}`"):
        _ = record.result
    monkeypatch.undo()
    assert study.run(toy.spec()).id == record.id
    done = study.find(record.id)
    assert done.status == "finished"
    assert done.cost.sessions == 2
    assert [e.data["done"] for e in done.events if e.kind == "stage-started" and e.data["stage"] == "sum"] == [0, 2]


def interrupting(run):
    def interrupted(config, folder, progress):
        run(toy.Config(fail="ctrl-c"), folder, progress)

    return interrupted


def test_a_defect_is_kept_and_a_bad_request_leaves_nothing(study):
    with pytest.raises(ZeroDivisionError):
        study.run(toy.spec(fail="defect"))
    (row,) = study.runs()
    assert row.status == "failed"
    assert row.note == "ZeroDivisionError: a defect"
    with pytest.raises(TaskError, match="row 3 has no answer"):
        study.run(toy.spec(fail="bad task"))
    assert len(study.ids()) == 1
    with pytest.raises(CasebackError, match="no method 'none'"):
        study.run(toy.Spec.of("none", toy.Config(), task="t"))


def test_finding_runs(study, tmp_path):
    with pytest.raises(StudyError, match="no runs in .*CASEBACK_STUDY"):
        study.find("latest")
    one, two = study.run(toy.spec()), study.run(toy.spec(steps=5), force=True)
    assert study.find("latest").id == max(one.id, two.id)
    assert study.find(one.id).id == one.id
    assert study.find(str(one.path)).id == one.id
    with pytest.raises(StudyError, match="the beginning of 2 runs"):
        study.find("20")
    with pytest.raises(StudyError, match=f"no run 'nope'.*newest are .*{two.id}"):
        study.find("nope")
    with pytest.raises(StudyError, match="no stage 'x'; it has: draw, mean, sum"):
        one.stage("x")


def test_a_notebook_shows_the_page_of_a_finished_run(study, monkeypatch):
    record = study.run(toy.spec())
    shown = record._repr_html_()
    assert shown.startswith("<iframe title=") and "sandbox='allow-scripts'" in shown
    assert f"&lt;p>{record.table['mean']}" in shown or f"<p>{record.table['mean']}" in shown
    with pytest.raises(ZeroDivisionError):
        study.run(toy.spec("broken", fail="defect"))
    assert study.find("latest")._repr_html_() is None


def test_the_list_of_runs(study):
    assert study.runs() == ()
    assert not study.path.exists()
    one, two = study.run(toy.spec("Alpha")), study.run(toy.spec("beta", steps=5))
    rows = study.runs()
    assert {row.id for row in rows} == {one.id, two.id}
    assert list(rows) == sorted(rows, key=lambda r: r.id, reverse=True)
    (row,) = study.runs(Filter(task="alp", method="TOY", model="org/"))
    assert row.id == one.id
    assert row.model == "org/toy"
    assert row.created == one.created
    assert row.status == "finished"
    assert row.headline == {"n": 4, "mean": one.table["mean"]}
    assert study.runs(Filter(task="%")) == ()
    shutil.rmtree(one.path)
    assert [row.id for row in study.runs()] == [two.id]
    assert study.runs(Filter(words="alpha")) == ()


def test_runs_are_found_by_their_words_and_days(study):
    one, two = study.run(toy.spec("Alpha one")), study.run(toy.spec("beta", fail="so-so", steps=3))

    def found(**wanted):
        return [row.id for row in study.runs(Filter(**wanted))]

    assert found(words="alp") == [one.id]
    assert found(words="ALPHA on") == [one.id]
    assert found(words="so-so steps") == [two.id]  # parameters count, by name and value
    assert found(words="alpha beta") == []
    assert found(words='" OR zzz -- *') == []
    assert found(words="  ") == [two.id, one.id]
    day = one.created[:10]
    assert found(since=day, until=day) == [two.id, one.id]
    assert found(since="2999-01-01") == found(until="1999-12-31") == []
    assert found(since=two.created) == [two.id]


def test_an_older_index_is_replaced(study):
    record = study.run(toy.spec())
    study.runs()
    index = study.path / "index.sqlite"
    base = sqlite3.connect(index)
    with base:
        base.execute("DROP TABLE words")
        base.execute("PRAGMA user_version = 1")
    base.close()
    assert [row.id for row in study.runs(Filter(words="toy"))] == [record.id]
    assert sqlite3.connect(index).execute("PRAGMA user_version").fetchone() == (3,)


def test_the_index_can_go_and_come_back(study):
    study.run(toy.spec())
    before = study.runs()
    assert study.reindex() == 1
    assert study.runs() == before
    index = study.path / "index.sqlite"
    index.unlink()
    assert study.runs() == before
    index.write_bytes(b"this is no database" * 100)
    assert study.runs() == before
    assert sqlite3.connect(index).execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_the_list_needs_no_index(study):
    study.run(toy.spec())
    before = study.runs()
    index = study.path / "index.sqlite"
    for suffix in ("-wal", "-shm"):
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    index.unlink()
    index.mkdir()  # as unusable as one on a read-only disk
    assert study.runs() == before
    index.rmdir()
    base = sqlite3.connect(index)
    base.execute("PRAGMA user_version = 99")
    base.close()
    assert study.runs() == before  # a newer caseback's index is left alone
    base = sqlite3.connect(index)
    assert base.execute("PRAGMA user_version").fetchone() == (99,)
    base.close()


def test_a_damaged_run_says_so_and_others_open(study):
    good, bad, newer = study.run(toy.spec()), study.run(toy.spec(steps=5)), study.run(toy.spec(steps=6))
    (bad.path / "spec.json").write_text("{")
    body = json.loads((newer.path / "spec.json").read_text())
    (newer.path / "spec.json").write_text(json.dumps({**body, "format": 7}))
    (study.path / "runs" / "empty").mkdir()
    rows = {row.id: row for row in study.runs()}
    assert rows[good.id].status == "finished"
    assert rows[bad.id].status == "damaged"
    assert "is not JSON" in rows[bad.id].note
    assert "newer caseback" in rows[newer.id].note
    assert "cannot be read" in rows["empty"].note
    with pytest.raises(StudyError, match="newer caseback"):
        study.find(newer.id)
    assert study.find(good.id).table == good.table
    assert study.run(toy.spec(steps=5)).id != bad.id  # what cannot be read answers to nothing


def test_a_damaged_result_is_made_again_from_what_is_saved(study):
    record = study.run(toy.spec())
    table = record.table
    path = record.path / "result.json"
    path.write_bytes(path.read_bytes()[:-20])
    broken = study.find(record.id)
    assert broken.status == "damaged"
    assert study.runs()[0].status == "damaged"
    with pytest.raises(StudyError, match=f"damaged .*caseback resume {record.id}"):
        _ = broken.table
    again = study.resume(record.id)
    assert {**again.table, "seconds": 0, "peak_memory_mb": 0} == {**table, "seconds": 0, "peak_memory_mb": 0}
    assert "stage-started" not in [e.kind for e in again.events if e.data.get("pid") is None][-4:]


def test_a_damaged_array_is_found_and_mended(study):
    record = study.run(toy.spec())
    path = record.path / "arrays" / "sum.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert record.table["n"] == 4  # the table does not need it
    (why,) = study.find(record.id).damage()
    assert "does not match its SHA-256" in why
    with pytest.raises(StudyError, match="damaged"):
        record.stage("sum")
    assert study.resume(record.id).damage() == ()
    assert path.read_bytes() == content
    assert study.resume(record.id).events[-1] == study.resume(record.id).events[-1]  # a sound run is left as it is


def test_a_missing_report_is_made(study):
    record = study.run(toy.spec())
    page = (record.path / "report.html").read_text()
    (record.path / "report.html").unlink()
    assert record.report is None
    assert study.report(record) == page
    assert study.run(toy.spec()).report is not None


def test_a_read_only_study_is_a_sentence(study, monkeypatch):
    record = study.run(toy.spec())

    def refuse(path, flags, *rest):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *rest)

    real = os.open
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", refuse)
        with pytest.raises(StudyError, match="cannot be written to .*--study DIR or CASEBACK_STUDY"):
            study.run(toy.spec(steps=7))
        assert study.find("latest").table == record.table
        assert len(study.runs()) == 1

    def no_folder(self, *_, **__):
        raise OSError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", no_folder)
    with pytest.raises(StudyError, match="cannot be made .Permission denied"):
        Study(study.path / "sub").run(toy.spec())


def test_one_process_computes_a_run(study):
    script = "import sys, toy; from caseback.study import Study; Study(sys.argv[1]).run(toy.spec(pause=0.5))"
    other = subprocess.Popen([sys.executable, "-c", script, str(study.path)], cwd=HERE)
    while not (study.ids() and study.find("latest").status == "running"):
        assert other.poll() is None
    assert study.runs()[0].status == "running"
    said = []

    def wait_too_short() -> None:
        with pytest.raises(StudyError, match="is being computed by another process; wait for it"):
            study.run(toy.spec(pause=0.5))
        said.append(True)

    waiting = threading.Thread(target=wait_too_short)
    waiting.start()
    study.run(toy.spec())  # another request is not kept waiting
    waiting.join()
    assert said
    assert other.wait() == 0
    assert study.run(toy.spec(pause=0.5)).status == "finished"
    assert len(study.ids()) == 2


def test_many_processes_begin_the_same_study(study):
    script = (
        "import sys, toy; from caseback.study import Study\n"
        "for n in range(2, 6): Study(sys.argv[1]).run(toy.spec(steps=n * int(sys.argv[2]))); Study(sys.argv[1]).runs()"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(study.path), str(prime)], cwd=HERE) for prime in (7, 11, 13)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    rows = study.runs()
    assert len(rows) == 12
    assert {row.status for row in rows} == {"finished"}


def test_the_study_folder_comes_from_the_environment(monkeypatch, tmp_path):
    assert Study().path == Path("casebook")
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "x"))
    assert Study().path == tmp_path / "x"
    assert Study("y").path == Path("y")


def test_slugs():
    assert store._slug("IOI (ABBA) ümlaut") == "ioi-abba-mlaut"
    assert store._slug("../..") == "x"
    assert len(store._slug("a" * 99)) == 24


def test_methods_without_a_report_have_none(study, monkeypatch):
    monkeypatch.setitem(registry._OFFERS, ("method", "bare"), f"{toy.__name__}:METHOD")
    record = study.run(toy.Spec.of("bare", toy.Config(), task="t"))
    assert record.report is None
    with pytest.raises(CasebackError, match="there is no report 'bare'; there are: .*toy"):
        study.report(record)


def test_a_file_is_no_study(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StudyError, match="there is no study folder .*notes.txt: it is a file"):
        Study(tmp_path / "notes.txt")


def test_memory_that_is_not_there_is_a_sentence(study, monkeypatch):
    def take(*arguments):
        raise MemoryError

    monkeypatch.setattr(toy.METHOD.__class__, "run", take)
    with pytest.raises(StudyError, match="takes more memory than there is; ask for less"):
        study.run(toy.spec())
    (row,) = study.runs()
    assert row.status == "failed" and row.note.startswith("this takes more memory than there is")


@pytest.mark.parametrize("damage", ["{}", "", None])
@pytest.mark.parametrize("name", ["result.json", "spec.json"])
def test_a_finished_run_that_was_damaged_since_is_listed_as_damaged(study, name, damage):
    """The list is kept, and notices."""
    other, record = study.run(toy.spec(seed=1)), study.run(toy.spec())
    assert [row.status for row in study.runs()] == ["finished", "finished"]
    content = (record.path / name).read_bytes()
    (record.path / name).unlink()
    if damage is not None:
        (record.path / name).write_text(damage)
    told = {row.id: row.status for row in study.runs()}
    assert told[other.id] == "finished" and told[record.id] != "finished"
    (record.path / name).write_bytes(content)
    assert {row.status for row in study.runs()} == {"finished"}
