"""The columns of a grid over positions: the pairs' spans, their tokens, or the whole prompt.

Prompts of different length have no common token index, but they have common spans; so a span is the unit that can be
averaged over examples, and a token index is one only where all prompts have the same length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.model.batch import Batch

__all__ = ["By", "Columns", "columns_of"]

By = Literal["spans", "tokens", "all"]


@dataclass(frozen=True)
class Columns:
    """Named sets of positions; padding is in none of them."""

    names: tuple[str, ...]
    where: Bool[Tensor, "column batch pos"]


def columns_of(batch: Batch, by: By | None = None) -> Columns:
    """The columns of a batch; without `by` its spans, or its tokens where it has no spans.

    Raises ReadingError for spans a batch does not have, and for tokens of prompts of different lengths.
    """
    by = by or ("spans" if batch.spans else "tokens")
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    if by == "all":
        return Columns(("all",), batch.mask[None])
    if by == "spans":
        if not batch.spans:
            raise ReadingError("columns by 'spans' need pairs with spans (a schema); use 'tokens' or 'all'")
        ranges = torch.stack(list(batch.spans.values()))[..., None]  # [span, batch, 2, 1]
        where = (places >= ranges[:, :, 0]) & (places < ranges[:, :, 1]) & batch.mask
        return Columns(tuple(batch.spans), where)
    if by != "tokens":
        raise ReadingError(f"there are no columns by {by!r}; there are: spans, tokens, all")
    lengths = batch.lengths
    if bool((lengths != lengths[0]).any()):
        raise ReadingError(
            f"columns by 'tokens' need prompts of one length, these have {int(lengths.min())} to {int(lengths.max())} "
            "tokens; use 'spans' or 'all', or one pair"
        )
    n = int(lengths[0])
    order = batch.mask.long().cumsum(dim=1) - 1  # the token's number in its row, on whichever side the padding is
    where = (order == torch.arange(n, device=places.device)[:, None, None]) & batch.mask
    return Columns(tuple(str(i) for i in range(n)), where)
