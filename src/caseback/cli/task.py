"""`caseback task`: the tasks there are, how a model does on one, and tasks as files."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.options import Json, ModelName, TaskName
from caseback.cli.progress import progress
from caseback.core.errors import TaskError

if TYPE_CHECKING:
    from caseback.tasks.task import Check

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Tasks: list them, check them on a model, export and import them.")

Number = Annotated[
    int | None, typer.Option("--n", min=1, help="Pairs: 200 of a task, all of a file, if not said otherwise.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the generator; a file has none.")]
Second = Annotated[
    Path | None, typer.Option("--counterfactual", help="For a CSV: the second file, with the counterfactual prompts.")
]
Empty = Annotated[bool, typer.Option("--allow-empty", help="Accept empty spans in a file that does not declare them.")]


class Format(StrEnum):
    JSONL = "jsonl"
    PEAP_CSV = "peap-csv"


@app.command("list")
def list_tasks(as_json: Json = False) -> None:
    """List the tasks that can be generated: what they ask, an example, their spans."""
    from caseback.tasks import library

    rows: list[dict[str, Any]] = []
    for name in library.names():
        task = library.get(name, n=1)
        pair = task.pairs[0]
        rows.append(
            {
                "task": name,
                "description": task.description,
                "metric": task.metric,
                "spans": list(task.schema.spans) if task.schema else [],
                "example": {"clean": pair.clean, "counterfactual": pair.counterfactual}
                | {"answers": list(pair.answers), "foils": list(pair.foils)},
            }
        )
    if as_json:
        _print_json({"tasks": rows})
        return
    for row in rows:
        example = row["example"]
        typer.echo(f"{row['task']}  {row['description']}")
        typer.echo(f"    {example['clean']} →{_texts(example['answers'])}; not{_texts(example['foils'])}")
        typer.echo(f"    {row['metric']}; spans {' · '.join(row['spans'])}\n")
    typer.echo(
        "Your own: a .jsonl or .csv file in the place of a name; 'caseback task export ioi ioi.jsonl' shows the format."
    )


@app.command("check")
def check_task(
    task: TaskName,
    model: ModelName = None,
    n: Number = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts run at a time.")] = 16,
    counterfactual: Second = None,
    allow_empty: Empty = False,
    as_json: Json = False,
) -> None:
    """Ask a model every pair: its accuracy, how many pairs are left to study, and why the others are not."""
    from caseback.model.load import load
    from caseback.tasks.files import look, read_task

    look(task)  # before a model is loaded
    with progress() as tick:
        loaded = load(model, progress=tick)
        asked = read_task(task, model=loaded, n=n, seed=seed, counterfactual=counterfactual, allow_empty=allow_empty)
        found = asked.check(loaded, batch_size=batch_size, progress=tick)
    if as_json:
        _print_json(_check(found))
    else:
        typer.echo(str(found))


@app.command("export")
def export(
    task: TaskName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="Told by the file's ending if not said.", show_default=False)
    ] = None,
    model: ModelName = None,
    n: Number = None,
    seed: Seed = 0,
    counterfactual: Second = None,
    allow_empty: Empty = False,
) -> None:
    """Write a task to a file, or a file in the other format.

    A CSV counts tokens, so reading or writing one loads the model. With --model, a generated task holds only pairs
    that fit its tokenizer.
    """
    from caseback.tasks.files import CSV, JSONL, needs_model, read_task, write_task

    endings = {Format.JSONL: JSONL, Format.PEAP_CSV: CSV}
    if form is not None and out.suffix.lower() not in endings[form]:
        raise TaskError(
            f"--format {form.value} writes a file that ends in {' or '.join(endings[form])}, not {out.name}"
        )
    loaded = None
    if model is not None or needs_model(out) or needs_model(task):
        from caseback.model.load import load

        with progress() as tick:
            loaded = load(model, progress=tick)
    found = read_task(task, model=loaded, n=n, seed=seed, counterfactual=counterfactual, allow_empty=allow_empty)
    write_task(found, out, model=loaded)
    typer.echo(f"{out}: {found.n} pairs of {found.name}")


def _check(found: Check) -> dict[str, Any]:
    return {
        "task": found.task.name,
        "model": found.model,
        "n": found.n,
        "fit": found.fit,
        "kept": found.task.n,
        "accuracy": found.accuracy,
        "accuracy_low": found.interval.low,
        "accuracy_high": found.interval.high,
        "top1": found.top1,
        "metric": found.task.metric,
        "mean": found.mean,
        "dropped": dict(found.dropped),
        "examples": {reason: list(shown) for reason, shown in found.examples.items()},
    }


def _texts(texts: list[str]) -> str:
    shown = [text if text.startswith(" ") else f" {text}" for text in texts[:3]]
    return ",".join([*shown, " …"] if len(texts) > 3 else shown)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
