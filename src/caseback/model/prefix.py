"""Prompts that begin alike: the shared beginning is run once, its keys and values serve every continuation.

Whether a family's cache gives what the whole prompt gives is not believed but tried: `Prefix.of` runs one continuation
both ways and falls back to no cache (every continuation then carries the whole prompt) where they differ.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import execute

__all__ = ["Prefix"]

TOLERANCE = 1e-4
"""Largest difference of the final stream, relative to its largest entry, at which a cache is used (float32; half
precision is held to 2e-2)."""


@dataclass(frozen=True)
class Prefix:
    """A prompt's beginning, run once, and the rest that is run again and again."""

    ids: Int[Tensor, "pos"]
    """The whole prompt."""
    length: int
    """Tokens held in the cache; 0: none."""
    cache: Any
    """What the model kept of them, one row; None where `length` is 0."""

    @staticmethod
    @torch.no_grad()
    def of(model: Model, ids: Int[Tensor, "pos"], length: int) -> Prefix:
        """Cache the first `length` tokens of a prompt, if the cache is exact on this model."""
        ids = ids.to(model.device)
        plain = Prefix(ids, 0, None)
        if length == 0:
            return plain
        try:
            with model.lock:
                cache = model.hf(input_ids=ids[None, :length], use_cache=True, return_dict=True).past_key_values
            cached = Prefix(ids, length, cache)
            same = torch.stack([p.final(model)[0, -1].float() for p in (plain, cached)])
        except (AttributeError, TypeError, NotImplementedError, IndexError):  # a cache of another kind, or none
            return plain
        tolerance = TOLERANCE if model.hf.dtype in (torch.float32, torch.float64) else 2e-2
        return cached if float((same[0] - same[1]).abs().max()) <= tolerance * float(same[0].abs().max()) else plain

    def batch(self, n: int = 1) -> Batch:
        """The rest of the prompt, n times."""
        rest = self.ids[self.length :].expand(n, -1)
        return Batch(rest, torch.ones_like(rest, dtype=torch.bool))

    def past(self, n: int) -> dict[str, Any]:
        """What the model's forward is given beside the rest, for n rows; a fresh copy, since a cache grows with use."""
        if self.cache is None:
            return {}
        cache = copy.deepcopy(self.cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.expand(n, -1, -1, -1), layer.values.expand(n, -1, -1, -1)
        mask = torch.ones((n, len(self.ids)), dtype=torch.long, device=self.ids.device)
        return {"past_key_values": cache, "attention_mask": mask}

    def final(self, model: Model, n: int = 1) -> Float[Tensor, "n rest d"]:
        """The stream that enters the final norm, at every token of the rest."""
        kept: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            kept.append(value)
            return value

        execute(model, self.batch(n), {("resid_final", None): keep}, stop=model.n_layers, given=self.past(n))
        return kept[0]
