"""Uses of an operator as runs: the record says what the method found, with the operator of the run it cites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import RelationError
from caseback.core.stages import InMemory
from caseback.relations.attribute import distracted
from caseback.relations.concepts import classify, edit_concepts
from caseback.relations.cross import isolate
from caseback.relations.judge import JudgeConfig
from caseback.relations.relation import write_relation
from caseback.study import Record, Study
from caseback.study.finding import Looking
from caseback.study.judged import Judged, cite, known
from caseback.study.uses import CONCEPTS, DISTRACT, ISOLATE
from caseback.study.uses.of_concepts import CLASSIFIERS, MOVES
from caseback.study.uses.of_distraction import READERS

from ..relations.facts import facts, relation
from .looking import die_after, is_valid, look, plain_table

MODEL = facts()
JUDGE = JudgeConfig(pairs=8)
USES: dict[str, tuple[Looking, dict[str, Any]]] = {
    "concepts": (CONCEPTS, {"pairs": 8}),
    "distract": (DISTRACT, {}),
    "isolate": (ISOLATE, {"siblings": ("second.json",), "pairs": 8}),
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in a folder with both facts as relations."""
    monkeypatch.chdir(tmp_path)
    for second in (False, True):
        made = relation(second)
        write_relation(made, f"{made.name}.json")
    return Study(tmp_path / "casebook")


def config_of(study: Study, name: str, **changed: Any) -> Any:
    looking, settings = USES[name]
    config = looking.Config(relation="first.json", judge=JUDGE, **{**settings, **changed})
    return cite(config, study, MODEL)


def ask(study: Study, name: str, *, force: bool = False, **changed: Any) -> Record:
    return look(study, USES[name][0], config_of(study, name, **changed), MODEL, force=force)


def source_of(study: Study, record: Record) -> Judged:
    split = study.find(record.table["operator_run"]).stage("split-0")
    made = relation()
    return Judged(run="r", relation=made, judge=JUDGE, chosen=split.data["chosen"], arrays=split.arrays)


@pytest.mark.parametrize("name", USES)
def test_killed_between_stages_it_ends_in_the_same_table(study: Study, name: str) -> None:
    straight = ask(study, name)
    assert is_valid(straight)
    config = config_of(study, name)
    assert straight.spec.config(USES[name][0].Config) == config
    for stages in range(len(straight.saved())):
        die_after(stages, lambda: ask(study, name, force=True))
        resumed = study.resume("latest", have={"model": MODEL})
        assert plain_table(resumed) == plain_table(straight)
        assert resumed.stage("view").data == straight.stage("view").data


def test_concepts(study: Study) -> None:
    record = ask(study, "concepts")
    found, source = record.table, source_of(study, record)
    assert found["layer"] == source.middle in (1, 2)
    operator = source.at(found["layer"], MODEL, InMemory())
    seen = source.known(MODEL)
    plain = classify(MODEL, operator.W, operator.b, operator.layer, seen)
    assert found["accuracy"] == {name: plain.accuracy(name).value for name in CLASSIFIERS}
    moved = edit_concepts(MODEL, operator.W, operator.b, seen, rank=source.rank(operator.layer), starts=[0, 2], pairs=8)
    assert found["changed"] == {name: moved.success(name).value for name in MOVES}
    assert found["changed_by_start_onward"] == moved.by_start("onward").max(axis=1).tolist()
    titles = [one["title"] for one in record.stage("view").data["sections"]]
    assert titles[:2] == ["Which object does a subject have", "Edits"]


def test_the_layer_can_be_named(study: Study) -> None:
    found = ask(study, "concepts", layer=0).table
    assert found["layer"] == 0
    assert found["accuracy"]["concepts"] > found["accuracy"]["majority"]
    assert found["changed"]["swap"] == 1 > found["changed"]["random"]


@pytest.mark.parametrize("shots", [False, True])
def test_distract(study: Study, shots: bool) -> None:
    record = ask(study, "distract", layer=0, shots=shots)
    found, source = record.table, source_of(study, record)
    operator = source.at(0, MODEL, InMemory())
    rest = [one for one in source.relation.samples if one not in source.training]
    for kind in ("repetition", "instruction"):
        plain = distracted(
            MODEL,
            source.relation,
            operator.W,
            operator.b,
            operator.beta,
            0,
            source.relation.prompt_templates[0],
            rest,
            kind,  # type: ignore[arg-type]
            examples=source.training if shots else [],
        )
        assert found["n"] == plain.n
        assert found[f"{kind}_truth1"] == {name: plain.recall(name).value for name in READERS}
        assert found[f"{kind}_truth3"] == {name: plain.recall(name, 3).value for name in READERS}
        assert found[f"{kind}_falsehood1"] == {name: plain.recall(name, falsehood=True).value for name in READERS}
        assert np.allclose(found[f"{kind}_by_layer"], plain.by_layer("lens"))
    assert shots or found["repetition_falsehood1"]["model"] > 0.9, "this model believes what it was told last"


def test_isolate(study: Study) -> None:
    record = ask(study, "isolate", layer=0)
    found, source = record.table, source_of(study, record)
    operator, rank = source.at(0, MODEL, InMemory()), source.rank(0)
    others = {"second": known(MODEL, relation(second=True), JUDGE)}
    plain = isolate(MODEL, operator.W, rank, 0, source.known(MODEL), others, pairs=8)
    assert found["siblings"] == ["second"] and found["rank"] == rank
    assert found["changed"] == {edit: plain.rate(edit).value for edit in ("lre", "swap", "random")}
    assert found["left_alone"] == {edit: plain.isolated(edit=edit).value for edit in ("lre", "swap", "random")}
    assert found["left_alone"]["swap"] == 0 and found["changed"]["swap"] == 1
    assert found["n_telling"] == plain.telling.sum()


def test_a_layer_that_was_not_kept_is_fitted_and_saved(study: Study) -> None:
    best = int(study.find(config_of(study, "concepts").judged[0]).table["layer"])
    for layer in range(MODEL.n_layers - 1):
        record = ask(study, "concepts", layer=layer)
        assert ("operator" in record.saved()) == (layer != best)


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("concepts", {"twin": True}, "a model with random weights knows nothing"),
        ("distract", {"layer": 9}, "there is no layer 9; .* has 0 to 2"),
        ("isolate", {"siblings": ()}, "no relation of the library asks of the subjects of 'first'; name one with"),
        ("isolate", {"siblings": ("first.json",)}, "siblings have names of their own, and 'first' stands twice"),
        ("isolate", {"siblings": ("second.json", "second.json")}, "'second' stands twice"),
        ("isolate", {"siblings": ("nosuch",)}, "there is neither a relation nor a file 'nosuch'"),
    ],
)
def test_what_cannot_be_asked_is_refused(study: Study, name: str, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RelationError, match=sentence):
        ask(study, name, **changed)
    assert all(study.find(run).spec.method == "relation" for run in study.ids())
