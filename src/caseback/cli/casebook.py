"""`caseback table`, `compare`, `export`, `import`, `gc`: runs as things that are read, argued about, sent and tidied."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from caseback.cli.heat import safe
from caseback.cli.options import Json
from caseback.cli.runs import Run, StudyFolder, print_table
from caseback.core.errors import StudyError

__all__ = ["compare", "export", "gc", "import_", "table"]


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


def table(
    run: Run,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which table (without it: their names).")] = None,
    form: Annotated[Format, typer.Option("--format", help="csv or jsonl.")] = Format.CSV,
    study: StudyFolder = None,
) -> None:
    """Print one of a run's tables for other tools; without a name, the names of all."""
    from caseback.study import Study
    from caseback.study.tables import named, tables, to_csv, to_jsonl

    record = Study(study).find(run)
    if name is None:
        for each in tables(record).values():
            typer.echo(f"{each.name}: {', '.join(each.columns)}")
        return
    typer.echo((to_csv if form is Format.CSV else to_jsonl)(named(record, name)), nl=False)


def compare(
    a: Run,
    b: Annotated[str, typer.Argument(metavar="RUN", help="The other one; differences are of it against the first.")],
    study: StudyFolder = None,
    as_json: Json = False,
) -> None:
    """What was asked differently in two runs of one method, and what came out differently, with paired intervals."""
    from caseback.study import Study
    from caseback.study.compare import compare as compared

    folder = Study(study)
    found = compared(folder.find(a), folder.find(b))
    if as_json:
        paired = {name: asdict(interval) for name, interval in found.paired.items()}
        typer.echo(json.dumps({**_json(asdict(found)), "paired": paired}))
        return
    typer.echo(f"A {found.a}\nB {found.b}")
    for title, changes in (("asked", found.asked), ("found", found.found)):
        typer.echo(f"\n{title} differently: {'nothing' if not changes else ''}".rstrip())
        if changes:
            print_table(("what", "A", "B"), [(change.name, change.a, change.b) for change in changes])
    typer.echo("\nB − A, paired by example:" if found.paired else f"\n{found.note}")
    if found.paired:
        rows = [(name, one.value, one.low, one.high, one.n) for name, one in found.paired.items()]
        print_table(("mean of", "B − A", "low", "high", "examples"), rows)


def export(
    run: Run,
    out: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Where to (default: ./RUN.zip).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    study: StudyFolder = None,
) -> None:
    """Write a finished run to one zip file, without its page: whoever takes it in makes that anew."""
    from caseback.study import Study
    from caseback.study.move import export_run

    record = Study(study).find(run)
    path = out or Path(f"{record.id}.zip")
    if path.is_dir() or not path.parent.is_dir():
        raise StudyError(
            f"{path} is a folder; give a file in it" if path.is_dir() else f"there is no folder {path.parent}"
        )
    typer.echo(export_run(record, path, force=force))


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `caseback export`.")],
    study: StudyFolder = None,
) -> None:
    """Take a run into the study folder: names, sizes and seals are checked, the page is made anew."""
    from caseback.study import Study
    from caseback.study.move import import_run

    record = import_run(Study(study), file)
    if cut := sum(event.kind == "unreadable" for event in record.events):
        typer.echo(
            f"{cut} of {len(record.events)} lines of its events.jsonl cannot be read and are passed over", err=True
        )
    typer.echo(f"run {record.id}")
    typer.echo(f"page {record.report.resolve()}" if record.report else "no page was written")


def gc(
    study: StudyFolder = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also runs that broke off.")] = False,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also runs whose request was carried out again since.")
    ] = False,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Also runs and claims that do not say any more what they are.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only what would go is listed.")] = False,
    as_json: Json = False,
) -> None:
    """Delete leftovers of killed processes and, if asked, runs nobody needs. Lists them unless --yes is given."""
    from caseback.study import Study
    from caseback.study.clean import find_waste, remove

    folder = Study(study)
    waste = find_waste(folder, unfinished=unfinished, superseded=superseded, damaged=damaged)
    freed = remove(folder, waste) if yes and waste else 0
    if as_json:
        typer.echo(json.dumps({"waste": [_json(asdict(one)) for one in waste], "freed": freed}))
        return
    for one in waste:
        typer.echo(safe(f"{one.path.name}  {one.bytes / 1e6:.1f} MB  {one.why}"))
    if not waste:
        typer.echo(f"nothing to delete in {folder.path}")
    elif yes:
        typer.echo(f"{freed / 1e6:.1f} MB are free again")
    else:
        typer.echo(f"{sum(one.bytes for one in waste) / 1e6:.1f} MB in all; --yes deletes them")


def _json(values: dict[str, Any]) -> dict[str, Any]:
    from caseback.study import plain

    found: dict[str, Any] = plain(values)
    return found
