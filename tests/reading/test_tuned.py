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
from caseback.reading.lens import divergence, log_probs, logit_lens
from caseback.reading.tuned import TunedConfig, TunedLens, load_tuned, save_tuned, train_tuned, tuned_lens
from caseback.zoo.tiny import tiny

QUICK = TunedConfig(steps=60, tokens=32, rate=0.3)
UNTRAINED = TunedConfig(steps=0, start="logit lens")


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
    tuned = train_tuned(model, batch, config=UNTRAINED)
    assert tuned.sites == ("resid_pre.0", "resid_post.0")
    assert not tuned.weight.any() and not tuned.bias.any()
    assert tuned.kept == ("logit lens", "logit lens")
    assert np.array_equal(tuned.judged.before, tuned.judged.after)
    assert np.array_equal(tuned.judged.shuffled_before, tuned.judged.shuffled_after)
    mine, plain = tuned_lens(model, batch, tuned, answers=[5]), logit_lens(model, batch, answers=[5])
    assert mine.sites == plain.sites
    for field in ("top_ids", "top_probs", "entropy", "kl", "answer_probs", "answer_ranks"):
        assert torch.equal(getattr(mine, field).nan_to_num(), getattr(plain, field).nan_to_num())


def test_the_judged_numbers_are_the_lens_on_texts_that_did_not_train() -> None:
    model, batch = Model(tiny("gemma2")), texts(Model(tiny("gemma2")), 24)
    tuned = train_tuned(model, batch, config=QUICK)
    learn, choose, judge = tuned_file._split(batch, QUICK)
    assert (learn.n, choose.n, judge.n) == (18, 3, 3)
    rows = [{tuple(i[m].tolist()) for i, m in zip(part.ids, part.mask)} for part in (learn, choose, judge)]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    plain = logit_lens(model, judge, sites=tuned.sites).kl.nanmean(dim=-1)
    np.testing.assert_allclose(tuned.judged.before, plain.numpy(), rtol=1e-4)
    mine = tuned_lens(model, judge, tuned).kl[:2].nanmean(dim=-1)
    np.testing.assert_allclose(tuned.judged.after, mine.numpy(), rtol=1e-4)
    final = torch.cat([model.run(learn[[r]], read=["resid_final"])["resid_final"][0] for r in range(learn.n)])
    guess = log_probs(model, final).exp().mean(dim=0).log()
    ends = [model.run(judge[[r]], read=["resid_final"])["resid_final"][0] for r in range(judge.n)]
    wanted = [float(divergence(log_probs(model, end), guess[None]).detach().mean()) for end in ends]
    np.testing.assert_allclose(tuned.judged.constant, wanted, rtol=1e-4)
    assert tuned.judged.over_constant()[1].value == pytest.approx(
        np.mean(wanted) - tuned.judged.after[1].mean(), abs=1e-5
    )


def test_long_texts_are_judged_on_some_of_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    whole = train_tuned(model, texts(model), config=UNTRAINED).judged.before
    monkeypatch.setattr(tuned_file, "JUDGED", 3)
    some = train_tuned(model, texts(model), config=UNTRAINED).judged.before
    assert some.shape == whole.shape and not np.allclose(some, whole)
    np.testing.assert_allclose(some, whole, rtol=0.7)


@pytest.mark.parametrize("start", ["regression", "logit lens"])
def test_a_constant_shift_is_learnt(start: str) -> None:
    model = shifting()
    config = replace(QUICK, steps=0 if start == "regression" else 300, start=start)
    tuned = train_tuned(model, texts(model, 60), sites=["resid_post.0"], config=config)
    judged = tuned.judged
    before, after = judged.before.mean(), judged.after.mean()
    assert before > 1 and after < 0.06 * before
    assert after < 0.2 * judged.constant.mean()
    assert judged.shuffled_after.mean() < 0.06 * judged.shuffled_before.mean(), "no text is needed"
    assert judged.gain()[0].low > 0
    if start == "regression":
        assert after < 1e-6 and tuned.kept[0].startswith("ridge")
        shift = sum(model.module(f"transformer.h.1.{path}").bias for path in ("attn.c_proj", "mlp.c_proj"))
        torch.testing.assert_close(tuned.bias[0], shift, rtol=1e-3, atol=1e-3)
        assert tuned.weight.abs().max() < 1e-3


def test_training_beats_the_regression_and_both_beat_the_constant() -> None:
    model = Model(tiny("llama"))
    batch = texts(model, 200)
    found = [train_tuned(model, batch, config=replace(QUICK, steps=steps)) for steps in (0, 120)]
    regression, trained = (lens.judged.after.mean(axis=1) for lens in found)
    assert all(kept.startswith("ridge") for kept in found[0].kept) and found[1].kept == ("trained", "trained")
    assert (trained < regression).all() and (regression < found[0].judged.before.mean(axis=1)).all()
    assert trained[1] < found[1].judged.constant.mean()


def test_the_last_block_needs_no_translator() -> None:
    model = Model(tiny("llama"))
    tuned = train_tuned(model, texts(model), sites=["resid_post.1"], config=replace(QUICK, steps=5))
    assert np.abs(tuned.judged.before).max() < 1e-5
    assert np.array_equal(tuned.judged.after, tuned.judged.before), "no way to go"
    assert tuned.kept == ("logit lens",)


def test_how_many_logits_are_held_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    whole = train_tuned(model, texts(model), config=QUICK)
    monkeypatch.setattr(lens_file, "LOGITS", 7 * model.d_vocab)
    parts = train_tuned(model, texts(model), config=QUICK)
    np.testing.assert_allclose(whole.judged.after, parts.judged.after, rtol=1e-2)
    np.testing.assert_allclose(whole.judged.before, parts.judged.before, rtol=1e-4)
    assert all(p.grad is None for p in model.hf.parameters()), "the model itself learns nothing"


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
    assert np.array_equal(again.judged.after, tuned.judged.after)
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


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    model = Model(tiny("llama"))
    same = Batch.pad([[5, 6, 7], [5, 6, 7], [6, 7]])
    with pytest.raises(ReadingError, match="needs three different texts, one to learn, one to choose .*; got 2"):
        train_tuned(model, same)
    with pytest.raises(ReadingError, match="translates residual streams"):
        train_tuned(model, texts(model), sites=["mlp_out"])
    with pytest.raises(ReadingError, match=r"0 < held < 0\.5"):
        TunedConfig(held=0.5)
    with pytest.raises(ReadingError, match="a finite rate > 0"):
        TunedConfig(rate=float("nan"))
    with pytest.raises(ReadingError, match="starts from one of: regression, logit lens; got 'zero'"):
        TunedConfig(start="zero")
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(2)}, tmp_path / "old", {"caseback": '{"data": {"format": "caseback tuned lens 1"}}'})
    with pytest.raises(ReadingError, match="written by another version of caseback"):
        load_tuned(tmp_path / "old", model)
