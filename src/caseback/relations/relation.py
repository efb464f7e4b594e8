"""A relation as data: subjects, their objects, and the sentences that ask for one given the other.

The file is the published one of "Linearity of Relation Decoding in Transformer Language Models" (Hernandez et al., ICLR 2024): a JSON
object with `name`, `prompt_templates`, `prompt_templates_zs`, `properties`, `samples`, and possibly `domain` and `range`. What can be
computed is not stored: `fn_type` follows from the samples, `disambiguating` from the other relations.

A template holds "{}" exactly once, and the subject is put there by cutting the template in two: `str.format` would let a template of
a stranger read attributes. Reading checks everything here, so that nothing after it has to: the sentence names file, field and sample
(counted from 1). Reading what was written gives the same relation, and writing that gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from caseback.core.errors import RelationError
from caseback.tasks.files import write_text
from caseback.tasks.schema import encodable, kind_of

__all__ = [
    "LIMIT",
    "Category",
    "FnType",
    "Properties",
    "Relation",
    "Sample",
    "disambiguating",
    "read_relation",
    "write_relation",
]

LIMIT = 64 * 1024 * 1024
"""Bytes that a relation file may have at most."""

Category = Literal["factual", "commonsense", "linguistic", "bias"]
FnType = Literal["ONE_TO_ONE", "ONE_TO_MANY", "MANY_TO_ONE", "MANY_TO_MANY"]

_TEMPLATES = ("prompt_templates", "prompt_templates_zs")
_OPTIONAL = ("domain", "range")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row: a subject and what the relation takes it to."""

    subject: str
    object: str


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What kind of relation it is."""

    relation_type: Category
    """The category, one of four."""
    domain_name: str
    """What the subjects are, such as "country"."""
    range_name: str
    """What the objects are, such as "city"."""
    symmetric: bool
    """Whether (object, subject) belongs to the relation whenever (subject, object) does."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Subjects with their objects, and sentences after which the object is the next thing to say.

    Raises RelationError for a template without exactly one "{}", empty texts, repeated rows, fewer than two samples.

    >>> square = Properties(relation_type="linguistic", domain_name="word", range_name="letter", symmetric=False)
    >>> rows = (Sample(subject="sun", object="s"), Sample(subject="moon", object="m"))
    >>> ask = ("{} begins with",)
    >>> Relation(name="first", prompt_templates=ask, prompt_templates_zs=ask, properties=square, samples=rows).fn_type
    'ONE_TO_ONE'
    """

    name: str
    prompt_templates: tuple[str, ...]
    """For prompts with examples before the query; the object follows directly."""
    prompt_templates_zs: tuple[str, ...]
    """For prompts of the query alone."""
    properties: Properties
    samples: tuple[Sample, ...]
    domain: tuple[str, ...] | None = None
    """All subjects there could be, when the file says so."""
    range: tuple[str, ...] | None = None
    """All objects there could be, when the file says so."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def category(self) -> Category:
        return self.properties.relation_type

    @property
    def fn_type(self) -> FnType:
        """Whether a subject has several objects (TO_MANY) and whether subjects share one (MANY_TO), over the samples."""
        pairs = {(sample.subject, sample.object) for sample in self.samples}
        shared = len({object for _, object in pairs}) < len(pairs)
        several = len({subject for subject, _ in pairs}) < len(pairs)
        if shared:
            return "MANY_TO_MANY" if several else "MANY_TO_ONE"
        return "ONE_TO_MANY" if several else "ONE_TO_ONE"


def disambiguating(relation: Relation, others: Iterable[Relation]) -> bool:
    """Whether another relation leads from the same kind of subject to the same kind of object, so that these two alone do not tell
    which relation is meant. A relation of the same name among `others` is the relation itself."""
    kinds = (relation.properties.domain_name, relation.properties.range_name)
    return any(
        (other.properties.domain_name, other.properties.range_name) == kinds
        for other in others
        if other.name != relation.name
    )


def read_relation(path: str | os.PathLike[str]) -> Relation:
    """The relation in a published JSON file.

    Raises RelationError with one sentence naming the file, and the field or sample in it, for anything that is not as it must be.
    """
    path = Path(path)
    try:
        return _parse(_text(path))
    except RelationError as error:
        raise RelationError(f"{path}: {error}") from None


