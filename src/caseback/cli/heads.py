"""`caseback heads`, `attention` and `weights`: what a model's heads do, and what weights say without a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from caseback.cli.looking import carry_out
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Prompt, Seed, Twin
from caseback.core.errors import ReadingError

__all__ = ["attention", "heads", "weights"]


def heads(
    sequences: Annotated[int, typer.Option(min=2, help="Random sequences.")] = 16,
    length: Annotated[int, typer.Option(min=4, help="Tokens of each, said twice.")] = 24,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Previous-token, duplicate-token and induction heads, and heads that copy."""
    from caseback.study.readings import HEADS

    carry_out(HEADS, locals(), {"sequences": sequences, "length": length})


def attention(
    prompt: Prompt,
    head: Annotated[
        list[str] | None, typer.Option(metavar="LAYER.HEAD", help="A head to show whole, as 18.6; may be given again.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Layers of the overview, as 3,5 or 10-20 (default: all).")
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
    """Where heads look in a prompt: attention, and attention weighted with what is taken."""
    own = {"prompt": prompt, "heads": tuple(name.strip() for name in head or ()), "layers": _layers(layers)}
    from caseback.study.readings import ATTENTION

    carry_out(ATTENTION, locals(), own)


def weights(
    head: Annotated[
        str | None, typer.Option(metavar="LAYER.HEAD", help="Read one head out in words, as 18.6 (default: all heads).")
    ] = None,
    neuron: Annotated[
        str | None,
        typer.Option(metavar="LAYER[.NEURON]", help="Read one neuron out, as 18.7, or the neurons of a layer, as 18."),
    ] = None,
    directions: Annotated[int, typer.Option(min=1, help="Singular directions of a head.")] = 4,
    top: Annotated[int, typer.Option(min=1, max=50, help="Tokens of each direction.")] = 6,
    model: ModelName = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What heads and neurons could read and write: OV and QK circuits, copying, composition, words."""
    if head is not None and neuron is not None:
        raise ReadingError("--head and --neuron were both given; give one of them")
    from caseback.study.readings import WEIGHTS

    own = {"head": head and head.strip(), "neuron": neuron and neuron.strip(), "directions": directions, "top": top}
    carry_out(WEIGHTS, locals(), own)


def _layers(text: str | None) -> tuple[int, ...]:
    """Layers of "3,5" or "10-20", in order; () for none asked for."""
    if text is None:
        return ()
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends) or int(ends[0]) > int(ends[1]):
            raise ReadingError(f"--layers takes layers as in 3, 3,5 or 10-20; got {text!r}")
        chosen |= set(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(chosen))
