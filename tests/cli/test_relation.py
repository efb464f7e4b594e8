"""`caseback relation` on a model whose relation is known: numbers, records, routing, the category's table, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caseback.relations import library
from caseback.relations.relation import Relation, write_relation
from caseback.show.experiments import validate
from caseback.study import Study
from caseback.study import relation as relation_module
from caseback.zoo.affine import affine

from .friend import folder, relation_of, small_library
from .planted import call

KEYS = (
    "relation category n_known n_test layer beta rank faithful_strict faithful_prefix causality low high controls seconds"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("friend"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; the study is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    return tmp_path


@pytest.fixture
def relation(here: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `caseback relation … --model M`."""
    return lambda *options: call(capsys, "relation", "--model", place / "m", *options)


def table(found: tuple[int, str, str]) -> Any:
    code, out, err = found
    assert code == 0, err
    return json.loads(out)


def sentence(found: tuple[int, str, str]) -> str:
    """What is said where a request cannot be carried out: one line, no traceback, nothing on stdout."""
    code, out, err = found
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("caseback: ")]
    return said.removeprefix("caseback: ")


# --- one relation --------------------------------------------------------------------------------------------------------------------


def test_it_is_judged_and_recorded(relation: Any, place: Path) -> None:
    found = table(relation(place / "friend.json", "--json"))
    assert set(KEYS) <= set(found)
    assert (found["relation"], found["category"]) == ("friend", "factual")
    assert found["n_known"] == found["n_test"] == found["n_asked"] == 35
    assert found["faithful_strict"] == found["faithful_prefix"] == found["causality"] == found["high"] == 1
    assert found["low"] == pytest.approx(0.9011, abs=1e-4), "Wilson's: 35 right of 35 do not make certain"
    assert found["rank"] == affine().rank and found["layer"] in (0, 1)
    assert found["controls"]["embedding"] == 1  # the subject's state is its embedding here
    assert found["controls"]["majority"] < 0.1 and found["controls"]["bias"] < 0.1
    assert found["controls"]["causal_random"] < 0.1 and found["controls"]["causal_swap"] == 1
    record = Study().find(found["run"])
    view = record.stage("view").data
    validate({**view, "environment": dict(record.environment), "cost": {}})
    assert record.report is not None and '"kind":"relation"' in record.report.read_text()


def test_the_text_says_the_claim_the_controls_and_the_page(relation: Any, place: Path) -> None:
    code, out, err = relation(place / "friend.json", "--pairs", 8)
    assert code == 0, err
    record = Study().find("latest")
    assert record.stage("view").data["claim"] in out
    assert "gives the model's own token for 100% of 35 held-out subjects" in out
    assert "majority answer" in out and "unembedding row" in out and "Samples" in out
    assert f"run {record.id}\npage {record.report}" in out
    assert "-0.0%" not in out


def test_the_same_request_reopens_its_run(relation: Any, place: Path) -> None:
    runs = [
        table(relation(place / "friend.json", "--pairs", 8, "--json", *more))["run"] for more in ((), (), ("--force",))
    ]
    assert runs[0] == runs[1] != runs[2]
    for other in (("--seed", 1), ("--layers", "all", "--zero-shot", "--train", 4)):
        found = table(relation(place / "friend.json", "--pairs", 8, "--json", *other))
        assert found["run"] not in runs
        assert found["faithful_strict"] == 1
        runs.append(found["run"])
    assert Study().ids() == tuple(runs[1:])


def test_another_relation_of_the_same_name_is_another_run(relation: Any, here: Path) -> None:
    made = relation_of(affine())
    write_relation(made, here / "x.json")
    first = table(relation("x.json", "--pairs", 8, "--json"))
    write_relation(replace(made, samples=made.samples[:30]), here / "x.json")
    second = table(relation("x.json", "--pairs", 8, "--json"))
    assert second["run"] != first["run"] and (first["n_test"], second["n_test"]) == (35, 25)


def test_of_the_twin_every_sample_counts(relation: Any, place: Path) -> None:
    found = table(relation(place / "friend.json", "--pairs", 8, "--twin", "--json"))
    assert found["model"].startswith("random twin of ")
    assert (found["n_known"], found["n_test"], found["n_asked"]) == (0, 35, 35)


def test_whole_objects_and_a_sketch(relation: Any, place: Path) -> None:
    command = (place / "friend.json", "--pairs", 8)
    whole = table(relation(*command, "--objects", "whole", "--json"))
    assert whole["objects"] == "whole" and whole["chance"] == pytest.approx(1 / 40)
    assert "Whole objects: faithfulness, causality and their controls" in relation(*command, "--objects", "whole")[1]
    sketch = table(relation(*command, "--sketch", 16, "--json"))
    assert sketch["sketch"] == 16 and 0 <= sketch["sketch_error"] < 0.01, "the planted map is of rank 16"
    assert sketch["faithful_strict"] == 1
    view = Study().find(sketch["run"]).stage("view").data
    assert any("The operator is a sketch: W along 16 of 64 directions" in note for note in view["notes"])
    plain = table(relation(*command, "--json"))
    assert (plain["objects"], plain["sketch"], plain["sketch_error"]) == ("first", None, None)


