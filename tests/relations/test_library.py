"""The shipped relations: they load, are what they claim to be, and are what their script writes."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from caseback.core.errors import RelationError
from caseback.relations import library
from caseback.relations.relation import write_relation

ROOT = Path(__file__).parents[2]
FOLDER = Path(library.__file__).parent
NAMES = library.names()


@pytest.fixture(scope="module")
def make() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts" / "relations"))
    try:
        return importlib.import_module("make")
    finally:
        del sys.path[0]


def test_there_are_enough_in_four_categories() -> None:
    assert len(NAMES) >= 24
    counts = Counter(library.get(name).category for name in NAMES)
    assert set(counts) == {"factual", "commonsense", "linguistic", "bias"}
    assert min(counts.values()) >= 6
    assert list(NAMES) == sorted(NAMES)


def test_the_index_names_every_file() -> None:
    files = {path.name for path in FOLDER.glob("*.json")} - {"sources.json"}
    assert files == {f"{name.replace(' ', '_')}.json" for name in NAMES}
    assert all(library.source(name).strip().endswith(".") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_relation_is_what_it_should_be(name: str) -> None:
    relation = library.get(name)
    assert relation.name == name
    assert 20 <= len(relation.samples) <= 100
    subjects = [sample.subject for sample in relation.samples]
    assert len(set(subjects)) == len(subjects), "one object a subject, so that there is one right answer"
    assert len({sample.object for sample in relation.samples}) > 1
    assert all(text == text.strip() for sample in relation.samples for text in (sample.subject, sample.object))
    for templates in (relation.prompt_templates, relation.prompt_templates_zs):
        assert 1 <= len(templates) <= 3
        assert all(template == template.strip() and not template.endswith("{}") for template in templates)
        assert len(set(templates)) == len(templates)
    if relation.category != "linguistic":
        told = [s for s in relation.samples if s.subject.lower() in s.object.lower()]
        assert not told, "the object says the subject again"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_what_writing_it_gives(name: str, tmp_path: Path) -> None:
    write_relation(library.get(name), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (FOLDER / f"{name.replace(' ', '_')}.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_script_writes_the_shipped_file(name: str, tmp_path: Path, make: ModuleType) -> None:
    if not make.available(name):
        pytest.skip("needs the source libraries: pip install -e '.[relations-data]'")
    write_relation(make.make(name), tmp_path / "made.json")
    assert (tmp_path / "made.json").read_bytes() == (FOLDER / f"{name.replace(' ', '_')}.json").read_bytes()


def test_the_script_tells_the_shipped_sources(make: ModuleType) -> None:
    shipped = json.loads((FOLDER / "sources.json").read_text("utf-8"))
    assert shipped == {name: make.source(name) for name in sorted(make.NAMES)}
    assert {name for name in NAMES if shipped[name].startswith("Written by hand")} == set(make.WRITTEN)


def test_the_page_has_the_table_of_the_script(make: ModuleType) -> None:
    page = make.PAGE.read_text("utf-8")
    assert page == make.table(page), "run: python scripts/relations/make.py"


def test_known_facts() -> None:
    """One row of each library, so that a column that was mixed up is seen."""
    rows = {
        "country capital city": ("France", "Paris"),
        "country language": ("Brazil", "Portuguese"),
        "country currency": ("Japan", "yen"),
        "country continent": ("Nigeria", "Africa"),
        "country largest city": ("Turkey", "Istanbul"),
        "city in country": ("Mumbai", "India"),
        "element symbol": ("gold", "Au"),
        "adjective comparative": ("good", "better"),
        "adjective superlative": ("happy", "happiest"),
        "verb past tense": ("go", "went"),
        "verb present participle": ("run", "running"),
        "noun plural": ("mouse", "mice"),
        "word first letter": ("zebra", "z"),
        "word last letter": ("zebra", "a"),
    }
    for name, row in rows.items():
        assert row in {(sample.subject, sample.object) for sample in library.get(name).samples}, name


def test_a_name_or_a_file_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capital = library.get("country capital city")
    assert library.resolve("country capital city") is capital
    monkeypatch.chdir(tmp_path)
    os.mkdir("country capital city")
    assert library.resolve("country capital city") is capital
    with pytest.raises(RelationError, match="this is a folder"):
        library.resolve("./country capital city")
    write_relation(capital, "mine.json")
    assert library.resolve("mine.json") == library.resolve(tmp_path / "mine.json") == capital


def test_what_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(RelationError, match="there is no relation 'capital'; there are: adjective antonym, "):
        library.get("capital")
    with pytest.raises(RelationError, match="there is no relation 'capital'"):
        library.source("capital")
    with pytest.raises(RelationError, match="neither a relation nor a file 'zzz'; relations are: adjective"):
        library.resolve("zzz")
    with pytest.raises(RelationError, match="neither a relation nor a file ''; relations are: adjective"):
        library.resolve("")
    with pytest.raises(RelationError, match="'contry capital'; did you mean 'country capital city'"):
        library.resolve("contry capital")
