"""A model that knows one relation, the relation's file, and a library of relations it knows in part, as the command line takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from caseback.relations import library
from caseback.relations.relation import Properties, Relation, Sample, write_relation
from caseback.zoo.affine import AffineModel, affine

KIND = Properties(relation_type="factual", domain_name="subject", range_name="object", symmetric=False)


def relation_of(zoo: AffineModel, *, name: str = "friend", **changed: object) -> Relation:
    """The zoo's relation as data."""
    samples = tuple(Sample(subject=one, object=other) for one, other in zoo.pairs)
    ask = (zoo.template,)
    made = Relation(name=name, prompt_templates=ask, prompt_templates_zs=ask, properties=KIND, samples=samples)
    return replace(made, **changed)  # type: ignore[arg-type]


def folder(path: Path) -> Path:
    """`path` with the model in m/ and its relation in friend.json."""
    zoo = affine()
    zoo.model.hf.save_pretrained(path / "m")
    zoo.model.tokenizer.save_pretrained(path / "m")
    write_relation(relation_of(zoo), path / "friend.json")
    return path


@contextmanager
def small_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In place of the library: two relations the model knows and one it does not, and one of a category it knows nothing of."""
    zoo = affine()
    friend = relation_of(zoo)
    wrong = tuple(replace(one, object=friend.samples[i - 1].object) for i, one in enumerate(friend.samples))
    bias = replace(KIND, relation_type="bias")
    relations = [
        friend,
        replace(friend, name="good friend", samples=friend.samples[:30]),
        replace(friend, name="stranger", samples=wrong),
        replace(friend, name="hunch", samples=wrong, properties=bias),
    ]
    for one in relations:
        write_relation(one, path / f"{one.name.replace(' ', '_')}.json")
    (path / "sources.json").write_text(json.dumps({one.name: f"Source of {one.name}." for one in relations}))
    with monkeypatch.context() as patch:
        patch.setattr(library, "_FOLDER", path)
        library.get.cache_clear()
        library._sources.cache_clear()
        try:
            yield
        finally:
            patch.undo()
            library.get.cache_clear()
            library._sources.cache_clear()
