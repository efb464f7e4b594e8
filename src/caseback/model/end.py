"""A model's end: what it makes of a vector that leaves its last block.

Final norm, unembedding, softcap and logit scale are not written anew: the model file runs with every block passed over
and the vector put in where the first block's output would stand. So the end is right on every family.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.model.hooks import Hooks
from caseback.model.model import Model
from caseback.model.run import passing

__all__ = ["end", "token_ranks"]


def end(model: Model, stream: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
    """Logits the model makes of vectors that leave its last block; a gradient flows where the caller enables it."""
    with model.lock, Hooks() as hooks:
        hooks.instead_of(model.blocks[0], passing(model, partial(_put, stream[:, None])))
        for block in model.blocks[1:]:
            hooks.instead_of(block, passing(model))
        ids = torch.zeros((len(stream), 1), dtype=torch.long, device=stream.device)
        mask = torch.ones_like(ids)  # without it, model files warn of padding
        return model.hf(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True).logits[:, 0]


def _put(stream: Tensor, value: Tensor) -> Tensor:
    return stream.to(value.dtype)


def token_ranks(scores: Float[Tensor, "row vocab"], tokens: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """How many other tokens score at least as high: 0 is the likeliest, and an even guess ranks last."""
    found = torch.empty_like(tokens)
    for i, one in enumerate(tokens.T):
        found[:, i] = (scores >= scores.gather(1, one[:, None])).sum(dim=-1) - 1
    return found
