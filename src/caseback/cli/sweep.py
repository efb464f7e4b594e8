"""`caseback sweep FILE`: a grid of studies, each a run that is reopened, resumed or retried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from caseback.cli.heat import safe
from caseback.cli.options import Json, Out
from caseback.cli.progress import progress

__all__ = ["sweep"]


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A TOML file: tables [[run]] with a method and its settings.")
    ],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (default: none, all is done here).")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="On Ray: RAY_ADDRESS, else a local cluster of --workers.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Times a cell is tried again after its worker was lost.")] = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Carry out every cell of a file; what is finished is reopened, failures are listed and end in exit code 1."""
    from caseback.study import Study
    from caseback.study.sweep import read_sweep
    from caseback.study.sweep import sweep as swept

    cells, study = read_sweep(file), Study(out)
    with progress() as tick:
        outcomes = swept(
            study,
            cells,
            executor="ray" if ray else "here" if workers is None else "processes",
            workers=workers or 2,
            retries=retries,
            progress=tick,
        )
    if as_json:
        rows = [
            {"method": one.cell.method, "settings": dict(one.cell.settings)}
            | {"run": one.run, "why": one.why or None, "attempts": one.attempts}
            for one in outcomes
        ]
        typer.echo(json.dumps({"study": str(study.path), "cells": rows}))
    else:
        for one in outcomes:
            tried = f" (tried {one.attempts} times)" if one.attempts > 1 else ""
            typer.echo(f"{safe(str(one.cell))}  {one.run or 'failed: ' + safe(one.why)}{tried}")
        done = sum(one.run is not None for one in outcomes)
        typer.echo(f"{done} of {len(outcomes)} cells are in {study.path}; `caseback runs` lists them")
    if any(one.run is None for one in outcomes):
        raise typer.Exit(1)
