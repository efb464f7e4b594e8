"""Heads: patterns are the model's, planted heads come out as planted, random ones at chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caseback.core.errors import FamilyError, ReadingError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import heads as heads_file
from caseback.reading.heads import KINDS, HeadScores, find_heads, patterns, repeated
from caseback.zoo import induction
from caseback.zoo.tiny import tiny


def batch_of(model: Model) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch.pad([torch.randint(3, model.d_vocab, (length,), generator=draw).tolist() for length in (7, 5)])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "gpt_oss", "qwen2"])
def test_patterns_are_the_models_own(name: str) -> None:
    model = Model(tiny(name))
    batch = batch_of(model)
    found = patterns(model, batch)
    run = model.run(batch, read=["pattern.*", "v.*"])
    real = (batch.mask[:, :, None] & batch.mask[:, None, :])[:, None]
    assert found.layers == (0, 1) and found.weighted is not None
    for l in found.layers:
        torch.testing.assert_close(found.pattern[l], run[f"pattern.{l}"] * real)
        assert float(found.pattern[l].triu(1).abs().max()) == 0
        assert not found.pattern[l].masked_select(~real).any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "phi3"])
def test_weighted_patterns_are_lengths_of_what_is_moved(name: str) -> None:
    """One head, one source token, everything else silenced: the length of what attention adds is A |v W_O|."""
    model = Model(tiny(name))
    batch = batch_of(model)
    found = patterns(model, batch)
    assert found.weighted is not None
    run = model.run(batch, read=["v.*"])
    bias = getattr(model.o_proj(0), "bias", None)
    for row, head, query, key in ((0, 0, 6, 2), (0, 3, 4, 4), (1, 2, 4, 0)):
        for layer in (0, 1):
            z = torch.zeros(1, 1, model.n_heads, model.d_head)
            group = head * model.n_kv_heads // model.n_heads
            z[0, 0, head] = found.pattern[layer, row, head, query, key] * run[f"v.{layer}"][row, key, group]
            out = model.o_proj(layer)(z.flatten(2)) * model.write_scale  # type: ignore[misc]
            if bias is not None:
                out = out - model.o_proj(layer).bias * model.write_scale  # type: ignore[union-attr, operator]
            torch.testing.assert_close(
                found.weighted[layer, row, head, query, key], out.detach().norm(), rtol=1e-4, atol=1e-6
            )


def test_layers_can_be_chosen() -> None:
    model = Model(tiny("llama"))
    batch = batch_of(model)
    torch.testing.assert_close(patterns(model, batch, layers=[1]).pattern[0], patterns(model, batch).pattern[1])
    hybrid = Model(tiny("qwen3_5_text"))
    found = patterns(hybrid, batch_of(hybrid))
    assert found.layers == (1,) and found.weighted is None, "a gate multiplies what its heads move"
    with pytest.raises(ReadingError, match="layer 0 has no attention pattern; the layers 1 have"):
        patterns(hybrid, batch, layers=[0])
    with pytest.raises(FamilyError, match="falcon has no sites"):
        patterns(Model(tiny("falcon")), batch)
    with pytest.raises(FamilyError, match="falcon has no sites"):
        find_heads(Model(tiny("falcon")))


def planted() -> tuple[Model, HeadScores]:
    zoo = induction(n=4)
    names = [zoo.model.tokens(name)[0] for name in ("ada", "bob", "cleo", "dan", "eve", "finn")]
    return zoo.model, find_heads(zoo.model, repeated(zoo.model, n=12, length=6, pool=names))


def test_planted_heads_come_out_as_planted() -> None:
    _, found = planted()
    assert found.sequences.first == 0 and found.sequences.ids.shape == (12, 12)
    assert found.best("previous", 1) == [(0, 1)] and found.best("induction", 1) == [(1, 2)]
    previous, gain = found.intervals("previous")[0][1], found.gains("induction")[1][2]
    assert previous.low > 3 * found.chance[0] and gain.low > found.chance[2]
    assert previous.n == 12
    others = np.delete(found.scores.mean(axis=-1)[2].ravel(), 6)
    assert (others - found.chance[2]).max() < 0.01
    assert abs(found.gains("previous")[0][1].value) < 0.02, "places alone: the control changes nothing"
    assert all(head.value < 0.02 for layer in found.gains("duplicate") for head in layer)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_random_heads_are_near_chance(name: str) -> None:
    model = Model(tiny(name))
    found = find_heads(model, repeated(model, n=48, length=12))
    assert found.scores.shape == (3, 2, 4, 48) == found.control.shape
    for k, kind in enumerate(KINDS[1:], 1):
        mean = found.scores[k].mean()
        assert abs(mean - found.chance[k]) < 0.5 * found.chance[k] + 0.02, kind
        assert abs(found.scores[k].mean() - found.control[k].mean()) < 0.06


def test_an_even_head_scores_chance_and_a_perfect_one_scores_one() -> None:
    sequences = repeated(Model(tiny("llama")), n=2, length=5)
    assert sequences.first == 1 and sequences.ids[0, 0] == 1
    t = torch.arange(11)
    even = (1 / (t + 1.0))[:, None].expand(11, 11).tril()
    scores = heads_file._places(even, sequences)
    torch.testing.assert_close(scores[0], (1 / torch.arange(3.0, 12)).mean())  # tokens 2 to 10 have one before, not BOS
    torch.testing.assert_close(scores[1], (1 / torch.arange(7.0, 12)).mean())
    torch.testing.assert_close(scores[2], scores[1])
    for kind, back in enumerate((1, 5, 4)):
        pattern = torch.zeros(11, 11)
        pattern[t[back:], t[back:] - back] = 1
        assert heads_file._places(pattern, sequences)[kind] == 1


def test_sequences_are_what_they_say() -> None:
    model = Model(tiny("llama"))
    found = repeated(model, n=20, length=8, seed=4)
    once, twice, other = found.ids[:, 1:9], found.ids[:, 9:], found.control[:, 9:]
    assert torch.equal(once, twice) and torch.equal(found.control[:, :9], found.ids[:, :9])
    assert torch.equal(once.sort(dim=1).values, other.sort(dim=1).values) and not torch.equal(once, other)
    assert all(len(set(row)) == 8 for row in once.tolist())
    assert not torch.isin(once, torch.tensor([0, 1, 2])).any(), "no special tokens"
    assert torch.equal(repeated(model, n=20, length=8, seed=4).ids, found.ids)
    assert not torch.equal(repeated(model, n=20, length=8, seed=5).ids, found.ids)
    assert repeated(model, n=1, length=8, bos=None).first == 0
    same = find_heads(model, found)
    again = find_heads(model, found)
    assert np.array_equal(same.scores, again.scores)


def test_rows_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    whole = find_heads(model, repeated(model, n=5, length=6))
    monkeypatch.setattr(heads_file, "ROWS", 2)
    np.testing.assert_allclose(find_heads(model, repeated(model, n=5, length=6)).scores, whole.scores, atol=1e-6)


def test_what_cannot_be_drawn_is_said() -> None:
    model = Model(tiny("llama"))
    with pytest.raises(ReadingError, match="40 different tokens were asked for; there are 3 to draw from"):
        repeated(model, length=40, pool=[4, 5, 6])
    with pytest.raises(ReadingError, match="a sequence of 81 tokens was asked for; the model has 64 positions"):
        repeated(model, length=40)
    with pytest.raises(ReadingError, match="token 64 is not in the vocabulary"):
        repeated(model, pool=[4, 5, 64], length=3)
    with pytest.raises(ReadingError, match="at least 3 tokens"):
        repeated(model, length=2)
    _, found = planted()
    with pytest.raises(ReadingError, match="no kind of head 'copy'; there are: previous, duplicate, induction"):
        found.intervals("copy")
