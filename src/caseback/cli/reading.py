"""`caseback lens`, `patch`, `paths`, `scrub`, `dla`, `attribute` and `attribute-input`: ways of reading, each a run with a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from caseback.cli.looking import carry_out
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Prompt, Seed, StudyTask, Twin

__all__ = ["attribute", "attribute_input", "dla", "lens", "patch", "paths", "scrub"]

Number = Annotated[int | None, typer.Option("--n", min=2, help="Pairs (default: 40, or all of a file).")]


class Direction(StrEnum):
    DENOISE = "denoise"
    NOISE = "noise"


class Source(StrEnum):
    RUN = "run"
    MEAN = "mean"
    ZERO = "zero"


class Site(StrEnum):
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    Z = "z"
    Q = "q"
    K = "k"
    V = "v"
    PATTERN = "pattern"


def lens(
    prompt: Prompt,
    site: Annotated[str, typer.Option(help="resid_post, resid_pre, resid_mid, attn_out or mlp_out.")] = "resid_post",
    answer: Annotated[list[str] | None, typer.Option(help="A word to follow; may be given again.")] = None,
    tuned: Annotated[
        Path | None, typer.Option(metavar="RUN|FILE", help="Translators: a run of tune-lens, its folder, or a file.")
    ] = None,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What every layer would say next, at every token: the logit lens."""
    from caseback.study import Study
    from caseback.study.readings import LENS
    from caseback.study.readings.of_tuned import find_translators

    translators = str(find_translators(tuned, Study(out))) if tuned else None
    own = {"prompt": prompt, "site": site, "answers": tuple(answer or ()), "tuned": translators}
    carry_out(LENS, locals(), own)


def patch(
    task: StudyTask,
    site: Annotated[Site, typer.Option(help="What is patched; z, q, k, v and pattern head by head.")] = Site.RESID_PRE,
    direction: Annotated[
        Direction, typer.Option(help="denoise: is it enough? noise: is it needed?")
    ] = Direction.DENOISE,
    source: Annotated[Source, typer.Option(help="What is put in: the other run's value, a mean, zero.")] = Source.RUN,
    n: Number = None,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Patch every layer and position by itself, exactly, with the first-order estimate beside it."""
    from caseback.study.readings import PATCH

    own = {"task": task, "n": _pairs(task, n), "site": site.value}
    carry_out(PATCH, locals(), own | {"direction": direction.value, "source": source.value})


def paths(
    task: StudyTask,
    sender: Annotated[
        str | None,
        typer.Option(metavar="SITE", help="A head, z.9.6, or an MLP, mlp_out.3; left out, the task's are named."),
    ] = None,
    direction: Annotated[
        Direction, typer.Option(help="noise: is the path needed? denoise: is it enough?")
    ] = Direction.NOISE,
    span: Annotated[str | None, typer.Option(help="The span at which the sender is replaced (default: all).")] = None,
    through_mlps: Annotated[
        bool, typer.Option("--through-mlps", help="MLPs between the sender and a receiver carry the difference on.")
    ] = False,
    n: Annotated[int | None, typer.Option("--n", min=2, help="Pairs (default: 16, or all of a file).")] = None,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Patch a head on its way to each later head's q, k or v alone, with a head drawn at random beside it."""
    from caseback.study.readings import PATHS

    own = {"task": task, "n": _pairs(task, n, 16), "sender": sender, "direction": direction.value}
    carry_out(PATHS, locals(), own | {"span": span, "through_mlps": through_mlps})


def scrub(
    hypothesis: Annotated[
        str,
        typer.Argument(metavar="HYPOTHESIS", help="A JSON file, or the name of one that comes with caseback (ioi)."),
    ],
    task: StudyTask,
    n: Annotated[int | None, typer.Option("--n", min=2, help="Pairs (default: 400, or all of a file).")] = None,
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Exchanges for every prompt.")] = 4,
    others: Annotated[int, typer.Option(min=0, max=1000, help="Hypotheses of the same structure in other places.")] = 8,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Exchange all that a hypothesis lets be exchanged, and see what is left of the answer: causal scrubbing."""
    from caseback.circuits.hypothesis import read_hypothesis
    from caseback.study.readings import SCRUB

    read_hypothesis(hypothesis)  # before a model is loaded
    own = {"hypothesis": hypothesis, "task": task, "n": _pairs(task, n, 400)}
    carry_out(SCRUB, locals(), own | {"draws": draws, "others": others})


def dla(
    task: StudyTask,
    neurons: Annotated[int | None, typer.Option(min=0, help="A layer whose MLP is split into neurons.")] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A dictionary (SAELens, sparsify) whose site is split into features."),
    ] = None,
    n: Number = None,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Split the answer's logit over embedding, heads, MLPs and features: direct logit attribution."""
    from caseback.study.readings import DLA

    own = {"task": task, "n": _pairs(task, n), "neurons": neurons}
    if dictionary is not None:
        from caseback.model.dictionary import dictionary_files

        dictionary_files(dictionary)  # before a model is loaded
    carry_out(DLA, locals(), own | {"dictionary": str(dictionary) if dictionary else None})


def attribute(
    prompt: Prompt,
    relation: Annotated[str, typer.Option(help="A relation (`caseback relation list`) or a file.")],
    object: Annotated[list[str] | None, typer.Option(help="An object to follow; may be given again.")] = None,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What a relation's operator reads in every state of a prompt: the attribute lens."""
    from caseback.study.readings import ATTRIBUTE

    own = {"prompt": prompt, "relation": relation, "objects": tuple(object or ())}
    carry_out(ATTRIBUTE, locals(), own)


def attribute_input(
    prompt: Prompt,
    answer: Annotated[str | None, typer.Option(help="A word (default: the model's next token).")] = None,
    foil: Annotated[str | None, typer.Option(help="A word it is compared with.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Points of integrated gradients.")] = 64,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Which tokens of a prompt the answer comes from: gradients, integrated gradients, occlusion."""
    from caseback.study.readings import INPUT

    carry_out(INPUT, locals(), {"prompt": prompt, "answer": answer, "foil": foil, "steps": steps})


def _pairs(task: str, n: int | None, usual: int = 40) -> int | None:
    from caseback.tasks.files import is_file, look

    look(task)  # before a model is loaded
    return n if n is not None or is_file(task) else usual