def write_relation(relation: Relation, path: str | os.PathLike[str]) -> None:
    """Write the published JSON, whole or not at all; raises RelationError when there is no such folder or `path` is one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise RelationError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    if path.is_dir():
        raise RelationError(f"{path} is a folder; give the name of a file")
    content = {key: value for key, value in asdict(relation).items() if value is not None}
    write_text(path, json.dumps(content, ensure_ascii=False, indent=4) + "\n")


# --- what must hold ------------------------------------------------------------------------------------------------------------------


def _check(relation: Relation) -> None:
    """Everything beyond types. The texts come first, so that later sentences can quote them."""
    _texts({"name": relation.name, **{f.name: getattr(relation.properties, f.name) for f in fields(Properties)}})
    for field in _TEMPLATES:
        templates: tuple[str, ...] = getattr(relation, field)
        if not templates and field == "prompt_templates":
            raise RelationError(
                f"{field!r} is empty; give at least one template, such as 'The capital city of {{}} is'"
            )
        for number, template in enumerate(templates, start=1):
            _texts({f"{field}, template {number}": template})
            if template != template.rstrip():
                raise RelationError(
                    f"{field!r}, template {number} ends in white space; the object is written behind it after a space, so take it off"
                )
            if (count := template.count("{}")) != 1:
                raise RelationError(
                    f"{field!r}, template {number} holds {{}} {count} times; the subject goes in exactly one place"
                )
    for field in _OPTIONAL:
        for number, text in enumerate(getattr(relation, field) or (), start=1):
            _texts({f"{field}, entry {number}": text})
    if len(relation.samples) < 2:
        raise RelationError(
            f"'samples' holds {len(relation.samples)}; a relation takes at least 2, one to learn from and one to test"
        )
    seen: dict[tuple[str, str], int] = {}
    for number, sample in enumerate(relation.samples, start=1):
        _texts({f"sample {number}, subject": sample.subject, f"sample {number}, object": sample.object})
        first = seen.setdefault((sample.subject, sample.object), number)
        if first != number:
            raise RelationError(
                f"sample {number} repeats sample {first}, {_short(sample.subject)} to {_short(sample.object)}; "
                "remove one of them, or it could be learnt from and tested on at once"
            )


def _texts(named: dict[str, Any]) -> None:
    for field, text in named.items():
        if isinstance(text, str):
            if not encodable(text):
                raise RelationError(f"{field!r} holds half of a surrogate pair, which is no character; remove it")
            if not text.strip():
                raise RelationError(f"{field!r} is empty; write what it is")


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# --- JSON ----------------------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    if path.is_dir():
        raise RelationError("this is a folder; give the relation file in it")
    if not path.is_file():
        raise RelationError("there is no such file")
    if (size := path.stat().st_size) > LIMIT:
        raise RelationError(f"the file has {size / 2**20:.0f} MiB; a relation has at most {LIMIT // 2**20} MiB")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RelationError(
            f"line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _parse(text: str) -> Relation:
    data = _fields(
        _json(text),
        "the file",
        [field.name for field in fields(Relation)],
        optional=(*_OPTIONAL, "prompt_templates_zs"),
    )
    properties = _fields(data["properties"], "'properties'", [field.name for field in fields(Properties)])
    for field in ("relation_type", "domain_name", "range_name"):
        _want(properties[field], str, repr(field))
    _want(properties["symmetric"], bool, "'symmetric'")
    if properties["relation_type"] not in get_args(Category):
        raise RelationError(
            f"'relation_type' is {_short(properties['relation_type'])}; it is one of {', '.join(get_args(Category))}"
        )
    samples = []
    for number, row in enumerate(_want(data["samples"], list, "'samples'"), start=1):
        row = _fields(row, f"sample {number}", ["subject", "object"])
        for field in ("subject", "object"):
            _want(row[field], str, f"sample {number}, {field!r}")
        samples.append(Sample(**row))
    return Relation(
        name=_want(data["name"], str, "'name'"),
        prompt_templates=_strings(data["prompt_templates"], "prompt_templates"),
        prompt_templates_zs=_strings(data.get("prompt_templates_zs", []), "prompt_templates_zs"),
        properties=Properties(**properties),
        samples=tuple(dict.fromkeys(samples)),  # some published files hold a row twice; it counts once
        **{field: _strings(data[field], field) for field in _OPTIONAL if data.get(field) is not None},
    )


def _json(text: str) -> Any:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(items) > len(found := dict(items)):
            twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
            raise RelationError(f"{_short(twice)} is given twice in one object; keep one of them")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise RelationError(f"not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise RelationError("nested too deeply for a relation") from None
    except RelationError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise RelationError(f"not JSON ({error})") from None


def _fields(data: Any, where: str, known: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """An object with these fields and no others."""
    for key in _want(data, dict, where):
        if key not in known:
            raise RelationError(f"{where} has the unknown field {_short(key)}; its fields are {', '.join(known)}")
    for key in known:
        if key not in data and key not in optional:
            raise RelationError(
                f"{where} has no field {key!r}; it needs {', '.join(k for k in known if k not in optional)}"
            )
    return dict(data)


def _want(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise RelationError(f"{where} must be {kind_of(kind())}, not {kind_of(value)}")
    return value


def _strings(value: Any, field: str) -> tuple[str, ...]:
    for number, text in enumerate(_want(value, list, repr(field)), start=1):
        _want(text, str, f"{field!r}, entry {number}")
    return tuple(value)
