"""Causal scrubbing: what must come out exactly, on every family that can be cut this way, and on a planted circuit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from caseback.circuits.hypothesis import Hypothesis, others, read_hypothesis
from caseback.circuits.scrub import scrub
from caseback.core.errors import CasebackError, CircuitError, SiteError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import loss
from caseback.zoo import induction
from caseback.zoo.tiny import tiny

PLANTED = induction(n=60, seed=1)
TRUE = {
    "about": "the last word looks for the note of itself, and says the colour found there",
    "output": ["find"],
    "nodes": {
        "find": {
            "sites": ["z.1.2@end"],
            "agree": ["colour"],
            "inputs": ["first<k>", "second<k>", "word<q>", "colours<v>"],
        },
        "first": {"sites": ["z.0.1@colour"], "agree": ["name"], "inputs": ["name<v>"]},
        "second": {"sites": ["z.0.1@foil"], "agree": ["other"], "inputs": ["other<v>"]},
        "name": {"sites": ["resid_pre.0@name"], "agree": ["name"]},
        "other": {"sites": ["resid_pre.0@other"], "agree": ["other"]},
        "word": {"sites": ["resid_pre.0@end"], "agree": ["name"]},
        "colours": {"sites": ["resid_pre.0@colour", "resid_pre.0@foil"], "agree": ["colour", "foil"]},
    },
}


@pytest.fixture(scope="module")
def pairs():
    return PLANTED.task.encode(PLANTED.model)


def recovered(pairs, *hypotheses, draws=3):
    found = scrub(
        PLANTED.model, pairs, [Hypothesis.of(h) if isinstance(h, dict) else h for h in hypotheses], draws=draws
    )
    return [each.recovered.value for each in found]


def changed(**nodes):
    data = json.loads(json.dumps(TRUE))
    for name, fields in nodes.items():
        data["nodes"][name] |= fields
    return data


def test_nothing_claimed_recovers_all_and_all_denied_nothing(pairs):
    trivial, empty = scrub(PLANTED.model, pairs, [Hypothesis.of({"output": "all"}), Hypothesis.of({"output": []})])
    assert (trivial.metric == trivial.model[0]).all() and (trivial.loss == trivial.model[1]).all()
    assert trivial.recovered.value == trivial.loss_recovered.value == 1
    assert empty.recovered.value == pytest.approx(0, abs=1e-6) == empty.loss_recovered.value


def test_the_empty_hypothesis_is_resample_ablation(pairs):
    """Every prompt's output comes from one other prompt: never from itself, and exactly."""
    (empty,) = scrub(PLANTED.model, pairs, [Hypothesis.of({"output": []})], draws=1)
    logits = PLANTED.model.logits(pairs.clean)
    n = pairs.n
    crossed = np.empty((n, n))
    for i in range(n):  # the loss of prompt i's answer under prompt j's output
        crossed[i] = loss(logits, pairs[[i] * n]).numpy()
    nearest = np.abs(crossed - empty.loss[:, None])
    assert nearest.min(axis=1).max() < 1e-4
    np.fill_diagonal(nearest, np.inf)
    assert nearest.min(axis=1).max() < 1e-4


def test_the_planted_hypothesis_holds_and_wrong_ones_do_not(pairs):
    true, prompt = recovered(pairs, TRUE, Hypothesis.of(TRUE).agreeing(("prompt",)))
    assert 0.95 < true < 1.1 and prompt == pytest.approx(1, abs=0.05)
    wrong = recovered(
        pairs,
        changed(first={"agree": []}, name={"agree": []}),  # the note does not depend on the name
        changed(word={"agree": ["other"]}),  # the last word is the other name
        changed(find={"inputs": ["first<v>", "second<v>", "word<q>", "colours<v>"]}),  # the notes are read by the value
        changed(colours={"agree": ["name"]}),
    )
    assert max(wrong) < 0.6
    less = recovered(pairs, *(Hypothesis.of(TRUE).without(name) for name in ("first", "word", "colours", "find")))
    assert max(less) < 0.6 and less[-1] == pytest.approx(0, abs=1e-6)


