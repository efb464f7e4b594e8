"""`caseback task`: what it prints, what it prints as JSON, what it writes, and how it refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from caseback.cli.app import main
from caseback.model import load as loading
from caseback.tasks import library, read_task

from ..tasks.readers import Reader, knowing


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `caseback task …` in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["task", *arguments])
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names `load` is called with; it gives a model that knows three quarters of the first IOI pairs."""
    asked: list[Any] = []

    def load(name: Any = None, **options: Any) -> Reader:
        asked.append(name)
        return knowing(library.get("ioi", n=8, model=Reader()), 0.75)

    monkeypatch.setattr(loading, "load", load)
    return asked


def test_list(run: Any, models: list[Any]) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert all(f"{name}  " in out for name in library.names())
    assert "spans prefix · IO · and · S1 · S1+1 · action1 · S2 · action2 · to" in out
    code, out, _ = run("list", "--json")
    rows = json.loads(out)["tasks"]
    assert [row["task"] for row in rows] == list(library.names())
    assert all(row["spans"] and row["example"]["answers"] for row in rows)
    assert models == []  # no model is loaded to list


def test_check(run: Any, models: list[Any]) -> None:
    code, out, err = run("check", "ioi", "--n", "8", "--model", "some/model")
    assert code == 0
    assert out.splitlines()[0] == "ioi on reader: 6 of 8 pairs kept"
    assert "dropped 2: wrong answer" in out
    assert "check: 8/8" in err
    assert models == ["some/model"]


def test_check_as_json(run: Any, models: list[Any]) -> None:
    code, out, _ = run("check", "ioi", "--n", "8", "--json", "--batch-size", "3")
    found = json.loads(out)
    assert code == 0
    assert found == found | {
        "task": "ioi",
        "model": "reader",
        "n": 8,
        "fit": 8,
        "kept": 6,
        "accuracy": 0.75,
        "top1": 0.75,
    }
    assert found == found | {"metric": "logit_diff", "mean": 1.0, "dropped": {"wrong answer": 2}}
    assert found["examples"]["wrong answer"][0].startswith("pair 7: logit_diff -2.000 after ")
    assert models == [None]


def test_check_a_file(run: Any, models: list[Any]) -> None:
    run("export", "ioi", "mine.csv", "--n", "8")
    code, out, _ = run("check", "mine.csv", "--n", "4")
    assert code == 0
    assert out.startswith("mine on reader: 4 of 4 pairs kept")


def test_nothing_right_is_exit_code_2(run: Any, models: list[Any]) -> None:
    code, out, err = run("check", "capitals", "--n", "3")
    assert (code, out) == (2, "")
    assert (
        "caseback: reader answers none of the 3 pairs of the task 'capitals' as declared (3 wrong answer, such as pair 1: "
        in err
    )


def test_export_and_back(run: Any, models: list[Any], tmp_path: Path) -> None:
    code, out, _ = run("export", "ioi-baba", "a.jsonl", "--n", "6", "--seed", "4")
    assert (code, out) == (0, "a.jsonl: 6 pairs of ioi-baba\n")
    assert models == []  # JSON Lines needs no tokenizer
    task = read_task(tmp_path / "a.jsonl")
    assert task == library.get("ioi-baba", n=6, seed=4)
    assert run("export", "a.jsonl", "b.csv", "--format", "peap-csv")[0] == 0
    assert run("export", "b.csv", "c.jsonl", "--format", "jsonl", "--n", "5")[0] == 0
    assert models == [None, None]
    assert set(read_task(tmp_path / "c.jsonl").pairs) <= set(task.pairs)
    run("export", "ioi", "d.jsonl", "--model", "x")
    assert models[2:] == ["x"]  # names that are one token in that model
    assert "tokens of reader" in (tmp_path / "d.jsonl").read_text("utf-8")


def test_export_joins_the_published_files(run: Any, models: list[Any], tmp_path: Path) -> None:
    columns = "prompt,first,to,length,correct_token,wrong_token\n"
    (tmp_path / "clean.csv").write_text(columns + "left and to,1,3,4, left, up\n")
    (tmp_path / "counter.csv").write_text(columns + "down and to,1,3,4, left, up\n")
    assert run("export", "clean.csv", "x.jsonl", "--counterfactual", "counter.csv")[0] == 0
    assert read_task(tmp_path / "x.jsonl").pairs[0].counterfactual == "down and to"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("check", "nosuch"), "there is neither a task nor a file 'nosuch'; tasks are agreement, capitals, "),
        (("check", "bad.jsonl"), "bad.jsonl: row 1: not JSON"),
        (("export", "ioi", "a.txt"), "a.txt ends neither in .jsonl nor in .csv"),
        (
            ("export", "ioi", "a.csv", "--format", "jsonl"),
            "--format jsonl writes a file that ends in .jsonl or .ndjson or .json",
        ),
        (("export", "ioi", "no/a.jsonl"), "there is no folder no to write a.jsonl into; make it first"),
        (("export", "ioi", "a.jsonl", "--n", "99999999"), "was asked for n=99999999 pairs; it has 14905600 at most"),
    ],
)
def test_a_refusal_is_a_sentence(
    arguments: tuple[str, ...], sentence: str, run: Any, models: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("caseback: ")][0].removeprefix("caseback: ").find(
        sentence
    ) >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(part: Any, path: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(part))

    monkeypatch.setattr("caseback.tasks.files.os.replace", refuse)
    code, out, err = run("export", "ioi", "x.jsonl", "--n", "4")
    assert (code, out) == (2, "")
    assert err.startswith("caseback: not permitted to use x.jsonl (Permission denied): ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.default_model
def test_the_default_model(run: Any) -> None:
    code, out, _ = run("check", "ioi", "--n", "4", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["fit"]) == ("SmolLM2-135M-Instruct", 4)
