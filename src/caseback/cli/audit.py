"""`caseback audit [MODEL]`: a model examined by every method, at sizes that fit the time."""

from __future__ import annotations

from typing import Annotated

import typer

from caseback.cli.looking import carry_out
from caseback.cli.options import Device, Dtype, Force, Json, Out, Seed

__all__ = ["audit"]


def audit(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Hub id, folder or .gguf file (default: the bundled SmolLM2-135M)."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for all examinations together.")] = 10.0,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What a model can do and how, as far as the minutes reach: every examination is a run, one report says it all."""
    from caseback.study.audit import AUDIT

    carry_out(AUDIT, locals(), {"minutes": minutes})
