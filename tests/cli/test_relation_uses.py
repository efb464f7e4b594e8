"""`caseback relation concepts`, `distract` and `isolate` on a model that knows two facts of each subject."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caseback.relations.relation import write_relation
from caseback.show.experiments import validate
from caseback.study import Study

from ..relations.facts import facts, relation
from .planted import call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, model = tmp_path_factory.mktemp("facts"), facts()
    model.hf.save_pretrained(path / "m")
    model.tokenizer.save_pretrained(path / "m")
    for second in (False, True):
        made = relation(second)
        write_relation(made, path / f"{made.name}.json")
    return path


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `caseback relation WORD … --model M` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    return lambda word, *options: call(capsys, "relation", word, *options, "--model", place / "m")


def sentence(found: tuple[int, str, str]) -> str:
    code, out, err = found
    assert (code, out) == (2, "") and "Traceback" not in err, err
    (said,) = [line for line in err.splitlines() if line.startswith("caseback: ")]
    return said.removeprefix("caseback: ")


USES = {
    "concepts": ("accuracy", "changed"),
    "distract": ("repetition_truth1", "instruction_falsehood1"),
    "isolate": ("changed", "left_alone"),
}


@pytest.mark.parametrize("word", USES)
def test_a_use_is_a_run_with_a_page(ask: Ask, place: Path, word: str) -> None:
    more = ("--sibling", place / "second.json") if word == "isolate" else ()
    code, out, err = ask(word, place / "first.json", *more, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["relation"] == "first" and found["layer"] in (1, 2)
    for key in USES[word]:
        assert found[key].keys() == found[f"{key}_low"].keys() == found[f"{key}_high"].keys()
        assert all(0 <= share <= 1 for share in found[key].values())
    record = Study().find(found["run"])
    validate({**record.stage("view").data, "environment": {}, "cost": {}})
    assert record.report is not None
    assert Study().ids() == (found["operator_run"], found["run"]), "judged first, once"
    code, out, err = ask(word, place / "first.json", *more)
    assert code == 0 and record.stage("view").data["claim"] in out and f"run {found['run']}" in out
    other = json.loads(ask(word, place / "first.json", *more, "--layer", 0, "--json")[1])
    assert other["layer"] == 0 and other["operator_run"] == found["operator_run"] and other["run"] != found["run"]


def test_a_relation_called_like_a_command_is_reached_by_its_file(ask: Ask, tmp_path: Path) -> None:
    for word in USES:
        write_relation(replace(relation(), name=word), tmp_path / word)
        found = json.loads(ask(f"./{word}", "--pairs", 8, "--json")[1])
        assert found["relation"] == word and "faithful_strict" in found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("concepts", "nosuch"), "there is neither a relation nor a file 'nosuch'"),
        (("concepts", "first.json", "--twin"), "a model with random weights knows nothing, so there is nothing here"),
        (("distract", "first.json", "--twin"), "the control is the operator's own random twin"),
        (("isolate", "first.json", "--twin", "--sibling", "second.json"), "a model with random weights knows nothing"),
        (("distract", "first.json", "--layer", 3), "there is no layer 3; "),
        (
            ("isolate", "first.json"),
            "no relation of the library asks of the subjects of 'first'; name one with --sibling",
        ),
        (("isolate", "first.json", "--sibling", "first.json"), "siblings have names of their own, and 'first' stands"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(ask: Ask, place: Path, options: Any, expected: str) -> None:
    given = [place / one if str(one).endswith(".json") else one for one in options]
    assert expected in sentence(ask(*given))
    assert Study().ids() == ()
