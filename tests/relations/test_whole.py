"""Whole objects: the model's answer against a plain forward of every candidate, the operator's where the map is known, and
chance where it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.model import Model
from caseback.relations import faithful
from caseback.relations.cross import Operator, cross_evaluate
from caseback.relations.jacobian import expand
from caseback.relations.judge import JudgeConfig, Split, judge_split
from caseback.relations.observe import observe
from caseback.relations.prompt import answered, ask, object_tokens
from caseback.relations.relation import Relation, Sample
from caseback.relations.whole import Whole
from caseback.zoo.affine import HEAD, SHARP, THETA, AffineModel, affine

from .small import SAMPLES, TEMPLATE, model_of, reader, relation_of

LONG = ("w50", "w51 w52", "w51 w53", "w54 w55 w56", "w50 w50")
"""Objects of one to three tokens, some with a first token in common."""
WHOLE = JudgeConfig(objects="whole", pairs=24)


@cache
def named() -> tuple[AffineModel, Relation]:
    """The affine model with objects of two tokens, "friend objectK": the head looks two words back, so that the map is
    applied where the second token is predicted, and the first is the same for all."""
    zoo = affine()
    model = zoo.model
    attention = model.hf.model.layers[1].self_attn
    friend, last = (model.tokenizer.convert_tokens_to_ids(word) for word in ("friend", "is"))
    with torch.no_grad():
        angle = 2 * THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
        attention.k_proj.bias[:HEAD] = SHARP * torch.cat([angle.cos(), angle.sin()])
        model.hf.model.embed_tokens.weight[last] = 0
        model.hf.model.embed_tokens.weight[last, 60] = 1  # a coordinate that nothing else uses
        model.hf.lm_head.weight[friend, 60] = 1
    relation = relation_of(zoo)
    samples = tuple(replace(sample, object=f"friend {sample.object}") for sample in relation.samples)
    return zoo, replace(relation, samples=samples)


@cache
def judged(objects: str = "whole") -> Split:
    zoo, relation = named()
    return judge_split(zoo.model, relation, replace(WHOLE, objects=objects))


# --- the model's own answer ------------------------------------------------------------------------------------------------------------


def plain(model: Model, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[float, torch.Tensor]:
    """(mean log-probability of tokens behind a prompt, mean stream over the places that predict them): one forward."""
    ids = torch.tensor([[*prompt, *tokens]])
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    places = [len(prompt) - 1 + i for i in range(len(tokens))]
    run = model.run(batch, read=[f"resid_final@{place}" for place in places], logits="all")
    assert run.logits is not None
    log_p = run.logits[0].log_softmax(dim=-1)
    score = sum(float(log_p[place, token]) for place, token in zip(places, tokens, strict=True)) / len(tokens)
    return score, torch.stack([run[f"resid_final@{place}"][0] for place in places]).mean(dim=0)


@pytest.mark.filterwarnings("ignore:.*fall.*back")
@pytest.mark.parametrize("template", [TEMPLATE, "{} is"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "lfm2"])
def test_every_candidate_is_scored_as_a_forward_of_its_own(name: str, template: str) -> None:
    """Uneven prompts, with a beginning in common or none, a cache or none."""
    model = model_of(name)
    samples = [Sample(subject=f"w{20 + i}" + " w9" * (i % 2), object=LONG[i]) for i in range(5)]
    examples = SAMPLES[:2] if template == TEMPLATE else ()
    whole = Whole.of(model, LONG, ask(model, template, samples[0], examples).text)
    seen = observe(model, samples, template, examples, reading=whole)
    for i, prompt in enumerate(seen.prompts):
        found = [plain(model, prompt.ids.tolist(), tokens) for tokens in whole.tokens]
        best = int(np.argmax([score for score, _ in found]))
        assert int(seen.token[i]) == best
        torch.testing.assert_close(seen.z[i], found[best][1], atol=2e-4, rtol=1e-3)
        assert bool(seen.known[i]) == (LONG[best] == prompt.object)
        assert int(seen.first[i]) == whole.tokens[best][0]
    assert seen[[1, 0]].reading is whole


def test_few_rows_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    whole = Whole.of(model, LONG, "the")
    before = observe(model, SAMPLES[:3], TEMPLATE, reading=replace_objects(whole))
    monkeypatch.setattr("caseback.relations.whole.CACHED", 1)
    after = observe(model, SAMPLES[:3], TEMPLATE, reading=replace_objects(whole))
    assert torch.equal(before.token, after.token)
    torch.testing.assert_close(before.z, after.z, atol=1e-5, rtol=1e-4)


def replace_objects(whole: Whole) -> Whole:
    """The same candidates and the samples' own objects."""
    model = model_of("gpt2")
    return Whole.of(model, [*whole.objects, *(sample.object for sample in SAMPLES)], "the")


