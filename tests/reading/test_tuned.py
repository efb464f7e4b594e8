"""The tuned lens: the logit lens before training, the right map after it where the right map is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caseback.core.errors import ReadingError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import lens as lens_file
from caseback.reading import tuned as tuned_file
from caseback.reading.lens import logit_lens
from caseback.reading.tuned import TunedConfig, TunedLens, load_tuned, save_tuned, train_tuned, tuned_lens
from caseback.zoo.tiny import tiny

QUICK = TunedConfig(steps=60, tokens=32, rate=1e-2)


def texts(model: Model, n: int = 12, length: int = 10) -> Batch:
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(3, model.d_vocab, (n, length), generator=draw).tolist()
    return Batch.pad([row[: length - i % 3] for i, row in enumerate(rows)])


def shifting(*, seed: int = 0) -> Model:
    """A GPT-2 whose last block adds one constant vector to every stream: the right translator is c = that vector."""
    model = Model(tiny("gpt2", seed=seed))
    with torch.no_grad():
        for path in ("attn.c_proj", "mlp.c_proj"):
            module = model.module(f"transformer.h.1.{path}")
            module.weight.zero_()
            module.bias.normal_(std=2, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_it_starts_as_the_logit_lens(name: str) -> None:
    model = Model(tiny(name))
    batch = texts(model)
    tuned = train_tuned(model, batch, config=replace(QUICK, steps=0))
    assert tuned.sites == ("resid_pre.0", "resid_post.0")
    assert not tuned.weight.any() and not tuned.bias.any()
    assert np.array_equal(tuned.validation.before, tuned.validation.after)
    assert np.array_equal(tuned.validation.shuffled_before, tuned.validation.shuffled_after)
    mine, plain = tuned_lens(model, batch, tuned, answers=[5]), logit_lens(model, batch, answers=[5])
    assert mine.sites == plain.sites
    for field in ("top_ids", "top_probs", "entropy", "kl", "answer_probs", "answer_ranks"):
        assert torch.equal(getattr(mine, field).nan_to_num(), getattr(plain, field).nan_to_num())


def test_a_constant_shift_is_learnt() -> None:
    model = shifting()
    tuned = train_tuned(model, texts(model, 60), sites=["resid_post.0"], config=replace(QUICK, steps=300))
    before, after = tuned.validation.before.mean(), tuned.validation.after.mean()
    assert before > 1 and after < 0.06 * before
    assert after < 0.2 * tuned.validation.constant.mean()
    assert tuned.validation.shuffled_after.mean() < 0.06 * tuned.validation.shuffled_before.mean(), "no text is needed"
    assert tuned.validation.gain()[0].low > 0


def test_the_last_block_needs_no_translator() -> None:
    model = Model(tiny("llama"))
    tuned = train_tuned(model, texts(model), sites=["resid_post.1"], config=replace(QUICK, steps=5))
    assert np.abs(tuned.validation.before).max() < 1e-5
    assert np.array_equal(tuned.validation.after, tuned.validation.before), "no way to go"


def test_the_gradient_is_that_of_the_translator() -> None:
    """One step of the trainer against autograd through h + A h + c, in its own units."""
    model = shifting()
    batch = texts(model)
    seen: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *args: object) -> object:
        seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        train_tuned(model, batch, sites=["resid_post.0"], config=replace(QUICK, steps=1))
    config = replace(QUICK, steps=1)
    learn, _ = tuned_file._split(batch, config)
    values, final = tuned_file._cached(model, learn, ["resid_post.0"])
    h = values[0]
    mean, spread = h.mean(dim=0), h.std(dim=0, correction=0)
    size = (final - h).square().mean(dim=0).sqrt()
    turn, shift = torch.zeros(48, 48, requires_grad=True), torch.zeros(48, requires_grad=True)
    part = torch.randint(len(h), (config.tokens,), generator=torch.Generator().manual_seed(config.seed))
    y = h[part] + size * (((h[part] - mean) / spread) @ turn.T + shift)
    p, q = model.hf.lm_head(model.hf.transformer.ln_f(torch.stack([final[part], y]))).log_softmax(dim=-1)
    wanted = torch.autograd.grad((p.exp() * (p - q)).sum(dim=-1).mean(), [turn, shift])
    for found, expected in zip(seen[:2], wanted):
        torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in model.hf.parameters()), "the model itself learns nothing"


def test_how_many_logits_are_held_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    whole = train_tuned(model, texts(model), config=QUICK)
    monkeypatch.setattr(lens_file, "LOGITS", 32 * model.d_vocab)
    parts = train_tuned(model, texts(model), config=QUICK)
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole.validation.after, parts.validation.after, rtol=1e-3)
    assert float(whole.validation.after.mean()) < float(whole.validation.before.mean())


def saved(tmp_path: Path) -> tuple[Model, TunedLens, Path]:
    model = shifting()
    tuned = train_tuned(model, texts(model), config=replace(QUICK, steps=3))
    path = tmp_path / "lens.safetensors"
    save_tuned(tuned, path)
    return model, tuned, path


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    model, tuned, path = saved(tmp_path)
    again = load_tuned(path, model)
    assert torch.equal(again.weight, tuned.weight) and torch.equal(again.bias, tuned.bias)
    assert (again.sites, again.config, again.model) == (tuned.sites, tuned.config, tuned.model)
    assert np.array_equal(again.validation.after, tuned.validation.after)
    assert [p.name for p in tmp_path.iterdir()] == ["lens.safetensors"]


def test_it_is_refused_to_another_model(tmp_path: Path) -> None:
    model, tuned, path = saved(tmp_path)
    other = shifting(seed=1)
    with pytest.raises(ReadingError, match=r"were trained on in memory: GPT2LMHeadModel \(weights \w{12}\) and mean"):
        load_tuned(path, other)
    with pytest.raises(ReadingError, match="train new ones"):
        tuned_lens(other, texts(other), tuned)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ReadingError, match="not a whole safetensors file"):
        load_tuned(path, model)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ReadingError, match="no tuned lens of ours"):
        load_tuned(path, model)
    with pytest.raises(FileNotFoundError):
        load_tuned(tmp_path / "none", model)


def test_what_cannot_be_trained_is_said() -> None:
    model = Model(tiny("llama"))
    same = Batch.pad([[5, 6, 7], [5, 6, 7]])
    with pytest.raises(ReadingError, match="needs two different texts, one to learn and one to judge; got 1"):
        train_tuned(model, same)
    with pytest.raises(ReadingError, match="translates residual streams"):
        train_tuned(model, texts(model), sites=["mlp_out"])
    with pytest.raises(ReadingError, match="0 < validation < 1"):
        TunedConfig(validation=1.0)
