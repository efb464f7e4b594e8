"""The published file: read, checked, written; what is wrong with a file is said in one sentence."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.core.errors import RelationError
from caseback.relations import relation as module
from caseback.relations.relation import Relation, Sample, disambiguating, read_relation, write_relation

GOOD: dict[str, Any] = {
    "name": "country capital city",
    "prompt_templates": ["The capital city of {} is"],
    "prompt_templates_zs": ["The capital city of {} is", "In {}, the capital is"],
    "properties": {"relation_type": "factual", "domain_name": "country", "range_name": "city", "symmetric": False},
    "samples": [{"subject": "Japan", "object": "Tokyo"}, {"subject": "Perú", "object": "Lima"}],
}


def saved(folder: Path, data: Any, name: str = "capital.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data), "utf-8")
    return path


@pytest.fixture
def capital(tmp_path: Path) -> Relation:
    return read_relation(saved(tmp_path, GOOD))


def test_the_published_fields_are_read(capital: Relation) -> None:
    assert capital.name == "country capital city"
    assert capital.category == capital.properties.relation_type == "factual"
    assert capital.prompt_templates_zs == ("The capital city of {} is", "In {}, the capital is")
    assert capital.samples[1] == Sample(subject="Perú", object="Lima")
    assert capital.domain is None and capital.range is None


@pytest.mark.parametrize("more", [{}, {"domain": ["Japan", "Perú", "Chile"], "range": ["Tokyo", "Lima"]}])
def test_a_round_trip_gives_the_same_relation_and_the_same_bytes(tmp_path: Path, more: dict[str, Any]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    relation = read_relation(saved(tmp_path, GOOD | more))
    write_relation(relation, first)
    assert read_relation(first) == relation
    write_relation(read_relation(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_text("utf-8")) == GOOD | more
    assert "Perú" in first.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capital.json", "first.json", "second.json"]


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_relation(path).name == GOOD["name"]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ("a1 b2", "ONE_TO_ONE"),
        ("a1 a2", "ONE_TO_MANY"),
        ("a1 b1", "MANY_TO_ONE"),
        ("a1 a2 b1", "MANY_TO_MANY"),
    ],
)
def test_the_kind_of_function_follows_from_the_samples(capital: Relation, rows: str, kind: str) -> None:
    samples = tuple(Sample(subject=row[0], object=row[1]) for row in rows.split())
    assert replace(capital, samples=samples).fn_type == kind


def test_another_relation_between_the_same_kinds_makes_it_disambiguating(capital: Relation) -> None:
    largest = replace(capital, name="country largest city")
    language = replace(capital, name="country language", properties=replace(capital.properties, range_name="language"))
    assert disambiguating(capital, [capital, language, largest])
    assert not disambiguating(capital, [capital, language])
    assert not disambiguating(capital, [])


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(lambda d: d.update(fn_type="ONE_TO_ONE")), "the file has the unknown field 'fn_type'; its fields are name, "),
        (changed(lambda d: d["properties"].update(rank=3)), "'properties' has the unknown field 'rank'; its fields are relation_type"),
        (changed(lambda d: d["samples"][1].update(weight=1)), "sample 2 has the unknown field 'weight'; its fields are subject, object"),
        (changed(lambda d: d.pop("prompt_templates")), "the file has no field 'prompt_templates'; it needs name, "),
        (changed(lambda d: d["properties"].pop("symmetric")), "'properties' has no field 'symmetric'"),
        (changed(lambda d: d["samples"][0].pop("object")), "sample 1 has no field 'object'"),
        (changed(lambda d: d.update(name=3)), "'name' must be text, not a number"),
        (changed(lambda d: d.update(samples={})), "'samples' must be a list, not an object"),
        (changed(lambda d: d.update(prompt_templates="{} is")), "'prompt_templates' must be a list, not text"),
        (changed(lambda d: d.update(prompt_templates=["{} is", None])), "'prompt_templates', entry 2 must be text, not nothing"),
        (changed(lambda d: d.update(domain=[True])), "'domain', entry 1 must be text, not a truth value"),
        (changed(lambda d: d["properties"].update(symmetric=0)), "'symmetric' must be a truth value, not a number"),
        (changed(lambda d: d["samples"].__setitem__(1, ["Peru", "Lima"])), "sample 2 must be an object, not a list"),
        (changed(lambda d: d["samples"][1].update(object=7)), "sample 2, 'object' must be text, not a number"),
        (changed(lambda d: d["properties"].update(relation_type="causal")), "'relation_type' is 'causal'; it is one of factual, "),
        (changed(lambda d: d.update(prompt_templates=[])), "'prompt_templates' is empty"),
        (changed(lambda d: d.update(prompt_templates=["The capital is"])), "'prompt_templates', template 1 holds {} 0 times"),
        (changed(lambda d: d.update(prompt_templates_zs=["{} is", "{} of {} is"])), "'prompt_templates_zs', template 2 holds {} 2 times"),
        (changed(lambda d: d["samples"][1].update(subject=" ")), "'sample 2, subject' is empty"),
        (changed(lambda d: d["samples"][0].update(object="")), "'sample 1, object' is empty"),
        (changed(lambda d: d["samples"][0].update(object="\ud800")), "'sample 1, object' holds half of a surrogate pair"),
        (changed(lambda d: d["samples"].pop()), "'samples' holds 1; a relation takes at least 2"),
        ([GOOD], "the file must be an object, not a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_field_and_sample(tmp_path: Path, data: Any, sentence: str) -> None:
    path = saved(tmp_path, data)
    with pytest.raises(RelationError) as found:
        read_relation(path)
    assert str(found.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "not JSON (Expecting property name"),
        (b"", "not JSON (Expecting value at line 1, column 1)"),
        (b'{"name": "a", "name": "b"}', "'name' is given twice in one object; keep one of them"),
        (b"[" * 200_000, "nested too deeply for a relation"),
        (b'{"name": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{\n"name": "\xff"}', "line 2: the byte 0xff is not UTF-8; save the file as UTF-8"),
    ],
)
def test_what_is_no_json_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(RelationError) as found:
        read_relation(path)
    assert str(found.value).startswith(f"{path}: {sentence}")


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(module.LIMIT + 2**20)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(RelationError, match="the file has 65 MiB; a relation has at most 64 MiB"):
        read_relation(path)


def test_what_is_no_file_is_said(tmp_path: Path, capital: Relation) -> None:
    with pytest.raises(RelationError, match="there is no such file"):
        read_relation(tmp_path / "none.json")
    with pytest.raises(RelationError, match="this is a folder"):
        read_relation(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RelationError, match="there is no such file"):
        read_relation(tmp_path / "pipe")
    with pytest.raises(RelationError, match="is a folder; give the name of a file"):
        write_relation(capital, tmp_path)
    with pytest.raises(RelationError, match="there is no folder"):
        write_relation(capital, tmp_path / "none" / "capital.json")


def test_braces_in_a_template_are_plain_text(tmp_path: Path) -> None:
    hostile = "{0.__class__} { of {} is }"
    assert read_relation(saved(tmp_path, GOOD | {"prompt_templates": [hostile]})).prompt_templates == (hostile,)


# --- hostile files ---------------------------------------------------------------------------------------------------

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(["{}", "{} {}", "factual", " "])
)
_json = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)
_places: list[tuple[Any, ...]] = [
    (),
    *[(field,) for field in (*GOOD, "domain", "range", "other")],
    *[("properties", field) for field in (*GOOD["properties"], "other")],
    *[("samples", 0), ("samples", 1, "subject"), ("samples", 1, "object"), ("samples", 1, "other")],
    *[("prompt_templates", 0), ("prompt_templates_zs", 1)],
]


def put(place: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(GOOD)
    if not place:
        return value
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def loads_or_says_why(path: Path) -> None:
    try:
        relation = read_relation(path)
    except RelationError as error:
        assert str(error).startswith(f"{path}: ")
        str(error).encode()
    else:
        write_relation(relation, path)
        assert read_relation(path) == relation


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(_places), value=_json)
def test_a_hostile_value_anywhere_is_refused_or_loads(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    path = folder / "value.json"
    path.write_text(json.dumps(put(place, value)), "utf-8")
    loads_or_says_why(path)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(json.dumps(GOOD)) - 1), bytes_=st.binary(max_size=4), cut=st.booleans())
def test_damaged_bytes_are_refused_or_load(folder: Path, at: int, bytes_: bytes, cut: bool) -> None:
    whole = json.dumps(GOOD).encode()
    path = folder / "bytes.json"
    path.write_bytes(whole[:at] + bytes_ + (b"" if cut else whole[at + 1 :]))
    loads_or_says_why(path)
