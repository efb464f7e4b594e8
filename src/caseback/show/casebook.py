"""What the web page is told about runs, as plain data: the list, one run, two runs side by side.

Everything comes from the study's own functions, so the page says what `caseback runs`, `show`, `compare` and `table`
say. A run is looked up by its whole id among those that exist, never as a path.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from caseback.core import registry
from caseback.core.errors import StudyError
from caseback.show import circuit, experiments, relation
from caseback.show.claims import said_by_claims
from caseback.study import Filter, Record, Row, Study, plain
from caseback.study.claims.ledger import METHOD
from caseback.study.compare import compare
from caseback.study.tables import named, tables, to_csv

__all__ = ["Asked", "NoSuchRun", "compared", "csv_of", "find", "list_runs", "payload_of", "run_of"]

PAGE = 50
MOST = 200
"""Rows of a page at most."""
FACETS = ("method", "model", "task", "status")
STATUSES = ("finished", "running", "interrupted", "failed", "unfinished", "damaged")
SORTS = ("created", *FACETS)
EVENTS = 400
"""The last events of a run that its page shows."""


class NoSuchRun(StudyError):
    """A run that is not in the study."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the list of runs is asked for."""

    words: str = ""
    """Beginnings of words that all occur in what was asked."""
    since: str = ""
    """A day, YYYY-MM-DD, UTC; runs made then or later."""
    until: str = ""
    method: str = ""
    """The whole name, as the list gives it; so with the next three."""
    model: str = ""
    task: str = ""
    status: str = ""
    sort: str = "created"
    down: bool = True
    page: int = 1
    size: int = PAGE


