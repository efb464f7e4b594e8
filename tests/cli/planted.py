"""A model with a known circuit and its task as files, as the command line takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caseback.cli.app import main
from caseback.tasks import write_task
from caseback.zoo import planted


def folder(path: Path) -> Path:
    """`path` with the model in m/ and its pairs in t.jsonl."""
    zoo = planted(n=24)
    zoo.model.hf.save_pretrained(path / "m")
    zoo.model.tokenizer.save_pretrained(path / "m")
    write_task(zoo.task, path / "t.jsonl")
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run a command; returns (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out, captured.err
