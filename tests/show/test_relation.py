"""A relation's payload: what the record holds and nothing else, checked before it is drawn, whatever the run kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import CasebackError
from caseback.evidence import proportion_interval
from caseback.relations.judge import JudgeConfig
from caseback.relations.relation import write_relation
from caseback.show import relation
from caseback.study import Record, Study
from caseback.study.relation import RELATION, RelationConfig, splits_of

from ..relations.small import affine_of, relation_of
from ..study.looking import look

ZOO = affine_of()


def run(path: Path, **judge: Any) -> Record:
    study = Study(path / "casebook")
    file = path / "friend.json"
    write_relation(relation_of(ZOO), file)
    config = RelationConfig(relation=str(file), judge=JudgeConfig(pairs=12, **judge))
    return look(study, RELATION, config, ZOO.model)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(tmp_path_factory.mktemp("relation"))


def test_it_holds_what_the_run_found(record: Record) -> None:
    payload = relation.drawn(record)
    relation.validate(payload)
    table, (split,) = record.table, splits_of(record)
    by = {score["name"]: score for score in payload["scores"]}
    assert by["strict"]["value"] == table["faithful_strict"] and by["strict"]["low"] == table["low"]
    assert by["causal"]["value"] == table["causality"]
    for name, value in table["controls"].items():
        assert by[name]["value"] == value
    assert payload["operator"]["layer"] == table["layer"] and payload["operator"]["edit_rank"] == table["rank"]
    own = payload["layers"][0]
    n = len(split.sample)
    assert own["y"] == split.arrays["by_layer"].max(axis=1).tolist()
    sure = [proportion_interval(round(share * n), n) for share in own["y"]]
    assert own["low"] == [each.low for each in sure] and own["high"] == [each.high for each in sure]
    assert [line["name"] for line in payload["layers"][1:]] == list(relation.LINES)
    assert payload["grid"]["values"] == split.arrays["by_layer"].tolist()
    samples = payload["samples"]
    assert [list(row) for row in split.said] == [
        list(row) for row in zip(*(samples[name] for name in ("subject", "object", "model", "operator")), strict=True)
    ]
    assert samples["held"]["strict"] == split.arrays["strict"].tolist()
    assert samples["held"]["causal"].count(None) == n - 12
    assert np.mean(samples["at_layer"], axis=0).tolist() == pytest.approx(own["y"])
    for who in ("model", "operator"):
        tops = samples["tops"][who]
        assert [row[0][0] for row in tops] == samples[who]
        assert all(p >= q for row in tops for (_, p), (_, q) in zip(row, row[1:], strict=False))
    assert record.report is not None and '"kind":"relation"' in record.report.read_text("utf-8")


def test_whole_objects_have_no_likeliest_tokens(tmp_path: Path) -> None:
    payload = relation.drawn(run(tmp_path, objects="whole"))
    relation.validate(payload)
    assert payload["samples"]["tops"] is None and 0 < payload["chance"] < 1


def test_a_run_made_before_something_was_kept_is_drawn_without_it(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(_: Record) -> list[Any]:
        (split,) = splits_of(record)
        arrays = {name: value for name, value in split.arrays.items() if name not in ("betas", "at_layer")}
        return [replace(split, arrays=arrays, tops={})]

    monkeypatch.setattr(relation, "splits_of", older)
    payload = relation.drawn(record)
    relation.validate(payload)
    assert payload["grid"] is None and payload["samples"]["tops"] is None and payload["samples"]["at_layer"] is None
    assert payload["samples"]["hit"] == relation.drawn(record)["samples"]["hit"]


def test_a_run_without_its_samples_is_drawn_as_an_experiment(tmp_path: Path) -> None:
    bare = run(tmp_path)
    (bare.path / "arrays" / "split-0.safetensors").unlink()
    assert relation.drawn(bare)["kind"] == "experiment"
    assert '"kind":"experiment"' in relation.report(bare)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("kind", "circuit"),
        ("title", None),
        ("operator.layer", "11"),
        ("layers.0.y", [0.5]),
        ("layers.0.look", "nosuch"),
        ("grid.betas", [1.0]),
        ("samples.subject", ["one"]),
        ("samples.model.0", 5),
        ("samples.held.strict", [True]),
        ("samples.tops.model", []),
        ("samples.tops.model.0.0", ["word", "much"]),
        ("samples.at_layer", [[]]),
        ("scores.0.value", None),
        ("sections.0.table.columns.0.kind", "picture"),
    ],
)
def test_what_cannot_be_drawn_is_refused(record: Record, where: str, value: Any) -> None:
    payload = copy.deepcopy(relation.drawn(record))
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place: Any = payload
    if where.startswith("sections"):
        place["sections"] = place["sections"][1:]  # the one with a table
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(CasebackError, match="this is no payload of"):
        relation.validate(payload)
