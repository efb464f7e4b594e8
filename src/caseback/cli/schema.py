"""`caseback schema`: the parts a task's prompts are made of - induced, proposed by a language model, laid on prompts.

A schema file is JSON: the schema, the aligner that lays it on any prompt, and how it was made. `apply` and
`caseback circuit --schema` read it. Names and prompts are made by users and models, so what a terminal would act on is
taken out of what is printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.options import Json, TaskName
from caseback.cli.progress import progress
from caseback.core.errors import SchemaError

if TYPE_CHECKING:
    from caseback.model.chat import Chat
    from caseback.tasks.aligner import Laid
    from caseback.tasks.propose import Proposal
    from caseback.tasks.task import Task

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Schemas: induce, propose and apply the spans of a task.")

ModelName = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Whose tokens count: hub repository, folder or .gguf file."),
]
Number = Annotated[int | None, typer.Option("--n", min=1, help="Pairs: 200 of a task, all of a file.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the generator; a file has none.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the schema to this file.")]
Salient = Annotated[
    bool, typer.Option("--salient", help="Also go by which tokens weigh most for the answer (runs the model).")
]

SHOWN = 3
"""Prompts printed with their spans."""


@app.command("induce")
def induce_schema(
    task: TaskName,
    model: ModelName = None,
    n: Number = None,
    seed: Seed = 0,
    salient: Salient = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find the schema by lining the prompts up, without a language model's opinion."""
    from caseback.model.load import load
    from caseback.tasks.aligner import lay_on
    from caseback.tasks.files import read_task
    from caseback.tasks.induce import induce
    from caseback.tasks.saliency import saliency_masks

    _writable(out)
    with progress() as tick:
        loaded = load(model, progress=tick)
        asked = read_task(task, model=loaded, n=n, seed=seed)
        masks = saliency_masks(asked, loaded, progress=tick) if salient else None
        aligner = induce(asked, loaded, salient=masks)
        laid = lay_on(aligner, asked, loaded)
    made = {"by": "induce", "task": asked.name, "source": asked.source, "n": asked.n, "model": loaded.name}
    made |= {"salient": salient, "dropped": len(laid.dropped)}
    _finish({"aligner": aligner.to_dict(), "made": made}, laid, out, as_json)


