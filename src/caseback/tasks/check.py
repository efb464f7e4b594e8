"""Does the model do the task at all? A circuit of a question that is answered by chance explains nothing, so every
study begins here."""

from __future__ import annotations

from collections import defaultdict

import torch

from caseback.core.errors import TaskError
from caseback.core.progress import Progress, silent
from caseback.tasks.encode import Encoded, Encoder, LanguageModel, Unfit, stack
from caseback.tasks.metrics import metric_of, right, top1
from caseback.tasks.task import Check, Task

__all__ = ["check"]

WRONG = "wrong answer"
SHOWN = 3


def check(task: Task, model: LanguageModel, *, batch_size: int = 16, progress: Progress = silent) -> Check:
    """Ask the model every pair and keep those whose metric has the task's sign.

    Pairs that break a rule in this model's tokens are not asked. Raises TaskError when nothing is left, with the reasons.
    """
    if batch_size < 1:
        raise TaskError(f"the batch size is {batch_size}; it is at least 1")
    encoder = Encoder(model)
    examples: dict[str, list[str]] = defaultdict(list)
    rows: list[int] = []
    encoded: list[Encoded] = []
    for i, pair in enumerate(task.pairs):
        try:
            encoded.append(encoder(pair, place=i))
            rows.append(i)
        except Unfit as error:
            examples[error.reason].append(str(error))
    if not rows:
        raise TaskError(f"no pair of the task {task.name!r} fits the tokenizer of {model.name}: {_reasons(examples)}")

    measure = metric_of(task.metric)
    values, hits = [], []
    for start in range(0, len(encoded), batch_size):
        batch = stack(encoded[start : start + batch_size], metric=task.metric)
        logits = model.logits(batch.clean).cpu()
        values.append(measure(logits, batch))
        hits.append(top1(logits, batch))
        progress("check", min(start + batch_size, len(encoded)), len(encoded))
    value = torch.cat(values)
    good = right(value, task.sign)
    for i, row in enumerate(rows):
        if not good[i]:
            pair = task.pairs[row]
            examples[WRONG].append(
                f"{pair.where(row)}: {task.metric} {float(value[i]):+.3f} after {pair.clean!r} (answer {pair.answers[0]!r})"
            )
    kept = [row for row, keep in zip(rows, good.tolist(), strict=True) if keep]
    if not kept:
        raise TaskError(
            f"{model.name} answers none of the {len(rows)} pairs of the task {task.name!r} as declared ({_reasons(examples)}); "
            "use a model that does the task, or a task the model does"
        )
    return Check(
        task=task[kept],
        model=model.name,
        n=task.n,
        fit=len(rows),
        accuracy=len(kept) / len(rows),
        top1=float(torch.cat(hits).float().mean()),
        values=value,
        dropped={reason: len(found) for reason, found in examples.items()},
        examples={reason: tuple(found[:SHOWN]) for reason, found in examples.items()},
    )


def _reasons(examples: dict[str, list[str]]) -> str:
    return "; ".join(f"{len(found)} {reason}, such as {found[0]}" for reason, found in examples.items())
