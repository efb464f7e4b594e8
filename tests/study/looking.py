"""Runs of a looking method on models in memory, and the death of one between two stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from caseback.model.model import Model
from caseback.show.experiments import validate
from caseback.study import Record, RunFolder, Study
from caseback.study.finding import Looking


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, so nothing is noted on the way out."""


def look(study: Study, looking: Looking, config: Any, model: Model, **more: Any) -> Record:
    """Carry out a method on a model that is in memory."""
    return study.run(looking.spec(config, model, passed={}), have={"model": model}, **more)


def plain_table(record: Record) -> dict[str, Any]:
    """The table without what differs from run to run."""
    return {k: v for k, v in record.table.items() if k not in ("run", "seconds", "peak_memory_mb")}


def is_valid(record: Record) -> bool:
    """Whether the payload can be drawn and the page was written; raises for the first field that cannot."""
    validate({**record.stage("view").data, "environment": dict(record.environment), "cost": {}})
    return record.report is not None


def die_after(stages: int, begin: Callable[[], object]) -> None:
    """Run `begin` and kill it when it has saved so many stages, their parts not counted."""
    real, seen = RunFolder.fold, [0]

    def fold(self: RunFolder, *arguments: Any, **more: Any) -> Any:
        if not self._within:
            if seen[0] == stages:
                raise Killed
            seen[0] += 1
        return real(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "fold", fold)
        begin()
