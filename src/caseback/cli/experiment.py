"""`caseback experiment`: what positions change, what schemas change, and how far scores can be trusted, as runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, StudyTask
from caseback.cli.progress import progress
from caseback.cli.say import say

if TYPE_CHECKING:
    from caseback.study.experiments import Experiment

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Experiments: positions, schemas, and scores against exact patching, each a run."
)


class Reference(StrEnum):
    COUNTERFACTUAL = "counterfactual"
    MEAN = "mean"
    ZERO = "zero"


Number = Annotated[
    int | None, typer.Option("--n", min=4, help="Pairs, both splits together (default: 100, or all of a file).")
]
Carries = Annotated[Reference, typer.Option("--reference", help="What a removed edge carries.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Gradient points: 1 is EAP, more is EAP-IG (inputs).")]


@app.command("positions")
def positions(
    task: StudyTask,
    model: ModelName = None,
    n: Number = None,
    steps: Steps = 1,
    reference: Carries = Reference.COUNTERFACTUAL,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cancellation and overestimation: what a ranking of edges loses when it ignores positions."""
    from caseback.study.experiments import POSITIONS

    _run(POSITIONS, locals(), {"steps": steps})


@app.command("schemas")
def schemas(
    task: StudyTask,
    proposed: Annotated[
        str | None, typer.Option(metavar="FILE", help="A schema file of `caseback schema propose`, as a further curve.")
    ] = None,
    model: ModelName = None,
    n: Number = None,
    points: Annotated[int, typer.Option(min=2, help="Sizes on each curve.")] = 10,
    draws: Annotated[int, typer.Option(min=1, help="Shuffles behind each schema's random control.")] = 1,
    steps: Steps = 1,
    reference: Carries = Reference.COUNTERFACTUAL,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Size against faithfulness under every schema: by hand, induced, proposed, and without positions."""
    from caseback.study.experiments import SCHEMAS

    _run(SCHEMAS, locals(), {"proposed": proposed, "points": points, "draws": draws, "steps": steps})


@app.command("patching")
def patching(
    task: StudyTask,
    top: Annotated[int, typer.Option(min=1, help="Best edges that are patched.")] = 200,
    random: Annotated[int, typer.Option(min=0, help="Edges drawn evenly from the rest of the graph.")] = 300,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs that are scored and patched.")] = 8,
    steps: Annotated[
        str, typer.Option(metavar="M[,M…]", help="Gradient points of each kind of score: 1 is EAP, 1,5 adds EAP-IG.")
    ] = "1",
    model: ModelName = None,
    n: Number = None,
    reference: Carries = Reference.COUNTERFACTUAL,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Patch sampled edges exactly, one at a time, and hold their scores against it."""
    from caseback.study.experiments import PATCHING

    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", steps):
        raise typer.BadParameter(f"--steps is {steps!r}; give numbers of gradient points, such as 1 or 1,5")
    points = tuple(map(int, steps.split(",")))
    _run(PATCHING, locals(), {"top": top, "random": random, "pairs": pairs, "steps": points})


def _run(experiment: Experiment, asked: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Carry out an experiment as a run: `asked` holds all of the command's arguments, `own` those of its experiment alone."""
    from caseback.study import Study
    from caseback.tasks.files import is_file

    common = {name: asked[name] for name in ("task", "model", "n", "seed", "dtype", "device")}
    if asked["n"] is None and not is_file(asked["task"]):
        common["n"] = 100
    config = experiment.Config(**common, reference=asked["reference"].value, **own)
    passed = {**own, "task": asked["task"], "n": asked["n"]}
    with progress() as tick:
        record = Study(asked["out"]).ask(experiment.name, config, passed=passed, progress=tick, force=asked["force"])
    say(record, as_json=asked["as_json"])
