"""Claims on a model whose one head is known: it is supported, others are refuted, and nothing is tested on what it was
found on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caseback.circuits.graph import Circuit
from caseback.circuits.parts import graph_of
from caseback.core.errors import CasebackError, SiteError, StudyError
from caseback.core.progress import silent
from caseback.model.sites import Site
from caseback.study import Record, Study
from caseback.study.claims import (
    CLAIM_TEST,
    Claim,
    FoundOn,
    asked,
    claims,
    found_on_run,
    found_on_task,
    judge,
    new_claim,
    read_claim,
    read_component,
    standing,
    status_of,
    verdict_of,
)
from caseback.study.claims.component import Place
from caseback.study.claims.parts import Subspace
from caseback.study.claims.patched import both_runs, looks, patched
from caseback.study.files import write_json
from caseback.study.readings import PATCH
from caseback.tasks import Schema, Task, write_task
from caseback.zoo import copying

from .looking import die_after, is_valid, look, plain_table

ZOO = copying(n=48)
MODEL = ZOO.model
PAIRS = ZOO.task.held_out.encode(MODEL)
SAID = "moves the name to the end"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """An empty study beside t.jsonl, the pairs of the copying model, and u.jsonl, the same with answers and foils swapped."""
    monkeypatch.chdir(tmp_path)
    write_task(ZOO.task, "t.jsonl")
    swapped = [replace(pair, answers=pair.foils, foils=pair.answers) for pair in ZOO.task.pairs]
    write_task(replace(ZOO.task, name="u", pairs=tuple(swapped), sign=-1), "u.jsonl")
    return Study("casebook")


def made(study: Study, component: str = "z.1.2@end", **more: Any) -> Claim:
    more = {"found_on": found_on_task("t.jsonl", MODEL)} | more
    return new_claim(study, MODEL, Claim(component=component, description=SAID, model={}, **more))


def tried(study: Study, claim: Claim, **more: Any) -> Record:
    spec, have = CLAIM_TEST.prepare(asked(study, claim, **more), study, passed={}, progress=silent, model=MODEL)
    return study.run(spec, have=have)


def verdicts(record: Record) -> dict[str, str]:
    return {row["test"]: row["verdict"] for row in record.table["tests"]}


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "status"),
    [
        ("", "hypothesis"),
        ("sufficiency+ specificity+", "supported"),
        ("necessity+ specificity+", "supported"),
        ("necessity? sufficiency+ specificity+", "supported"),
        ("predict? necessity+ specificity+", "supported"),
        ("necessity+ specificity+ adversarial-", "refuted"),
        ("predict- necessity+ sufficiency+ specificity+", "refuted"),
        ("necessity+ specificity+ necessity-", "refuted"),
        ("predict+", "inconclusive"),
        ("specificity+", "inconclusive"),
        ("predict+ specificity+ minimality+ adversarial+ effect+", "inconclusive"),
        ("sufficiency+ necessity+", "inconclusive"),
        ("sufficiency+ specificity?", "inconclusive"),
        ("sufficiency+ specificity? specificity+", "supported"),
        ("necessity?", "inconclusive"),
    ],
)
def test_status_follows_from_the_verdicts(tests: str, status: str) -> None:
    names = {"+": "supports", "-": "refutes", "?": "undecided"}
    assert status_of([(test[:-1], names[test[-1]]) for test in tests.split()]) == status


def test_a_verdict_asks_for_the_whole_interval() -> None:
    inf = float("inf")
    ends = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.2), (-0.2, 0.0), (-inf, inf)]
    assert [verdict_of(*pair) for pair in ends] == ["supports", "refutes", *["undecided"] * 4]


def test_each_bar_is_the_harder_one() -> None:
    gap = np.full(8, 2.0)
    half, tenth = np.full(8, 1.0), np.full((3, 8), 0.2)
    above = judge.causal("necessity", half, tenth, gap, 0.05, 0)
    assert (above.value.value, above.control and above.control.value) == pytest.approx((0.5, 0.1))
    assert above.over.value == pytest.approx(0.4) and above.verdict == "supports"
    assert judge.causal("necessity", half, tenth, gap, 0.3, 0).over.value == pytest.approx(0.2)
    assert (
        judge.causal("necessity", half * 0.1, tenth, gap, 0.01, 0).verdict == "refutes"
    )  # more than it said, less than random


def test_an_effect_lies_inside_or_outside_what_was_predicted() -> None:
    gap, own = np.full(8, 2.0), np.full(8, 0.6)
    for between, verdict, over in (
        ((0.2, 0.4), "supports", 0.1),
        ((0.35, 0.9), "refutes", -0.05),
        ((0.1, 0.25), "refutes", -0.05),
    ):
        found = judge.effect(own, gap, between, 0)
        assert found.verdict == verdict and found.over.value == pytest.approx(over)
    spread = judge.effect(np.linspace(0, 1.2, 8), gap, (0.3, 0.9), 0)
    assert spread.verdict == "undecided"


def test_specificity_counts_weaker_components() -> None:
    gap, own = np.ones(4), np.full(4, 0.5)
    random = np.concatenate([np.full((9, 4), 0.1), np.full((1, 4), -0.9)])  # a strong one the other way is not weaker
    found = judge.specificity(own, random, gap, 0, all_others=True)
    assert (found.value.value, found.value.low, found.verdict) == (0.9, 0.9, "undecided")
    assert judge.specificity(own, random[:9], gap, 0, all_others=True).verdict == "supports"
    assert judge.specificity(own, random[:9], gap, 0, all_others=False).verdict == "undecided"  # nine drawn are too few
    assert judge.specificity(own * 0.1, random, gap, 0, all_others=True).verdict == "refutes"


# --- patching --------------------------------------------------------------------------------------------------------


def test_everything_patched_is_the_other_run() -> None:
    everything = (Place(Site("resid_pre", 0)),)
    clean, other = both_runs(MODEL, PAIRS)
    assert np.allclose(patched(MODEL, PAIRS, [everything], "denoise")[0], clean, atol=1e-5)
    assert np.allclose(patched(MODEL, PAIRS, [everything], "noise")[0], other, atol=1e-5)
    graph = graph_of(MODEL, tuple(PAIRS.clean.spans))
    whole, none = patched(MODEL, PAIRS, [Circuit.full(graph), Circuit.empty(graph)], "denoise")
    assert np.allclose(whole, clean, atol=1e-5) and np.allclose(none, other, atol=1e-5)
    whole, none = patched(MODEL, PAIRS, [Circuit.full(graph), Circuit.empty(graph)], "noise")
    assert np.allclose(whole, other, atol=1e-5) and np.allclose(none, clean, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["z.1.2@end", "z.1@name", "q.1.2@end", "v.1.1@name", "pattern.1.2@end", "mlp_out.0", "z.1.2@-1"]
)
def test_a_place_alone_joined_and_by_the_models_own_edits_is_the_same(text: str) -> None:
    component = read_component(text, Study("nowhere"), MODEL)
    other = read_component("mlp_out.1@before", Study("nowhere"), MODEL)
    assert isinstance(component.target, tuple) and isinstance(other.target, tuple)
    (alone,) = patched(MODEL, PAIRS, [component.target], "denoise")
    again, joined = patched(MODEL, PAIRS, [component.target * 2, component.target + other.target], "denoise")
    assert np.allclose(alone, again, atol=1e-5)  # twice the same place is the place, run the general way
    one_by_one = []
    for i in range(PAIRS.n):
        pair = PAIRS[[i]]
        source = MODEL.run(pair.clean, read=[text])
        logits = MODEL.run(pair.counterfactual, edit=[source.patch(text)]).logits
        assert logits is not None
        one_by_one.append(float(logits[0, pair.answers[0, 0]] - logits[0, pair.foils[0, 0]]))
    assert np.allclose(alone, one_by_one, atol=1e-4)
    assert np.allclose(joined, alone, atol=1e-4)  # the last layer's MLP before the end reaches nothing


def test_a_direction_is_patched_alone_and_all_of_them_are_the_site(study: Study) -> None:
    whole = read_component("z.1.2@end", study, MODEL).target
    (site,) = patched(MODEL, PAIRS, [whole], "noise")
    every = tuple(Place(Site("z", 1, 2, "end"), Subspace(direction[None])) for direction in torch.eye(16))
    assert np.allclose(patched(MODEL, PAIRS, [every], "noise")[0], site, atol=1e-5)
    save_file({"d": torch.ones(16)}, "d.safetensors")
    component = read_component("direction:d.safetensors@z.1.2@end", study, MODEL)
    assert component.can == ("predict", "effect", "sufficiency", "necessity", "specificity", "adversarial")
    (along,) = patched(MODEL, PAIRS, [component.target], "noise")
    clean, other = both_runs(MODEL, PAIRS)
    assert not np.allclose(along, site, atol=1e-2) and not np.allclose(site, clean, atol=1e-2)


def test_the_head_that_looks_is_found_and_its_neighbours_are_not() -> None:
    found = looks(MODEL, PAIRS, "end", "name")
    assert found.taken and found.most.shape == (2, 4, PAIRS.n)
    assert found.most[1, 2].mean() > 0.9
    assert found.most[0].mean() < 0.6


# --- claims ------------------------------------------------------------------------------------------------------------


def test_the_known_head_is_supported_and_its_neighbour_refuted(study: Study) -> None:
    claim = made(study, attends=("end", "name"), effect=(0.4, 1.5))
    assert standing(study, claim).status == "hypothesis"
    record = tried(study, claim)
    assert verdicts(record) == dict.fromkeys(
        ("predict", "effect", "sufficiency", "necessity", "specificity"), "supports"
    )
    assert is_valid(record)
    found = standing(study, claim)
    assert found.status == "supported" and {row["run"] for row in found.tests} == {record.id}
    row = next(row for row in found.tests if row["test"] == "specificity")
    assert (row["value"], row["low"], row["high"]) == (1.0, 1.0, 1.0)  # all seven others are weaker
    wrong = made(study, "z.1.1@end", attends=("end", "name"))
    assert verdicts(tried(study, wrong, tests=("sufficiency", "necessity", "specificity")))["necessity"] == "refutes"
    assert standing(study, wrong).status == "refuted" and standing(study, claim).status == "supported"
    assert {each.id for each in claims(study)} == {claim.id, wrong.id}


def test_a_wrong_prediction_refutes_a_head_that_matters(study: Study) -> None:
    claim = made(study, attends=("end", "before"))
    assert verdicts(tried(study, claim)) == {
        "predict": "refutes",
        "sufficiency": "supports",
        "necessity": "supports",
        "specificity": "supports",
    }
    assert standing(study, claim).status == "refuted"
    too_small = made(study, effect=(0.0, 0.05))
    assert verdicts(tried(study, too_small, tests=["effect"])) == {"effect": "refutes"}


def test_a_part_that_adds_nothing_is_found_out(study: Study) -> None:
    claim = made(study, "z.1.2@end+z.0.0@end")
    record = tried(study, claim, tests=("minimality",))
    assert verdicts(record) == {"minimality": "refutes"}
    rows = {row[0]: row[1][0] for row in record.stage("view").data["sections"][1]["table"]["rows"]}
    assert rows["z.1.2@end"] > 0.5 and abs(rows["z.0.0@end"]) < 0.05


def test_other_input_on_which_the_description_says_the_opposite(study: Study) -> None:
    claim = made(study, found_on=FoundOn())
    assert claim.found_on.prompts == ()
    for flips, verdict in ((True, "refutes"), (False, "supports")):  # swapped answers: both runs' metrics swap too
        record = tried(study, claim, task="t.jsonl", tests=["adversarial"], adversarial="u.jsonl", flips=flips)
        assert verdicts(record) == {"adversarial": verdict}


def test_a_claim_of_sufficiency_alone_is_tested_by_that_alone(study: Study) -> None:
    claim = made(study, causal=("sufficiency",))
    assert set(verdicts(tried(study, claim))) == {"sufficiency", "specificity"}
    with pytest.raises(StudyError, match="the claim says sufficiency alone, so necessity cannot decide it"):
        tried(study, claim, tests=["necessity"])


def test_a_circuit_is_a_component_like_others(study: Study) -> None:
    from caseback.circuits import DiscoverConfig
    from caseback.study.circuit import CircuitConfig, circuit_spec

    config = CircuitConfig(task="t.jsonl", discover=DiscoverConfig(points=4, draws=1, patched=4))
    task = config.read_task(MODEL)
    run = study.run(circuit_spec(config, MODEL, task, passed={}), have={"model": MODEL, "task": task})
    claim = made(study, "circuit:latest:3", causal=("sufficiency",))
    assert claim.component == f"circuit:{run.id}:3"
    with pytest.raises(StudyError, match="are among those the claim was found on"):  # the run has seen both halves
        tried(study, claim, task="t.jsonl")
    assert made(study, "circuit:latest:3", found_on=FoundOn()).found_on.run == run.id
    write_task(copying(n=40, seed=7).task, "fresh.jsonl")
    record = tried(study, claim, task="fresh.jsonl", randoms=4)
    pairs = []
    for pair in copying(n=12, seed=9).task.pairs:
        (_, _, cut), *_ = pair.spans[2:]
        pairs.append(replace(pair, spans=(("a", 0, cut), ("b", cut, len(pair.clean)))))
    write_task(Task(name="other", pairs=tuple(pairs), schema=Schema(name="other", spans=("a", "b"))), "other.jsonl")
    assert verdicts(record)["sufficiency"] == "supports"
    with pytest.raises(StudyError, match="cannot be done with circuit:.*; it can be tested by sufficiency, necessity"):
        tried(study, claim, task="fresh.jsonl", tests=["predict"])
    with pytest.raises(SiteError, match="these prompts have no span 'name'; they have: a, b"):
        tried(study, made(study, "z.1.2@name"), task="other.jsonl")
    with pytest.raises(StudyError, match="the circuit has the spans before, name, after, end, the task 'other' a, b"):
        tried(study, claim, task="other.jsonl")
    with pytest.raises(StudyError, match="a circuit belongs to the model it was found in"):
        tried(study, claim, task="fresh.jsonl", twin=True)


# --- found and tested --------------------------------------------------------------------------------------------------


def test_finding_and_testing_on_the_same_prompts_is_refused(study: Study) -> None:
    other = [replace(pair, split="held_out" if pair.split == "discovery" else "discovery") for pair in ZOO.task.pairs]
    write_task(replace(ZOO.task, pairs=tuple(other)), "v.jsonl")
    claim = made(study)
    for more in ({"task": "v.jsonl"}, {"adversarial": "v.jsonl"}):
        with pytest.raises(StudyError, match="prompts of 'v.jsonl' .* are among those the claim was found on"):
            tried(study, claim, **more)
    assert study.ids() == ()


def test_a_run_has_seen_all_its_pairs(study: Study) -> None:
    record = look(study, PATCH, PATCH.Config(task="t.jsonl", n=None, site="z"), MODEL)
    found = found_on_run(record, MODEL)
    assert (found.run, found.half) == (record.id, "all")
    assert set(found.prompts) > set(found_on_task("t.jsonl", MODEL).prompts)
    claim = made(study, found_on=found)
    with pytest.raises(StudyError, match="has looked at all pairs of t.jsonl; name others with --task"):
        asked(study, claim)
    with pytest.raises(StudyError, match="are among those the claim was found on"):
        tried(study, claim, task="t.jsonl")
    fresh = replace(copying(n=40, seed=7).task, name="fresh")
    write_task(fresh, "fresh.jsonl")
    assert verdicts(tried(study, claim, task="fresh.jsonl"))["necessity"] == "supports"
    write_task(fresh, "t.jsonl")
    with pytest.raises(StudyError, match="looked at other pairs than 't.jsonl' gives now"):
        found_on_run(record, MODEL)


def test_a_library_task_goes_on_with_the_next_seed(study: Study) -> None:
    claim = Claim(
        component="z.1.2", description=SAID, model={}, found_on=FoundOn(run="r", task="ioi", seed=3, half="all")
    )
    assert (asked(study, claim).task, asked(study, claim).seed, asked(study, claim).n) == ("ioi", 4, 80)
    half = replace(claim, found_on=FoundOn(task="ioi", n=60, seed=3, half="discovery"))
    assert (asked(study, half).seed, asked(study, half).n, asked(study, half, seed=9).seed) == (3, 60, 9)
    with pytest.raises(StudyError, match="name them with --task"):
        asked(study, replace(claim, found_on=FoundOn()))


def test_a_killed_test_ends_alike(study: Study) -> None:
    claim = made(study, attends=("end", "name"))
    config = asked(study, claim)
    whole = plain_table(look(study, CLAIM_TEST, config, MODEL))
    for stages in (1, 3):
        other = Study(f"other{stages}")
        assert new_claim(other, MODEL, claim).id == claim.id
        die_after(stages, lambda other=other: look(other, CLAIM_TEST, config, MODEL))
        (id,) = other.ids()
        assert plain_table(other.resume(id, have={"model": MODEL})) == whole


# --- the ledger ----------------------------------------------------------------------------------------------------------


def test_the_ledger_keeps_what_was_said(study: Study) -> None:
    claim = made(study, attends=("end", "name"), effect=(0.1, 0.9))
    assert made(study, attends=("end", "name"), effect=(0.1, 0.9)) == claim == read_claim(study, claim.id[:6])
    assert read_claim(study, "latest") == claim
    other = made(study, attends=("end", "before"))
    with pytest.raises(StudyError, match="is the beginning of 2 claims"):
        read_claim(study, claim.id[:6])
    with pytest.raises(StudyError, match="is no claim in casebook; there are: "):
        read_claim(study, "nothing")
    with pytest.raises(StudyError, match="there are no claims in elsewhere; `caseback claim new` makes one"):
        read_claim(Study("elsewhere"), "x")
    path = study.path / "claims" / f"{other.id}.json"
    path.write_bytes((study.path / "claims" / f"{claim.id}.json").read_bytes())
    with pytest.raises(StudyError, match="is not the claim its name says"):
        read_claim(study, other.id)
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"description": "something else"}))
    with pytest.raises(StudyError, match="does not match its SHA-256"):
        read_claim(study, other.id)
    assert claims(study) == (claim,)


def test_a_random_twin_is_asked_and_does_not_count(study: Study) -> None:
    from caseback.model.twin import random_twin

    claim = made(study)
    twin = random_twin(MODEL)
    spec, have = CLAIM_TEST.prepare(asked(study, claim, twin=True), study, passed={}, progress=silent, model=twin)
    record = study.run(spec, have=have)
    assert record.table["model"].startswith("random twin of") and set(verdicts(record)) >= {"sufficiency"}
    assert standing(study, claim).tests == ()


def test_another_model_is_refused(study: Study) -> None:
    path = study.path / "claims"
    claim = made(study)
    other = replace(claim, model={**claim.model, "files": {"w": "0"}})
    write_json(path / f"{other.id}.json", asdict(other))
    with pytest.raises(StudyError, match="the claim is about .*, not .*; name its model with --model"):
        tried(study, other)


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        ("z.1.2@nowhere", "these prompts have no span 'nowhere'; they have: before, name, after, end"),
        ("z.1.*", "names many sites at once"),
        ("z.9.2", "this model has z at layers 0 to 1"),
        ("z.1.2+z.1.2", "names a site twice"),
        ("resid_final@end", "has no layers"),
        ("zz.1.2", "there is no site named 'zz'"),
        ("relations:x", "is no component: write sites joined by"),
        ("circuit:x", "there are no runs in"),
        ("circuit:x:many", "a circuit's size is a number of edges"),
        ("direction:d.safetensors", "is not of the form direction:FILE@SITE"),
        ("direction:none.safetensors@resid_post.0", "cannot be read as a safetensors file"),
        ("direction:d.safetensors@z.1", "a direction lies at one vector a token"),
        ("direction:zero.safetensors@resid_post.1", "is zero or not finite"),
    ],
)
def test_a_component_that_is_none_is_refused_in_a_sentence(study: Study, component: str, sentence: str) -> None:
    save_file({"d": torch.ones(64)}, "d.safetensors")
    save_file({"d": torch.zeros(64)}, "zero.safetensors")
    with pytest.raises(CasebackError) as error:
        made(study, component)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attends": ("end", "nowhere")}, "the task has no span 'nowhere'"),
        ({"effect": (0.5, 0.1)}, "a predicted effect lies between a lower and a higher share"),
        ({"at_least": 0.0}, "lies in (0, 1]"),
        ({"causal": ()}, "a claim is of sufficiency or necessity"),
        ({"component": "mlp_out.0", "attends": ("end", "name")}, "a prediction of attention is about heads"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused(study: Study, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises((StudyError, SiteError)) as error:
        made(study, **given)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tests": ["predict"]}, "the claim predicts no attention and no activation; make it with --attends"),
        ({"tests": ["effect"]}, "the claim predicts no effect; make it with --effect"),
        ({"tests": ["adversarial"]}, "needs other input; name it with --adversarial"),
        ({"tests": ["minimality"]}, "it takes several sites joined by '+'"),
        ({"tests": ["everything"]}, "there is no test 'everything'; there are: predict, effect"),
        ({"randoms": 0}, "at least one random component"),
        ({"task": "none.jsonl"}, "there is neither a task nor a file"),
    ],
)
def test_a_test_that_cannot_be_done_is_refused(study: Study, given: dict[str, Any], sentence: str) -> None:
    claim = made(study)
    with pytest.raises(CasebackError) as error:
        tried(study, claim, **given)
    assert sentence in str(error.value) and study.ids() == ()
