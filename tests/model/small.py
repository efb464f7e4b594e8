"""Tiny random models of several families, and batches for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.zoo.tiny import tiny

FAMILIES = [
    "llama",  # grouped heads wider than d_model / n_heads, biases
    "gpt2",  # fused projections as Conv1D, learned positions
    "gpt_neox",  # parallel blocks
    "gpt_neox:sequential",
    "gemma2",  # norms before and after, softcaps, a window shorter than the prompt
    "olmo2",  # norms after only, QK-norm over all heads
    "gpt_oss",  # sinks, experts
    "phi3",  # one fused projection with grouped heads
    "granite",  # every write is scaled
    "opt",  # no MLP module, tokens side by side
    "mixtral",  # experts
    "falcon",  # attention code of its own, tuples as outputs, sums in place
    "qwen3_5_text",  # a hybrid: attention in every other layer
]
ATTENDING = [name for name in FAMILIES if name not in ("falcon", "qwen3_5_text")]
"""Those with the registered attention in every layer."""


@cache
def model_of(name: str) -> Model:
    """One model a family and process; whoever changes it puts it back."""
    return Model(tiny(name))


def batch_of(model: Model, *, lengths: tuple[int, ...] = (8, 6, 8), seed: int = 0, side: str = "right") -> Batch:
    """Random rows with spans "first" (1 token), "middle" (2 tokens), "rest" (the others, of several lengths)."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, model.d_vocab, (length,), generator=draw).tolist() for length in lengths]
    batch = Batch.pad(rows, side=side)
    start = torch.tensor([0 if side == "right" else max(lengths) - length for length in lengths])

    def span(begin: int, end: Tensor | int) -> Tensor:
        return torch.stack([start + begin, start + end], dim=1)

    spans = {"first": span(0, 1), "middle": span(1, 3), "rest": span(3, torch.tensor(lengths))}
    return Batch(batch.ids, batch.mask, spans)


def left_behind(hf: Any) -> list[str]:
    """Modules that still carry a hook or a replaced forward."""
    return [
        name
        for name, module in hf.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]
