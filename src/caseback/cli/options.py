"""Arguments and options that several commands take: one word, one meaning, one sentence of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Device", "Dtype", "Force", "Json", "ModelName", "Out", "Prompt", "Seed", "StudyTask", "TaskName", "Twin"]

StudyTask = Annotated[
    str, typer.Argument(metavar="TASK|FILE", help="A task (`caseback task list`) or a file of pairs.")
]
TaskName = Annotated[str, typer.Argument(metavar="TASK|FILE", help="A task's name, or a .jsonl or .csv file.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="Raw text, as the model gets it.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder or .gguf file (default: the bundled SmolLM2-135M).")
]
Twin = Annotated[bool, typer.Option("--twin", help="The control: the same model with random weights.")]
Seed = Annotated[int, typer.Option("--seed", help="Of all that is drawn.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, float64, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "--study", metavar="DIR", help="The study folder (default: CASEBACK_STUDY, else ./casebook)."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Begin a new run even if the same one is finished.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