def test_chance_is_chance(pairs):
    """Other places, and features that say nothing, recover nothing."""
    own = Hypothesis.of(TRUE)
    moved = others(own, PLANTED.model, 4, np.random.default_rng(0))
    assert len({each.sites for each in moved}) == 4 and all(each.sites != own.sites for each in moved)
    two = Hypothesis.of({"output": ["a"], "nodes": {"a": {"sites": ["z.1.0@end", "z.1.2@end"]}}})
    places = [frozenset(each.sites) for each in others(two, PLANTED.model, 40, np.random.default_rng(0))]
    assert (
        len(set(places)) == len(places)
        and frozenset(two.sites) not in places
        and two.n_elsewhere(PLANTED.model) is None
    )
    *elsewhere, nothing = recovered(pairs, *moved, own.agreeing(()))
    assert max(abs(each) for each in [*elsewhere, nothing]) < 0.15


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "opt", "granite", "qwen3"])
def test_all_writers_on_the_prompt_are_the_model(kind):
    """The stream is the sum of what is written: with every writer its own, the rest may come from anywhere."""
    model = Model(tiny(kind))
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, model.d_vocab, (length,), generator=rng).tolist() for length in (5, 7, 6, 5)]
    batch = Batch.pad(rows)
    ids = torch.tensor([[1], [2], [3], [4]])
    pairs = PairBatch(batch, batch, ids, ids + 4, "logit_diff")
    heads = {
        f"heads{l}": {"sites": [f"z.{l}.{h}@end" for h in range(model.n_heads)], "agree": ["prompt"]}
        for l in range(model.n_layers)
    }
    mlps = {f"mlp{l}": {"sites": [f"mlp_out.{l}@-1"], "agree": ["prompt"]} for l in range(model.n_layers)}
    embedding = {"embedding": {"sites": ["resid_pre.0@end"], "agree": ["prompt"]}}
    nodes = {**heads, **mlps, **embedding}
    flat = Hypothesis.of({"output": list(nodes), "nodes": nodes})
    deep = {name: dict(node) for name, node in nodes.items()}
    if not model.family.parallel:  # the last MLP reads every writer before it
        deep[f"mlp{model.n_layers - 1}"]["inputs"] = [name for name in nodes if name != f"mlp{model.n_layers - 1}"]
    for hypothesis in (flat, Hypothesis.of({"output": list(deep), "nodes": deep})):
        (found,) = scrub(model, pairs, [hypothesis], draws=2)
        assert np.abs(found.random[0] - found.model[0]).max() > 1e-3  # what is put in differs
        assert np.abs(found.metric - found.model[0]).max() < 1e-4 * max(1, np.abs(found.model[0]).max())


def test_draws_agree_and_are_others(pairs):
    """Alone counts the draws for which no other prompt agreed."""
    (found,) = scrub(PLANTED.model, pairs, [Hypothesis.of(TRUE)])
    assert set(found.alone) == set(TRUE["nodes"])
    assert (
        found.alone["find"] == 0 and 0 < found.alone["colours"] < 0.5
    )  # two colours of six: 30 kinds among 60 prompts
    (whole,) = scrub(PLANTED.model, pairs, [Hypothesis.of(TRUE).agreeing(("prompt",))], draws=1)
    assert set(whole.alone.values()) == {1.0}
    (same,) = scrub(
        PLANTED.model, pairs, [Hypothesis.of(TRUE).agreeing(("name=end",))], draws=1
    )  # true of every prompt
    (any_,) = scrub(PLANTED.model, pairs, [Hypothesis.of(TRUE).agreeing(())], draws=1)
    assert (same.metric == any_.metric).all()
    with_seed = [scrub(PLANTED.model, pairs, [Hypothesis.of(TRUE)], draws=1, seed=s)[0].metric for s in (0, 0, 1)]
    assert (with_seed[0] == with_seed[1]).all() and (with_seed[0] != with_seed[2]).any()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "a hypothesis is an object"),
        ({"nodes": {}}, "a hypothesis is an object"),
        ({"output": ["a"]}, "'output' reads 'a', which is no node"),
        ({"output": "everything"}, "is a list of words"),
        ({"output": [], "nodes": {"a": {"sites": ["z.0.1@end"]}}}, "nothing reads node 'a'"),
        ({"output": ["a"], "nodes": {"a": {"sites": ["z.0.1@end"], "inputs": ["a"]}}}, "a circle"),
        ({"output": ["a", "a<q>"], "nodes": {"a": {"sites": ["z.0.1@end"]}}}, "names an input twice"),
        ({"output": ["a"], "nodes": {"a": {"sites": ["z.*.1@end"]}}}, "names many sites at once"),
        ({"output": ["a<x>"], "nodes": {"a": {"sites": ["z.0.1@end"]}}}, "is no input of"),
        ({"output": ["a"], "nodes": {"a": {"site": ["z.0.1@end"]}}}, "has no field 'site'"),
        ({"output": ["a"], "nodes": {"a": {"sites": "z.0.1@end"}}}, "is a list of words"),
        ({"output": ["a"], "nodes": {"output": {"sites": []}}}, "no name for a node"),
        ({"output": [], "colour": 1}, "has no field 'colour'"),
        (
            {"output": ["a"], "nodes": {"a": {"sites": ["z.0.1@end"], "agree": ["name"], "inputs": []}}},
            "node 'a' reads nothing, so all of it comes from any prompt",
        ),
        ({"output": [], "about": 3}, '"about" is a sentence'),
        ({"output": ["a"], "nodes": []}, '"nodes" is an object'),
    ],
)
def test_what_is_no_hypothesis_is_said(data, said):
    with pytest.raises(CircuitError, match=said):
        Hypothesis.of(data)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"sites": []}, "names no site"),
        ({"sites": ["z.0.1"]}, "needs a position"),
        ({"sites": ["resid_post.0@end"]}, "nothing that writes"),
        ({"sites": ["z.0@end"]}, "nothing that writes"),
        ({"sites": ["z.9.1@end"]}, "layer"),
        ({"sites": ["z.1.1@nowhere"]}, "no span 'nowhere'"),
        ({"sites": ["z.1.1@between"]}, "ask for one of them"),
        ({"sites": ["z.1.1@name"]}, "reads the last token alone"),
        ({"sites": ["z.1.1@end", "z.1.1@-1"]}, "the same token"),
        ({"sites": ["z.1.1@end"], "agree": ["nowhere"]}, "no feature 'nowhere'"),
        ({"sites": ["z.1.1@end"], "inputs": ["b"]}, "lies behind it or beside it"),
    ],
)
def test_what_cannot_be_carried_out_is_said(pairs, node, said):
    nodes = {"a": node} | ({"b": {"sites": ["z.1.2@end"]}} if "inputs" in node else {})
    hypothesis = Hypothesis.of({"output": ["a"], "nodes": nodes})
    with pytest.raises(CasebackError, match=said):
        scrub(PLANTED.model, pairs, [hypothesis])


