"""`caseback tune-lens`: train a tuned lens, a run with a page that is resumed where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, Twin
from caseback.cli.progress import progress
from caseback.cli.say import say

__all__ = ["tune_lens"]


def tune_lens(
    texts: Annotated[
        Path | None,
        typer.Argument(
            metavar="TEXTS",
            help="A .txt file, a text per line, or a .jsonl file with 'text' (default: the model writes its own).",
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--texts", min=3, help="Texts (default: 384 of its own, or all of a file).")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text; the rest of a longer one is left out.")] = 64,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training a layer, after the regression.")] = 120,
    tokens: Annotated[int, typer.Option(min=1, help="Training tokens a step.")] = 512,
    rate: Annotated[float, typer.Option(help="First step size; it falls to 0.")] = 0.6,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write the translators to this file.")
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
    """Train a lens that says early what the model says late; read with it: `caseback lens PROMPT --tuned RUN`."""
    from caseback.core.errors import ReadingError
    from caseback.reading.tuned import TunedConfig, load_tuned, save_tuned
    from caseback.study import Study
    from caseback.study.readings.of_tuned import TuneConfig, find_translators, read_texts

    if save is not None and (save.is_dir() or not save.parent.is_dir()):
        raise ReadingError(f"--save {save} cannot be written: give a file in a folder that exists")
    if texts is not None:
        read_texts(texts)  # says what is wrong with them before a model is loaded
    config = TuneConfig(
        texts=str(texts) if texts else None,
        n=number,
        length=length,
        tuned=TunedConfig(steps=steps, tokens=tokens, rate=rate, seed=seed),
        model=model,
        seed=seed,
        dtype=dtype,
        device=device,
        twin=twin,
    )
    passed = {"texts": config.texts, "n": number, "length": length, "steps": steps, "tokens": tokens, "rate": rate}
    with progress() as tick:
        loaded = config.load_model(tick)
        study = Study(out)
        record = study.ask("tune-lens", config, passed=passed, progress=tick, force=force, model=loaded)
        if save is not None:
            save_tuned(load_tuned(find_translators(record.path, study), loaded), save)
    say(record, as_json=as_json)
    if save is not None and not as_json:
        typer.echo(f"translators {save.resolve()}")
