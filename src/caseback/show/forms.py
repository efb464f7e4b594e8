"""A form for every method, made from its Config: the fields' types say what can be entered, the docstrings under the
fields what it means.

The source of a Config is parsed, never run; a field's docstring is the text that follows it. What a form sends back is
checked by `study.asked`, as a sweep's file is.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from caseback.core import registry
from caseback.relations import library as relations
from caseback.show.claims import said_by_claims
from caseback.study import Study, plain
from caseback.tasks import library as tasks

__all__ = ["docs_of", "fields_of", "forms"]

HIDDEN = ("judged",)
"""Set by methods themselves: runs they cite."""
COMMON = ("model", "seed", "dtype", "device", "twin", "tokens")
"""What nearly every method has; a form keeps these to the end."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
SAID = {
    "prompt": "Raw text, as the model gets it.",
    "dtype": "float32, float64, bfloat16 or float16.",
    "device": "cpu, cuda, cuda:1 …",
}
"""What some fields mean everywhere, so that no Config says it."""
KINDS = {str: "text", int: "integer", float: "number", bool: "flag"}


def forms(study: Study | None = None) -> list[dict[str, Any]]:
    """Every method that can be begun from a page, by name: `method`, `title`, `says`, `fields`. A study's claims are
    suggested, in the field of a claim."""
    claims = said_by_claims(study) if study else {}
    return [
        {
            "method": name,
            "title": _title(name),
            "says": _says(config),
            "fields": [_with_claims(one, claims) for one in fields_of(config)],
        }
        for name in registry.names("method")
        if dataclasses.is_dataclass(config := registry.get("method", name).Config)
    ]


def _with_claims(field: dict[str, Any], claims: Mapping[str, str]) -> dict[str, Any]:
    if field["name"] != "claim":
        return field
    return field | {"suggested": list(claims), "labels": list(claims.values())}


def _title(name: str) -> str:
    return getattr(registry.get("method", name), "title", "") or name.replace("-", " ").capitalize()


def _says(config: Any) -> str:
    """The docstring's first paragraph; dataclasses without one carry their signature."""
    text = inspect.cleandoc(config.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return "" if text.startswith(f"{config.__name__}(") else text


def fields_of(config: Any) -> list[dict[str, Any]]:
    """The fields of a Config, those that must be given first: `name`, `kind` (of KINDS, or choice, texts, numbers, group),
    `needed`, `default`, `doc`, `common`, and where they exist `choices`, `suggested` (with `labels` of claims) or, of a
    group, its `fields`."""
    hints, docs = get_type_hints(config), docs_of(config)
    found = [
        _field(one, hints[one.name], docs.get(one.name, SAID.get(one.name, ""))) for one in dataclasses.fields(config)
    ]
    return sorted(
        (one for one in found if one["name"] not in HIDDEN), key=lambda one: (one["common"], not one["needed"])
    )


def _field(one: Any, hint: Any, doc: str) -> dict[str, Any]:
    needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    default = None if needed else one.default if one.default is not dataclasses.MISSING else one.default_factory()
    doc = re.sub(r"\bNone\b", "not set", doc)
    about = {"name": one.name, "doc": doc, "needed": needed, "common": one.name in COMMON}
    if dataclasses.is_dataclass(hint):
        inner = [field for field in fields_of(hint) if field["name"] != "seed"]  # the run's own takes its place
        return {**about, "kind": "group", "fields": inner, "default": None}
    kind, more = _kind(hint)
    return {**about, "kind": kind, **more, **_suggested(one.name), "default": plain(default)}


def _kind(hint: Any) -> tuple[str, dict[str, Any]]:
    """A field's kind; of a union the first part that is not None."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return "choice", {"choices": list(parts)}
    if origin is tuple:
        inner, more = _kind(parts[0])
        return ("numbers" if inner in ("integer", "number") else "texts"), more
    return KINDS.get(hint, "text"), {}


def _suggested(name: str) -> dict[str, Any]:
    match name:
        case "task":
            return {"suggested": list(tasks.names())}
        case "relation" | "relations" | "siblings":
            return {"suggested": list(relations.names())}
        case "dtype":
            return {"suggested": list(DTYPES)}
        case _:
            return {}


@cache
def docs_of(config: Any) -> dict[str, str]:
    """Field → the docstring under it, of a dataclass and those it inherits from; without one, a field is not in it."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue  # typed into an interpreter
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:]):
            is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            is_text = (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            )
            if is_field and is_text:
                found[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return found
