"""`caseback view`: the casebook in a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from caseback.core.errors import StudyError

__all__ = ["view"]


def view(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY]", help="The study folder (default: CASEBACK_STUDY, else ./casebook)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free (default: 8765).")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Show the casebook in a browser: runs, comparisons, a prompt to look into, studies to start. Ctrl-C ends it."""
    if study is not None and not study.is_dir():
        raise StudyError(f"there is no study folder {study}; `caseback runs` lists the runs of one")
    # Before torch is imported: threads that wait spin, and beside a running study the prompt box would wait many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from caseback.show.server import serve
    from caseback.study import Study

    def say(address: str) -> None:
        typer.echo(address)
        typer.echo("Only this machine reaches it, and only with this address. Ctrl-C ends it.", err=True)

    if going_on := serve(Study(study), port=port, browser=not no_browser, say=say):
        studies = "1 study goes" if going_on == 1 else f"{going_on} studies go"
        typer.echo(f"{studies} on; `caseback runs` says how far, `caseback view` shows it again", err=True)