def list_runs(study: Study, asked: Asked) -> dict[str, Any]:
    """One page of the list, how many there are in all, and for every facet its values with their counts under the other
    facets' choices. Raises StudyError for an order, a page, a day or a status there is not."""
    if asked.sort not in SORTS:
        raise StudyError(f"runs are sorted by {', '.join(SORTS)}, not by {asked.sort!r}")
    if not (1 <= asked.size <= MOST and asked.page >= 1):
        raise StudyError(f"a page is numbered from 1 and holds 1 to {MOST} runs")
    for name in ("since", "until"):
        if (day := getattr(asked, name)) and not _is_day(day):
            raise StudyError(f"{name} is {day!r:.80}; give a day as YYYY-MM-DD")
    if asked.status and asked.status not in STATUSES:
        raise StudyError(f"no run is {asked.status!r:.80}; runs are {', '.join(STATUSES)}")
    rows = study.runs(Filter(words=asked.words or None, since=asked.since or None, until=asked.until or None))
    chosen = {name: wanted for name in FACETS if (wanted := getattr(asked, name))}

    def fits(row: Row, but: str = "") -> bool:
        return all(getattr(row, name) == wanted for name, wanted in chosen.items() if name != but)

    facets = {name: Counter(getattr(row, name) for row in rows if fits(row, but=name)) for name in FACETS}
    found = [row for row in rows if fits(row)]
    if asked.sort != "created":
        found.sort(key=lambda row: str(getattr(row, asked.sort)).casefold(), reverse=asked.down)
    elif not asked.down:
        found.reverse()
    begin = (asked.page - 1) * asked.size
    shown = found[begin : begin + asked.size]
    said = said_by_claims(study, [row.task for row in shown if row.method == METHOD])
    return {
        "study": str(study.path),
        "total": len(found),
        "of": len(study.ids()),
        "pages": max(1, -(-len(found) // asked.size)),
        "page": asked.page,
        "rows": [_row(row) | {"title": said.get(row.task, row.task) or row.id} for row in shown],
        "facets": {
            name: sorted(counts.items(), key=lambda item: (-item[1], item[0])) for name, counts in facets.items()
        },
    }


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _row(row: Row) -> dict[str, Any]:
    names = ("id", "method", "task", "model", "status", "created", "note")
    return {name: getattr(row, name) for name in names} | {"headline": plain(row.headline)}


def find(study: Study, run: str) -> Record:
    """The run of this very id. Raises NoSuchRun where there is none, StudyError where it is damaged."""
    if run not in study.ids():
        raise NoSuchRun(f"there is no run {run!r} in {study.path}")
    return study.find(run)


def run_of(study: Study, run: str) -> dict[str, Any]:
    """All that is known of a run but its drawing."""
    record = find(study, run)
    spec, status = record.spec, record.status
    events = record.events
    names: Sequence[str] = ()
    table: Mapping[str, Any] | None = None
    if status == "finished":
        table, names = record.table, list(tables(record))
    stages = {} if status == "finished" else record.saved()
    environment: Mapping[str, Any] = {}
    with suppress(StudyError, OSError):
        environment = record.environment
    said = said_by_claims(study, [spec.task] if spec.method == METHOD else [])
    told = {
        "id": record.id,
        "title": said.get(spec.task, ""),
        "status": status,
        "method": spec.method,
        "task": spec.task,
        "model": spec.model,
        "created": record.created,
        "versions": record.versions,
        "params": spec.params,
        "passed": spec.passed,
        "data": spec.data,
        "environment": environment,
        "cost": record.cost,
        "table": table,
        "tables": names,
        "drawn": status == "finished" and _is_drawn(record),
        "stages": [{"name": name, "done": saved.done, "steps": saved.steps} for name, saved in stages.items()],
        "events": [_event(event) for event in events[-EVENTS:]],
        "events_left_out": max(0, len(events) - EVENTS),
        "code": code_of(study, record),
    }
    found: dict[str, Any] = plain(told)
    return found


def _event(event: Any) -> dict[str, Any]:
    return {"at": event.at, "kind": event.kind, **{k: v for k, v in event.data.items() if k not in ("at", "kind")}}


def code_of(study: Study, record: Record) -> dict[str, str]:
    """How to reopen a run: in Python, and in a shell."""
    place, run = str(study.path.resolve()), record.id
    return {
        "python": f"from caseback.study import Study\n\nrecord = Study({place!r}).find({run!r})\n"
        "record.table         # the numbers\nrecord.spec          # what was asked\n"
        "record.saved()       # every stage: arrays and data\n",
        "shell": f"caseback show {shlex.quote(run)} --study {shlex.quote(place)}\n",
    }


def _is_drawn(record: Record) -> bool:
    return (record.path / "arrays" / "view.safetensors").exists()


def payload_of(study: Study, run: str) -> dict[str, Any]:
    """What the views draw: the payload of the static report. Raises StudyError for a run that has none."""
    record = find(study, run)
    if record.status != "finished" or not _is_drawn(record):
        raise StudyError(f"run {record.id} has nothing to draw; it is {record.status}")
    drawing = {"circuit": circuit.drawn, "relation": relation.drawn}.get(record.spec.method, experiments.drawn)
    payload = drawing(record)
    registry.get("payload", str(payload.get("kind")))(payload)
    return payload


def compared(study: Study, a: str, b: str) -> dict[str, Any]:
    """Run B against run A, as `study.compare` has it, with both runs' names."""
    runs = find(study, a), find(study, b)
    found = compare(*runs)
    intervals = {name: asdict(interval) for name, interval in found.paired.items()}
    told: dict[str, Any] = plain(
        {
            "asked": found.asked,
            "found": found.found,
            "paired": intervals,
            "note": found.note,
            "runs": [
                {
                    "id": record.id,
                    "method": record.spec.method,
                    "task": record.spec.task,
                    "model": record.spec.model.get("id"),
                    "created": record.created,
                    "drawn": _is_drawn(record),
                }
                for record in runs
            ],
        }
    )
    return told


def csv_of(study: Study, run: str, name: str) -> str:
    """One of a run's tables."""
    return to_csv(named(find(study, run), name))
