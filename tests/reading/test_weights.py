"""Weights of heads: factors against dense products, circuits against the running model, planted heads, random ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caseback.circuits.parts import layers_of
from caseback.core.errors import FamilyError, ReadingError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import weights as weights_file
from caseback.reading.weights import (
    Factored,
    composition,
    copying_scores,
    neuron_words,
    ov_circuits,
    qk_circuits,
    random_values,
    singular_words,
)
from caseback.zoo import copying, induction, planted
from caseback.zoo.copy_circuit import NAMES
from caseback.zoo.tiny import tiny


def batch_of(model: Model) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch.pad([torch.randint(3, model.d_vocab, (6,), generator=draw).tolist()])


def test_factors_are_their_product() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 3, 12, 4, generator=draw).double(), torch.randn(2, 3, 4, 12, generator=draw).double()
    factors = Factored(left, right)
    dense = factors.dense()
    torch.testing.assert_close(dense, left @ right)
    torch.testing.assert_close(factors.norm(), torch.linalg.matrix_norm(dense))
    torch.testing.assert_close(factors.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(factors.mT.dense(), dense.mT)
    torch.testing.assert_close(factors[1, 2].dense(), dense[1, 2])
    found = factors.svd()
    torch.testing.assert_close(found.u * found.s[..., None, :] @ found.vt, dense)
    torch.testing.assert_close(found.s, torch.linalg.svdvals(dense)[..., :4])
    torch.testing.assert_close(found.u.mT @ found.u, torch.eye(4).double().expand(2, 3, 4, 4))
    own, whole = factors.eigenvalues()[0, 0], torch.linalg.eigvals(dense[0, 0])
    assert all(float((whole - value).abs().min()) < 1e-8 for value in own)
    torch.testing.assert_close(own.sum().real, whole.sum().real)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "phi3", "gpt_neox", "olmo"])
def test_ov_is_what_the_model_does(name: str) -> None:
    """The difference of two tokens, which has no biases in it, through the model's own value and output projections."""
    model = Model(tiny(name))
    if name == "olmo":
        model.config.clip_qkv = None  # it would cut the values off
    run = model.run(batch_of(model), read=["resid_pre.*", "v.*"])
    circuits = ov_circuits(model)
    assert circuits.left.shape == (2, 4, 48, model.d_head)
    for l, layer in enumerate(layers_of(model)):
        assert layer.attn_norm is not None
        n, _ = layer.attn_norm.unit(run[f"resid_pre.{l}"][0])
        v = run[f"v.{l}"][0].repeat_interleave(model.n_heads // model.n_kv_heads, dim=1)
        for head in range(4):
            z = torch.zeros(2, 4, model.d_head)
            z[0, head] = v[4, head] - v[1, head]
            made = model.o_proj(l)(z.flatten(1))  # type: ignore[misc]
            wanted = (made[0] - made[1]).detach() * model.write_scale
            torch.testing.assert_close((n[4] - n[1]) @ circuits[l, head].dense(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("gpt2", 0), ("gpt2", 1), ("smollm3", 1)])
def test_qk_is_what_the_model_compares(name: str, layer: int) -> None:
    """Without rotary embedding (SmolLM 3 has none in that layer) and without biases (double differences)."""
    model = Model(tiny(name))
    run = model.run(batch_of(model), read=["resid_pre.*", "q.*", "k.*"])
    norm = layers_of(model)[layer].attn_norm
    assert norm is not None
    n, _ = norm.unit(run[f"resid_pre.{layer}"][0])
    q, k = run[f"q.{layer}"][0], run[f"k.{layer}"][0].repeat_interleave(model.n_heads // model.n_kv_heads, dim=1)
    circuits = qk_circuits(model)
    for head in range(4):
        found = (n[5] - n[2]) @ circuits[layer, head].dense() @ (n[4] - n[1])
        wanted = (q[5, head] - q[2, head]) @ (k[4, head] - k[1, head])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_planted_head_copies() -> None:
    model = copying(n=2).model
    found = copying_scores(model)
    assert found.score[1, 2] == pytest.approx(1, abs=1e-4)
    assert found.control[1, 2] < 0.8
    others = np.delete(found.score.ravel(), 6)
    assert np.abs(others).mean() < 0.3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2"])
def test_copying_is_that_of_the_dense_matrix(name: str) -> None:
    model = Model(tiny(name))
    found, ov = copying_scores(model), ov_circuits(model)
    norm = layers_of(model)[0].attn_norm
    embedding = model.module(model.family.embed).weight.detach()
    embedding = embedding if norm is None else norm.unit(embedding)[0]
    final = model.module(model.family.final_norm)
    gain = weights_file.Norm.of(final, 48)
    assert gain is not None
    unembedding = gain.fold(model.module(model.family.unembed).weight.detach())
    unembedding = unembedding - unembedding.mean(dim=0)
    for layer, head in ((0, 1), (1, 3)):
        values = torch.linalg.eigvals((embedding @ ov[layer, head].dense() @ unembedding.T).double())
        wanted = float(values.real.sum() / values.abs().sum())
        assert found.score[layer, head] == pytest.approx(wanted, abs=2e-3)
    again = copying_scores(model)
    assert np.array_equal(found.score, again.score) and np.array_equal(found.control, again.control)


def test_random_heads_do_not_copy() -> None:
    scores = np.stack([copying_scores(Model(tiny("llama", seed=seed))).score for seed in range(6)])
    assert abs(scores.mean()) < 0.1 and np.abs(scores).max() < 0.7


def test_the_planted_head_reads_and_writes_its_words() -> None:
    model = copying(n=2).model
    names = {model.tokens(name)[0] for name in NAMES}
    found = singular_words(model, 1, 2, rank=8, top=1)
    assert found.values.shape == (8,) and found.read.tokens.shape == (8, 2, 1)
    assert float(found.share.sum()) == pytest.approx(1, abs=1e-5)
    raised = found.written.scores > found.written.scores.max() / 10
    assert bool(raised.any(dim=1).all())
    written = found.written.tokens[raised]
    assert set(written.tolist()) <= names and torch.equal(written, found.read.tokens[raised])
    assert found.written.ratio.min() > 1.5 < found.read.ratio.min(), "further than random directions"
    keys = singular_words(model, 1, 2, circuit="qk", rank=1, top=len(names))
    [end] = [e for e in (0, 1) if model.tokenizer.decode(keys.read.tokens[0, e, 0]) == "called"]
    assert set(keys.written.tokens[0, end].tolist()) == names, "the last word looks for the names"


def test_words_are_those_of_the_dense_matrix() -> None:
    model = Model(tiny("gpt2"))
    found = singular_words(model, 1, 2, rank=2, top=3)
    u, s, vt = torch.linalg.svd(ov_circuits(model)[1, 2].dense())
    torch.testing.assert_close(found.values, s[:2], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        gain = model.hf.transformer.ln_f.weight
        logits = model.hf.lm_head(gain * vt[:2])
    centre = (gain[None] * model.hf.lm_head.weight).mean(dim=-1).detach()
    logits = (logits - centre * vt[:2].sum(dim=-1, keepdim=True)).detach()
    for direction in range(2):
        ends = {tuple(ids) for ids in found.written.tokens[direction].tolist()}
        wanted = {tuple((sign * logits[direction]).topk(3).indices.tolist()) for sign in (1, -1)}
        assert ends == wanted


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt", "bloom", "olmo2"])
def test_neurons_are_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read: the model's own map into the neurons on every token's normed embedding. Written: what a neuron alone puts out,
    through the final norm's weight and the unembedding, for a norm that takes off a mean and one that does not."""
    monkeypatch.setattr(weights_file, "FLOATS", 5 * 64)  # a few neurons at a time
    model = Model(tiny(name))
    found, family, block = neuron_words(model, 1, top=3), model.family, model.blocks[1]
    embedding = model.module(family.embed).weight.detach()
    if family.mlp_norm is not None:
        norm = weights_file.Norm.of(block.get_submodule(family.mlp_norm), 48)
        assert norm is not None
        embedding = norm.weight * norm.unit(embedding)[0]  # the norm's bias is the same for all tokens
    mlp = block.get_submodule(family.mlp)
    for label, read in found.read.items():
        path, _, half = label.partition(", ")
        made = (mlp if path == family.mlp else mlp.get_submodule(path))(embedding).detach()
        if half:
            made = made.chunk(2, dim=1)[half == "second half"]
        made = (made - made.mean(dim=0)).T
        torch.testing.assert_close(read.scores[:, 0], made.topk(3).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read.scores[:, 1], (-made).topk(3).values, rtol=1e-4, atol=1e-5)
    down = block.get_submodule(family.down_proj or "")
    neurons = torch.eye(len(found.neurons))[:, None]
    written = (down(neurons) - down(0 * neurons))[:, 0] if name != "bloom" else down.weight.T
    writer = block.get_submodule(family.writes[1])
    if writer is not mlp and writer is not down:
        written = written * writer.weight
    final = model.module(family.final_norm)
    assert weights_file.Norm.of(final, 48) is not None
    centred = written - written.mean(dim=-1, keepdim=True) if getattr(final, "bias", None) is not None else written
    logits = (centred * final.weight) @ model.module(family.unembed).weight.T
    logits = (logits - logits.mean(dim=-1, keepdim=True)).detach()
    torch.testing.assert_close(found.written.scores[:, 0], logits.topk(3).values, rtol=1e-4, atol=1e-5)
    lengths = found.written.length
    peak = logits.abs().amax(dim=-1).numpy() / np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(found.written.peak, peak, rtol=1e-4)
    normal = logits.double() / logits.double().pow(2).mean(dim=-1, keepdim=True).sqrt()
    np.testing.assert_allclose(found.written.kurtosis, normal.pow(4).mean(dim=-1).numpy(), rtol=1e-3)
    some = neuron_words(model, 1, [7, 2], top=3)
    assert some.neurons == (7, 2)
    torch.testing.assert_close(some.written.scores, found.written.scores[[7, 2]])
    assert np.array_equal(some.written.random_peak, found.written.random_peak)


def test_planted_neurons_write_the_answers_and_random_ones_nothing_much() -> None:
    zoo = planted(n=2)
    found = neuron_words(zoo.model, 3, [0, 1], top=1)
    assert {zoo.model.tokenizer.decode(ids) for ids in found.written.tokens[:, 0].tolist()} == {"walk", "stay"}
    assert found.written.ratio.min() > 1.5
    for name in ("llama", "gpt2"):
        random = neuron_words(Model(tiny(name)), 0)
        for one in (random.written, *random.read.values()):
            assert one.ratio.mean() == pytest.approx(1, abs=0.1)
            assert one.kurtosis.mean() == pytest.approx(one.random_kurtosis.mean(), rel=0.2)


def test_random_values_are_those_of_random_heads() -> None:
    draw = torch.Generator().manual_seed(1)
    like = Factored(torch.randn(48, 12, generator=draw), torch.randn(12, 48, generator=draw))
    found = random_values(like, draws=50)
    assert found.shape == (50, 12)
    torch.testing.assert_close(found.square().sum(dim=1).sqrt(), like.norm().expand(50))
    torch.testing.assert_close(found.mean(dim=0), like.svd().s, rtol=0.25, atol=0.0)
    assert torch.equal(found, random_values(like, draws=50)) and not torch.equal(
        found, random_values(like, draws=50, seed=1)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2"])
def test_composition_is_that_of_the_dense_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny(name))
    monkeypatch.setattr(weights_file, "FLOATS", 5 * 40 * 48)  # a few rows at a time
    found = composition(model)
    ov, qk = ov_circuits(model).dense().double(), qk_circuits(model).dense().double()
    norm = torch.linalg.matrix_norm
    assert found.scores.shape == (3, 2, 4, 2, 4)
    for a in range(4):
        for b in range(4):
            for channel, reads in enumerate((qk[1, b], qk[1, b].mT, ov[1, b])):
                wanted = norm(ov[0, a] @ reads) / (norm(ov[0, a]) * norm(reads))
                assert found.scores[channel, 0, a, 1, b] == pytest.approx(float(wanted), abs=1e-4)
    assert np.isnan(found.scores[:, 1]).all() and np.isnan(found.scores[:, :, :, 0]).all()


def test_random_heads_compose_as_expected() -> None:
    scores = np.stack([composition(Model(tiny("llama", seed=seed))).scores for seed in range(4)])
    real = scores[np.isfinite(scores)]
    assert np.sqrt((real**2).mean()) == pytest.approx(48**-0.5, rel=0.05)
    found = composition(Model(tiny("llama")))
    assert found.expected == 48**-0.5
    assert abs(np.nanmean(found.excess)) < 0.01


def test_the_planted_pair_composes_through_its_keys() -> None:
    found = composition(induction(n=2).model)
    assert found.strongest("k", 1) == [(0, 1, 1, 2)]
    assert found.scores[1, 0, 1, 1, 2] > 3 * found.expected
    assert found.scores[0, 0, 1, 1, 2] < found.expected and found.scores[2, 0, 1, 1, 2] < found.expected
    assert len(found.strongest("q", 99)) == 16


def test_what_does_not_exist_is_said() -> None:
    model = Model(tiny("llama"))
    with pytest.raises(ReadingError, match="head 4 of layer 0 was asked for; the model has 2 layers of 4 heads"):
        singular_words(model, 0, 4)
    with pytest.raises(ReadingError, match="a head has 16, the vocabulary 64"):
        singular_words(model, 0, 0, rank=17)
    with pytest.raises(FamilyError, match="falcon has no circuits"):
        ov_circuits(Model(tiny("falcon")))
    with pytest.raises(ReadingError, match="neuron 40 of layer 1 was asked for; it has the neurons 0 to 39"):
        neuron_words(model, 1, [3, 40])
    with pytest.raises(ReadingError, match="the MLP of layer 2 has no single row of neurons; layers that have: 0, 1"):
        neuron_words(model, 2)
    with pytest.raises(ReadingError, match="layers that have: none"):
        neuron_words(Model(tiny("mixtral")), 0)
    with pytest.raises(ReadingError, match="0 neurons of 8 tokens were asked for"):
        neuron_words(model, 0, [])
