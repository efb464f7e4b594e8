"""`caseback tune-lens`, and what it trained read by `caseback lens`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.study import Study

from . import friend
from .planted import call

QUICK = ("--steps", 3, "--tokens", 32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = friend.folder(tmp_path_factory.mktemp("affine"))
    draw = np.random.default_rng(0)
    rows = [" ".join(["the friend of"] + [f"subject{i}" for i in draw.integers(0, 8, 5)]) for _ in range(24)]
    (path / "t.txt").write_text("\n".join(rows))
    return path


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    return lambda *arguments: call(capsys, *arguments, "--model", home / "m")


def said(found: tuple[int, str, str]) -> str:
    code, out, err = found
    assert (code, out) == (2, ""), err
    (one,) = [line for line in err.splitlines() if line.startswith("caseback: ")]
    return one.removeprefix("caseback: ")


def test_a_lens_is_trained_kept_and_read_with(run: Any, home: Path, tmp_path: Path) -> None:
    code, out, err = run("tune-lens", home / "t.txt", *QUICK, "--save", "l.safetensors")
    assert code == 0, err
    record = Study().find("latest")
    assert record.spec.method == "tune-lens" and record.report is not None
    assert record.stage("view").data["claim"] in out and f"translators {tmp_path / 'l.safetensors'}" in out
    assert "layers: 3/3" in err  # its progress
    code, out, err = run("tune-lens", home / "t.txt", *QUICK, "--json")
    found = json.loads(out)
    assert found["run"] == record.id and found["sites"][0] == "resid_pre.0" and found["texts"] <= 24
    tops = []
    for tuned in (record.id, record.path, "l.safetensors"):
        code, out, err = run("lens", "the friend of subject3", "--tuned", tuned, "--json")
        assert code == 0, err
        tops.append(json.loads(out)["top_probability"])
    assert tops[0] == tops[1] == tops[2]
    assert tops[0] != json.loads(run("lens", "the friend of subject3", "--json")[1])["top_probability"]


def test_the_twin_is_another_run(run: Any, home: Path) -> None:
    code, out, err = run("tune-lens", home / "t.txt", *QUICK, "--twin", "--json")
    assert code == 0, err
    assert json.loads(out)["model"].startswith("random twin of ")


def test_what_cannot_be_is_one_sentence(run: Any, home: Path, tmp_path: Path) -> None:
    assert said(run("tune-lens", *QUICK)).endswith("names no BOS token to begin a text with; give texts in a file")
    assert "there is no file or folder none.txt" in said(run("tune-lens", "none.txt"))
    (tmp_path / "few.txt").write_text("the friend of subject1\n" * 5)
    assert "needs three different texts" in said(run("tune-lens", "few.txt"))
    assert "a finite rate > 0" in said(run("tune-lens", home / "t.txt", "--rate", "0"))
    assert "--save no/l.st cannot be written" in said(run("tune-lens", home / "t.txt", "--save", "no/l.st"))
    assert Study().ids() == ()
    assert "neither a file of translators nor a run" in said(run("lens", "so", "--tuned", "nosuch"))
    run("lens", "the friend of subject3")
    assert "has no translators" in said(run("lens", "so", "--tuned", "latest"))