@app.command("propose")
def propose_schema(
    task: TaskName,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, such as http://localhost:8000/v1.")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to ask for at the endpoint.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the endpoint's key.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Ask the local model itself in place of an endpoint.")] = False,
    model: ModelName = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pairs; every one costs a call, and 15 make the schema.")] = 50,
    seed: Seed = 0,
    salient: Salient = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds the endpoint has for one answer.")] = 120.0,
    rounds: Annotated[int, typer.Option(min=1, help="Schemas tried at most.")] = 10,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask a language model for the schema: generate in groups, unify, apply, check, ask again with the errors.

    Exit code 1: no schema was good enough; what went wrong is printed.
    """
    from caseback.model.load import load
    from caseback.tasks.aligner import learn
    from caseback.tasks.files import read_task
    from caseback.tasks.propose import ProposeConfig, propose
    from caseback.tasks.saliency import saliency_masks

    if local == (endpoint is not None) or (endpoint is None) != (endpoint_model is None):
        raise SchemaError("say who is asked: --endpoint URL with --endpoint-model NAME, or --local")
    _writable(out)
    with progress() as tick:
        loaded = load(model, progress=tick)
        chat = _chat(loaded, endpoint, endpoint_model, api_key_env, timeout)
        asked = read_task(task, model=loaded, n=n, seed=seed)
        masks = saliency_masks(asked, loaded, progress=tick) if salient else None
        config = ProposeConfig(rounds=rounds, seed=seed)
        proposal = propose(asked, loaded, chat, masks=masks, config=config, progress=tick)
    made = {"by": "propose", "task": asked.name, "source": asked.source, "model": loaded.name, "salient": salient}
    made |= proposal.to_dict()
    if not proposal.successful:
        if as_json:
            _print_json({"aligner": None, "made": made})
        typer.echo(f"caseback: {_refusal(proposal)}", err=True)
        raise typer.Exit(1)
    laid = proposal.on(asked)
    if not as_json:
        calls = ", ".join(f"{stage} {count}" for stage, count in proposal.calls.items())
        typer.echo(f"{_plain(proposal.chat)}: {proposal.valid} of {proposal.n} prompts valid; calls: {calls}")
    _finish({"aligner": learn(laid.task, loaded).to_dict(), "made": made}, laid, out, as_json)


@app.command("apply")
def apply_schema(
    schema: Annotated[str, typer.Argument(metavar="SCHEMA.json", help="A file of `induce` or `propose`.")],
    task: TaskName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PAIRS", help="Write the task with these spans (.jsonl or .csv).")
    ] = None,
    model: ModelName = None,
    n: Number = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Lay a schema on the prompts of a task, in place of the spans they have."""
    from caseback.model.load import load
    from caseback.tasks.aligner import lay_on
    from caseback.tasks.files import read_task, write_task
    from caseback.tasks.respan import read_aligner

    aligner = read_aligner(schema)
    with progress() as tick:
        loaded = load(model, progress=tick)
        asked = read_task(task, model=loaded, n=n, seed=seed)
    laid = lay_on(aligner, asked, loaded)
    if out is not None:
        write_task(laid.task, out, model=loaded)
    if as_json:
        first = next(iter(laid.dropped.values()), None)
        found = {"schema": aligner.schema.to_dict(), "task": asked.name, "n": asked.n, "laid": laid.task.n}
        _print_json(found | {"dropped": len(laid.dropped), "because": first, "out": str(out) if out else None})
        return
    _show(laid)
    if out is not None:
        typer.echo(f"{out}: {laid.task.n} pairs of {_plain(asked.name)}")


@app.command("show")
def show_schema(
    schema: Annotated[
        str, typer.Argument(metavar="SCHEMA.json|TASK|FILE", help="A schema file, or a task with spans.")
    ],
    as_json: Json = False,
) -> None:
    """Print a schema: its spans in order, and what belongs into each."""
    from caseback.tasks.files import is_file, needs_model, read_task
    from caseback.tasks.respan import read_aligner

    if not is_file(schema) or needs_model(schema) or Path(schema).suffix == ".jsonl":
        loaded = None
        if needs_model(schema):
            from caseback.model.load import load

            loaded = load(None)
        found = read_task(schema, model=loaded, n=1).schema
        if found is None:
            raise SchemaError(f"{schema} has no spans; `caseback schema induce {schema}` finds some")
    else:
        found = read_aligner(schema).schema
    if as_json:
        _print_json(found.to_dict())
        return
    typer.echo(_plain(found.name))
    wide = max(len(span) for span in found.spans)
    for span in found.spans:
        typer.echo(f"  {_plain(span):{wide}}  {_plain(found.descriptions.get(span, ''))}".rstrip())


def _chat(loaded: Any, endpoint: str | None, name: str | None, key: str | None, timeout: float) -> Chat:
    from caseback.model.chat import Endpoint, Local

    if endpoint is None or name is None:
        return Local(loaded)
    return Endpoint(base_url=endpoint, model=name, api_key_env=key, timeout=timeout)


def _refusal(proposal: Proposal) -> str:
    """Why there is no schema, in one sentence."""
    most = max(proposal.errors, key=lambda kind: proposal.errors[kind], default=None)
    often = f"; the rule broken most often ({proposal.errors[most]} times): {_plain(most)}" if most else ""
    if not proposal.accepted:
        rounds = len(proposal.rounds)
        return f"{_plain(proposal.chat)} gave no schema that fits the examples in {rounds} round{'s'[: rounds != 1]}{often}"
    return (
        f"{_plain(proposal.chat)}'s schema fits {proposal.valid} of {proposal.n} prompts, "
        f"and {proposal.config.min_valid:.0%} are asked for{often}"
    )


def _finish(document: dict[str, Any], laid: Laid, out: Path | None, as_json: bool) -> None:
    """Write the file, and print either the document or what it does to the first prompts."""
    from caseback.tasks.files import write_text

    if out is not None:
        write_text(out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        _print_json(document)
        return
    _show(laid)
    if out is not None:
        typer.echo(f"{out}: the schema; lay it on a task with `caseback schema apply {out} TASK`")


def _show(laid: Laid) -> None:
    task: Task = laid.task
    assert task.schema is not None
    typer.echo(f"{_plain(task.schema.name)}: {' · '.join(_plain(span) for span in task.schema.spans)}")
    for pair in task.pairs[:SHOWN]:
        typer.echo("  " + "|".join(_plain(text) for _, text in pair.pieces))
    if laid.dropped:
        example = next(iter(laid.dropped.values()))
        typer.echo(f"  {len(laid.dropped)} prompts dropped; for example: {_plain(example)}")


def _writable(out: Path | None) -> None:
    """Refuse a file that could not be written before time is spent on it."""
    if out is not None and not out.parent.is_dir():
        raise SchemaError(f"there is no folder {out.parent} to write {out.name} into; make it first")
    if out is not None and out.is_dir():
        raise SchemaError(f"{out} is a folder; give the name of a file")


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in text)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
