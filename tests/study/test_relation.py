"""A relation as a run: the table is what judging gives, nothing else makes two runs the same, and a killed run ends alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import RelationError, StudyError
from caseback.evidence import grouped_mean_interval, mean_interval, proportion_interval
from caseback.model.twin import random_twin
from caseback.relations.judge import CONTROLS, JudgeConfig, judge_split, pooled
from caseback.relations.relation import Relation, write_relation
from caseback.study import Record, Study
from caseback.study.relation import RELATION, RelationConfig, means

from ..relations.small import affine_of, relation_of
from .looking import die_after, is_valid, look, plain_table

ZOO = affine_of()
JUDGE = JudgeConfig(pairs=12)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "casebook")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "friend.json"
    write_relation(relation_of(ZOO), path)
    return path


def config_of(file: Path, **more: Any) -> RelationConfig:
    return RelationConfig(relation=str(file), judge=more.pop("judge", JUDGE), **more)


def judge(study: Study, config: RelationConfig, **more: Any) -> Record:
    return look(study, RELATION, config, ZOO.model, **more)


def test_the_table_is_what_judging_gives(study: Study, file: Path) -> None:
    record = judge(study, config_of(file, splits=2))
    found = record.table
    splits = [judge_split(ZOO.model, relation_of(ZOO), JUDGE, i) for i in range(2)]
    n = len(pooled(splits, "strict"))
    strict = proportion_interval(n, n)  # a bootstrap of values that are all 1 would be sure of it
    assert (found["faithful_strict"], found["low"], found["high"]) == (strict.value, strict.low, strict.high)
    assert found["n_test"] == strict.n == len(set(splits[0].sample) | set(splits[1].sample))
    assert found["causality"] == pooled(splits, "causal").mean()
    for name in CONTROLS:
        assert found["controls"][name] == pytest.approx(pooled(splits, name).mean()), name
    for name in ("swap", "unembedding", "random"):
        assert found["controls"][f"causal_{name}"] == pytest.approx(pooled(splits, f"causal_{name}").mean()), name
    assert {name: found[name] for name in splits[0].chosen} == splits[0].chosen
    assert found["splits"] == [1.0, 1.0]
    assert (found["relation"], found["category"]) == ("friend", "factual")
    assert found["n_known"] == found["n_asked"] == found["n_test"] > 35, "distinct samples of both splits"
    saved = record.stage("split-1").arrays
    for name, value in splits[1].arrays.items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)


def test_means_over_relations(study: Study, tmp_path: Path) -> None:
    """Of one split relations alone are resampled, of several their samples too."""
    made = relation_of(ZOO)
    paths = [tmp_path / f"{n}.json" for n in (40, 30)]
    for path in paths:
        write_relation(replace(made, name=path.stem, samples=made.samples[: int(path.stem)]), path)
    one = means([judge(study, config_of(path)) for path in paths])
    assert one.over == "relations" and one.intervals["faithful_strict"] == mean_interval(np.ones(2))
    runs = [judge(study, config_of(path, splits=2)) for path in paths]
    several = means(runs)
    assert several.over == "relations and their samples, each its mean over the splits"
    for key, name in (("faithful_strict", "strict"), ("faithful_prefix", "prefix"), ("causality", "causal")):
        groups = [
            pooled([judge_split(ZOO.model, replace(made, samples=made.samples[:n]), JUDGE, i) for i in range(2)], name)
            for n in (40, 30)
        ]
        assert several.intervals[key] == grouped_mean_interval(groups)
        assert several.intervals[key].value == pytest.approx(np.mean([run.table[key] for run in runs]))


def test_the_page_has_all_there_is_to_see(study: Study, file: Path) -> None:
    record = judge(study, config_of(file))
    assert is_valid(record)
    view = record.stage("view").data
    sections = {one["title"]: one for one in view["sections"]}
    assert list(sections) == [
        "First tokens: faithfulness, causality and their controls",
        "Faithfulness by layer",
        "Causality by layer",
        "Causality by rank",
        "Singular values of W",
        "Samples",
    ]
    rows = sections["First tokens: faithfulness, causality and their controls"]["table"]["rows"]
    assert len(rows) == 2 + len(CONTROLS) + 1 + 3 and rows[0] == [
        "operator, strict",
        [1.0, pytest.approx(0.9011, abs=1e-4), 1.0],
    ]
    lines = sections["Faithfulness by layer"]["curve"]["series"]
    assert all(one["x"] == [0, 1, 2] for one in lines) and lines[0]["y"][:2] == [1, 1]
    ranks = {rank: edits for rank, edits, _ in sections["Causality by rank"]["table"]["rows"]}
    assert ranks[16] == 1 > ranks[8]
    singular = sections["Singular values of W"]["curve"]["series"][0]["y"]
    assert singular[0] == 1 and max(singular[ZOO.rank :]) < 1e-4 < singular[ZOO.rank - 1]
    samples = sections["Samples"]["table"]["rows"]
    assert len(samples) == 35 and all(row[4] == "yes" and row[1] == row[2] == row[3] for row in samples)
    assert any("Template: 'the friend of {} is'; 5 training samples" in note for note in view["notes"])
    zero = judge(study, config_of(file, judge=replace(JUDGE, zero_shot=True)))
    assert any("asked without examples" in note for note in zero.stage("view").data["notes"])


def test_what_makes_two_runs_the_same(study: Study, file: Path, tmp_path: Path) -> None:
    first = judge(study, config_of(file))
    assert judge(study, config_of(file)).id == first.id
    assert judge(study, config_of(file), force=True).id != first.id
    same = RELATION.spec(config_of(file), ZOO.model, passed={}).digest
    assert RELATION.spec(config_of(file), ZOO.model, passed={"relation": "another way"}).digest == same
    for other in (
        config_of(file, seed=1),
        config_of(file, splits=2),
        config_of(file, twin=True),
        config_of(file, judge=replace(JUDGE, layers="all")),
    ):
        assert RELATION.spec(other, ZOO.model, passed={}).digest != same
    assert RELATION.spec(config_of(file), random_twin(ZOO.model), passed={}).digest != same
    known: Relation = relation_of(ZOO)
    write_relation(replace(known, samples=known.samples[:30]), file)
    assert RELATION.spec(config_of(file), ZOO.model, passed={}).digest != same


def test_a_config_survives_its_record(study: Study, file: Path) -> None:
    config = config_of(file, splits=2)
    spec = RELATION.spec(config, ZOO.model, passed={})
    assert spec.config(RelationConfig) == config
    assert Record.open(judge(study, config).path).spec.config(RelationConfig) == config


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_killed_between_stages_it_ends_in_the_same_table(study: Study, file: Path, stages: int) -> None:
    config = config_of(file, splits=2)
    die_after(stages, lambda: judge(study, config))
    killed = study.find("latest")
    assert killed.status != "finished" and len(killed.saved()) == stages
    resumed = study.resume(killed.id, have={"model": ZOO.model})
    straight = judge(study, config, force=True)
    assert plain_table(resumed) == plain_table(straight)
    assert resumed.stage("view").data == straight.stage("view").data
    assert is_valid(resumed)


def test_another_relation_in_the_file_is_refused_by_the_run_that_was_begun(study: Study, file: Path) -> None:
    die_after(1, lambda: judge(study, config_of(file, splits=2)))
    known: Relation = relation_of(ZOO)
    write_relation(replace(known, samples=known.samples[:30]), file)
    with pytest.raises(StudyError):
        study.resume("latest", have={"model": ZOO.model})
    with pytest.raises(StudyError):
        write_relation(known, file)
        study.resume("latest", have={"model": random_twin(ZOO.model)})
    assert study.resume("latest", have={"model": ZOO.model}).status == "finished"


def test_a_twin_is_judged_by_what_it_says(study: Study, file: Path) -> None:
    twin = random_twin(ZOO.model)
    record = look(study, RELATION, config_of(file, twin=True), twin)
    assert is_valid(record)
    found, notes = record.table, record.stage("view").data["notes"]
    assert (found["n_known"], found["n_test"], found["n_asked"]) == (0, 35, 35)
    assert any("The model knows 0 of 35 samples that were asked; all count" in note for note in notes)
    with pytest.raises(RelationError, match="knows 0 of 35 samples of 'friend'"):  # without --twin it is an error
        look(study, RELATION, config_of(file), twin)


def test_without_edits_causality_is_null_in_table_and_page(study: Study, file: Path) -> None:
    record = judge(study, config_of(file, judge=replace(JUDGE, pairs=2)))
    assert is_valid(record)
    found, view = record.table, record.stage("view").data
    for name in ("causality", "causality_low", "causality_high", "edit_layer", "rank"):
        assert found[name] is None, name
    assert {found["controls"][f"causal_{name}"] for name in ("swap", "unembedding", "random")} == {None}
    assert found["faithful_strict"] == 1
    assert "Causality is not measured" in view["claim"]
    assert not [one for one in view["sections"] if "Causality by" in one["title"]]


def test_whole_objects(study: Study, file: Path) -> None:
    record = judge(study, config_of(file, judge=replace(JUDGE, objects="whole")))
    assert is_valid(record)
    found, view = record.table, record.stage("view").data
    assert (found["objects"], found["chance"], found["faithful_strict"]) == ("whole", 1 / 40, 1)
    assert set(found["controls"]) == {*CONTROLS, "first", "causal_swap", "causal_unembedding", "causal_random"}
    assert "gives the model's own object of 40 for 100% of 35" in view["claim"]
    rows = {row[0]: row[1] for row in view["sections"][0]["table"]["rows"]}
    assert rows["chance, one of the objects"] == 1 / 40
    assert rows["first-token operator, same objects"][0] == 1  # objects of one token each
