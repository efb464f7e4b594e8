"""Fitting translators: the slope is that of the KL, a sample of words says what all words say, a stopped fit goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from caseback.core.stages import Checkpoint, InMemory
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import translators
from caseback.reading.lens import divergence, log_probs
from caseback.reading.translators import Guess, can_draw, guess_of
from caseback.reading.tuned import TunedConfig, train_tuned
from caseback.zoo.tiny import TINY, tiny

from .test_tuned import texts


def streams(model: Model, n: int = 40) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn((n, model.d_model), generator=draw) * 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere"])
def test_the_slope_is_that_of_the_kl(name: str) -> None:
    if name not in TINY:
        pytest.skip(f"the zoo has no {name}")
    model = Model(tiny(name))
    base, final, x = streams(model), streams(model).flip(0), streams(model).roll(3, 0)
    size = torch.linspace(0.5, 2, model.d_model)
    turn = torch.full((model.d_model + 1, model.d_model), 0.01, requires_grad=True)
    y = base + size * (x @ turn[:-1] + turn[-1])
    with torch.enable_grad():
        kl = divergence(log_probs(model, final), log_probs(model, y)).mean()
        [wanted] = torch.autograd.grad(kl, [turn])
    found = translators._slope(model, base, x, final, size, turn.detach(), None)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    every = (np.arange(model.d_vocab), np.zeros(model.d_vocab, dtype=np.float32))
    again = translators._slope(model, base, x, final, size, turn.detach(), every)
    torch.testing.assert_close(again, wanted, rtol=1e-3, atol=1e-5)


def test_a_sample_of_words_has_the_whole_slope_in_the_mean() -> None:
    model = Model(tiny("llama"))
    base, x = streams(model), streams(model).roll(3, 0)
    final = base + 0.5 * x
    guess = guess_of(model, final, lambda done, total: None)
    turn, size = torch.zeros((model.d_model + 1, model.d_model)), torch.ones(model.d_model)
    whole = translators._slope(model, base, x, final, size, turn, None)
    part = np.arange(len(base))
    guess = Guess(guess.mean, guess.tops[:, :1], guess.vector)
    draws = [translators._draw(guess, part, 32, np.random.default_rng(i)) for i in range(200)]
    assert np.mean([len(words) for words, _ in draws]) < 0.8 * model.d_vocab
    mean = sum(translators._slope(model, base, x, final, size, turn, drawn) for drawn in draws) / len(draws)
    assert float((mean - whole).norm() / whole.norm()) < 0.15, "half of 64 words; the bias falls with their number"
    for words, weigh in draws[:5]:
        assert set(guess.tops.ravel()) <= set(words.tolist()) and len(set(words.tolist())) == len(words)
        assert (weigh >= 0).all()
    exact = [translators._slope(model, final, x, final, size, turn, drawn) for drawn in draws[:5]]
    assert max(float(one.abs().max()) for one in exact) < 1e-6, "0 where both say the same, whatever was drawn"


def test_a_sampled_fit_ends_where_the_whole_one_does() -> None:
    model = Model(tiny("llama"))
    config = TunedConfig(steps=60, tokens=32, rate=0.3)
    whole, some = (train_tuned(model, texts(model, 100), config=replace(config, words=n)) for n in (64, 40))
    assert not torch.equal(whole.weight, some.weight)
    np.testing.assert_allclose(some.judged.after.mean(axis=1), whole.judged.after.mean(axis=1), rtol=0.1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_an_end_can_speak_of_some_words(name: str) -> None:
    model = Model(tiny(name))
    assert can_draw(model, streams(model, 2))
    assert "forward" not in vars(model.hf.get_output_embeddings())


def test_an_end_of_another_kind_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    monkeypatch.setattr(model.hf, "get_output_embeddings", lambda: torch.nn.Linear(model.d_model, model.d_vocab))
    assert not can_draw(model, streams(model, 2))
    monkeypatch.setattr(model.hf, "get_output_embeddings", lambda: None)
    assert not can_draw(model, streams(model, 2))
    train_tuned(model, texts(model), config=TunedConfig(steps=2, tokens=8, words=16))


def test_the_constant_vector_says_nearly_the_mean_prediction() -> None:
    model = Model(tiny("llama"))
    guess = guess_of(model, streams(model, 200), lambda done, total: None)
    said = log_probs(model, torch.from_numpy(guess.vector)[None])
    away = divergence(torch.from_numpy(guess.mean).log()[None], said)
    middle = divergence(torch.from_numpy(guess.mean).log()[None], log_probs(model, streams(model, 200).mean(0)[None]))
    assert 0 <= float(away.detach()) < 0.5 * float(middle.detach())


class Dying(InMemory):
    """Stages that keep what they were given and die after so many steps, all stages counted."""

    def __init__(self, steps: int, kept: dict[str, tuple[int, Checkpoint]]):
        super().__init__()
        self.left, self.kept = steps, kept

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        done, state = self.kept.get(name, (0, None))
        for i in range(done, steps):
            if self.left == 0:
                raise InterruptedError
            self.left -= 1
            state = step(state, i)
            self.kept[name] = (i + 1, state)
        assert state is not None
        return state


def test_killed_after_any_checkpoint_it_ends_in_the_same_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translators, "EVERY", 2)
    model = Model(tiny("llama"))
    config = TunedConfig(steps=5, tokens=16, rate=0.3, words=40)
    batch: Batch = texts(model, 20)
    whole = train_tuned(model, batch, config=config)
    total = 1 + 2 * (1 + 3) + 1  # predictions, two sites of a start and three parts, judged
    for steps in range(1, total):
        kept: dict[str, tuple[int, Checkpoint]] = {}
        with pytest.raises(InterruptedError):
            train_tuned(model, batch, config=config, stages=Dying(steps, kept))
        again = train_tuned(model, batch, config=config, stages=Dying(total, kept))
        assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias), steps
        assert np.array_equal(again.judged.after, whole.judged.after)
