"""The logit lens: at the last block it is the model, everywhere it is what the definitions say."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from caseback.core.errors import ReadingError, SiteError
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.model import Model
from caseback.reading import lens as lens_file
from caseback.reading.lens import logit_lens
from caseback.zoo import copying
from caseback.zoo.tiny import TINY, tiny

FAMILIES = ["llama", "gpt2", "gemma2", "cohere", "granite", "olmo", "olmo2", "gpt_neox", "opt", "phimoe", "hyperclovax"]
FAMILIES += ["gemma4_text", "falcon", "qwen3_5_text", "mpt", "biogpt", "deepseek_v3", "lfm2"]
"""Softcaps, layer norms, scales up and down, norms without weights, biases of the unembedding, hybrids."""


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


def batch_of(model: Model, lengths: tuple[int, ...] = (7, 5), side: str = "right") -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch.pad(
        [torch.randint(3, model.d_vocab, (length,), generator=draw).tolist() for length in lengths], side=side
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_last_block_the_lens_is_the_model(name: str) -> None:
    assert name in TINY
    model = model_of(name)
    batch = batch_of(model)
    run = model.run(batch, read=["resid_final"], logits="all")
    made = end(model, run["resid_final"].flatten(0, 1)).view_as(run.logits)
    torch.testing.assert_close(made, run.logits, rtol=1e-5, atol=1e-5)
    lens = logit_lens(model, batch, top=3)
    assert lens.sites == ("resid_pre.0", "resid_post.0", "resid_post.1")
    best = run.logits.softmax(dim=-1).topk(3, dim=-1)
    real = batch.mask
    assert torch.equal(lens.top_ids[-1][real], best.indices[real])
    torch.testing.assert_close(lens.top_probs[-1][real], best.values[real], rtol=1e-4, atol=1e-5)
    assert float(lens.kl[-1][real].abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_numbers_are_what_they_are_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    batch = batch_of(model)
    sites = ["mlp_out.0", "attn_out", "resid_pre.0"]
    whole = logit_lens(model, batch, sites=sites, answers=[5, 9])
    monkeypatch.setattr(lens_file, "LOGITS", 3 * model.d_vocab)  # three rows at a time
    parts = logit_lens(model, batch, sites=sites, answers=[5, 9])
    assert whole.sites == parts.sites == ("resid_pre.0", "attn_out.0", "mlp_out.0", "attn_out.1")
    run = model.run(batch, read=list(whole.sites), logits="all")
    assert run.logits is not None
    final = run.logits.log_softmax(dim=-1)
    for s, site in enumerate(whole.sites):
        family, config = model.family, model.config
        logits = model.module(family.unembed)(model.module(family.final_norm)(run[site])).detach()
        if family.logit_softcap:
            cap = getattr(config, family.logit_softcap)
            logits = cap * torch.tanh(logits / cap)
        logp = logits.log_softmax(dim=-1)
        for found in (whole, parts):
            for row, place in batch.mask.nonzero().tolist():
                at = logp[row, place]
                torch.testing.assert_close(found.entropy[s, row, place], -(at.exp() * at).sum(), rtol=1e-4, atol=1e-5)
                kl = (final[row, place].exp() * (final[row, place] - at)).sum()
                torch.testing.assert_close(found.kl[s, row, place], kl, rtol=1e-4, atol=1e-5)
                order = at.argsort(descending=True).tolist()
                assert found.answer_ranks[s, row, place].tolist() == [order.index(5), order.index(9)]
                torch.testing.assert_close(found.answer_probs[s, row, place], at[[5, 9]].exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing_and_shows_nothing(side: str) -> None:
    model = model_of("llama")
    rows = batch_of(model)
    batch = batch_of(model, side=side)
    lens = logit_lens(model, batch, answers=[4])
    assert bool(lens.kl[:, ~batch.mask].isnan().all()) and bool(lens.entropy[:, ~batch.mask].isnan().all())
    assert bool((lens.top_ids[:, ~batch.mask] == -1).all()) and bool((lens.answer_ranks[:, ~batch.mask] == -1).all())
    alone = logit_lens(model, rows[[1]], answers=[4])
    torch.testing.assert_close(lens.kl[:, 1][:, batch.mask[1]], alone.kl[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lens.answer_probs[:, 1][:, batch.mask[1]], alone.answer_probs[:, 0])


def test_a_zero_write_is_an_even_guess() -> None:
    model = model_of("llama")  # an RMS norm without bias makes zero of zero
    logits = end(model, torch.zeros(2, model.d_model))
    torch.testing.assert_close(logits.softmax(dim=-1), torch.full((2, model.d_vocab), 1 / model.d_vocab))


def test_the_planted_answer_appears_where_its_head_writes() -> None:
    zoo = copying(n=6)
    pairs = zoo.task.encode(zoo.model)
    before = []
    for row in range(pairs.n):
        lens = logit_lens(zoo.model, pairs.clean[[row]], answers=[int(pairs.answers[row, 0])])
        ranks = lens.answer_ranks[:, 0, int(pairs.clean.last[row]), 0].tolist()
        assert ranks[-1] == 0
        before.append(ranks[:-1])
    assert torch.tensor(before).float().mean() > 5, "of 20 words"


def test_half_precision_is_read_in_full() -> None:
    model = Model(tiny("llama").bfloat16())
    lens = logit_lens(model, batch_of(model))
    assert lens.entropy.dtype == torch.float32
    assert float(lens.kl[-1][lens.mask].abs().max()) < 1e-3


def test_nothing_is_left_behind() -> None:
    model = model_of("llama")
    with pytest.raises(RuntimeError):
        end(model, torch.zeros(2, model.d_model + 1))
    assert not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in model.hf.modules())


def test_what_cannot_be_read_is_said() -> None:
    model = model_of("llama")
    batch = batch_of(model)
    with pytest.raises(ReadingError, match="a lens cannot read 'z.0': it reads resid_pre, "):
        logit_lens(model, batch, sites=["z.0"])
    with pytest.raises(ReadingError, match="write 'resid_post.0' without '@'"):
        logit_lens(model, batch, sites=["resid_post.0@end"])
    with pytest.raises(ReadingError, match=r"sites is a list, as in sites=\['resid_post'\]"):
        logit_lens(model, batch, sites="resid_post")
    with pytest.raises(ReadingError, match="at least one site"):
        logit_lens(model, batch, sites=[])
    with pytest.raises(SiteError, match="resid_post at layers 0 to 1"):
        logit_lens(model, batch, sites=["resid_post.7"])
    with pytest.raises(ReadingError, match="token 64 was asked for; the vocabulary has the ids 0 to 63"):
        logit_lens(model, batch, answers=[64])
    with pytest.raises(ReadingError, match="the vocabulary has 64"):
        logit_lens(model, batch, top=65)
