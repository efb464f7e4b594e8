"""`caseback runs`, `show`, `report`, `resume` over a study of toy runs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caseback.cli.app import main
from caseback.core import registry
from caseback.study import Checkpoint, Record, RunFolder, Spec, Study


class Config:
    """Stands for a method's frozen dataclass; rebuilt from the spec's parameters."""

    def __init__(self, **params: Any) -> None:
        self.params = params


class Counting:
    """Counts to three, unless something stops it at two."""

    name = "counting"
    Config = Config
    stops = False

    def run(self, config: Any, run: RunFolder, progress: Any) -> None:
        def step(state: Checkpoint | None, i: int) -> Checkpoint:
            if i == 2 and Counting.stops:
                raise KeyboardInterrupt
            return Checkpoint(data={"n": i})

        counted = run.fold("count", 3, step)
        table = {"model": "toy", "task": run.spec.task, "n": counted.data["n"], "accuracy": 0.98765}
        curve = {"sizes": [10, 2000], "faithfulness": [0.25, 1.0], "low": [None, 0.9], "high": [0.5, 1.1]}
        run.write_result({**table, **curve, "cpr": 0.5})


METHOD = Counting()


def page(record: Record) -> str:
    return f"<p>{record.table['n']}"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setitem(registry._OFFERS, ("method", "counting"), f"{__name__}:METHOD")
    monkeypatch.setitem(registry._OFFERS, ("report", "counting"), f"{__name__}:page")
    monkeypatch.setattr(Counting, "stops", False)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    return Study()


def spec(task: str = "ioi", **params: Any) -> Spec:
    return Spec(method="counting", params={"n": 3, **params}, task=task, model={"id": "org/m", "revision": "abc"})


@pytest.fixture
def caseback(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


def test_runs_lists_and_filters(study: Study, caseback: Any) -> None:
    one, two = study.run(spec()), study.run(spec("capitals", n=4))
    code, out, _ = caseback("runs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", two.id, one.id]
    assert "finished" in out
    assert "n 2  accuracy 0.9877  cpr 0.5" in out
    code, out, _ = caseback("runs", "--task", "CAP", "--json")
    (row,) = json.loads(out)
    assert row["id"] == two.id
    assert row["headline"] == {"n": 2, "accuracy": 0.98765, "cpr": 0.5}
    assert caseback("runs", "--model", "none")[1] == f"no such run in {study.path}\n"
    assert caseback("runs", "--study", "elsewhere")[1] == "there is no folder elsewhere\n"


def test_show_is_a_readable_table(study: Study, caseback: Any) -> None:
    record = study.run(spec())
    code, out, _ = caseback("show", "latest")
    assert code == 0
    assert out.splitlines()[0].split() == ["run", record.id, "finished"]
    assert "model           org/m abc" in out
    assert "parameters      n=3" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["sizes", "faithfulness", "low", "high"] in lines
    assert ["10", "0.25", "-", "0.5"] in lines
    assert ["2000", "1", "0.9", "1.1"] in lines
    assert f"page: {record.path / 'report.html'}" in out
    shown = json.loads(caseback("show", record.id[:-2], "--json")[1])
    assert shown["run"] == record.id
    assert shown["faithfulness"] == [0.25, 1.0]
    assert shown["status"] == "finished"
    assert shown["spec"]["params"] == {"n": 3}


def test_show_gives_what_is_nested_a_line_each(study: Study, caseback: Any) -> None:
    study.run(spec(discover={"steps": 5, "inner": {"sign": "absolute"}}))
    out = caseback("show", "latest")[1]
    assert [line.split() for line in out.splitlines() if "discover" in line] == [
        ["discover.steps", "5"],
        ["discover.inner.sign", "absolute"],
    ]
    assert "parameters           n=3\n" in out
    assert "{" not in out


def test_show_of_what_does_not_exist_is_a_sentence(study: Study, caseback: Any) -> None:
    assert caseback("show", "latest") == (
        2,
        "",
        f"caseback: there are no runs in {study.path}; choose another study folder with --study DIR or CASEBACK_STUDY\n",
    )
    record = study.run(spec())
    code, _, err = caseback("show", "nope")
    assert code == 2
    assert err.startswith("caseback: there is no run 'nope'")
    (record.path / "result.json").write_text("{")
    code, _, err = caseback("show", "latest")
    assert code == 2
    assert f"caseback resume {record.id}" in err


def test_report_is_made_again(study: Study, caseback: Any, tmp_path: Path) -> None:
    record = study.run(spec())
    (record.path / "report.html").unlink()
    code, out, _ = caseback("report", "latest")
    assert code == 0
    assert out == f"{record.path / 'report.html'}\n"
    assert (record.path / "report.html").read_text() == "<p>2"
    assert caseback("report", "latest", "--out", str(tmp_path / "page.html"))[0] == 0
    assert (tmp_path / "page.html").read_text() == "<p>2"
    code, _, err = caseback("report", "latest", "--out", str(tmp_path / "no" / "page.html"))
    assert code == 2
    assert "could not be written (No such file or directory)" in err


def test_ctrl_c_says_how_to_go_on_and_resume_goes_on(
    study: Study, caseback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "stops", True)
    with pytest.raises(KeyboardInterrupt):
        study.run(spec())
    run = study.find("latest").id
    code, out, _ = caseback("show", run)
    assert code == 0
    assert "interrupted" in out
    assert "reached         count 2/3" in out
    assert f"to go on: caseback resume {run}" in out
    code, _, err = caseback("resume", run)
    assert code == 130
    assert f"caseback: run {run} was stopped; `caseback resume {run}` goes on with it" in err
    monkeypatch.setattr(Counting, "stops", False)
    code, out, _ = caseback("resume", run, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "finished"
    assert caseback("resume", run)[0] == 0
    assert study.find(run).cost.sessions == 3


def test_a_hostile_name_is_inert(study: Study, caseback: Any) -> None:
    study.run(spec("\x1b[31mred\u202e[bold]<b>"))
    for arguments in (["runs"], ["show", "latest"]):
        out = caseback(*arguments)[1]
        assert "\x1b" not in out
        assert "\u202e" not in out
    assert "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}[bold]<b>" in caseback("show", "latest")[1]


def test_a_damaged_run_is_listed_with_its_reason(study: Study, caseback: Any) -> None:
    record = study.run(spec())
    (record.path / "spec.json").write_bytes(b"\x00")
    code, out, _ = caseback("runs")
    assert code == 0
    assert "damaged" in out
    assert "is damaged (it is not JSON" in out


def test_a_terminal_gets_a_drawn_table(study: Study) -> None:
    study.run(spec("[red]ioi"))
    inner, outer = pty.openpty()
    code = "from caseback.cli.app import main; main(['show', 'latest'])"
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=outer, stderr=outer, env=environment) as process:
        process.wait()
    os.close(outer)
    said = b""
    try:
        while more := os.read(inner, 65536):
            said += more
    except OSError:  # the terminal is gone: all has been read
        pass
    os.close(inner)
    text = said.decode()
    assert process.returncode == 0, text
    assert "[red]ioi" in text
    assert "faithfulness" in text
    assert "──" in text
