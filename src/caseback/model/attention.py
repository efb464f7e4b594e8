"""The attention function caseback registers with transformers, and who listens to it.

Model files call `ALL_ATTENTION_FUNCTIONS[config._attn_implementation](module, q, k, v, mask, ...)`. Under the name
"caseback" that call comes here and goes on to the listener of the current context, or else to the model file's own
eager function, so that softcaps, sinks and scalings stay the family's. The listener lives in a ContextVar: no state
leaks between threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from caseback.core.errors import FamilyError

__all__ = ["AttentionCall", "Attend", "listening"]

NAME = "caseback"


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function. q has H heads, k and v have the KV heads; q and k are after rotary embedding
    and QK-norm."""

    module: nn.Module
    q: Float[Tensor, "batch head query key_dim"]
    k: Float[Tensor, "batch kv_head key key_dim"]
    v: Float[Tensor, "batch kv_head key value_dim"]
    mask: Tensor | None
    """Additive mask [batch, 1 or head, query, key], or None."""
    options: dict[str, Any]
    """scaling, dropout, softcap, sliding_window, s_aux (sinks) …, as the model file gives them."""

    @property
    def layer(self) -> int:
        return int(self.module.layer_idx)  # type: ignore[arg-type]

    @property
    def scaling(self) -> float:
        return float(self.options.get("scaling") or getattr(self.module, "scaling", None) or self.q.shape[-1] ** -0.5)

    def eager(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The model file's own eager attention: (z [batch, query, head, dim], pattern [batch, head, query, key])."""
        own = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        if own is None:
            raise FamilyError(f"{type(self.module).__name__} has no eager attention of its own to delegate to")
        z, pattern = own(self.module, q, k, v, self.mask, **self.options)
        return z, pattern


Attend = Callable[[AttentionCall], tuple[Tensor, Tensor | None]]

_LISTENER: ContextVar[Attend | None] = ContextVar("caseback_attention", default=None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    call = AttentionCall(module, query, key, value, attention_mask, options)
    listener = _LISTENER.get()
    return call.eager(query, key, value) if listener is None else listener(call)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)


@contextmanager
def listening(hf: PreTrainedModel, attend: Attend) -> Iterator[None]:
    """Route this model's attention through `attend` while the context lasts; the implementation it had comes back
    afterwards."""
    before = hf.config._attn_implementation
    token = _LISTENER.set(attend)
    try:
        hf.set_attn_implementation(NAME)
        if hf.config._attn_implementation != NAME:
            raise FamilyError(
                f"{type(hf).__name__} does not take a registered attention, so q, k, v and pattern are not sites of it"
            )
        yield
    finally:
        _LISTENER.reset(token)
        if hf.config._attn_implementation != before:
            hf.set_attn_implementation(before)
