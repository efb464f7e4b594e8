"""`caseback heads`: what a model's heads do, as runs with pages."""

from __future__ import annotations

from typing import Annotated

import typer

from caseback.cli.looking import carry_out
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, Twin

__all__ = ["heads"]


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
