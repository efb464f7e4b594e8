"""Texts of a model's own: what it writes after its BOS token, drawn at temperature 1.

A lens is trained on text the model knows how to go on. Where none is at hand, the model writes it: a sample from the model is
text of exactly the distribution it was trained to have. It is not text of people: what the model believes wrongly is in it,
what the model never writes is not, and a number measured on it holds for such text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from caseback.core.errors import ReadingError
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.model.batch import Batch
from caseback.model.model import Model

__all__ = ["sample_texts"]

ROWS = 64
"""Texts written at once."""


def sample_texts(model: Model, *, n: int, length: int, seed: int = 0, stages: Stages | None = None) -> Batch:
    """n texts of `length` tokens each, written by the model itself; one stage, "texts", saved every 64 texts.

    The BOS they began with is left out again where the tokenizer puts none before a prompt, so that they are read as prompts
    are. An end of text is a token like any other: writing goes on after it. Raises ReadingError where the model has no BOS
    token, n or length is no positive number, or the
    model has fewer positions.
    """
    if n < 1 or length < 2:
        raise ReadingError(f"samples take at least 1 text of at least 2 tokens; got {n} of {length}")
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and length > room:
        raise ReadingError(f"samples of {length} tokens were asked for; {model.name} has {room} positions")
    bos = _bos(model)
    cached: list[bool] = []

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        if not cached:
            cached.append(_caches(model, bos))
        rows = min(ROWS, n - i * ROWS)
        found = _write(model, bos, rows, length, np.random.default_rng([seed, i]), cached[0])
        before = [state.arrays["ids"]] if state is not None else []
        return Checkpoint({"ids": np.concatenate([*before, found])})

    saved = (stages or InMemory()).fold("texts", -(-n // ROWS), step)
    ids = torch.from_numpy(np.array(saved.arrays["ids"])).to(model.device)
    if model.tokenizer is None or not model.bos:
        ids = ids[:, 1:]
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))


def _bos(model: Model) -> int:
    found = getattr(model.tokenizer, "bos_token_id", None)
    found = getattr(model.config, "bos_token_id", None) if found is None else found
    if not isinstance(found, int):
        raise ReadingError(f"{model.name} names no BOS token to begin a text with; give texts in a file")
    return found


@torch.no_grad()
def _write(model: Model, bos: int, rows: int, length: int, draw: np.random.Generator, cached: bool) -> np.ndarray:
    """Token ids [rows, 1 + length], BOS first. Words are drawn where a uniform number falls in the cumulated probabilities."""
    ids, past = torch.full((rows, 1), bos, device=model.device), None
    for _ in range(length):
        with model.lock:
            given = {"past_key_values": past, "use_cache": True} if cached else {"use_cache": False}
            out: Any = model.hf(input_ids=ids[:, -1:] if cached and past is not None else ids, **given)
        past = out.past_key_values if cached else None
        total = out.logits[:, -1].double().softmax(dim=-1).cumsum(dim=-1).cpu()
        at = torch.from_numpy(draw.random((rows, 1))) * total[:, -1:]
        word = torch.searchsorted(total, at, right=True).clamp_max(total.shape[1] - 1)
        ids = torch.cat([ids, word.to(ids)], dim=1)
    return ids.cpu().numpy()


@torch.no_grad()
def _caches(model: Model, bos: int) -> bool:
    """Whether keys and values can be kept between tokens: tried on three, not believed."""
    ids = torch.full((1, 3), bos, device=model.device)
    try:
        with model.lock:
            whole = model.hf(input_ids=ids, use_cache=False).logits[:, -1]
            past = None
            for i in range(3):
                out = model.hf(input_ids=ids[:, i : i + 1], past_key_values=past, use_cache=True)
                past = out.past_key_values
        tolerance = 1e-3 if model.hf.dtype in (torch.float32, torch.float64) else 3e-2
        return past is not None and bool((out.logits[:, -1] - whole).abs().max() <= tolerance * whole.abs().max())
    except (AttributeError, TypeError, ValueError, NotImplementedError, IndexError):  # a cache of another kind, or none
        return False
