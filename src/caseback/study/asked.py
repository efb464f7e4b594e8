"""A method's config from plain data: a sweep's file, a form of the page.

What a Config's annotations say is checked, so that a wrong word is told where it was written and not deep in a method:
unknown names, wrong kinds, and Literals; mappings become the dataclass that stands in their place, lists become tuples.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from caseback.core import registry
from caseback.core.errors import StudyError

__all__ = ["config_of"]


def config_of(method: str, given: Mapping[str, Any]) -> Any:
    """The config of a method; raises StudyError with the field and what it takes, and the method's own errors: what it can
    tell before a model is loaded (`look`)."""
    config = _made(registry.get("method", method).Config, given, method)
    if hasattr(config, "look"):
        config.look()
    return config


def _made(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(fields)}"
            raise StudyError(f"{where} has no setting {str(name)!r}; {hint}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in given:
            raise StudyError(f"{where} needs the setting {name!r}")
    return kind(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in given.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    """The value as the annotation has it."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _made(kind, value, where)
    if origin in (Union, types.UnionType):
        for part in parts:
            try:
                return _typed(part, value, where)
            except StudyError as error:
                if dataclasses.is_dataclass(part):
                    raise error
    elif origin is Literal:
        if value in parts:
            return value
        raise StudyError(f"{where} is {value!r}; choose one of {', '.join(map(str, parts))}")
    elif origin is tuple and isinstance(value, list | tuple):
        each = parts[0] if len(parts) == 2 and parts[1] is Ellipsis else None
        kinds = [each] * len(value) if each is not None else list(parts)
        if len(kinds) == len(value):
            return tuple(_typed(part, item, where) for part, item in zip(kinds, value, strict=True))
    elif kind is float and type(value) is int:
        return float(value)
    elif kind is Any or type(value) is kind:
        return value
    raise StudyError(f"{where} is {value!r}; it takes {_said(kind)}")


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


def _said(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(part) for part in parts)
    if origin is tuple:
        return f"a list of {_WORDS.get(parts[0], 'values')[2:]}s" if parts[0] in _WORDS else "a list"
    return _WORDS.get(kind, "a table of settings")