def test_objects_of_one_token_are_read_as_first_tokens_among_them() -> None:
    model = model_of("llama")
    whole = Whole.of(model, [f"w{50 + i}" for i in range(7)], "the")
    seen = observe(model, SAMPLES, TEMPLATE, reading=whole)
    first = observe(model, SAMPLES, TEMPLATE)
    columns = [tokens[0] for tokens in whole.tokens]
    expected = end(model, first.z)[:, columns].argmax(dim=-1)
    assert torch.equal(seen.token, expected) and torch.equal(seen.z, first.z)
    assert torch.equal(whole.decode(model, first.z), expected)
    assert torch.equal(seen.first, torch.tensor(columns)[expected])
    assert whole.chance == 1 / 7


# --- the operator's answer -------------------------------------------------------------------------------------------------------------


def test_a_stream_is_read_by_the_mean_probability_of_the_tokens() -> None:
    model = model_of("gpt2")
    whole = Whole.of(model, LONG, "the")
    z = 3 * torch.randn((6, 2, model.d_model), generator=torch.Generator().manual_seed(0))
    p = end(model, z.flatten(0, 1)).softmax(dim=-1).view(6, 2, -1)
    expected = torch.stack([p[..., list(tokens)].mean(dim=-1) for tokens in whole.tokens], dim=-1).argmax(dim=-1)
    assert torch.equal(whole.decode(model, z, rows=5), expected)
    assert len(set(expected.flatten().tolist())) > 1


def test_no_length_is_preferred_where_the_tokens_are_as_likely() -> None:
    """Random streams; objects of one, two and three tokens drawn from the same words."""
    model, draw = model_of("gpt2"), np.random.default_rng(0)
    objects = [" ".join(f"w{i}" for i in draw.choice(np.arange(20, 64), 1 + k % 3, replace=False)) for k in range(30)]
    whole = Whole.of(model, objects, "the")
    z = torch.randn((3000, model.d_model), generator=torch.Generator().manual_seed(0))
    sizes = np.array([len(one) for one in whole.tokens])
    share = np.bincount(sizes[whole.decode(model, z).numpy()], minlength=4)[1:] / np.bincount(sizes, minlength=4)[1:]
    share /= share.sum()
    assert share.min() > 0.1, share  # by the mean of logarithms it is .06 for three tokens and .74 for one


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_answered_prompt_ends_where_its_object_is_predicted(name: str) -> None:
    model = model_of(name)
    prompt = ask(model, TEMPLATE, Sample(subject="w9", object="w51 w53"), SAMPLES[:2])
    whole = answered(model, prompt)
    assert whole.ends == (-2, -1) and whole.at == prompt.at
    assert whole.ids.tolist() == [*prompt.ids.tolist(), object_tokens(model, prompt.text, "w51")[0]]
    score, z = plain(model, prompt.ids.tolist(), object_tokens(model, prompt.text, "w51 w53"))
    torch.testing.assert_close(expand(model, whole).z, z, atol=1e-4, rtol=1e-3)
    one = answered(model, replace(prompt, object="w50"))
    assert one.ends == (-1,) and torch.equal(one.ids, prompt.ids)


def test_the_map_is_read_from_whole_objects_and_first_tokens_say_nothing() -> None:
    zoo, _ = named()
    found = judged()
    assert found.chance == 1 / 40 and found.n_known == found.n_asked == len(found.sample) == 35
    for name in ("strict", "prefix", "embedding"):
        assert found.arrays[name].all(), name
    for name in ("first", "identity", "translation", "ridge", "bias", "random", "majority"):
        assert found.arrays[name].mean() <= 0.15, name
    assert all(row[1] == row[2] == row[3] and row[1].startswith("friend object") for row in found.said)
    # half of the places that predict an object apply the map
    assert float(np.abs(found.arrays["W"] - zoo.W.numpy() / 2).max()) < 1e-6
    assert np.isnan(found.arrays["causal"]).all(), "all begin alike, so no next token tells of an edit"


