"""Judged operators: judged once, read from the run that is cited, and refused in a sentence where that is not there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import RelationError, StudyError
from caseback.model.twin import random_twin
from caseback.relations.judge import JudgeConfig, drawn
from caseback.relations.relation import write_relation
from caseback.study import Record, Study
from caseback.study import relation as relation_module
from caseback.study.judged import Judged, cite
from caseback.study.readings import ATTRIBUTE, LENS, AttributeConfig, LensConfig

from ..relations.small import affine_of, relation_of
from .looking import die_after, look

ZOO = affine_of()
PROMPT = "the friend of subject3 is"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    write_relation(relation_of(ZOO), "friend.json")
    return Study(tmp_path / "casebook")


def config_of(study: Study, **more: Any) -> AttributeConfig:
    config = AttributeConfig(prompt=PROMPT, relation="friend.json", judge=JudgeConfig(pairs=8), **more)
    return cite(config, study, ZOO.model)


def ask(study: Study, config: AttributeConfig, **more: Any) -> Record:
    return look(study, ATTRIBUTE, config, ZOO.model, **more)


def test_a_relation_is_judged_once(study: Study) -> None:
    config = config_of(study)
    (run,) = study.ids()
    assert config.judged == (run,) and study.find(run).spec.method == "relation"
    assert config_of(study) == config and cite(config, study, ZOO.model) is config
    record = ask(study, config)
    assert study.ids() == (run, record.id), "the run that cites is the newest"
    saved = study.find(run).stage("split-0")
    assert record.table["layer"] == saved.data["chosen"]["layer"]
    assert set(record.saved()) == {"lens", "view"}, "nothing is copied"
    assert any(run in note for note in record.stage("view").data["notes"])


def test_without_a_named_run_it_is_judged_as_one(study: Study) -> None:
    bare = AttributeConfig(prompt=PROMPT, relation="friend.json", judge=JudgeConfig(pairs=8))
    record = ask(study, bare)
    assert {study.find(run).spec.method for run in study.ids()} == {"relation", "attribute"}
    same = {k: v for k, v in record.table.items() if k not in ("run", "seconds", "peak_memory_mb")}
    assert same == {k: v for k, v in ask(study, config_of(study)).table.items() if k in same}


def test_a_resumed_run_reads_what_it_cites(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(study)
    die_after(0, lambda: ask(study, config))

    def never(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("judged anew")

    monkeypatch.setattr(relation_module, "judge_split", never)
    resumed = study.resume("latest", have={"model": ZOO.model})
    assert resumed.status == "finished" and resumed.table["top"]


def test_what_is_cited_must_be_there_whole_and_of_this_model(study: Study, tmp_path: Path) -> None:
    config = config_of(study)
    (run,) = config.judged
    folder = tmp_path / "casebook" / "runs" / run

    def refused(config: AttributeConfig, model: Any = ZOO.model) -> str:
        with pytest.raises((StudyError, RelationError)) as caught:
            look(study, ATTRIBUTE, config, model)
        assert study.ids() in ((run,), ()), "a request that cannot be carried out leaves nothing"
        return str(caught.value)

    assert f"run {run}, whose operator of 'friend' is used, is of " in refused(config, random_twin(ZOO.model))
    assert "2 runs are named for 1 relations" in refused(replace(config, judged=(run, run)))
    array = folder / "arrays" / "split-0.safetensors"
    sound = array.read_bytes()
    array.write_bytes(sound[:-8] + bytes(range(1, 9)))
    assert f"is damaged ({array}" in (said := refused(config)) and f"`caseback resume {run}`" in said
    array.write_bytes(sound)
    (folder / "result.json").rename(tmp_path / "kept.json")
    assert "is unfinished; `caseback resume" in refused(config)
    (tmp_path / "kept.json").rename(folder / "result.json")
    made = relation_of(ZOO)
    write_relation(replace(made, samples=made.samples[:30]), "friend.json")
    assert "is of 'friend.json' with other samples or templates than 'friend.json' has now" in refused(config)
    write_relation(made, "friend.json")
    shutil.rmtree(folder)
    said = refused(config)
    assert f"run {run}, whose operator of 'friend' is used, is not in {tmp_path / 'casebook'}; " in said
    assert "ask for 'friend' anew" in said


def test_only_a_relation_run_has_an_operator(study: Study) -> None:
    other = look(study, LENS, LensConfig(prompt=PROMPT), ZOO.model)
    config = AttributeConfig(prompt=PROMPT, relation="friend.json", judged=(other.id,))
    with pytest.raises(StudyError, match="is of the method 'lens'; name a relation run"):
        ask(study, config)


def test_a_request_is_refused_before_anything_is_judged(study: Study) -> None:
    config = AttributeConfig(prompt=PROMPT, relation="friend.json", objects=("",))
    with pytest.raises(RelationError):
        cite(config, study, ZOO.model)
    assert study.ids() == ()


def test_the_middle_layer_and_the_rank() -> None:
    by_layer = np.zeros((9, 2))
    by_layer[[0, 4, 5, 7], [0, 1, 0, 0]] = 1.0, 0.5, 0.5, 0.9
    edited = np.zeros((5, 3))
    edited[2, 1], edited[3] = 0.4, 0.2
    made = Judged(
        run="r",
        relation=relation_of(ZOO),
        judge=JudgeConfig(),
        chosen={"layer": 0, "beta": 1.0},
        arrays={"by_layer": by_layer, "edit_layers": np.arange(0, 9, 2), "edited": edited},
    )
    assert made.middle == 4, "the best of layers 3 to 6, the lower of equals"
    assert replace(made, chosen={"layer": 5}).middle == 5, "the judged layer where it is one of them"
    assert (made.rank(4), made.rank(6)) == (16, 8)
    assert [made.relation.samples.index(one) for one in made.training] == drawn(made.relation, JudgeConfig())[0]
    none = replace(made, arrays={**made.arrays, "edited": np.full((5, 3), np.nan)})
    with pytest.raises(RelationError, match="nothing could be edited when 'friend' was judged"):
        none.rank(4)
