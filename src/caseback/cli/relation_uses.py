"""`caseback relation cross`, `concepts`, `distract` and `isolate`: what a relation's operator is good for, as runs with
pages. A relation that is not judged yet is judged first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from caseback.cli.looking import carry_out
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, Twin

if TYPE_CHECKING:
    pass

__all__ = ["concepts", "cross", "distract", "isolate"]

Relation = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A relation (`caseback relation list`) or a file.")]
Layer = Annotated[
    int | None,
    typer.Option(min=0, help="Of the operator (default: one between a third and two thirds of the model)."),
]
Pairs = Annotated[int, typer.Option(min=2, help="Subjects at most that are edited.")]


def cross(
    relations: Annotated[list[str], typer.Argument(metavar="NAME|FILE…", help="At least two relations.")],
    model: ModelName = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply each relation's operator to the subjects of every other; relations not yet judged are judged first."""
    from caseback.study.cross import CROSS

    carry_out(CROSS, locals(), {"relations": tuple(relations)})


def concepts(
    relation: Relation,
    layer: Layer = None,
    pairs: Pairs = 24,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Concept vectors: a direction for each object, to find it in a subject's state and to write another."""
    from caseback.study.uses import CONCEPTS

    carry_out(CONCEPTS, locals(), {"relation": relation, "layer": layer, "pairs": pairs})


def distract(
    relation: Relation,
    layer: Layer = None,
    shots: Annotated[
        bool, typer.Option("--shots", help="Ask after examples, which a falsehood hardly overcomes.")
    ] = False,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Distraction tests: a falsehood is said before the question; is the truth still in the subject's state?"""
    from caseback.study.uses import DISTRACT

    carry_out(DISTRACT, locals(), {"relation": relation, "layer": layer, "shots": shots})


def isolate(
    relation: Relation,
    sibling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A relation that asks something else of the same subjects; may be given again (default: those of the library).",
        ),
    ] = None,
    layer: Layer = None,
    pairs: Pairs = 24,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Isolation: does the edit of one relation leave the other answers about the same subject alone?"""
    from caseback.study.uses import ISOLATE

    own = {"relation": relation, "siblings": tuple(sibling or ()), "layer": layer, "pairs": pairs}
    carry_out(ISOLATE, locals(), own)
