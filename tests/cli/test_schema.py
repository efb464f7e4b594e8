"""`caseback schema` from end to end: files written, files refused, a language model asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caseback.cli import app as cli
from caseback.tasks import ioi, read_task, write_task

from ..model.stage import Handler, Stage, good, says
from ..tasks.readers import Reader


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A tokenizer in place of the default model."""
    found = Reader()
    monkeypatch.setattr("caseback.model.load.load", lambda *_, **__: found)
    return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.stop()


class Ran:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            cli.main(["schema", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(int(left.value.code or 0), captured.out, captured.err)

    return call


def oracle(handler: Handler) -> None:
    """Answers as the hand that wrote the IOI task."""
    server: Any = handler.server
    question = server.seen[-1][2]["messages"][-1]["content"]
    by_prompt = {pair.clean: pair for pair in ioi(50, model=Reader()).pairs}
    if "\nPrompt:\n" in question:
        prompt = json.loads(question.split("\nPrompt:\n")[1].splitlines()[0])["Text"]
        answer: Any = dict(by_prompt[prompt].pieces)
    else:
        schema = ioi(1).schema
        assert schema is not None
        answer = dict(schema.descriptions)
    text = "Certainly!\n```json\n" + json.dumps(answer) + "\n```"
    says(good(text, usage={"prompt_tokens": 9, "completion_tokens": 3}))(handler)


# --- induce, apply, show -----------------------------------------------------------------------------------------------


def test_a_schema_is_induced_written_shown_and_laid(run: Any, tmp_path: Path) -> None:
    file, pairs = tmp_path / "s.json", tmp_path / "pairs.jsonl"
    made = run("induce", "ioi", "--n", 30, "--out", file)
    assert made.code == 0
    assert "opening · name-1 · and · name-2" in made.out
    assert "| and|" in made.out
    assert str(file) in made.out
    laid = run("apply", file, "ioi", "--n", 6, "--seed", 9, "--out", pairs)
    assert laid.code == 0
    task = read_task(pairs)
    assert task.n == 6
    assert task.schema is not None
    assert task.schema.spans[:2] == ("opening", "name-1")
    assert run("show", file).out == run("show", pairs).out
    assert "IO       the name that is mentioned once" in run("show", "ioi").out


def test_json_is_one_object(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    made = run("induce", "greater-than", "--n", 20, "--json", "--out", file)
    assert made.json == json.loads(file.read_text())
    assert made.json["made"]["by"] == "induce"
    assert made.json["made"]["n"] == 20
    laid = run("apply", file, "greater-than", "--n", 5, "--json").json
    assert (laid["laid"], laid["dropped"], laid["out"]) == (5, 0, None)
    assert run("show", "ioi", "--json").json["spans"][0] == "prefix"


def test_a_users_file_is_a_task_too(run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    write_task(ioi(20), mine)
    assert run("induce", mine, "--json").json["made"]["n"] == 20


def test_salient_runs_the_model(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from caseback.zoo.copy_circuit import copying

    known = copying(n=8)
    monkeypatch.setattr("caseback.model.load.load", lambda *_, **__: known.model)
    monkeypatch.setattr("caseback.tasks.files.read_task", lambda *_, **__: known.task)
    assert run("induce", "copy", "--salient", "--json").json["made"]["salient"] is True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("induce", "nothing"), "neither a task nor a file"),
        (("induce", "ioi", "--n", "1"), "give two at least"),
        (("induce", "ioi", "--out", "nowhere/s.json"), "there is no folder nowhere"),
        (("induce", "ioi", "--out", "."), "is a folder"),
        (("apply", "nothing.json", "ioi"), "there is no schema file"),
        (("apply", "bad.json", "ioi"), "not a JSON file"),
        (("apply", "list.json", "ioi"), "an aligner is an object"),
        (("show", "nothing.json"), "there is no schema file"),
        (("show", "bare.jsonl"), "has no spans"),
        (("propose", "ioi"), "--endpoint URL with --endpoint-model NAME, or --local"),
        (("propose", "ioi", "--local", "--endpoint", "http://h", "--endpoint-model", "m"), "or --local"),
        (("propose", "ioi", "--endpoint", "http://h"), "or --local"),
        (("propose", "ioi", "--endpoint", "nowhere", "--endpoint-model", "m"), "is not of the form http"),
        (("propose", "ioi", "--endpoint", "http://h", "--endpoint-model", "m", "--n", "3"), "there are 3 prompts"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bare.jsonl").write_text('{"clean": "a", "counterfactual": "b", "answers": [" x"], "foils": [" y"]}\n')
    before = sorted(tmp_path.iterdir())
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert sentence in ran.err.splitlines()[-1]
    assert ran.err.splitlines()[-1].startswith("caseback: ")
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_terminal_would_act_on_is_not_printed(run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    rows = [
        {"clean": f"a\x1b[31m {w} b", "counterfactual": f"a\x1b[31m {v} b", "answers": [" x"], "foils": [" y"]}
        for w, v in (("one", "two"), ("two", "six"), ("six", "one"))
    ]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run("induce", mine)
    assert ran.code == 0
    assert "\x1b" not in ran.out


# --- propose -----------------------------------------------------------------------------------------------------------


def test_a_schema_is_proposed_over_http_and_laid_without_asking_again(run: Any, stage: Stage, tmp_path: Path) -> None:
    stage.endpoint(oracle)
    file = tmp_path / "s.json"
    ran = run("propose", "ioi", "--endpoint", stage.url, "--endpoint-model", "m", "--out", file)
    assert ran.code == 0, ran.err
    assert "50 of 50 prompts valid; calls: generate 3, unify 1, apply 50" in ran.out
    document = json.loads(file.read_text())
    assert document["made"]["prompt_tokens"] == 9 * 54
    assert document["made"]["chat"] == f"m at {stage.url}"
    assert document["aligner"]["schema"]["spans"] == list(ioi(1).schema.spans)  # type: ignore[union-attr]
    calls = len(stage.seen)
    pairs = tmp_path / "pairs.jsonl"
    assert run("apply", file, "ioi", "--n", 10, "--seed", 4, "--out", pairs).code == 0
    assert len(stage.seen) == calls
    by_hand = ioi(10, seed=4, model=Reader())
    assert [p.spans for p in read_task(pairs).pairs] == [p.spans for p in by_hand.pairs]


def test_a_model_that_cannot_do_it_is_exit_code_1(run: Any, stage: Stage, tmp_path: Path) -> None:
    stage.endpoint(says(good("I would rather not.")))
    file = tmp_path / "s.json"
    to = ("--endpoint", stage.url, "--endpoint-model", "m", "--rounds", 2, "--out", file)
    ran = run("propose", "ioi", *to)
    assert ran.code == 1
    assert "gave no schema that fits the examples in 2 rounds" in ran.err
    assert "holds no JSON object" in ran.err
    assert not file.exists()
    ran = run("propose", "ioi", *to, "--json")
    assert ran.code == 1
    assert ran.json["aligner"] is None
    assert ran.json["made"]["calls"] == {"generate": 6}


def test_an_endpoint_that_fails_is_exit_code_2(run: Any, stage: Stage, tmp_path: Path) -> None:
    stage.endpoint(says({}, 401))
    ran = run("propose", "ioi", "--endpoint", stage.url, "--endpoint-model", "m")
    assert ran.code == 2
    assert "refused a request without a key" in ran.err.splitlines()[-1]


def test_a_local_model_without_a_chat_template_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from caseback.zoo.copy_circuit import copying

    monkeypatch.setattr("caseback.model.load.load", lambda *_, **__: copying(n=2).model)
    monkeypatch.setattr("caseback.tasks.files.read_task", lambda *_, **__: copying(n=15).task)
    ran = run("propose", "copy", "--local", "--n", 15)
    assert ran.code == 2
    assert "has no chat template" in ran.err.splitlines()[-1]
