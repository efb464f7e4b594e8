"""`caseback runs`, `show`, `report`, `resume`: what a study folder holds, and going on with what was stopped.

Tables are drawn with rich on a terminal, and are plain aligned text elsewhere; `--json` prints one JSON value. Names
come from users and models, so characters that a terminal would act on are replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.options import Json
from caseback.cli.progress import progress

if TYPE_CHECKING:
    from caseback.study import Record

__all__ = ["Run", "StudyFolder", "print_table", "report", "resume", "runs", "show"]

StudyFolder = Annotated[
    Path | None,
    typer.Option("--study", metavar="DIR", help="The study folder (default: CASEBACK_STUDY, else ./casebook)."),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of one, its folder, or 'latest'.")]


def runs(
    study: StudyFolder = None,
    method: Annotated[str | None, typer.Option(help="Only runs whose method has this in its name.")] = None,
    model: Annotated[str | None, typer.Option(help="Only runs whose model has this in its name.")] = None,
    task: Annotated[str | None, typer.Option(help="Only runs whose task has this in its name.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DAY", help="Only runs made on this day (YYYY-MM-DD, UTC) or later.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="Only runs made on this day or before.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only runs with words that begin so in what was asked.")
    ] = None,
    reindex: Annotated[bool, typer.Option("--reindex", help="Rebuild the index from the run folders first.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs of a study folder, newest first."""
    from caseback.study import Filter, Study

    for name, day in (("--since", since), ("--until", until)):
        if day is not None and not _is_day(day):
            raise typer.BadParameter(f"{name} is {day!r}; give a day as YYYY-MM-DD")
    folder = Study(study)
    if reindex:
        folder.reindex()
    rows = folder.runs(Filter(method=method, model=model, task=task, since=since, until=until, words=search))
    if as_json:
        fields = ("id", "status", "method", "model", "task", "created", "headline", "note")
        _print_json([{name: getattr(row, name) for name in fields} for row in rows])
    elif rows:
        numbers = ["  ".join(f"{name} {_cell(value)}" for name, value in row.headline.items()) for row in rows]
        cells = [(row.id, row.status, row.model, said or row.note) for row, said in zip(rows, numbers, strict=True)]
        print_table(("run", "status", "model", ""), cells)
    else:
        none = "no runs in" if folder.path.exists() else "there is no folder"
        typer.echo(f"no such run in {folder.path}" if folder.ids() else f"{none} {folder.path}")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def show(run: Run, study: StudyFolder = None, as_json: Json = False) -> None:
    """Print a run: what was asked, what came out, what it took, where its page is."""
    from caseback.study import Study

    _show(Study(study).find(run), as_json)


def report(
    run: Run,
    study: StudyFolder = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the page here (default: into the run's folder).")
    ] = None,
) -> None:
    """Make a run's page anew from its record, and print where it is."""
    from caseback.study import Study, files

    folder = Study(study)
    record = folder.find(run)
    path = out or record.path / "report.html"
    files.write(path, folder.report(record).encode(errors="replace"))
    typer.echo(path)


def resume(run: Run, study: StudyFolder = None, as_json: Json = False) -> None:
    """Go on with a run that was stopped, or mend one whose files were damaged; a sound finished run stays as it is."""
    from caseback.study import Study

    with progress() as tick:
        record = Study(study).resume(run, progress=tick)
    _show(record, as_json)


def _show(record: Record, as_json: bool) -> None:
    from caseback.study.spec import flat

    status, spec = record.status, record.spec
    done = status in ("finished", "damaged")  # reading a damaged result raises, and says what is wrong with it
    table = record.table if done else {"run": record.id}
    if as_json:
        asked = {
            "method": spec.method,
            "task": spec.task,
            "params": spec.params,
            "model": spec.model,
            "data": spec.data,
        }
        page = str(record.report) if record.report else None
        _print_json({**table, "status": status, "spec": asked, "versions": record.versions, "report": page})
        return
    model = " ".join(str(part) for part in (spec.model.get("id"), spec.model.get("revision")) if part)
    facts: dict[str, Any] = {
        "run": f"{record.id}  {status}",
        "method": spec.method,
        "task": spec.task,
        "model": model or "none",
        "made": f"{record.created} with caseback {record.versions.get('caseback')}",
        "parameters": "  ".join(f"{k}={_cell(v)}" for k, v in spec.params.items() if not isinstance(v, Mapping)),
    }
    facts |= flat({name: value for name, value in spec.params.items() if isinstance(value, Mapping)})
    if done:
        facts |= flat({k: v for k, v in table.items() if k not in facts and not isinstance(v, list)})
    else:
        took = record.cost
        facts |= {"seconds": took.seconds, "peak_memory_mb": took.peak_memory_mb}
        steps = "  ".join(f"{name} {stage.done}/{stage.steps}" for name, stage in record.saved().items())
        facts["reached"] = steps or "nothing yet"
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {_cell(value)}")
    for columns in _columns(table):
        typer.echo()
        print_table(tuple(columns), list(zip(*columns.values(), strict=True)))
    typer.echo()
    if not done and status != "running":
        typer.echo(f"to go on: caseback resume {record.id}")
    elif record.report:
        typer.echo(f"page: {record.report}")


def _columns(table: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """The table's lists, those of equal length side by side."""
    groups: dict[int, dict[str, list[Any]]] = {}
    for name, value in table.items():
        if isinstance(value, list):
            groups.setdefault(len(value), {})[name] = value
    return list(groups.values())


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Drawn on a terminal, aligned text elsewhere."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(columns))]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name, right in zip(columns, numeric, strict=True):
            table.add_column(name, justify="right" if right else "left")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for row in lines:
        sides = zip(row, widths, numeric, strict=True)
        typer.echo("  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in sides).rstrip())


def _cell(value: Any) -> str:
    """One value as a line of safe text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return ",".join(_cell(item) for item in value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
