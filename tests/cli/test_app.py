"""The command line: its help is light, its errors are sentences, its exit codes are those it promises."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from caseback.cli import app as cli
from caseback.cli.progress import progress
from caseback.core.errors import TaskError

HEAVY = ("torch", "transformers", "rich", "numpy")


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caseback.cli.app", *arguments], capture_output=True, text=True, **more
    )


def imported(code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Put a function in place of `caseback runs`."""

    def put(function: Callable[[], None]) -> None:
        module = type(sys)("caseback.cli.made_for_a_test")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "runs", (f"{module.__name__}:run", "made for a test"))

    return put


def test_importing_caseback_imports_nothing_heavy() -> None:
    assert not imported("import caseback; dir(caseback)") & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from caseback.cli.app import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert not imported(code) & set(HEAVY)


def test_help_is_cheap() -> None:
    """A third of a CPU-second is promised; the least of three tries is asked, so that a busy machine does not matter."""
    costs = []
    for _ in range(3):
        before = os.times()
        run("--help")
        after = os.times()
        costs.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(costs) < 0.3


@pytest.mark.parametrize("target", sorted({target for target, _ in cli.COMMANDS.values()}))
def test_a_command_file_imports_no_torch(target: str) -> None:
    assert not imported(f"import {target.split(':')[0]}") & {"torch", "transformers"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["circuit", "nosuch.jsonl"],
        ["task", "check", "nosuch.jsonl"],
        ["exchange", "read", "nosuch.json"],
        ["task", "list"],
        ["runs", "--study", "nosuch"],
        ["show", "latest", "--study", "nosuch"],
        ["report", "latest", "--study", "nosuch"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_no_transformers(arguments: list[str]) -> None:
    code = f"from caseback.cli.app import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert "transformers" not in imported(code)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    assert f"caseback {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())  # long lines are wrapped
    assert all(name in text and line in text for name, (_, line) in cli.COMMANDS.items())


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (TaskError("row 3: the answer is empty"), "caseback: row 3: the answer is empty\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "pairs.jsonl"),
            "caseback: there is no file or folder pairs.jsonl\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "run/x"), "caseback: the disk is full, writing run/x: "),
        (
            OSError(errno.EROFS, "Read-only file system", "run"),
            "caseback: not permitted to use run (Read-only file system): ",
        ),
        (OSError(errno.EIO, "Input/output error"), "caseback: Input/output error\n"),
    ],
)
def test_errors_are_one_sentence(
    command: Any, capsys: pytest.CaptureFixture[str], error: Exception, sentence: str
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    with pytest.raises(SystemExit) as exit:
        cli.main(["runs"])
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith(sentence)
    assert captured.err.count("\n") == 1


def test_a_defect_stays_a_traceback(command: Any) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["runs"])


def test_an_exit_code_passes_through(command: Any) -> None:
    def no() -> None:
        raise typer.Exit(1)

    command(no)
    with pytest.raises(SystemExit) as exit:
        cli.main(["runs"])
    assert exit.value.code == 1


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["circiut", "ioi"])
    assert exit.value.code == 2
    assert "there is no command 'circiut'; did you mean 'circuit'?" in capsys.readouterr().err


SCRIPT = """
import sys, time
from caseback.cli import app
module = type(sys)("made"); sys.modules["made"] = module
def run():
{body}
module.run = run
app.COMMANDS["runs"] = ("made:run", "")
app.main(["runs"])
"""


def test_ctrl_c_is_130() -> None:
    body = "    print('ready', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job begins with Ctrl-C ignored
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = tmp_path / "many.py"
    script.write_text(SCRIPT.format(body="    for i in range(100000): print(i)"))
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} | head -1"], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "0\n"
    assert result.stderr == ""


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as tick:
        for done in range(5):
            tick("score", done, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "score: 0/4"
    assert captured.err.splitlines()[-1].startswith("score: 4/4, ")
