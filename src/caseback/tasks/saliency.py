"""Which tokens weigh most for the answer: a mask that may guide the making of a schema.

    s(t) = || e_t * dM/de_t ||,   mask(t) = softmax(s)(t) > 1 / n

over the n tokens of a prompt without BOS; e is the stream that enters the first block, M the task's metric (Haklay et
al. 2025, arXiv 2502.04577, section 4.2). One forward and one backward a prompt.
"""

from __future__ import annotations

from torch import Tensor

from caseback.core.progress import Progress, silent
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of
from caseback.tasks.task import Task

__all__ = ["saliency_masks"]


def saliency_masks(task: Task, model: Model, *, batch_size: int = 8, progress: Progress = silent) -> list[list[bool]]:
    """For every pair, whether each token of its clean prompt (without BOS) is salient."""
    skip, masks = int(model.bos), []
    pairs = task.encode(model)
    for chunk in pairs.chunk(batch_size):
        salience = _salience(model, chunk)
        for row, real in zip(salience, chunk.clean.mask, strict=True):
            weight = row[real][skip:].softmax(dim=0)
            masks.append((weight > 1 / len(weight)).tolist())
        progress("saliency", len(masks), pairs.n)
    return masks


def _salience(model: Model, chunk: PairBatch) -> Tensor:
    measure = metric_of(chunk.metric)
    found = model.grad(chunk.clean, lambda logits: measure(logits, chunk), at=["resid_pre.0"])
    return (found.values["resid_pre.0"] * found["resid_pre.0"]).norm(dim=-1)
