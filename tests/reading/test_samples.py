"""Texts of the model's own: drawn from its own probabilities, the same for the same seed, however they were begun."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from caseback.core.errors import ReadingError
from caseback.core.stages import Checkpoint, InMemory
from caseback.model.model import Model
from caseback.reading import samples
from caseback.reading.samples import sample_texts
from caseback.zoo.tiny import tiny


def test_words_come_as_often_as_the_model_says() -> None:
    model = Model(tiny("llama"))
    batch = sample_texts(model, n=4000, length=2, seed=3)
    assert batch.ids.shape == (4000, 2) and bool(batch.mask.all())
    with torch.no_grad():
        first = model.hf(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(dim=-1)
    found = torch.bincount(batch.ids[:, 0], minlength=model.d_vocab) / batch.n
    error = (first * (1 - first) / batch.n).sqrt()
    assert ((found - first).abs() < 5 * error + 1e-3).all()
    best = int(first.argmax())
    with torch.no_grad():
        then = model.hf(input_ids=torch.tensor([[1, best]])).logits[0, -1].softmax(dim=-1)
    after = batch.ids[batch.ids[:, 0] == best, 1]
    share = torch.bincount(after, minlength=model.d_vocab) / len(after)
    assert ((share - then).abs() < 5 * (then * (1 - then) / len(after)).sqrt() + 0.03).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny(name))
    cached = sample_texts(model, n=5, length=12)
    monkeypatch.setattr(samples, "_caches", lambda model, bos: False)
    assert torch.equal(sample_texts(model, n=5, length=12).ids, cached.ids)
    assert not torch.equal(sample_texts(model, n=5, length=12, seed=1).ids, cached.ids)


def test_a_stopped_sample_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "ROWS", 4)
    model, kept = Model(tiny("llama")), []

    class Half(InMemory):
        def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
            state = None
            for i in range(2):
                state = step(state, i)
            kept.append(state)
            assert state is not None
            for i in range(2, steps):
                state = step(state, i)
            return state

    whole = sample_texts(model, n=10, length=6, seed=2)
    assert torch.equal(sample_texts(model, n=10, length=6, seed=2, stages=Half()).ids, whole.ids)
    assert np.array_equal(kept[0].arrays["ids"][:, 1:], whole.ids[:8].numpy())


def test_no_bos_is_said() -> None:
    model = Model(tiny("llama"))
    model.config.bos_token_id = None
    with pytest.raises(ReadingError, match="names no BOS token to begin a text with; give texts in a file"):
        sample_texts(model, n=2, length=4)
    with pytest.raises(ReadingError, match="at least 1 text of at least 2 tokens; got 0 of 4"):
        sample_texts(model, n=0, length=4)
