"""The same question under other spans: none, one a token, or those of a schema file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from caseback.core.errors import SchemaError
from caseback.tasks.aligner import Aligner, lay_on
from caseback.tasks.encode import LanguageModel
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["read_aligner", "respan"]


def respan(task: Task, schema: str | None, model: LanguageModel) -> Task:
    """The task under a schema: None its own, "none" a single span, "tokens" one span a token, else an aligner's file.

    Raises SchemaError where the file is no schema, fits no prompt, or prompts of several lengths are cut into tokens.
    """
    if schema is None:
        return task
    if schema == "none":
        return replace(task, schema=None, pairs=tuple(replace(pair, spans=()) for pair in task.pairs))
    if schema == "tokens":
        return _by_token(task, model)
    return lay_on(read_aligner(schema), task, model).task


def read_aligner(path: str | Path) -> Aligner:
    """A schema file as `caseback schema induce` writes it."""
    if not Path(path).is_file():
        raise SchemaError(
            f"there is no schema file {str(path)!r}; give a file of `caseback schema induce`, or 'none' or 'tokens'"
        )
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SchemaError(f"{path} is not a JSON file ({error})") from None
    return Aligner.from_dict(data.get("aligner", data) if isinstance(data, dict) else data)


def _by_token(task: Task, model: LanguageModel) -> Task:
    lengths = {len(model.tokens(pair.clean)) for pair in task.pairs}
    if len(lengths) > 1:
        raise SchemaError(
            f"the prompts of {task.name!r} have {min(lengths)} to {max(lengths)} tokens, and a span for every token "
            "needs one length; "
            "use a schema, or prompts of one template"
        )
    n = lengths.pop() - int(model.bos)
    names = tuple(f"t{i}" for i in range(n))
    pairs = []
    for pair in task.pairs:
        starts = [0, *(start for start, _ in model.offsets(pair.clean)[int(model.bos) :][1:]), len(pair.clean)]
        pairs.append(replace(pair, spans=tuple((names[i], starts[i], starts[i + 1]) for i in range(n))))
    return replace(task, schema=Schema(name=f"{task.name}-tokens", spans=names), pairs=tuple(pairs))
