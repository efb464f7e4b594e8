"""Tasks that come with caseback: generated offline, the same on every machine for the same n and seed.

Each is a function of (n, seed, model). Add one by registering its "module:function" under the kind "task", here or from
a package of your own through the entry-point group `caseback`.
"""

from __future__ import annotations

from caseback.core import registry
from caseback.core.errors import TaskError
from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.agreement import agreement
from caseback.tasks.library.capitals import capitals
from caseback.tasks.library.gender_bias import gender_bias
from caseback.tasks.library.greater_than import greater_than
from caseback.tasks.library.ioi import ioi, ioi_baba
from caseback.tasks.task import Task

__all__ = ["agreement", "capitals", "gender_bias", "get", "greater_than", "ioi", "ioi_baba", "names"]

for _function in (agreement, capitals, gender_bias, greater_than, ioi, ioi_baba):
    registry.register("task", _function.__name__.replace("_", "-"), f"{_function.__module__}:{_function.__name__}")


def names() -> tuple[str, ...]:
    """Names of all tasks that can be generated, those of other packages included."""
    return registry.names("task")


def get(name: str, *, n: int = 200, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """The task of that name with n pairs; with a model, only pairs that fit its tokenizer are drawn.

    >>> get("ioi", n=4).n
    4
    """
    if name not in names():
        raise TaskError(f"there is no task {name!r}; there are: {', '.join(names())}")
    return registry.get("task", name)(n, seed=seed, model=model)