def test_several_splits_of_a_category(relation: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "library").mkdir()
    with small_library(here / "library", monkeypatch):
        found = table(relation("--category", "factual", "--pairs", 8, "--splits", 2, "--json"))
        out = relation("--category", "factual", "--pairs", 8, "--splits", 2)[1]
    assert found["intervals_over"] == "relations and their samples, each its mean over the splits"
    assert found["means"]["faithful_strict"] == [1, 1, 1]
    assert "mean over 2 relations; 95 % over relations and their samples, each its mean over the splits" in out
    assert all(row["n_known"] == row["n_test"] <= row["n_asked"] for row in found["relations"])


def test_the_study_folder_can_be_named(relation: Any, place: Path, here: Path) -> None:
    found = table(relation(place / "friend.json", "--pairs", 8, "--out", here / "mine", "--json"))
    assert Study(here / "mine").ids() == (found["run"],)
    assert Study().ids() == ()


# --- stopped and resumed -------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_is_resumed_to_the_same_table(
    relation: Any, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seen = relation_module.judge_split, []

    def stop(*arguments: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    command = (place / "friend.json", "--splits", 2, "--pairs", 8, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(relation_module, "judge_split", stop)
        code, _, err = relation(*command)
    assert code == 130 and "caseback resume" in err
    assert set(Study().find("latest").saved()) == {"split-0"}
    resumed = table(call(capsys, "resume", "latest", "--json"))
    straight = table(relation(*command, "--force"))
    same = set(straight) - {"run", "seconds", "peak_memory_mb"}
    assert {name: resumed[name] for name in same} == {name: straight[name] for name in same}


# --- the list and a category ---------------------------------------------------------------------------------------------------------


def test_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "relation", "list")
    assert code == 0 and len(out.splitlines()) == len(library.names()) >= 24
    assert "country capital city" in out
    rows = table(call(capsys, "relation", "list", "--json"))
    assert [row["name"] for row in rows] == list(library.names())
    assert all(set(row) == {"name", "category", "samples", "source"} for row in rows)
    assert {row["category"] for row in rows} == {"factual", "commonsense", "linguistic", "bias"}
    assert all(row["samples"] >= 20 and row["source"] for row in rows)


def test_list_says_what_the_model_knows(
    here: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "library").mkdir()
    with small_library(here / "library", monkeypatch):
        rows = table(call(capsys, "relation", "list", "--model", place / "m", "--json"))
        out = call(capsys, "relation", "list", "--model", place / "m")[1]
    assert {row["name"]: (row["known"], row["asked"]) for row in rows} == {
        "friend": (35, 35),
        "good friend": (25, 25),
        "stranger": (0, 35),
        "hunch": (0, 35),
    }
    assert "knows  35 of  35" in out
    assert Study().ids() == ()


def test_a_category_leaves_out_what_cannot_be_judged(
    relation: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "library").mkdir()
    with small_library(here / "library", monkeypatch):
        found = table(relation("--category", "factual", "--pairs", 8, "--json"))
        code, out, _ = relation("--category", "factual", "--pairs", 8)
        nothing = [sentence(relation("--category", "bias", *more)) for more in ((), ("--json",))]
        wrong = sentence(relation("--category", "nosuch"))
    assert [row["relation"] for row in found["relations"]] == ["friend", "good friend"]
    assert list(found["left_out"]) == ["stranger"] and "knows 0 of 35" in found["left_out"]["stranger"]
    assert code == 0
    assert sorted(Study().ids()) == [row["run"] for row in found["relations"]]  # the text reopened them
    lines = out.splitlines()
    assert lines[0].startswith("relation ") and lines[1].startswith("friend ") and lines[2].startswith("good friend ")
    assert "100%  [ 90%, 100%]" in lines[1] and lines[1].split()[1] == "35"
    assert "faithful_strict: 1" in out and "mean over 2 relations" in out
    assert lines[-1].startswith("left out: stranger (") and "knows 0 of 35 samples of 'stranger'" in lines[-1]
    assert all(said.startswith("no relation of the category 'bias' could be judged: ") for said in nothing)
    assert wrong == "there is no category 'nosuch'; there are: bias, factual"


# --- routing -------------------------------------------------------------------------------------------------------------------------


def test_a_first_word_that_is_no_command_is_a_relation(
    relation: Any, here: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, made = ("--model", place / "m", "--pairs", 8, "--json"), relation_of(affine())
    for name in ("list", "judge", "--help"):
        write_relation(replace(made, name=name), here / name)
    commands = {
        "list": ("./list", *model),
        "judge": ("judge", "judge", *model),
        "--help": (*model, "--", "--help"),
    }
    for name, command in commands.items():
        assert table(call(capsys, "relation", *command))["relation"] == name
    assert call(capsys, "relation", "list")[1].startswith("adjective antonym")
    assert "`caseback relation list`" in " ".join(call(capsys, "relation", "--help")[1].split())


# --- refusals ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("nosuch",), "there is neither a relation nor a file 'nosuch'; relations are: adjective antonym, "),
        (("--category", "nosuch"), "there is no category 'nosuch'; there are: bias, commonsense, factual, linguistic"),
        ((), "give one relation, or --category with a category's name"),
        (("friend.json", "--category", "factual"), "give one relation, or --category with a category's name"),
        (("friend.json", "--layers", "odd"), "layers are 'even' or 'all', not 'odd'"),
        (("friend.json", "--template", 7), "relation 'friend' has 1 prompt_templates, so there is no number 7"),
        (("friend.json", "--objects", "half"), "objects are read by their 'first' token or 'whole', not 'half'"),
        (("friend.json", "--sketch", 4), "a sketch takes at least 8 directions"),
        (("friend.json", "--train", 40), "40 training samples were asked for of 40; at least 2 are needed"),
        (("friend.json", "--dtype", "int3"), "int3"),
        (("bad.json",), "bad.json: not JSON"),
        (("key.json",), "key.json: the file has the unknown field 'extra'"),
        (("glued.json",), "the subject 'subject"),
        (("unknown.json",), "knows 0 of 35 samples of 'unknown'"),
        (("few.json",), "knows 5 of 5 samples of 'few'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(relation: Any, here: Path, options: Any, expected: str) -> None:
    made = relation_of(affine())

    def write(name: str, **changed: Any) -> None:
        write_relation(replace(made, name=name, **changed), here / f"{name}.json")

    write("friend")
    (here / "bad.json").write_text("{")
    (here / "key.json").write_text(json.dumps({**json.loads((here / "friend.json").read_text()), "extra": 1}))
    write("glued", prompt_templates=("the friend of {}s is",))
    write("unknown", samples=tuple(replace(one, object="nobody") for one in made.samples))
    write("few", samples=made.samples[:10])
    assert expected in sentence(relation(*options))
    assert Study().ids() == ()


def test_hostile_texts_are_inert(relation: Any, here: Path) -> None:
    made: Relation = relation_of(affine())
    evil = "\x1b[31m\u202ename\x07\r\nrun 1"
    samples = tuple(replace(one, object=one.object + " \x1b]0;title\x07\n") for one in made.samples)
    write_relation(replace(made, name=evil, samples=samples), here / "evil.json")
    code, out, err = relation("evil.json", "--pairs", 8)
    assert code == 0, err
    assert not set("\x1b\u202e\x07\r") & set(out + err)
    assert out.startswith("\ufffd[31m\ufffdname\ufffd\ufffd\ufffdrun 1 on ")
    found = table(relation("evil.json", "--pairs", 8, "--json"))
    assert found["relation"] == evil


# --- cross-evaluation ------------------------------------------------------------------------------------------------


def test_cross_evaluation_tells_relations_apart(here: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two relations the model knows, over halves of the same subjects: each operator is right on both, for it is one map."""
    zoo = affine()
    both = relation_of(zoo)
    for name, samples in (("first", both.samples[:20]), ("second", both.samples[20:])):
        write_relation(replace(both, name=name, samples=samples), here / f"{name}.json")
    asked = ("relation", "cross", here / "first.json", here / "second.json", "--model", place / "m", "--json")
    found = table(call(capsys, *asked))
    assert found["relations"] == ["first", "second"]
    assert all(share == 1 for row in found["right"] for share in row)
    assert all(share <= 0.2 for row in found["twin"] for share in row)
    assert table(call(capsys, *asked))["run"] == found["run"], "a finished run is reopened"
    record = Study().find(found["run"])
    validate({**record.stage("view").data, "environment": {}, "cost": {}})


def test_a_cross_evaluation_of_one_relation_is_refused(relation: Any, place: Path, capsys: Any) -> None:
    said = sentence(call(capsys, "relation", "cross", place / "friend.json", "--model", place / "m"))
    assert said == "a cross-evaluation needs at least two different relations"
    said = sentence(call(capsys, "relation", "cross", place / "friend.json", "nosuch", "--model", place / "m"))
    assert "neither a relation nor a file 'nosuch'" in said
