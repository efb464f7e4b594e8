"""Relations that come with caseback, as the JSON files beside this module.

`python scripts/relations/make.py` wrote them, offline, from libraries that have the facts and, where none has, from lists written by
hand; `sources.json` says which, relation by relation, and is the index of the folder.
"""

from __future__ import annotations

import difflib
import json
import os
from functools import cache
from pathlib import Path

from caseback.core.errors import RelationError
from caseback.relations.relation import Relation, read_relation

__all__ = ["get", "names", "resolve", "source"]

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Names of the relations that come with caseback, in the order of the alphabet."""
    return tuple(_sources())


@cache
def get(name: str) -> Relation:
    """The relation of that name; raises RelationError for one that is not here.

    >>> get("country capital city").category
    'factual'
    """
    if name not in names():
        raise RelationError(f"there is no relation {name!r}; there are: {', '.join(names())}")
    return read_relation(_FOLDER / f"{name.replace(' ', '_')}.json")


def source(name: str) -> str:
    """Where the relation's facts come from, in one sentence; raises RelationError for a name that is not here."""
    get(name)
    return _sources()[name]


def resolve(name_or_file: str | os.PathLike[str]) -> Relation:
    """The relation a user means: a name of the library, or a file. A file that is called like a relation is reached as "./NAME".

    Raises RelationError for what is neither, and for a file that cannot be used.
    """
    if isinstance(name_or_file, str) and name_or_file in names():
        return get(name_or_file)
    if not str(name_or_file) or not Path(name_or_file).exists():
        near = difflib.get_close_matches(str(name_or_file), names(), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"relations are: {', '.join(names())}"
        raise RelationError(f"there is neither a relation nor a file {str(name_or_file)!r}; {hint}")
    return read_relation(name_or_file)


@cache
def _sources() -> dict[str, str]:
    return dict(json.loads((_FOLDER / "sources.json").read_text("utf-8")))
