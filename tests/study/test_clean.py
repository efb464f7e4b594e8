"""Tidying a study: what is waste, and that nothing else goes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from caseback.core.errors import StudyError
from caseback.study import Spec, Study
from caseback.study.clean import find_waste, remove
from caseback.study.resume import locked

from . import toy


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "casebook")


def test_a_tidy_study_has_no_waste(study):
    assert find_waste(study, unfinished=True, superseded=True) == ()
    study.run(toy.spec())
    assert find_waste(study, unfinished=True, superseded=True) == ()


def test_waste_is_named_and_only_what_is_given_goes(study):
    kept = study.run(toy.spec())
    old = study.run(toy.spec("again", steps=5))
    new = study.run(toy.spec("again", steps=5), force=True)
    with pytest.raises(ZeroDivisionError):
        study.run(toy.spec("broken", fail="defect"))
    broken = study.find("latest")
    left = study.path / "runs" / ".new-x"
    (left / "arrays").mkdir(parents=True)
    (left / "spec.json").write_text("half")

    assert [one.path for one in find_waste(study)] == [left]
    assert {one.path for one in find_waste(study, unfinished=True)} == {left, broken.path}
    assert {one.path for one in find_waste(study, superseded=True)} == {left, old.path}
    waste = find_waste(study, unfinished=True, superseded=True)
    assert all(one.bytes > 0 and one.why for one in waste)
    assert remove(study, waste) == sum(one.bytes for one in waste)
    assert set(study.ids()) == {kept.id, new.id}
    assert study.find(new.id).damage() == ()
    assert remove(study, waste) == 0


def test_a_run_that_is_held_or_cited_stays(study):
    with pytest.raises(ZeroDivisionError):
        study.run(toy.spec("broken", fail="defect"))
    held = study.find("latest")
    waste = find_waste(study, unfinished=True)
    with locked(held.path / "lock", wait=1.0, busy=lambda: ""):
        assert find_waste(study, unfinished=True) == ()
        assert remove(study, waste) == 0
    assert held.path.is_dir()
    old = study.run(toy.spec())
    study.run(toy.spec(), force=True)
    assert [one.path for one in find_waste(study, superseded=True)] == [old.path]
    citing = Spec.of("toy", toy.Config(fail=old.id), task="cites")
    study.run(citing)
    assert find_waste(study, superseded=True) == ()


def test_a_run_that_a_result_cites_stays(study, monkeypatch):
    from caseback.core import registry

    monkeypatch.setitem(registry._OFFERS, ("method", "citing"), f"{__name__}:CITING")
    old = study.run(toy.spec())
    study.run(toy.spec(), force=True)
    Citing.cited = old.id
    study.run(Spec.of("citing", toy.Config(), task="audit"))
    assert find_waste(study, superseded=True) == ()


class Citing:
    name = "citing"
    Config = toy.Config
    cited = ""

    def run(self, config, run, progress):
        run.write_result({"found": [{"run": self.cited}]})


CITING = Citing()


def test_nothing_outside_the_runs_is_deleted(study, tmp_path):
    from caseback.study.clean import Waste

    study.run(toy.spec())
    other = tmp_path / "other"
    other.mkdir()
    assert remove(study, [Waste(path=other, why="", bytes=1)]) == 0
    assert other.is_dir()


def test_what_does_not_say_what_it_is_goes_when_asked(study, tmp_path):
    bad, newer, broken, sound = (study.run(toy.spec(steps=n)) for n in (3, 4, 5, 6))
    (bad.path / "spec.json").write_text("{")
    body = json.loads((newer.path / "spec.json").read_text())
    (newer.path / "spec.json").write_text(json.dumps({**body, "format": 7}))
    (broken.path / "result.json").write_text("{")  # resuming mends it
    stray, led = study.path / "runs" / "stray", tmp_path / "elsewhere"
    stray.mkdir()
    led.mkdir()
    (led / "kept").write_text("mine")
    link = study.path / "runs" / "link"
    link.symlink_to(led)
    claims = study.path / "claims"
    claims.mkdir()
    (claims / "one.json").write_text("{")
    (claims / "two.json").mkdir()
    (claims / "new.json").write_text(json.dumps({"format": 7}))
    for run in (bad.id, "stray"):
        with pytest.raises(StudyError, match="`caseback gc --damaged` lists .* deletes it with --yes"):
            study.find(run)
        assert "gc --damaged" in next(row.note for row in study.runs() if row.id == run)
    with pytest.raises(StudyError, match="upgrade caseback$"):
        study.find(newer.id)

    assert find_waste(study, unfinished=True, superseded=True) == ()
    waste = find_waste(study, damaged=True)
    assert {one.path for one in waste} == {bad.path, stray, link, claims / "one.json", claims / "two.json"}
    assert not any("gc --damaged" in one.why for one in waste)
    remove(study, waste)
    assert set(study.ids()) == {newer.id, broken.id, sound.id}
    assert [path.name for path in claims.iterdir()] == ["new.json"]
    assert (led / "kept").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(study, monkeypatch, number):
    study.run(toy.spec())

    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert find_waste(study, damaged=True) == ()
    with pytest.raises(StudyError) as said:
        study.find("latest")
    assert "gc" not in str(said.value)
