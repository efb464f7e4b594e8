"""Sweeps: many plans of edits as rows of one batch, with the prefix they share computed once.

Every plan is applied to every row of the batch. The blocks before the first edit are the same for all plans: they run
once, and their residual stream is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import SiteError
from caseback.model.batch import Batch
from caseback.model.edits import Edit
from caseback.model.run import RowEdit, Start, plan_sites, run

if TYPE_CHECKING:
    from caseback.model.model import Model

__all__ = ["sweep"]


def _repeat(batch: Batch, times: int) -> Batch:
    return Batch(
        batch.ids.repeat(times, 1),
        batch.mask.repeat(times, 1),
        {name: ranges.repeat(times, 1) for name, ranges in batch.spans.items()},
    )


def _first_block(model: Model, plan: Sequence[Edit]) -> int:
    """The first block a plan changes anything in; 0 where it edits no block."""
    layers = (site.layer for edit in plan for site in plan_sites(model, [edit.site]))
    return min((layer for layer in layers if layer is not None), default=0)


def sweep(
    model: Model, batch: Batch, plans: Sequence[Sequence[Edit]], *, rows: int = 64
) -> Float[Tensor, "plan batch vocab"]:
    """Last-token logits of every plan on every row; at most `rows` sequences run at a time."""
    if not plans:
        raise SiteError("a sweep needs at least one plan of edits; an empty plan stands for the model as it is")
    batch = batch.to(model.device)
    first = [_first_block(model, plan) for plan in plans]
    order = sorted(range(len(plans)), key=lambda i: first[i])
    at_once = max(1, rows // batch.n)
    found: list[Tensor | None] = [None] * len(plans)
    prefix: dict[int, Tensor] = {}
    for begin in range(0, len(order), at_once):
        chosen = order[begin : begin + at_once]
        layer = first[chosen[0]]
        many = _repeat(batch, len(chosen))
        start = None
        if layer > 0:
            if layer not in prefix:
                site = f"resid_pre.{layer}"
                prefix = {layer: run(model, batch, read=[site], logits=None, stop=layer)[site]}
            start = Start(layer, prefix[layer].repeat(len(chosen), 1, 1))
        edits = [
            RowEdit(edit, slice(k * batch.n, (k + 1) * batch.n)) for k, i in enumerate(chosen) for edit in plans[i]
        ]
        logits = run(model, many, edit=edits, start=start).logits
        assert logits is not None
        for k, i in enumerate(chosen):
            found[i] = logits[k * batch.n : (k + 1) * batch.n]
    return torch.stack([logits for logits in found if logits is not None])
