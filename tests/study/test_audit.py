"""The audit: what fits is asked, what does not is said, and a stopped one goes on."""

from __future__ import annotations

import pytest

from caseback.core import registry
from caseback.core.errors import CasebackError
from caseback.model.model import Model
from caseback.study import Study
from caseback.study.asked import config_of
from caseback.study.audit import AUDIT, AuditConfig, Known, Part, Size, Wish, choose
from caseback.study.audits import CIRCUITS, DIRECT, HEADS, LENS, PATCHING, RELATIONS
from caseback.zoo import planted

from .looking import Killed, is_valid, look, plain_table

SIZES = [Size(100.0, {"n": 3}), Size(10.0, {"n": 1})]


@pytest.mark.parametrize(
    ("left", "share", "chosen"),
    [
        (1000, 100, 0),
        (1000, 99, 1),
        (1000, 10, 1),
        (10, 1, 1),
        (9, 1, "takes about 10 s, and 9 s were left"),
        (-3, 1, "0 s were left"),
    ],
)
def test_the_largest_that_fits_its_share_is_chosen(left, share, chosen):
    found = choose(SIZES, prompt=1.0, left=float(left), share=float(share))
    assert chosen in found if isinstance(chosen, str) else found is SIZES[chosen]


@pytest.fixture(scope="module")
def model() -> Model:
    return planted(n=4).model


TEXTS: list[str] = []


def wishes(known: Known) -> list[Wish]:
    asked = [("lens", 1.0, {"prompt": TEXTS[0]}), ("lens", 1e9, {"prompt": TEXTS[1]}), ("lens", 1.0, {"prompt": ""})]
    return [Wish(question=f"q{i}", method=m, sizes=[Size(cost, s)]) for i, (m, cost, s) in enumerate(asked)]


PART = Part(order=1, weight=1.0, wishes=wishes)


@pytest.fixture
def parts(monkeypatch):
    TEXTS[:] = [pair.clean for pair in planted(n=4).task.pairs]
    for name in registry.names("audit"):
        monkeypatch.delitem(registry._OFFERS, ("audit", name))
    monkeypatch.setitem(registry._OFFERS, ("audit", "mine"), f"{__name__}:PART")
    monkeypatch.setattr("caseback.study.audit.library.names", lambda: ("ioi",))
    monkeypatch.setattr("caseback.study.audit.read_task", lambda *_, **__: planted(n=8).task)


def test_an_audit_is_a_run_that_cites_its_examinations(parts, model, tmp_path):
    study = Study(tmp_path / "casebook")
    record = look(study, AUDIT, AuditConfig(minutes=5.0), model)
    assert is_valid(record)
    table = record.table
    (found,) = table["found"]
    assert (found["question"], found["method"]) == ("q0", "lens")
    assert study.find(found["run"]).stage("view").data["claim"] == found["claim"]
    assert [one["question"] for one in table["not_tested"]] == ["q1", "q2"]
    assert "were left" in table["not_tested"][0]["why"]
    assert "the prompt is empty" in table["not_tested"][1]["why"]
    assert table["tasks"] == {"ioi": pytest.approx([1.0, 0.675, 1.0], abs=0.01)}
    failed = [name for name, held in table["identities"].items() if held == "FAIL"]
    assert failed == ["gradient"]  # its hand-made attention is so sharp that gradients vanish on random prompts
    claim = record.stage("view").data["claim"]
    assert "its identities gradient FAIL; it answers ioi" in claim and "1 of 3 examinations" in claim


def test_what_the_study_has_already_costs_nothing(parts, model, tmp_path):
    study = Study(tmp_path / "casebook")
    LENS_CONFIG = registry.get("method", "lens").Config
    dear = study.ask("lens", LENS_CONFIG(prompt=TEXTS[1]), model=model)
    table = look(study, AUDIT, AuditConfig(), model).table
    assert [one["question"] for one in table["found"]] == ["q0", "q1"]
    assert table["found"][1]["run"] == dear.id


def test_a_stopped_audit_goes_on(parts, model, tmp_path, monkeypatch):
    whole = look(Study(tmp_path / "whole"), AUDIT, AuditConfig(), model)
    study = Study(tmp_path / "casebook")
    real = Study.ask

    def killed(self, *args, **more):
        raise Killed

    monkeypatch.setattr(Study, "ask", killed)
    with pytest.raises(Killed):
        look(study, AUDIT, AuditConfig(), model)
    monkeypatch.setattr(Study, "ask", real)
    record = study.resume("latest", have={"model": model})
    assert record.table["tasks"] == whole.table["tasks"]
    assert [one["claim"] for one in record.table["found"]] == [one["claim"] for one in whole.table["found"]]
    assert plain_table(record).keys() == plain_table(whole).keys()


@pytest.mark.parametrize("minutes", [0.0, -1.0, 1e9])
def test_minutes_are_bounded(minutes):
    with pytest.raises(CasebackError, match="more than 0 and at most"):
        AuditConfig(minutes=minutes)


def test_what_methods_ask_fits_their_configs(model):
    accuracy = {"ioi": 1.0, "capitals": 0.9, "agreement": 0.5}
    known = Known(config=AuditConfig(), model=model, accuracy=accuracy)
    assert known.best == ("ioi", "capitals")
    methods = set()
    for part in (CIRCUITS, DIRECT, HEADS, LENS, PATCHING, RELATIONS):
        for wish in part.wishes(known):
            costs = [size.prompts for size in wish.sizes]
            assert costs == sorted(costs, reverse=True) and costs[-1] > 0
            for size in wish.sizes:
                plain = {k: v for k, v in size.settings.items() if k not in ("discover", "judge")}
                config_of(wish.method, plain)
            methods.add(wish.method)
    assert methods == {"circuit", "dla", "heads", "lens", "attribute-input", "patch", "relation"}
    nothing = Known(config=AuditConfig(), model=model, accuracy={})
    assert not [*CIRCUITS.wishes(nothing), *DIRECT.wishes(nothing), *PATCHING.wishes(nothing)]
