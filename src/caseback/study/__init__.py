"""Where a result becomes a record: specs, runs that survive anything, a study folder that finds them again."""

from __future__ import annotations

from caseback.study.files import Checkpoint
from caseback.study.index import Filter, Row
from caseback.study.resume import Cost, Event, Interrupted, RunFolder
from caseback.study.spec import Method, Spec, plain
from caseback.study.store import Record, Study

__all__ = [
    "Checkpoint",
    "Cost",
    "Event",
    "Filter",
    "Interrupted",
    "Method",
    "Record",
    "Row",
    "RunFolder",
    "Spec",
    "Study",
    "plain",
]
