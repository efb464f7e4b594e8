"""caseback: a workbench for looking into language models.

    import caseback as cb

    model = cb.load()
    task = cb.tasks.ioi(n=200, seed=0)

Importing this package imports nothing heavy: a name is looked up in the table below, and its module is imported when it is first used
(torch and transformers together take two seconds).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caseback import circuits, evidence, model, show, study, tasks, zoo
    from caseback.core.errors import CasebackError
    from caseback.model.batch import Batch
    from caseback.model.edits import Ablate, Add, Call, Edit, Patch, Project, Scale, Set
    from caseback.model.load import load
    from caseback.model.model import Model
    from caseback.model.run import Run
    from caseback.model.sites import Site
    from caseback.study.store import Study
    from caseback.tasks.pair import Pair
    from caseback.tasks.schema import Schema
    from caseback.tasks.task import Task

__version__ = "0.1.0"

_MODULES = ("circuits", "evidence", "model", "show", "study", "tasks", "zoo")
_NAMES = {
    "Ablate": "caseback.model.edits",
    "Add": "caseback.model.edits",
    "Batch": "caseback.model.batch",
    "Call": "caseback.model.edits",
    "CasebackError": "caseback.core.errors",
    "Edit": "caseback.model.edits",
    "Model": "caseback.model.model",
    "Pair": "caseback.tasks.pair",
    "Patch": "caseback.model.edits",
    "Project": "caseback.model.edits",
    "Run": "caseback.model.run",
    "Scale": "caseback.model.edits",
    "Schema": "caseback.tasks.schema",
    "Set": "caseback.model.edits",
    "Site": "caseback.model.sites",
    "Study": "caseback.study.store",
    "Task": "caseback.tasks.task",
    "load": "caseback.model.load",
}

__all__ = [
    "Ablate",
    "Add",
    "Batch",
    "Call",
    "CasebackError",
    "Edit",
    "Model",
    "Pair",
    "Patch",
    "Project",
    "Run",
    "Scale",
    "Schema",
    "Set",
    "Site",
    "Study",
    "Task",
    "circuits",
    "evidence",
    "load",
    "model",
    "show",
    "study",
    "tasks",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"caseback.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'caseback' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
