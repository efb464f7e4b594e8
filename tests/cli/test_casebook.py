"""`caseback table`, `compare`, `export`, `import`, `gc` over a study of toy runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caseback.cli.app import main
from caseback.study import Study

from ..study import toy


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    monkeypatch.chdir(tmp_path)
    return Study()


@pytest.fixture
def caseback(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


def test_tables(study: Study, caseback: Any) -> None:
    study.run(toy.spec())
    assert caseback("table", "latest") == (0, "result: sizes, low, high\nresult-2: seen\n", "")
    code, out, _ = caseback("table", "latest", "result")
    assert code == 0 and out.splitlines()[:2] == ["sizes,low,high", "1,,"]
    code, out, _ = caseback("table", "latest", "result", "--format", "jsonl")
    assert [json.loads(line)["sizes"] for line in out.splitlines()] == [1, 10, 100]
    code, out, err = caseback("table", "latest", "nope")
    assert (code, out) == (2, "") and "has no table 'nope'; it has: result, result-2" in err


def test_compare(study: Study, caseback: Any) -> None:
    a, b = study.run(toy.spec()), study.run(toy.spec(seed=1))
    code, out, _ = caseback("compare", a.id, b.id)
    assert code == 0
    assert out.startswith(f"A {a.id}\nB {b.id}\n\nasked differently:\nwhat  A  B\nseed  0  1\n")
    assert "keeps no score of every example" in out
    code, out, _ = caseback("compare", a.id, b.id, "--json")
    found = json.loads(out)
    assert found["asked"] == [{"name": "seed", "a": 0, "b": 1}]
    assert found["paired"] == {}
    assert "asked differently: nothing" in caseback("compare", a.id, a.id)[1]


def test_a_run_is_sent_and_taken_in(study: Study, caseback: Any, tmp_path: Path) -> None:
    record = study.run(toy.spec())
    code, out, _ = caseback("export", "latest")
    assert (code, out) == (0, f"{record.id}.zip\n")
    code, out, _ = caseback("import", f"{record.id}.zip", "--study", "other")
    assert code == 0 and out.startswith(f"run {record.id}\npage ")
    assert Study("other").find("latest").table == record.table
    for arguments, said in (
        (("export", "latest", "no/such/file.zip"), "there is no folder no/such"),
        (("export", "latest", "other"), "other is a folder"),
        (("import", "missing.zip"), "missing.zip cannot be read"),
        (("import", "other"), "other cannot be read"),
    ):
        code, out, err = caseback(*arguments)
        assert (code, out) == (2, "") and said in err


def test_gc_lists_first_and_deletes_when_told(study: Study, caseback: Any) -> None:
    assert caseback("gc") == (0, f"nothing to delete in {study.path}\n", "")
    old = study.run(toy.spec())
    new = study.run(toy.spec(), force=True)
    assert "nothing to delete" in caseback("gc", "--unfinished")[1]
    code, out, _ = caseback("gc", "--superseded")
    assert code == 0 and old.id in out and "--yes deletes them" in out
    assert set(study.ids()) == {old.id, new.id}
    code, out, _ = caseback("gc", "--superseded", "--yes", "--json")
    found = json.loads(out)
    assert found["freed"] == found["waste"][0]["bytes"] > 0
    assert study.ids() == (new.id,)


def test_runs_by_words_and_days(study: Study, caseback: Any) -> None:
    one, _ = study.run(toy.spec("alpha")), study.run(toy.spec("beta", steps=5))
    code, out, _ = caseback("runs", "--search", "alp", "--json")
    assert [row["id"] for row in json.loads(out)] == [one.id]
    assert len(json.loads(caseback("runs", "--since", one.created[:10], "--json")[1])) == 2
    assert json.loads(caseback("runs", "--until", "2001-01-01", "--json")[1]) == []
    code, out, err = caseback("runs", "--since", "yesterday")
    assert code == 2 and "give a day as YYYY-MM-DD" in err


def test_gc_says_names_of_files_safely(study: Study, caseback: Any) -> None:
    (study.path / "runs" / "bad\x1b[31m\u202e").mkdir(parents=True)
    code, out, _ = caseback("gc", "--damaged")
    assert code == 0 and "bad\N{REPLACEMENT CHARACTER}[31m" in out and "\x1b" not in out and "\u202e" not in out
    code, out, err = caseback("show", "bad")
    assert (code, out) == (2, "") and "gc --damaged" in err and "\x1b" not in err and "\u202e" not in err
    assert caseback("gc", "--damaged", "--yes")[0] == 0 and study.ids() == ()


def test_lines_of_events_that_cannot_be_read_are_said(study: Study, caseback: Any) -> None:
    record = study.run(toy.spec())
    with (record.path / "events.jsonl").open("a") as events:
        events.write('{"at": "2')
    assert caseback("export", "latest", "run.zip")[0] == 0
    code, _, err = caseback("import", "run.zip", "--study", "other")
    assert code == 0 and "1 of " in err and "lines of its events.jsonl cannot be read" in err
