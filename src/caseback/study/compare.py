"""Two runs side by side: what was asked differently, and what came out differently.

Where both runs measured the same examples, example by example, and a method says which of its arrays those are
(registered as ("paired", method): a function of a record to named `Paired` values), a difference of means gets a paired
bootstrap interval: what the examples have in common falls out. Everything else is a difference of two numbers, and no
interval is made up for it. Lists are compared by what their places are called (a size, a layer, a span), never by place
alone: two circuit runs have curves at different sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from caseback.core import registry
from caseback.core.errors import StudyError
from caseback.evidence import Interval, difference_interval
from caseback.study.spec import flat
from caseback.study.store import Record

__all__ = ["Change", "Comparison", "Paired", "compare", "named_places", "of_circuit", "of_relation"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """A score of every example."""

    keys: Sequence[str]
    """What makes an example the same one in another run."""
    values: Float[np.ndarray, "example"]


@dataclass(frozen=True)
class Change:
    """One thing that differs."""

    name: str
    a: Any
    b: Any
    """None where the run has no such thing."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run B against run A."""

    a: str
    b: str
    asked: tuple[Change, ...]
    """Settings, model files and data that differ."""
    found: tuple[Change, ...]
    """Numbers of the result that differ, the cost aside."""
    paired: Mapping[str, Interval]
    """B − A of a mean over the examples both measured, with its paired interval."""
    note: str
    """Why there are no paired intervals; empty where there are."""


def compare(a: Record, b: Record) -> Comparison:
    """Compare two finished runs of one method; StudyError for two methods, or for a run without a result."""
    if a.spec.method != b.spec.method:
        raise StudyError(
            f"{a.id} is a {a.spec.method} run and {b.id} a {b.spec.method} run; only runs of one method are compared"
        )
    results = [named_places(record.result["table"]) for record in (a, b)]
    numbers = [{k: v for k, v in one.items() if v is None or isinstance(v, int | float)} for one in results]
    paired, note = _paired(a, b)
    return Comparison(
        a=a.id,
        b=b.id,
        asked=_changes(*(flat(_asked(record), lists=True) for record in (a, b))),
        found=_changes(*numbers),
        paired=paired,
        note=note,
    )


def named_places(table: Mapping[str, Any]) -> dict[str, Any]:
    """A result flattened, {"sizes": [29, 225], "faithfulness": [.1, .9]} → {"faithfulness.sizes=29": .1, …}.

    A list of different words, or of whole numbers that rise, names the places of every list that is as long; of several
    such lists the first does. A list that nothing names keeps its numbers, "low.0".
    """
    lengths = Counter(_lengths(table))
    axes: dict[int, tuple[str, list[Any]]] = {}
    for name, values in table.items():
        if isinstance(values, list) and _names(values) and lengths[len(values)] > 1:
            axes.setdefault(len(values), (name, values))

    def within(value: Any, above: str, used: frozenset[str]) -> dict[str, Any]:
        if isinstance(value, Mapping):
            parts = [(str(key), part, used) for key, part in value.items()]
        elif isinstance(value, list):
            axis, labels = axes.get(len(value), ("", []))
            if not axis or axis in used:
                parts = [(str(i), part, used) for i, part in enumerate(value)]
            else:
                parts = [(f"{axis}={at}", part, used | {axis}) for at, part in zip(labels, value, strict=True)]
        else:
            return {above: value}
        return {k: v for key, part, names in parts for k, v in within(part, f"{above}.{key}", names).items()}

    naming = {name for name, _ in axes.values()}
    rest = [(name, value) for name, value in table.items() if name not in naming]
    return {k: v for name, value in rest for k, v in within(value, name, frozenset()).items()}


def _lengths(value: Any) -> Iterator[int]:
    """Of all lists."""
    if isinstance(value, list):
        yield len(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _lengths(part)


def _names(values: list[Any]) -> bool:
    """Whether a list can name places."""
    if not values or isinstance(values[0], bool):
        return False
    if all(isinstance(value, str) for value in values):
        return len(set(values)) == len(values)
    return all(isinstance(value, int) for value in values) and all(a < b for a, b in pairwise(values))


def _asked(record: Record) -> dict[str, Any]:
    spec = record.spec
    return {**spec.params, "model": spec.model, "data": spec.data, "versions": dict(record.versions)}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys([*a, *b])
    return tuple(Change(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))


def _paired(a: Record, b: Record) -> tuple[dict[str, Interval], str]:
    if a.spec.method not in registry.names("paired"):
        return {}, f"a {a.spec.method} run keeps no score of every example, so there are no paired intervals"
    give = registry.get("paired", a.spec.method)
    mine, its = give(a), give(b)
    found: dict[str, Interval] = {}
    for name in mine.keys() & its.keys():
        place = {key: i for i, key in enumerate(its[name].keys)}
        both = [(i, place[key]) for i, key in enumerate(mine[name].keys) if key in place]
        if len(both) > 1:
            first, second = (np.array(side) for side in zip(*both, strict=True))
            found[name] = difference_interval(its[name].values[second], mine[name].values[first])
    return dict(sorted(found.items())), "" if found else "the two runs measured different examples"


# --- scores of every example, by method ------------------------------------------------------------------------------


def of_circuit(record: Any) -> dict[str, Paired]:
    """Of the chosen circuit on every held-out pair, known by its place among all pairs: two models drop different ones."""
    arrays, asked = record.stage("evaluate").arrays, record.stage("check").arrays
    if "held_out" not in asked:
        return {}  # of a caseback that did not note the places
    chosen = list(record.table["sizes"]).index(record.details["chosen"]["edges"])
    keys = [f"{record.spec.data} {row}" for row in asked["held_out"]]
    names = {"metric of the chosen circuit": "metric", "agreement with the model": "agreement", "KL to the model": "kl"}
    return {name: Paired(keys=keys, values=arrays[array][chosen]) for name, array in names.items()}


def of_relation(record: Record) -> dict[str, Paired]:
    """Of the first split's known samples, chosen on the half they are not in."""
    arrays = record.stage("split-0").arrays
    found = {}
    for name in ("strict", "prefix", "causal"):
        values = arrays[name].astype(float)
        told = ~np.isnan(values)
        keys = [f"{record.spec.data} {place}" for place in arrays["sample"][told]]
        found[name] = Paired(keys=keys, values=values[told])
    return found
