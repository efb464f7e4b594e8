"""Claims about hypotheses: a true one is supported, false ones are not, and what would test nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caseback.core.errors import CasebackError, StudyError
from caseback.core.progress import silent
from caseback.study import Record, Study
from caseback.study.claims import CLAIM_TEST, Claim, asked, found_on_task, least, new_claim, read_component, standing
from caseback.tasks import write_task
from caseback.zoo import copying, induction

from .looking import die_after, is_valid, look, plain_table

INDUCTION, COPY = induction(n=100, seed=3), copying(n=8)
SAID = "the last word looks for the note of itself and says the colour found there"
TRUE: dict[str, Any] = {
    "output": ["find"],
    "nodes": {
        "find": {"sites": ["z.1.2@end"], "agree": ["colour"], "inputs": ["notes<k>", "word<q>", "colours<v>"]},
        "notes": {"sites": ["z.0.1@colour", "z.0.1@foil"], "agree": ["name"]},
        "word": {"sites": ["resid_pre.0@end"], "agree": ["name"]},
        "colours": {"sites": ["resid_pre.0@colour", "resid_pre.0@foil"], "agree": ["colour", "foil"]},
    },
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    write_task(INDUCTION.task, "t.jsonl")
    return Study("casebook")


def changed(**nodes: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(TRUE))
    for name, fields in nodes.items():
        data["nodes"][name] |= fields
    return data


def made(study: Study, data: dict[str, Any], **more: Any) -> Claim:
    Path("h.json").write_text(json.dumps(data))
    more = {"found_on": found_on_task("t.jsonl", INDUCTION.model), "at_least": least("hypothesis:h.json")} | more
    return new_claim(study, INDUCTION.model, Claim(component="hypothesis:h.json", description=SAID, model={}, **more))


def tried(study: Study, claim: Claim, **more: Any) -> Record:
    config = asked(study, claim, **more)
    spec, have = CLAIM_TEST.prepare(config, study, passed={}, progress=silent, model=INDUCTION.model)
    return study.run(spec, have=have)


def rows(record: Record) -> dict[str, Any]:
    return {row["test"]: row for row in record.table["tests"]}


def test_a_true_hypothesis_is_supported_by_all_its_tests(study: Study) -> None:
    claim = made(study, TRUE)
    assert claim.causal == ("scrub",)
    record = tried(study, claim, randoms=40, adversarial="t.jsonl")
    found = rows(record)
    assert list(found) == ["scrub", "minimality", "specificity", "adversarial"]
    assert found["scrub"]["value"] == pytest.approx(1, abs=0.1) and abs(found["scrub"]["control"]) < 0.2
    assert found["adversarial"]["value"] == pytest.approx(found["scrub"]["value"])  # here the same pairs
    assert {test: row["verdict"] for test, row in found.items()} == dict.fromkeys(found, "supports")
    assert found["specificity"]["over_low"] == pytest.approx(0.1)  # exact: there is no other place left
    assert is_valid(record) and standing(study, claim).status == "supported"
    shown = [one["title"] for one in record.stage("view").data["sections"]]
    assert "What was exchanged" in shown and "Part by part" in shown


def test_a_false_feature_and_a_false_path_are_refuted(study: Study) -> None:
    for wrong in (
        changed(word={"agree": []}),  # it is said not to matter which word asks
        changed(colours={"agree": ["name"]}),  # the colours are said to depend on the name
        changed(find={"inputs": ["notes<v>", "word<q>", "colours<v>"]}),  # the notes are said to be read as values
    ):
        claim = made(study, wrong)
        record = tried(study, claim, tests=["scrub"], randoms=3)
        assert rows(record)["scrub"]["verdict"] == "refutes", record.table
        assert standing(study, claim).status == "refuted"


def test_killed_between_stages_it_ends_in_the_same_table(study: Study) -> None:
    claim = made(study, TRUE)
    config = asked(study, claim, randoms=2, tests=["scrub", "specificity"])
    straight = look(study, CLAIM_TEST, config, INDUCTION.model)
    for stages in range(1, len(straight.saved())):
        die_after(stages, lambda: look(study, CLAIM_TEST, config, INDUCTION.model, force=True))
        resumed = study.resume(study.find("latest").id, have={"model": INDUCTION.model})
        assert plain_table(resumed) == plain_table(straight)


def test_what_would_test_nothing_is_refused(study: Study) -> None:
    pinned = made(study, changed(find={"agree": ["prompt"]}))
    with pytest.raises(
        StudyError, match="100% of the draws no other of the .* prompts agrees with node 'find' on prompt"
    ):
        tried(study, pinned, tests=["scrub"], randoms=2)
    with pytest.raises(StudyError, match="leave out whether it is enough or needed"):
        made(study, TRUE, causal=("necessity",))
    with pytest.raises(StudyError, match="the test 'scrub' cannot be done with z.1.2: scrubbing takes a hypothesis"):
        new_claim(study, INDUCTION.model, Claim(component="z.1.2", description="x", model={}, causal=("scrub",)))
    with pytest.raises(StudyError, match="has no nodes"):
        made(study, {"output": "all"})
    with pytest.raises(CasebackError, match="no feature 'nowhere' to agree on"):
        made(study, changed(word={"agree": ["nowhere"]}))
    with pytest.raises(CasebackError, match="is about heads"):
        made(study, TRUE, attends=("end", "colour"))
    for text in ("hypothesis:", "hypothesis:nowhere.json"):
        with pytest.raises(CasebackError, match="there is no hypothesis"):
            read_component(text, study, INDUCTION.model)
    claim = made(study, TRUE)
    with pytest.raises(StudyError, match="the test 'sufficiency' cannot be done .* scrub, minimality, specificity"):
        tried(study, claim, tests=["sufficiency"])
    Path("h.json").write_text(json.dumps(changed(word={"agree": ["other"]})))
    with pytest.raises(StudyError, match="has changed since the claim was made"):
        tried(study, claim)
