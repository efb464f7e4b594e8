"""The same pairs under other spans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caseback.core.errors import SchemaError
from caseback.tasks.aligner import learn
from caseback.tasks.respan import read_aligner, respan
from caseback.zoo import copying
from caseback.zoo.handmade import ZooModel


@pytest.fixture(scope="module")
def zoo() -> ZooModel:
    return copying()


def test_none_and_tokens(zoo: ZooModel) -> None:
    assert respan(zoo.task, None, zoo.model) is zoo.task
    bare = respan(zoo.task, "none", zoo.model)
    assert bare.schema is None and not any(pair.spans for pair in bare.pairs)
    with pytest.raises(SchemaError, match="needs one length"):
        respan(zoo.task, "tokens", zoo.model)
    lengths = [len(zoo.model.tokens(pair.clean)) for pair in zoo.task.pairs]
    by_token = respan(zoo.task[[i for i, n in enumerate(lengths) if n == lengths[0]]], "tokens", zoo.model)
    pairs = by_token.encode(zoo.model)
    assert all(bool((ranges[:, 1] - ranges[:, 0] == 1).all()) for ranges in pairs.clean.spans.values())
    assert len(pairs.clean.spans) == pairs.clean.ids.shape[1]


def test_a_schema_file_gives_back_the_spans_it_was_learned_from(zoo: ZooModel, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(learn(zoo.task, zoo.model).to_dict()))
    laid = respan(zoo.task, str(path), zoo.model)
    assert [pair.spans for pair in laid.pairs] == [pair.spans for pair in zoo.task.pairs]


@pytest.mark.parametrize(
    ("content", "why"), [(None, "there is no schema file"), ("{", "not a JSON file"), ("{}", "an aligner is")]
)
def test_a_bad_file_is_one_sentence(content: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SchemaError, match=why):
        read_aligner(path)
