"""Claims of parts of what lies at a site: a relation's operator, a feature of a dictionary, a direction; and where they are
active."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caseback.core.errors import CasebackError, StudyError
from caseback.core.progress import silent
from caseback.model.dictionary import Dictionary
from caseback.model.edits import Set
from caseback.model.model import Model
from caseback.model.sites import Site
from caseback.relations.judge import JudgeConfig
from caseback.relations.operator import invert, svd
from caseback.relations.relation import write_relation
from caseback.study import Record, Study
from caseback.study.claims import (
    CLAIM_TEST,
    Claim,
    FoundOn,
    asked,
    found_on_run,
    found_on_task,
    found_on_texts,
    new_claim,
    read_claim,
    read_component,
    standing,
)
from caseback.study.claims.active import activity, beginning
from caseback.study.claims.drawn import draw
from caseback.study.claims.parts import Feature, Subspace
from caseback.study.claims.patched import both_runs, patched
from caseback.study.relation import RELATION, RelationConfig
from caseback.tasks import Pair, Schema, Task, write_task
from caseback.zoo import copying
from caseback.zoo.copy_circuit import FILLERS, NAMES
from caseback.zoo.handmade import ZooModel

from ..relations.small import affine_of, relation_of
from .looking import die_after, is_valid, look, plain_table


def varied() -> ZooModel:
    """The copying model, its other words no longer all alike: in unused coordinates each has a vector of its own."""
    zoo = copying(n=200)
    weight = zoo.model.hf.get_input_embeddings().weight
    with torch.no_grad():
        for word in FILLERS:
            weight[zoo.model.tokens(word)[0], 40:] = torch.randn(
                24, generator=torch.Generator().manual_seed(FILLERS.index(word))
            )
    return zoo


COPY = varied()
ADA = COPY.task[[i for i, pair in enumerate(COPY.task.pairs) if pair.answers == (" ada",)]]
"""Pairs whose clean prompt has ada for its name."""
FACTS = affine_of()


def is_name() -> dict[str, int]:
    """The coordinate of the embedding that is 1 for each name and no other word."""
    weight = COPY.model.hf.get_input_embeddings().weight
    rows = {name: weight[COPY.model.tokens(name)[0]] for name in NAMES}
    own = {name: row * (sum(rows.values()) == 1) * (row == 1) for name, row in rows.items()}
    return {name: int(row.nonzero()[0, 0]) for name, row in own.items()}


IS = is_name()


def write_dictionary(path: Path, directions: torch.Tensor, site: str = "blocks.0.hook_resid_pre", **more: Any) -> None:
    """A SAELens folder whose features are the components along orthonormal rows."""
    path.mkdir()
    config = {"architecture": "standard", "hook_name": site, "apply_b_dec_to_input": False} | more
    (path / "cfg.json").write_text(json.dumps(config))
    n, d = directions.shape
    arrays = {"W_enc": directions.T, "b_enc": torch.zeros(n), "W_dec": directions, "b_dec": torch.zeros(d)}
    save_file({name: value.contiguous() for name, value in arrays.items()}, path / "sae_weights.safetensors")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """An empty study beside t.jsonl (pairs of the copying model), ada.jsonl (those about ada), names/ (a dictionary of a
    feature for each name, for the mark of all names, and for two fillers), found.txt and held.txt."""
    monkeypatch.chdir(tmp_path)
    write_task(COPY.task, "t.jsonl")
    write_task(ADA, "ada.jsonl")
    rows = torch.eye(64)[list(IS.values())]
    write_dictionary(Path("names"), torch.cat([rows, torch.linalg.qr(torch.randn(64, 8, generator=seeded())).Q.T]))
    for file, seed in (("found.txt", 0), ("held.txt", 1)):
        Path(file).write_text("\n".join(texts_of(seed)))
    return Study("casebook")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def texts_of(seed: int, n: int = 80) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(FILLERS, 5), *rng.choice(NAMES, 3), *rng.choice(FILLERS, 2)]) for _ in range(n)]


def made(study: Study, component: str, model: Model = COPY.model, **more: Any) -> Claim:
    more = {"found_on": FoundOn()} | more
    return new_claim(study, model, Claim(component=component, description="says which name it is", model={}, **more))


def tried(study: Study, claim: Claim, model: Model = COPY.model, **more: Any) -> Record:
    spec, have = CLAIM_TEST.prepare(asked(study, claim, **more), study, passed={}, progress=silent, model=model)
    return study.run(spec, have=have)


def verdicts(record: Record) -> dict[str, str]:
    return {row["test"]: row["verdict"] for row in record.table["tests"]}


def refusal(study: Study, component: str, model: Model = COPY.model, **more: Any) -> str:
    with pytest.raises(CasebackError) as error:
        made(study, component, model, **more)
    return str(error.value)


# --- parts -------------------------------------------------------------------------------------------------------------


def test_the_swap_of_a_subspace_is_the_edit_by_the_pseudo_inverse() -> None:
    draw = torch.Generator().manual_seed(1)
    W, x, other = (torch.randn(shape, generator=draw) for shape in ((12, 12), (5, 12), (5, 12)))
    parts = svd(W)
    for rank in (1, 4, 12):
        subspace = Subspace(parts[2][:rank])
        swapped = x + subspace.write(subspace.read(other) - subspace.read(x))
        (edit,) = invert(parts, (other - x) @ W.T, ranks=[rank])
        assert torch.allclose(swapped, x + edit, atol=1e-4)
        assert torch.allclose(swapped, other, atol=1e-4) == (rank == 12)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_a_feature_reads_as_its_dictionary_and_writes_its_direction(activation: str) -> None:
    draw = torch.Generator().manual_seed(2)
    W_enc, W_dec, b_enc, x = (torch.randn(shape, generator=draw) for shape in ((6, 9), (9, 6), (9,), (4, 3, 6)))
    more: dict[str, Any] = {"jumprelu": {"threshold": torch.rand(9, generator=draw)}, "topk": {"k": 3}}.get(
        activation, {}
    )
    whole = Dictionary(
        site="mlp_out.0", W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_enc[:6], activation=activation, **more
    )
    f = whole.encode(x)
    features = [Feature(whole, i) for i in range(9)]
    assert torch.allclose(torch.cat([each.read(x) for each in features], dim=-1), f, atol=1e-6)
    written = sum((each.write(each.read(x)) for each in features), start=torch.zeros(6))
    assert torch.allclose(written + whole.b_dec, whole.decode(f), atol=1e-5)


def test_a_feature_is_swapped_in_the_model_as_by_hand(study: Study) -> None:
    model, pairs = COPY.model, ADA.held_out.encode(COPY.model)
    target = read_component("feature:names:0@name", study, model).target
    clean, other = both_runs(model, pairs)
    metric = []
    for i in range(pairs.n):
        pair = pairs[[i]]
        here, there = (
            model.run(batch, read=["resid_pre.0"])["resid_pre.0"] for batch in (pair.counterfactual, pair.clean)
        )
        place, mine = int(pair.clean.spans["name"][0, 0]), IS["ada"]
        assert float(there[0, place, mine]) == 1 and float(here[0, place, mine]) == 0
        new = here.clone()
        new[0, place, mine] = 1
        logits = model.run(pair.counterfactual, edit=[Set("resid_pre.0", new)]).logits
        assert logits is not None
        metric.append(float(logits[0, pair.answers[0, 0]] - logits[0, pair.foils[0, 0]]))
    (found,) = patched(model, pairs, [target], "denoise")
    assert np.allclose(found, metric, atol=1e-5) and np.all(found > other + 0.1) and np.all(found < clean - 0.1)


def test_the_mean_of_a_feature_is_that_of_its_activations(study: Study) -> None:
    pairs = ADA.held_out.encode(COPY.model)
    target = read_component("feature:names:0@name", study, COPY.model).target
    # in no counterfactual prompt the name is ada, so the mean is 0 as the counterfactual value is
    same = [patched(COPY.model, pairs, [target], way)[0] for way in ("mean", "noise")]
    assert np.allclose(*same, atol=1e-5)


# --- a relation's operator -----------------------------------------------------------------------------------------------


@pytest.fixture
def friends(study: Study) -> Record:
    """The judged relation of the affine model, beside friends.jsonl: every subject against another, both of one half."""
    write_relation(relation_of(FACTS), "friend.json")
    pairs = []
    for i, (subject, object) in enumerate(FACTS.pairs):
        other, wrong = FACTS.pairs[(i + 8) % len(FACTS.pairs)]
        clean, edges = f"the friend of {subject} is", (0, 13, 14 + len(subject), 17 + len(subject))
        spans = tuple(zip(("before", "subject", "end"), edges, edges[1:], strict=False))
        pairs.append(
            Pair(
                clean=clean,
                counterfactual=f"the friend of {other} is",
                answers=(f" {object}",),
                foils=(f" {wrong}",),
                spans=spans,
                split="held_out" if i % 2 else "discovery",
            )
        )
    schema = Schema(name="friends", spans=("before", "subject", "end"))
    write_task(Task(name="friends", pairs=tuple(pairs), schema=schema), "friends.jsonl")
    return judge(study)


def judge(study: Study, **more: Any) -> Record:
    config = RelationConfig(relation="friend.json", judge=JudgeConfig(pairs=8, **more))
    return look(study, RELATION, config, FACTS.model)


def test_the_operator_of_a_relation_is_supported_and_a_random_direction_is_not(study: Study, friends: Record) -> None:
    found = found_on_task("friends.jsonl", FACTS.model)
    claim = made(study, "relation:latest@subject", FACTS.model, found_on=found, effect=(0.2, 0.8))
    assert claim.component == f"relation:{friends.id}:16@subject"  # as many directions as the map has
    assert set(claim.found_on.prompts) > set(found.prompts)
    record = tried(study, claim, FACTS.model, randoms=40)
    rows = {row["test"]: row for row in record.table["tests"]}
    assert {test: row["verdict"] for test, row in rows.items()} == dict.fromkeys(
        ("effect", "sufficiency", "necessity", "specificity"), "supports"
    )
    assert rows["sufficiency"]["value"] == pytest.approx(1, abs=1e-3)  # all that the answer hangs on
    assert rows["sufficiency"]["control"] == pytest.approx(16 / 64, abs=0.1)  # their share of the dimensions
    assert is_valid(record) and standing(study, claim).status == "supported"
    few = tried(
        study, made(study, f"relation:{friends.id}:4@subject", FACTS.model, found_on=found), FACTS.model, randoms=5
    )
    assert 0.05 < few.table["tests"][0]["value"] < 0.9
    save_file({"d": torch.randn(64, generator=seeded())}, "d.safetensors")
    site = f"resid_pre.{friends.table['layer']}@subject"
    chance = tried(study, made(study, f"direction:d.safetensors@{site}", FACTS.model, found_on=found), FACTS.model)
    assert (
        "supports" not in verdicts(chance).values()
        and standing(study, read_claim(study, "latest")).status != "supported"
    )


def test_pairs_about_subjects_the_operator_was_estimated_on_are_left_out(study: Study, friends: Record) -> None:
    claim = made(study, "relation:latest@subject", FACTS.model, found_on=found_on_task("friends.jsonl", FACTS.model))
    subjects = set(read_component(claim.component, study, FACTS.model).subjects)
    assert len(subjects) == 5
    record = tried(study, claim, FACTS.model, tests=["sufficiency"], randoms=2)
    places = {subject: i for i, (subject, _) in enumerate(FACTS.pairs)}
    held = [(subject, FACTS.pairs[(i + 8) % 40][0]) for subject, i in places.items() if i % 2]
    kept = [pair for pair in held if not set(pair) & subjects]
    assert record.table["n"] == len(kept) < len(held)
    assert any("left out" in note and min(subjects) in note for note in record.stage("view").data["notes"])


def test_a_relation_was_found_on_the_prompts_it_was_judged_on(study: Study, friends: Record) -> None:
    asked_of = found_on_run(friends, FACTS.model)
    assert asked_of.run == friends.id and len(asked_of.prompts) == len(FACTS.pairs)
    zero = judge(study, zero_shot=True)  # the very prompts of the task
    claim = made(study, f"relation:{zero.id}@subject", FACTS.model)
    assert claim.found_on.run == zero.id
    with pytest.raises(StudyError, match="prompts of 'friends.jsonl' .* are among those the claim was found on"):
        tried(study, claim, FACTS.model, task="friends.jsonl")


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        ("relation:latest", "is not of the form relation:RUN@SPAN or relation:RUN:RANK@SPAN"),
        ("relation:latest:many@subject", "is not of the form relation:RUN@SPAN"),
        ("relation:latest:17@subject", "reads 16 directions, so it has no 17 of them"),
        ("relation:nobody@subject", "there is no run"),
        ("relation:latest@nowhere", "these prompts have no span 'nowhere'"),
    ],
)
def test_an_operator_that_is_none_is_refused(study: Study, friends: Record, component: str, sentence: str) -> None:
    assert sentence in refusal(study, component, FACTS.model, found_on=found_on_task("friends.jsonl", FACTS.model))


def test_an_operator_has_no_place_in_a_twin_and_no_activation(study: Study, friends: Record) -> None:
    told = refusal(study, "relation:latest@subject", FACTS.model, active="subject")
    assert "about one direction or feature, which relation:" in told
    assert told.endswith("it can be tested by effect, sufficiency, necessity, specificity, adversarial")
    claim = made(study, "relation:latest@subject", FACTS.model)
    with pytest.raises(StudyError, match="a relation's operator belongs to the model it was found in"):
        tried(study, claim, FACTS.model, task="friends.jsonl", twin=True)
    with pytest.raises(StudyError, match="the test 'predict' cannot be done with relation:"):
        tried(study, claim, FACTS.model, task="friends.jsonl", tests=["predict"])


# --- a feature -------------------------------------------------------------------------------------------------------------


def test_a_names_feature_is_supported_and_anothers_is_refuted(study: Study) -> None:
    found = found_on_task("ada.jsonl", COPY.model)
    claim = made(study, f"feature:names:{NAMES.index('ada')}@name", found_on=found)
    record = tried(study, claim)
    assert verdicts(record) == dict.fromkeys(("sufficiency", "necessity", "specificity"), "supports")
    assert is_valid(record) and standing(study, claim).status == "supported"
    strongest = record.stage("view").data["sections"][1]
    assert "all other features of the dictionary that are active at the same tokens" in strongest["text"]
    assert all(row[0].startswith("feature ") for row in strongest["table"]["rows"][1:])
    (row,) = (row for row in record.table["tests"] if row["test"] == "specificity")
    assert row["low"] == row["value"] == row["high"] == 1.0  # exact: all were tried
    wrong = made(study, f"feature:names:{NAMES.index('bob')}@name", found_on=found)
    assert "supports" not in verdicts(tried(study, wrong)).values()
    assert standing(study, wrong).status == "refuted"


def test_random_features_are_those_active_at_the_tokens(study: Study) -> None:
    pairs = ADA.encode(COPY.model)
    component = read_component("feature:names:0@name", study, COPY.model)
    drawn = draw(component, COPY.model, 50, [pairs.clean, pairs.counterfactual], seed=0)
    numbers = [target[0].part.number for target in drawn.targets]  # type: ignore[union-attr]
    others = {NAMES.index(pair.foils[0].strip()) for pair in ADA.pairs}
    assert drawn.all and len(others) > 4 and others == set(numbers) & set(range(8))
    few = draw(component, COPY.model, 2, [pairs.clean], seed=0)
    assert not few.all and len(few.targets) == 2
    only = [target[0].part.number for target in draw(component, COPY.model, 50, [pairs.clean], seed=0).targets]  # type: ignore[union-attr]
    assert not set(range(1, 8)) & set(only)  # in these prompts no other name is there
    write_dictionary(Path("one"), torch.eye(64)[[IS["ada"], IS["bob"]]])
    lonely = read_component("feature:one:0@name", study, COPY.model)
    with pytest.raises(StudyError, match="no other feature of its dictionary is active where feature:one:0@name"):
        draw(lonely, COPY.model, 5, [pairs.clean], seed=0)


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        ("feature:names", "is not of the form feature:DICTIONARY:NUMBER"),
        ("feature:names:first", "is not of the form feature:DICTIONARY:NUMBER"),
        ("feature:names:1@", "is not of the form feature:DICTIONARY:NUMBER"),
        ("feature:names:16", "has no feature 16; it has 0 to 15"),
        ("feature:nothing:1", "there is no dictionary nothing"),
        ("feature:wide:0", "is of vectors of 32 entries and"),
        ("feature:deep:0", "this model has resid_pre at layers 0 to 1"),
    ],
)
def test_a_feature_that_is_none_is_refused(study: Study, component: str, sentence: str) -> None:
    write_dictionary(Path("wide"), torch.eye(32))
    write_dictionary(Path("deep"), torch.eye(64), "blocks.7.hook_resid_pre")
    assert sentence in refusal(study, component)


def test_another_dictionary_in_the_same_place_is_refused(study: Study) -> None:
    claim = made(study, "feature:names:0@name", found_on=found_on_task("ada.jsonl", COPY.model))
    Path("names").rename("moved")
    write_dictionary(Path("names"), torch.eye(64))
    with pytest.raises(StudyError, match="what feature:names:0@name is made of has changed since the claim was made"):
        tried(study, claim)


# --- where it is active -----------------------------------------------------------------------------------------------------


def of_name(file: str = "mark.safetensors") -> str:
    """A direction that all names and no other words have, as a file."""
    save_file({"d": torch.eye(64)[list(IS.values())].sum(dim=0)}, file)
    return f"direction:{file}@resid_pre.0@name"


def test_a_span_is_told_by_its_direction_and_not_by_chance(study: Study) -> None:
    found = found_on_task("t.jsonl", COPY.model)
    claim = made(study, of_name(), found_on=found, active="name")
    record = tried(study, claim, tests=["predict"], n=60)
    (row,) = record.table["tests"]
    assert (row["value"], row["verdict"], row["pairs"]) == (1.0, "supports", record.table["n"])
    assert 0.8 < row["low"] < 1 and 0.6 < row["control"] < 0.95  # Wilson's; the best but few of random directions
    assert is_valid(record)
    shown = record.stage("view").data["sections"][1]["table"]["rows"]
    assert {row[0] for row in shown} <= set(NAMES) and {row[2] for row in shown} == {"yes"}
    elsewhere = made(study, of_name(), found_on=found, active="after")
    assert verdicts(tried(study, elsewhere, tests=["predict"])) == {"predict": "refutes"}
    verdict = []
    for seed in range(6):
        save_file({"d": torch.randn(64, generator=torch.Generator().manual_seed(seed))}, f"r{seed}.safetensors")
        random = made(study, f"direction:r{seed}.safetensors@resid_pre.0@name", found_on=found, active="name")
        verdict += verdicts(tried(study, random, tests=["predict"], n=60)).values()
    assert verdict.count("supports") == 0 and verdict.count("refutes") >= 3


def test_words_of_held_out_texts_are_told_by_their_feature(study: Study) -> None:
    found = found_on_texts("found.txt", FoundOn())
    claim = made(study, f"feature:names:{NAMES.index('eve')}", found_on=found, active_on=("eve",))
    assert claim.found_on.texts == "found.txt" and len(claim.found_on.prompts) == 80
    record = tried(study, claim, texts="held.txt")  # without a task there is this one test
    (row,) = record.table["tests"]
    assert (row["test"], row["value"], row["verdict"], row["pairs"]) == ("predict", 1.0, "supports", 0)
    assert row["split"] == "the first 80 texts of held.txt" and is_valid(record)
    assert standing(study, claim).status == "inconclusive"  # it has not been shown to do anything
    wrong = made(study, f"feature:names:{NAMES.index('eve')}", found_on=found, active_on=("bob",))
    assert verdicts(tried(study, wrong, texts="held.txt")) == {"predict": "refutes"}
    half = made(study, f"feature:names:{NAMES.index('eve')}", found_on=found, active_on=("eve", "bob"))
    (row,) = tried(study, half, texts="held.txt").table["tests"]
    said = " ".join(texts_of(1)).split()
    eve, bob = said.count("eve"), said.count("bob")
    assert row["value"] == pytest.approx((eve + bob / 2) / (eve + bob))  # silent on bob as on all other words


def test_texts_it_was_found_on_are_refused(study: Study) -> None:
    claim = made(study, "feature:names:0", found_on=found_on_texts("found.txt", FoundOn()), active_on=("ada",))
    Path("mixed.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(1) + texts_of(0)[:2]))
    with pytest.raises(StudyError, match="2 texts of mixed.jsonl are among those the claim was found on"):
        tried(study, claim, texts="mixed.jsonl")
    assert study.ids() == ()


def test_a_word_is_whole_and_its_first_token_counts(study: Study) -> None:
    model = COPY.model
    (said,) = beginning(model, ["ada then home", "then ada ada"], ["ada"])
    assert said.here.tolist() == [[True, False, False], [False, True, True]]
    (said,) = beginning(model, ["adaa then"] * 2 + ["then ada"], ["ada"])
    assert said.here.tolist() == [[False, False], [False, False], [False, True]]
    with pytest.raises(StudyError, match="the texts do not hold 'cleo' or 'gus' as a word"):
        beginning(model, ["ada then home"], ["cleo", "gus"])
    parts: Sequence[Any] = [Subspace(torch.eye(64)[[IS["ada"]]])]
    found = activity(model, beginning(model, ["ada then home", "then ada"], ["ada"]), Site("resid_pre", 0), parts)
    assert found.scores.tolist() == [[1, 0, 0, 0, 1]] and found.said.tolist() == [True, False, False, False, True]
    assert found.prompt.tolist() == [0, 0, 0, 1, 1]


def test_a_killed_prediction_ends_alike(study: Study) -> None:
    claim = made(study, of_name(), found_on=found_on_task("t.jsonl", COPY.model), active="name")
    config = asked(study, claim, n=40, randoms=4)
    whole = plain_table(look(study, CLAIM_TEST, config, COPY.model))
    other = Study("other")
    assert new_claim(other, COPY.model, claim).id == claim.id
    die_after(1, lambda: look(other, CLAIM_TEST, config, COPY.model))
    (id,) = other.ids()
    assert plain_table(other.resume(id, have={"model": COPY.model})) == whole


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"active": "nowhere"}, "the task has no span 'nowhere'"),
        ({"active": "name", "active_on": ("ada",)}, "in a span, or on words; not both"),
        ({"active_on": ("ada", "")}, "are written word,word; got 'ada,'"),
        ({"attends": ("end", "name")}, "about heads (sites such as z.9.6), which direction:"),
    ],
)
def test_a_prediction_that_cannot_be_tested_is_refused(study: Study, given: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(study, of_name(), found_on=found_on_task("t.jsonl", COPY.model), **given)


def test_a_test_that_cannot_be_done_is_refused(study: Study) -> None:
    found = found_on_task("t.jsonl", COPY.model)
    silent_one, words = (
        made(study, of_name(), found_on=found),
        made(study, of_name(), found_on=found, active_on=("ada",)),
    )
    head = refusal(study, "z.1.2@end", found_on=found, active="name")
    assert "about one direction or feature, which z.1.2@end is not; it can be tested by predict, effect" in head
    for claim, more, sentence in (
        (
            silent_one,
            {"tests": ["predict"]},
            "the claim predicts no attention and no activation; make it with --attends",
        ),
        (
            silent_one,
            {"tests": ["minimality"]},
            "or several nodes of a hypothesis; it can be tested by predict, effect",
        ),
        (silent_one, {"texts": "held.txt"}, "texts are for a claim of words it is active on"),
        (words, {"tests": ["predict"]}, "name held-out texts with --texts FILE"),
        (words, {"texts": "held.md", "tests": ["predict"]}, "texts come from a .txt file"),
        (made(study, of_name(), active_on=("ada",)), {}, "nothing says which pairs to test this claim on"),
    ):
        with pytest.raises(CasebackError) as error:
            tried(study, claim, **more)
        assert sentence in str(error.value)
    assert study.ids() == () and "predict" not in asked(study, words).tests
    assert asked(study, words, texts="held.txt").tests[0] == "predict"


def test_a_claim_made_before_activations_were_asked_keeps_its_id(study: Study) -> None:
    claim = made(study, "z.1.2@end", found_on=found_on_task("t.jsonl", COPY.model))
    path = study.path / "claims" / f"{claim.id}.json"
    body = json.loads(path.read_text())
    for name in ("active", "active_on", "sha256"):
        body.pop(name, None)
    del body["found_on"]["texts"]
    from caseback.study.files import write_json

    write_json(path, body)
    assert read_claim(study, claim.id) == claim
    assert replace(claim, active="name").id != claim.id
