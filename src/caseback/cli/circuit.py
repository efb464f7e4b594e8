"""`caseback circuit TASK|FILE`: check → score → select → evaluate → report, as a run of the casebook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, StudyTask
from caseback.cli.progress import progress

if TYPE_CHECKING:
    from caseback.study import Record

__all__ = ["circuit"]

KEYS = (
    "run model task n accuracy sizes faithfulness low high random agnostic cpr cmd forwards seconds peak_memory_mb"
).split()
"""What `--json` prints."""


def circuit(
    task: StudyTask,
    model: ModelName = None,
    n: Annotated[
        int | None, typer.Option("--n", min=4, help="Pairs, both splits together (default: 100, or all of a file).")
    ] = None,
    out: Out = None,
    as_json: Json = False,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE|none|tokens", help="Other spans than the task's own.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="What a removed edge carries: counterfactual, mean or zero.")
    ] = "counterfactual",
    mixing: Annotated[
        str, typer.Option(help="Inside heads: exact, or peap (the published code's block replacement).")
    ] = "exact",
    steps: Annotated[int, typer.Option(help="Gradient points: 1 is EAP, more is EAP-IG (inputs).")] = 1,
    selection: Annotated[str, typer.Option(help="best-first or top-n.")] = "best-first",
    merge: Annotated[str, typer.Option(help="q, k and v of a head: separate, or together (qkv).")] = "separate",
    sign: Annotated[str, typer.Option(help="What is best: absolute, positive or negative scores.")] = "absolute",
    points: Annotated[int, typer.Option(help="Sizes on the curve.")] = 12,
    target: Annotated[float, typer.Option(help="Faithfulness that names the chosen size.")] = 0.8,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Find the circuit behind a task: which parts, at which positions, answer the prompt, and how sure that is."""
    from caseback.tasks.files import is_file, look

    for name, value, choices in (
        ("--reference", reference, ("counterfactual", "mean", "zero")),
        ("--mixing", mixing, ("exact", "peap")),
        ("--selection", selection, ("best-first", "top-n")),
        ("--merge", merge, ("separate", "qkv")),
        ("--sign", sign, ("absolute", "positive", "negative")),
    ):
        if value not in choices:
            raise typer.BadParameter(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    look(task)  # before transformers is imported and a model loaded
    from caseback.circuits.discover import DiscoverConfig
    from caseback.study import Study
    from caseback.study.circuit import CircuitConfig

    config = CircuitConfig(
        task=task,
        n=100 if n is None and not is_file(task) else n,
        seed=seed,
        model=model,
        dtype=dtype,
        device=device,
        schema=schema,
        discover=DiscoverConfig(
            reference=reference,  # type: ignore[arg-type]
            mixing=mixing,  # type: ignore[arg-type]
            steps=steps,
            selection=selection,  # type: ignore[arg-type]
            merge=merge,  # type: ignore[arg-type]
            sign=sign,  # type: ignore[arg-type]
            points=points,
            target=target,
        ),
    )
    passed = {"task": task, "model": model, "n": n, "schema": schema, "seed": seed}
    with progress() as tick:
        record = Study(out).ask("circuit", config, passed=passed, progress=tick, force=force)
    if as_json:
        table = record.table
        typer.echo(json.dumps({key: table[key] for key in KEYS}))
    else:
        _say(record)


def _say(record: Record) -> None:
    """The curve, the chosen size and where the page is."""
    from caseback.study.circuit import headline

    table, details = record.table, record.details
    typer.echo(f"{table['task']} on {table['model']}: {table['n']} pairs, accuracy {table['accuracy']:.1%}\n")
    typer.echo(f"{'edges':>9}  {'faithfulness':>12}  {'95% interval':>16}  {'random':>7}  {'agnostic':>8}")
    columns = ("sizes", "faithfulness", "low", "high", "random", "agnostic")
    for size, value, low, high, random, agnostic in zip(*(table[name] for name in columns), strict=True):
        typer.echo(f"{size:>9,}  {value:>12.3f}  [{low:>6.3f}, {high:>6.3f}]  {random:>7.3f}  {agnostic:>8.3f}")
    typer.echo(f"\n{headline(table, details)}")
    areas = next(row for row in details["areas"] if row["name"] == "circuit")
    typer.echo(
        f"CPR {areas['cpr_log']:.3f}, CMD {areas['cmd_log']:.3f} on the log axis "
        f"({table['cpr']:.3f}, {table['cmd']:.3f} on the linear one); {table['forwards']:,} forwards, "
        f"{table['seconds']:.0f} s, {table['peak_memory_mb']:,.0f} MB"
    )
    typer.echo(f"run {record.id}")
    typer.echo(f"page {record.report.resolve()}" if record.report else "no page was written")
