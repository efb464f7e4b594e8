"""Tidying a study: what is waste, and that nothing else goes."""

from __future__ import annotations

import pytest

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
