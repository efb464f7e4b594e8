"""What upper rooms offer to lower ones and to third parties, found by name and imported only when used.

An offer is a string `"module:attribute"`, so registering costs nothing. Packages outside add theirs through one entry-point group,
`caseback`: each entry point names a function that is called with `register`. A plugin that fails is reported as a warning and left out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from functools import cache
from typing import Any

from caseback.core.errors import CasebackError

__all__ = ["get", "names", "register"]

GROUP = "caseback"

_OFFERS: dict[tuple[str, str], str] = {
    ("view", "circuit"): "caseback.show.circuit:notebook",
    ("view", "record"): "caseback.show.report:of_record",
    ("report", "circuit"): "caseback.show.circuit:report",
    ("report", "patching"): "caseback.show.experiments:report",
    ("report", "positions"): "caseback.show.experiments:report",
    ("report", "schemas"): "caseback.show.experiments:report",
    ("report", "lens"): "caseback.show.experiments:report",
    ("report", "tune-lens"): "caseback.show.experiments:report",
    ("report", "patch"): "caseback.show.experiments:report",
    ("report", "paths"): "caseback.show.experiments:report",
    ("report", "scrub"): "caseback.show.experiments:report",
    ("report", "dla"): "caseback.show.experiments:report",
    ("report", "attention"): "caseback.show.experiments:report",
    ("report", "weights"): "caseback.show.experiments:report",
    ("report", "heads"): "caseback.show.experiments:report",
    ("report", "attribute"): "caseback.show.experiments:report",
    ("report", "attribute-input"): "caseback.show.experiments:report",
    ("report", "cross"): "caseback.show.experiments:report",
    ("report", "concepts"): "caseback.show.experiments:report",
    ("report", "distract"): "caseback.show.experiments:report",
    ("report", "isolate"): "caseback.show.experiments:report",
    ("report", "claim-test"): "caseback.show.experiments:report",
    ("report", "relation"): "caseback.show.relation:report",
    ("payload", "circuit"): "caseback.show.payload:validate",
    ("payload", "experiment"): "caseback.show.experiments:validate",
    ("payload", "relation"): "caseback.show.relation:validate",
    ("method", "circuit"): "caseback.study.circuit:METHOD",
    ("method", "patching"): "caseback.study.experiments:PATCHING",
    ("method", "positions"): "caseback.study.experiments:POSITIONS",
    ("method", "schemas"): "caseback.study.experiments:SCHEMAS",
    ("method", "cross"): "caseback.study.cross:CROSS",
    ("method", "relation"): "caseback.study.relation:RELATION",
    ("method", "concepts"): "caseback.study.uses:CONCEPTS",
    ("method", "distract"): "caseback.study.uses:DISTRACT",
    ("method", "isolate"): "caseback.study.uses:ISOLATE",
    ("method", "claim-test"): "caseback.study.claims:CLAIM_TEST",
    ("method", "lens"): "caseback.study.readings:LENS",
    ("method", "tune-lens"): "caseback.study.readings.of_tuned:TUNE",
    ("method", "patch"): "caseback.study.readings:PATCH",
    ("method", "paths"): "caseback.study.readings:PATHS",
    ("method", "scrub"): "caseback.study.readings:SCRUB",
    ("method", "dla"): "caseback.study.readings:DLA",
    ("method", "attention"): "caseback.study.readings:ATTENTION",
    ("method", "weights"): "caseback.study.readings:WEIGHTS",
    ("method", "heads"): "caseback.study.readings:HEADS",
    ("method", "attribute"): "caseback.study.readings:ATTRIBUTE",
    ("method", "attribute-input"): "caseback.study.readings:INPUT",
    ("method", "audit"): "caseback.study.audit:AUDIT",
    ("report", "audit"): "caseback.show.experiments:report",
    ("audit", "circuit"): "caseback.study.audits:CIRCUITS",
    ("audit", "dla"): "caseback.study.audits:DIRECT",
    ("audit", "heads"): "caseback.study.audits:HEADS",
    ("audit", "lens"): "caseback.study.audits:LENS",
    ("audit", "patch"): "caseback.study.audits:PATCHING",
    ("audit", "relation"): "caseback.study.audits:RELATIONS",
    ("paired", "circuit"): "caseback.study.compare:of_circuit",
    ("paired", "relation"): "caseback.study.compare:of_relation",
    ("check", "circuits"): "caseback.circuits.check:identities",
}


def register(kind: str, name: str, target: str) -> None:
    """Offer `target` ("module:attribute") as `name` of a `kind` ("view", "method", "task")."""
    if ":" not in target:
        raise CasebackError(
            f"cannot register {kind} {name!r}: the target {target!r} is not of the form 'module:attribute'"
        )
    _OFFERS[kind, name] = target


@cache
def _plugins() -> None:
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()(register)
        except Exception as error:  # a broken plugin must not break its host
            warnings.warn(f"the caseback plugin {entry.name!r} was left out: {error}", stacklevel=2)


def names(kind: str) -> tuple[str, ...]:
    """All names offered for a kind, sorted."""
    _plugins()
    return tuple(sorted(name for k, name in _OFFERS if k == kind))


def get(kind: str, name: str) -> Any:
    """Import and return what is offered as `name` of a `kind`; raises CasebackError with the names that exist."""
    _plugins()
    target = _OFFERS.get((kind, name))
    if target is None:
        raise CasebackError(f"there is no {kind} {name!r}; there are: {', '.join(names(kind)) or 'none'}")
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)
