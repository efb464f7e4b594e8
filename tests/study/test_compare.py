"""Two runs side by side."""

from __future__ import annotations

import numpy as np
import pytest

from caseback.core import registry
from caseback.core.errors import StudyError
from caseback.study import Checkpoint, Study
from caseback.study.compare import Change, Paired, compare, named_places, of_circuit

from . import toy


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "casebook")


def paired(record):
    """Scores of examples 0 to 9 (seed 0) or 5 to 14 (another seed), each worth its number, 0.5 more in the second."""
    first = record.spec.params["seed"] == 0
    keys = range(10) if first else range(5, 15)
    noise = np.random.default_rng(3).normal(size=15)[list(keys)]
    return {"score": Paired(keys=[str(k) for k in keys], values=np.array(keys) + noise + (0 if first else 0.5))}


def test_what_differs_is_named(study):
    a, b = study.run(toy.spec()), study.run(toy.spec(seed=1))
    found = compare(a, b)
    assert (found.a, found.b) == (a.id, b.id)
    assert found.asked == (Change("seed", 0, 1),)
    assert Change("mean", a.table["mean"], b.table["mean"]) in found.found
    assert not any(change.name.startswith(("seconds", "run")) for change in found.found)
    assert found.paired == {} and "keeps no score of every example" in found.note
    same = compare(a, a)
    assert (same.asked, same.found) == ((), ())


def test_lists_of_other_lengths(study):
    a, b = study.run(toy.spec()), study.run(toy.spec(steps=5))
    names = {change.name: (change.a, change.b) for change in compare(a, b).found}
    assert names["n"] == (4, 5)
    assert names["seen.4"] == (None, 4)


def test_examples_both_measured_are_paired(study, monkeypatch):
    monkeypatch.setitem(registry._OFFERS, ("paired", "toy"), f"{__name__}:paired")
    a, b = study.run(toy.spec()), study.run(toy.spec(seed=1))
    interval = compare(a, b).paired["score"]
    assert interval.n == 5
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))  # the noise is shared
    assert compare(b, a).paired["score"].value == pytest.approx(-0.5)


def test_runs_of_two_methods_are_not_compared(study, monkeypatch):
    monkeypatch.setitem(registry._OFFERS, ("method", "other"), f"{toy.__name__}:METHOD")
    from caseback.study import Spec

    a = study.run(toy.spec())
    b = study.run(Spec.of("other", toy.Config(), task="t"))
    with pytest.raises(StudyError, match="only runs of one method are compared"):
        compare(a, b)


class Kept:
    """A circuit record whose model answered some of the pairs right."""

    def __init__(self, rows):
        self.spec = toy.spec()
        self.table = {"sizes": [5, 9]}
        self.details = {"chosen": {"edges": 9}}
        scores = np.stack([np.zeros(len(rows)), 10.0 * np.array(rows)])
        self.stages = {
            "check": Checkpoint({"held_out": np.array(rows)}),
            "evaluate": Checkpoint({"metric": scores, "agreement": scores, "kl": scores, "full": scores[0]}),
        }

    def stage(self, name):
        return self.stages[name]


def test_pairs_of_a_circuit_are_known_by_their_place_among_all():
    a, b = of_circuit(Kept([0, 2, 4, 6])), of_circuit(Kept([2, 4, 6]))
    name = "metric of the chosen circuit"
    shared = dict(zip(a[name].keys, a[name].values))
    assert all(shared[key] == value for key, value in zip(b[name].keys, b[name].values))
    old = Kept([1])
    old.stages["check"] = Checkpoint({"rows": np.array([1])})
    assert of_circuit(old) == {}


def test_lists_are_compared_by_what_their_places_are_called():
    """A curve at other sizes is another curve: no number is taken from one at another place."""
    table = {"n": 3, "sizes": [29, 225], "faithfulness": [0.1, 0.9], "ends": [1.0, 2.0, 3.0], "words": ["a", "a"]}
    assert named_places(table) == {
        "n": 3,
        "faithfulness.sizes=29": 0.1,
        "faithfulness.sizes=225": 0.9,
        "ends.0": 1.0,
        "ends.1": 2.0,
        "ends.2": 3.0,
        "words.sizes=29": "a",
        "words.sizes=225": "a",
    }
    grid = {"layers": [4, 5], "columns": ["to"], "effect": [[[1.0]], [[2.0]]], "deep": {"x": [5, 6]}}
    assert named_places(grid) == {
        "effect.layers=4.columns=to.0": 1.0,
        "effect.layers=5.columns=to.0": 2.0,
        "deep.x.layers=4": 5,
        "deep.x.layers=5": 6,
    }
