"""The likeliest next tokens of a final stream, in words: what an answer stood beside."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.model.end import end
from caseback.model.model import Model

__all__ = ["TOP", "likeliest"]

TOP = 5
"""Answers kept for each sample."""


@torch.no_grad()
def likeliest(model: Model, z: Float[Tensor, "row d"], *, rows: int = 256) -> list[list[tuple[str, float]]]:
    """Of each stream the `TOP` likeliest tokens with their probabilities by the model's own end, likeliest first.

    Cost: a row of the unembedding for each stream.
    """
    found = []
    for part in z.to(model.hf.dtype).split(rows):
        p, tokens = end(model, part).float().softmax(dim=-1).topk(min(TOP, model.d_vocab), dim=-1)
        found += [
            [(model.tokenizer.decode([token]), round(share, 5)) for token, share in zip(*row, strict=True)]
            for row in zip(tokens.tolist(), p.tolist(), strict=True)
        ]
    return found