def test_by_first_tokens_all_answers_are_one() -> None:
    """Known, right, and as right by the most frequent answer: a relation that a first token cannot tell."""
    found = judged("first")
    assert found.chance is None
    for name in ("strict", "prefix", "majority"):
        assert found.arrays[name].all(), name
    assert {row[2] for row in found.said} == {"friend"} and not found.arrays["W"].any()


def test_shuffled_objects_are_at_chance() -> None:
    zoo, relation = named()
    asked = relation.samples[5:]
    whole = Whole.of(zoo.model, [sample.object for sample in relation.samples], "the friend of subject0 is")
    assert observe(zoo.model, asked, zoo.template, relation.samples[:5], reading=whole).known.all()
    known = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(asked))
        samples = [replace(one, object=asked[i].object) for one, i in zip(asked, order, strict=True)]
        known.append(observe(zoo.model, samples, zoo.template, relation.samples[:5], reading=whole).known.mean())
    assert np.mean(known) <= 0.1  # 1/35 is expected


def test_shuffled_subjects_are_at_chance() -> None:
    from caseback.relations.operator import fit

    zoo, relation = named()
    whole = Whole.of(zoo.model, [sample.object for sample in relation.samples], "the friend of subject0 is")
    seen = observe(zoo.model, relation.samples[5:], zoo.template, relation.samples[:5], reading=whole)
    operators = fit(zoo.model, relation.samples[:5], zoo.template, whole=True)
    assert faithful.answers(zoo.model, operators, seen).strict[0, 2].all()
    scores = []
    for seed in range(5):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(seen)))
        found = faithful.answers(zoo.model, operators, replace(seen, s=seen.s[order]))
        scores.append(found.strict.mean(axis=2).max())
    assert np.mean(scores) < 0.15


# --- refusals --------------------------------------------------------------------------------------------------------------------------


def test_an_object_that_shares_a_token_with_what_precedes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader("is", "Ġis", "Ġblue")
    said = model.tokenizer.convert_ids_to_tokens(list(object_tokens(model, "It is", "blue")))
    assert said == ["Ġblue"]
    said = model.tokenizer.convert_ids_to_tokens(list(object_tokens(model, "It is", "é")))
    assert said == ["Ġ", "Ã", "©"], "a space of its own has to be said as well"
    joined = model.tokens("It is blue")[:-2] + [7]  # one token for "is blue"
    monkeypatch.setattr(model, "tokens", lambda text: joined if text == "It is blue" else Model.tokens(model, text))
    with pytest.raises(
        RelationError, match="the object 'blue' shares a token with what precedes it in 'It is'; end the"
    ):
        object_tokens(model, "It is", "blue")
    with pytest.raises(RelationError, match="no UTF-8"):
        object_tokens(model, "It is", "\ud800")
    with pytest.raises(RelationError, match="shares a token"):
        object_tokens(model_of("gpt2"), "the", " ")


def test_objects_that_cannot_be_told_apart() -> None:
    model = model_of("gpt2")
    with pytest.raises(RelationError, match="at least two"):
        Whole.of(model, ["w50", "w50"], "the")
    with pytest.raises(RelationError, match="'w50' and 'w50  ' are the same tokens"):
        Whole.of(model, ["w50", "w51", "w50  "], "the")


def test_an_object_cut_otherwise_behind_another_prompt() -> None:
    model = model_of("gpt2")
    whole = Whole.of(model, LONG, "the")
    moved = replace(whole, tokens=(whole.tokens[1], whole.tokens[0], *whole.tokens[2:]))
    with pytest.raises(RelationError, match="the object 'w50' has other tokens behind"):
        observe(model, [Sample(subject="w9", object="w50")], TEMPLATE, reading=moved)


def test_relations_are_not_compared_by_whole_objects() -> None:
    model = model_of("gpt2")
    seen = observe(model, SAMPLES[:3], TEMPLATE, reading=replace_objects(Whole.of(model, LONG, "the")))
    d = model.d_model
    friend = Operator(W=torch.zeros((d, d)), b=torch.zeros(d), beta=1.0, layer=0)
    with pytest.raises(
        RelationError, match="'friend' was asked for whole objects; relations are compared by first tokens"
    ):
        cross_evaluate(model, {"friend": friend}, {"friend": seen})
