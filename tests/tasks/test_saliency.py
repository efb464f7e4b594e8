"""The saliency mask against its formula, written out with autograd alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from caseback.tasks.encode import encode
from caseback.tasks.metrics import logit_diff
from caseback.tasks.saliency import saliency_masks
from caseback.zoo.copy_circuit import copying


def test_the_mask_is_its_formula() -> None:
    known = copying(n=6)
    model, task = known.model, known.task
    masks = saliency_masks(task, model, batch_size=4)
    assert len(masks) == task.n
    for pair, mask in zip(task.pairs, masks, strict=True):
        batch = encode([pair], model, metric=task.metric)
        embedded = model.hf.get_input_embeddings()(batch.clean.ids).detach().requires_grad_()
        logits = model.hf(inputs_embeds=embedded, attention_mask=batch.clean.mask.long()).logits[:, -1]
        (gradient,) = torch.autograd.grad(logit_diff(logits, batch).sum(), embedded)
        weight = (embedded * gradient).norm(dim=-1)[0].softmax(dim=0)
        assert mask == (weight > 1 / len(weight)).tolist()


def test_progress_is_told_and_batches_do_not_matter() -> None:
    known = copying(n=5)
    steps: list[tuple[str, int, int]] = []

    def tick(stage: str, done: int, total: int) -> None:
        steps.append((stage, done, total))

    one = saliency_masks(known.task, known.model, batch_size=1)
    assert one == saliency_masks(replace(known.task), known.model, batch_size=3, progress=tick)
    assert steps[-1] == ("saliency", known.task.n, known.task.n)