def test_a_site_is_of_one_node_and_ways_in_are_of_heads(pairs):
    twice = {"output": ["a", "b"], "nodes": {"a": {"sites": ["z.1.1@end"]}, "b": {"sites": ["z.1.1@end"]}}}
    with pytest.raises(CircuitError, match="a site is of one node"):
        scrub(PLANTED.model, pairs, [Hypothesis.of(twice)])
    with pytest.raises(CircuitError, match="only heads"):
        scrub(PLANTED.model, pairs, [Hypothesis.of({"output": ["a<q>"], "nodes": {"a": {"sites": ["z.1.1@end"]}}})])
    with pytest.raises(CircuitError, match="2 prompts"):
        scrub(PLANTED.model, pairs[:1], [Hypothesis.of(TRUE)])


def test_a_tree_that_is_too_large_is_refused():
    names = [f"n{i}" for i in range(12)]
    nodes = {name: {"sites": [f"mlp_out.{i}@end"], "inputs": names[:i]} for i, name in enumerate(names)}
    with pytest.raises(CircuitError, match="4,095 nodes; 2,000 is the most"):
        Hypothesis.of({"output": names, "nodes": nodes})


def test_files(tmp_path):
    assert read_hypothesis("ioi").sites
    assert Hypothesis.of(read_hypothesis("ioi").plain()) == read_hypothesis("ioi")
    assert Hypothesis.of(Hypothesis.of(TRUE).plain()) == Hypothesis.of(TRUE)
    for text, said in (
        ("{", "no JSON"),
        ('{"output": [], "output": []}', "stands there twice"),
        ("[" * 9999, "no JSON"),
        ("3", "h.json: a hypothesis"),
    ):
        (tmp_path / "h.json").write_text(text)
        with pytest.raises(CircuitError, match=said):
            read_hypothesis(tmp_path / "h.json")
    with pytest.raises(CircuitError, match="comes with caseback: ioi"):
        read_hypothesis("nowhere")
    with pytest.raises(CircuitError, match="say which hypothesis"):
        read_hypothesis(None)


def test_a_span_the_prompts_lack_is_a_site_error(pairs):
    with pytest.raises(SiteError):
        scrub(PLANTED.model, pairs, [Hypothesis.of({"output": ["a"], "nodes": {"a": {"sites": ["z.1.1@40"]}}})])
