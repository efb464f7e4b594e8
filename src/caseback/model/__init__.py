"""The machine: all that knows transformers.

Names are looked up when first used, so that a room that needs only data (a family's row, an edit) does not import torch and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caseback.core.provenance import Source
    from caseback.model.batch import Batch
    from caseback.model.edits import Ablate, Add, Call, Edit, Patch, Project, Scale, Set
    from caseback.model.model import Cost, Model
    from caseback.model.run import Run, Start
    from caseback.model.sites import Site

__all__ = [
    "Ablate",
    "Add",
    "Batch",
    "Call",
    "Cost",
    "Edit",
    "Model",
    "Patch",
    "Project",
    "Run",
    "Scale",
    "Set",
    "Site",
    "Source",
    "Start",
]

_EDITS = "caseback.model.edits"
_HOMES = dict.fromkeys(("Ablate", "Add", "Call", "Edit", "Patch", "Project", "Scale", "Set"), _EDITS) | {
    "Batch": "caseback.model.batch",
    "Cost": "caseback.model.model",
    "Model": "caseback.model.model",
    "Run": "caseback.model.run",
    "Site": "caseback.model.sites",
    "Source": "caseback.core.provenance",
    "Start": "caseback.model.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'caseback.model' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
