"""What disks and other programs do to a study: a sentence and exit code 2, nothing lost, and everything else still opens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caseback.cli.app import main
from caseback.core.errors import StudyError
from caseback.study import Record, Study, files
from caseback.study.audit import AuditConfig, Wish, _examined
from caseback.study.claims import Claim, claims, damaged, read_claim
from caseback.study.clean import find_waste, remove
from caseback.study.files import NotWritten, read_json, write_json
from caseback.study.move import export_run, import_run
from caseback.study.sweep import read_sweep
from caseback.zoo import copying

from . import toy

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two finished runs and two claims."""
    study = Study(tmp_path / "casebook")
    for steps in (4, 5):
        study.run(toy.spec(steps=steps))
    for text in ("moves the name", "moves nothing"):
        claim = Claim(component="z.1.2@end", description=text, model={"id": "m", "files": {}}, created=text[-4:])
        (study.path / "claims").mkdir(exist_ok=True)
        write_json(study.path / "claims" / f"{claim.id}.json", asdict(claim))
    return study


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command that ends with exit code 2 says: one line behind those of its progress."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    *progress, told = capsys.readouterr().err.splitlines()
    assert told.startswith("caseback: ") and not any(line.startswith("Traceback") for line in progress)
    return told


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """What a command that ends well prints as JSON."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments), "--json"])
    assert left.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def newer(path: Path) -> None:
    """The file as a later version may write it, with what this one does not know."""
    body = read_json(path)
    path.write_text(json.dumps({**body, "format": 2, "sha256": "sealed in another way", "more": {}}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is damaged (it is not JSON"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged (it is not JSON"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "is damaged (it is not JSON"),
    "changed": (lambda path: path.write_text(path.read_text().replace("moves", "does")), "does not match its SHA-256"),
    "newer": (newer, "was written by a newer caseback (format 2, this one reads up to 1); upgrade caseback"),
    "no claim": (lambda path: write_json(path, {"found_on": None}), "is damaged (KeyError"),
    "refused": (
        lambda path: write_json(path, {**read_json(path), "at_least": 7.0}),
        "the share a component must carry",
    ),
    "another": (lambda path: write_json(path, {**read_json(path), "at_least": 0.5}), "is not the claim its name says"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read (Is a directory)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_claim_is_named_and_hides_no_other(study, capsys, damage):
    harm, why = DAMAGE[damage]
    whole, other = claims(study)
    path = study.path / "claims" / f"{other.id}.json"
    harm(path)
    assert claims(study) == (whole,)
    assert list(damaged(study)) == [other.id] and why in damaged(study)[other.id]
    listed = shown(capsys, "claim", "list", "--out", study.path)
    assert [(one["claim"], one["status"]) for one in listed] == [(whole.id, "hypothesis"), (other.id, "damaged")]
    main_says(capsys, study, other.id, why)
    assert why in said(capsys, "claim", "show", other.id, "--out", study.path)
    assert read_claim(study, "latest") == whole
    assert path.exists(), "it is for a person to look at"


def main_says(capsys: pytest.CaptureFixture[str], study: Study, id: str, why: str) -> None:
    with pytest.raises(SystemExit):
        main(["claim", "list", "--out", str(study.path)])
    printed = capsys.readouterr().out
    assert "moves the name" in printed or "moves nothing" in printed
    assert id in printed and "damaged" in printed and why in printed


def test_where_every_claim_is_damaged_the_latest_says_so(study):
    for path in (study.path / "claims").iterdir():
        path.write_bytes(b"")
    with pytest.raises(StudyError, match="is damaged"):
        read_claim(study, "latest")


def refuse(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_folder_of_claims_that_cannot_be_read_is_not_an_empty_one(study, capsys, monkeypatch):
    monkeypatch.setattr(os, "listdir", refuse(errno.EACCES))
    assert "claims cannot be read (Permission denied)" in said(capsys, "claim", "list", "--out", study.path)


FULL = [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written to (Read-only file system); choose")]


@pytest.mark.parametrize(("number", "why"), FULL)
def test_a_claim_that_cannot_be_written_leaves_the_others(study, monkeypatch, tmp_path, number, why):
    from caseback.study.claims import new_claim

    before = claims(study)
    with monkeypatch.context() as patch, pytest.raises(StudyError, match=why.replace("(", ".").replace(")", ".")):
        patch.setattr(files.os, "fsync", refuse(number))
        new_claim(study, copying(n=4).model, Claim(component="z.1.2@end", description="is new", model={}))
    assert claims(study) == before and not damaged(study)
    assert len(os.listdir(study.path / "claims")) == 2


# --- runs as files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "why"), [FULL[0], (errno.EROFS, "name another file")])
def test_a_file_that_cannot_be_sent_leaves_nothing_half(study, monkeypatch, tmp_path, number, why):
    out = tmp_path / "sent" / "run.zip"
    out.parent.mkdir()
    with monkeypatch.context() as patch, pytest.raises(StudyError, match=why):
        patch.setattr(zipfile.ZipFile, "write", refuse(number))
        export_run(study.find("latest"), out)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("after", range(0, 6))
def test_a_disk_that_fills_up_while_a_run_is_taken_in_leaves_nothing_half(study, monkeypatch, tmp_path, after):
    file = export_run(study.find("latest"), tmp_path / "run.zip")
    theirs = Study(tmp_path / "theirs")
    theirs.run(toy.spec(steps=2))
    before, real, seen = theirs.ids(), open, [0]

    def fill(path: Any, mode: str = "r", *more: Any, **kept: Any) -> Any:
        if mode == "xb":
            seen[0] += 1
            if seen[0] > after:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *more, **kept)

    with monkeypatch.context() as patch, pytest.raises(StudyError, match="the disk is full"):
        patch.setattr("builtins.open", fill)
        if after == 5:  # all parts are written, the page is not
            patch.setattr(files.os, "fsync", refuse(errno.ENOSPC))
            seen[0] = -100
        import_run(theirs, file)
    assert theirs.ids() == before
    assert len(os.listdir(theirs.path / "runs")) == 1
    assert import_run(theirs, file).status == "finished"


@pytest.mark.parametrize("part", ["spec", "result", "environment"])
def test_a_run_of_a_newer_caseback_is_not_taken_in(study, tmp_path, capsys, part):
    record = study.find("latest")
    file = export_run(record, tmp_path / "run.zip")
    newer(record.path / f"{part}.json")
    changed, theirs = tmp_path / "changed.zip", tmp_path / "theirs"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as out:
        for name in old.namelist():
            content = (record.path / f"{part}.json").read_bytes() if name.endswith(f"/{part}.json") else old.read(name)
            out.writestr(name, content)
    told = said(capsys, "import", changed, "--study", theirs)
    assert "newer caseback" in told or part == "result" and "not finished" in told
    assert os.listdir(theirs / "runs") == []


# --- a newer caseback's files ----------------------------------------------------------------------------------------


def test_a_newer_result_is_neither_read_nor_made_anew(study, capsys):
    record = study.find("latest")
    newer(record.path / "result.json")
    content = (record.path / "result.json").read_bytes()
    (row,) = [row for row in study.runs() if row.id == record.id]
    assert row.status == "damaged" and "newer caseback" in row.note
    for command in ("show", "resume", "report"):
        assert "newer caseback (format 2" in said(capsys, command, record.id, "--study", study.path)
    assert (record.path / "result.json").read_bytes() == content
    assert [one["status"] for one in shown(capsys, "runs", "--study", study.path)] == ["damaged", "finished"]


def test_a_newer_stage_is_not_computed_again(study, monkeypatch, capsys):
    record = study.find("latest")
    path = record.path / "arrays" / "sum.safetensors"
    (record.path / "result.json").unlink()
    saved = files.read_checkpoint(path, owner=record.spec.digest)
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT", 2)
        files.write_checkpoint(path, saved.state, done=5, steps=5, owner=record.spec.digest)
    content = path.read_bytes()
    assert "newer caseback (format 2" in said(capsys, "resume", record.id, "--study", study.path)
    assert path.read_bytes() == content


# --- the index ---------------------------------------------------------------------------------------------------------


@in_one_folder
@given(st.data())
def test_any_damage_to_the_index_leaves_the_list_of_runs(study, data):
    shutil.rmtree(study.path / "claims", ignore_errors=True)
    study.reindex()
    content = bytearray((study.path / "index.sqlite").read_bytes())
    for _ in range(data.draw(st.integers(1, 40))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for suffix in ("-wal", "-shm"):
        Path(f"{study.path}/index.sqlite{suffix}").unlink(missing_ok=True)
    (study.path / "index.sqlite").write_bytes(content)
    assert len(study.runs()) == 2
    assert study.reindex() == 2


def test_a_text_in_the_index_that_is_no_json_is_read_again(study):
    first = study.runs()
    with sqlite3.connect(study.path / "index.sqlite") as base:
        base.execute("UPDATE runs SET headline = '{half'")
    base.close()
    assert study.runs() == study.runs() == first


def test_a_leftover_log_of_a_damaged_index_is_not_played_into_the_next(study):
    study.runs()
    base = sqlite3.connect(study.path / "index.sqlite", isolation_level=None)
    base.execute("UPDATE runs SET status = 'of the old list'")  # stays in the log while the connection is open
    log = (study.path / "index.sqlite-wal").read_bytes()
    base.close()
    (study.path / "index.sqlite-wal").write_bytes(log)
    (study.path / "index.sqlite").write_bytes(b"no database" * 100)
    assert [row.status for row in study.runs()] == ["finished", "finished"]


def test_an_index_another_process_holds_does_not_stop_the_list(study, monkeypatch):
    study.runs()
    monkeypatch.setattr("caseback.study.index.WAIT", 0.05)
    with sqlite3.connect(study.path / "index.sqlite", isolation_level=None) as base:
        base.execute("BEGIN EXCLUSIVE")
        added = study.run(toy.spec(steps=3))
        assert [row.id for row in study.runs()][0] == added.id
        base.execute("ROLLBACK")
    base.close()


# --- tidying, sweeps, audits ---------------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_deleted_stays_whole(study, monkeypatch, capsys):
    old = study.find("latest")
    study.run(toy.spec(steps=5), force=True)
    (waste,) = find_waste(study, superseded=True)
    for call in ("rename", "unlink"):
        with monkeypatch.context() as patch, pytest.raises(NotWritten, match=r"cannot be written to .Read-only"):
            patch.setattr(os, call, refuse(errno.EROFS))
            patch.setattr(Path, call, refuse(errno.EROFS))
            remove(study, [waste])
        if call == "rename":
            assert Record.open(old.path).damage() == ()
    assert old.id not in study.ids(), "half deleted, it is a leftover and no run"
    assert [one.why for one in find_waste(study)] == ["left by a process that was killed"]
    assert remove(study, find_waste(study)) > 0
    assert len(study.runs()) == 2 and {row.status for row in study.runs()} == {"finished"}


def test_gc_on_a_read_only_folder_is_a_sentence(study, capsys, monkeypatch):
    (study.path / "runs" / ".new-left").mkdir()
    real = os.open

    def read_only(path: Any, flags: int, *more: Any, **kept: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **kept)

    monkeypatch.setattr(os, "open", read_only)
    assert "cannot be written to (Read-only file system)" in said(capsys, "gc", "--yes", "--study", study.path)
    assert (study.path / "runs" / ".new-left").exists()
    assert shown(capsys, "show", "latest", "--study", study.path)["status"] == "finished"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read (No such file"),
        (b"", "holds nothing; a sweep is"),
        (b'[[run]]\nmethod = "cir', "is not TOML"),
        (b"\xff\xfe\x00", "is not TOML"),
        (b"[[run]]\nmethod = 3", "has the method 3; there are"),
        (b'[[run]]\nmethod = "circuit"\nn = "many"', "needs the setting 'task'"),
        (b"run = [1]", "a sweep is one or more tables"),
        (b'[[run]]\nmethod = ["lens"]', "has the method"),
        (b'[[run]]\nmethod = "lens"\nprompt = "x"\neach = 3', "names settings with a list"),
    ],
)
def test_a_sweep_file_that_is_none_is_a_sentence(study, tmp_path, capsys, content, why):
    path = tmp_path / "sweep.toml"
    if content is not None:
        path.write_bytes(content)
    assert why in said(capsys, "sweep", path, "--out", study.path)
    assert len(study.ids()) == 2


@in_one_folder
@given(st.integers(0, 200), st.binary(max_size=4))
def test_a_damaged_sweep_file_raises_nothing_else(tmp_path, place, put):
    whole = b'[[run]]\nmethod = "lens"\nsite = "resid_post"\n[run.each]\nprompt = ["a", "b"]\nseed = [1, 2]\n'
    path = tmp_path / "sweep.toml"
    path.write_bytes(whole[:place] + put + whole[place + len(put) :])
    try:
        read_sweep(path)
    except StudyError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("error", [NotWritten("the disk is full: x"), StudyError("there is no such prompt")])
def test_an_audit_stops_at_a_full_disk_and_not_at_a_question_it_cannot_ask(study, monkeypatch, error):
    from caseback.study.audit import Size

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Study, "ask", fail)
    wish = Wish(question="q", method="lens", sizes=[Size(1.0, {"prompt": "x"})])
    examine = [study, AuditConfig(), copying(n=4).model, wish, {"place": 0, "why": ""}, lambda *_: None]
    if isinstance(error, NotWritten):
        with pytest.raises(NotWritten):
            _examined(*examine)
    else:
        assert _examined(*examine)["why"] == str(error)


def test_numbers_of_events_that_are_none_do_not_stop_a_run(study):
    record = study.find("latest")
    path = record.path / "events.jsonl"
    path.write_text(path.read_text().replace('"seconds": 0', '"seconds": "0', 1).replace(', "cpu', '", "cpu', 1))
    assert [event.kind for event in record.events].count("unreadable") == 1
    assert record.cost.seconds >= 0
