"""`caseback heads`, `attention` and `weights` on a model with a planted induction pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caseback.show.experiments import validate
from caseback.study import Study
from caseback.zoo import induction
from caseback.zoo.tiny import tiny

from .planted import call

ZOO = induction(n=2)
PROMPT = ZOO.task.pairs[0].clean
COMMANDS: dict[str, tuple[Any, ...]] = {
    "attention": ("attention", PROMPT),
    "attention of heads": ("attention", PROMPT, "--head", "1.2", "--head", "0.1", "--layers", "0-1"),
    "weights": ("weights",),
    "weights of a head": ("weights", "--head", "1.2", "--directions", 2, "--top", 3),
    "weights of neurons": ("weights", "--neuron", 1),
    "weights of a neuron": ("weights", "--neuron", "1.7"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in m, a Bloom in b."""
    path = tmp_path_factory.mktemp("models")
    for name, hf in (("m", ZOO.model.hf), ("b", tiny("bloom"))):
        hf.save_pretrained(path / name)
        ZOO.model.tokenizer.save_pretrained(path / name)
    return path


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))

    def made(*options: Any) -> tuple[int, str, str]:
        own = () if "--model" in options else ("--model", place / "m")
        return call(capsys, *options, *own)

    return made


def table(found: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = found
    assert code == 0, err
    return dict(json.loads(out))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_is_a_run_with_a_page(run: Any, name: str) -> None:
    code, out, err = run(*COMMANDS[name])
    assert code == 0, err
    record = Study().find("latest")
    view = record.stage("view").data
    validate({**view, "environment": dict(record.environment), "cost": {}})
    assert view["claim"] in out and f"run {record.id}" in out and f"page {record.report}" in out
    found = table(run(*COMMANDS[name], "--json"))
    assert found["run"] == record.id
    twin = table(run(*COMMANDS[name], "--json", "--twin"))
    assert twin["model"].startswith("random twin of ") and twin["run"] != found["run"]
    other = table(run(*COMMANDS[name], "--json", "--twin", "--seed", 1))
    key = next(iter(set(found) & {"raw_last", "copying", "stands_out", "written"}))
    assert found[key] != twin[key] != other[key]


def test_the_planted_head_is_seen(run: Any) -> None:
    found = table(run("attention", PROMPT, "--head", " 1.2 ", "--json"))
    assert list(found["taken_maps"]) == ["1.2"] and found["layers"] == [0, 1]
    last = found["taken_last"][1][2]
    assert found["tokens"][last.index(max(last))] == ZOO.task.pairs[0].answers[0].strip()
    assert table(run("attention", PROMPT, "--layers", "1", "--json"))["layers"] == [1]
    assert table(run("attention", PROMPT, "--layers", " 1, 0-0", "--json"))["layers"] == [0, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("attention", "ada"), "the prompt has one token, which can look at nothing but itself; give a longer one"),
        (("attention", "the " * 401), "the prompt has 401 tokens"),
        (("attention", PROMPT, "--head", "1"), "a head is named LAYER.HEAD, as in 18.6; got '1'"),
        (("attention", PROMPT, "--head", "9.9"), "there is no head 9.9"),
        (("attention", PROMPT, "--layers", "x"), "--layers takes layers as in 3, 3,5 or 10-20; got 'x'"),
        (("attention", PROMPT, "--layers", "5-3"), "--layers takes layers as in 3, 3,5 or 10-20; got '5-3'"),
        (("attention", PROMPT, "--layers", ""), "--layers takes layers as in 3, 3,5 or 10-20; got ''"),
        (("attention", PROMPT, "--layers", "7"), "layer 7 has no attention pattern; the layers 0, 1 have"),
        (("weights", "--head", "1.2", "--neuron", "1"), "--head and --neuron were both given; give one of them"),
        (("weights", "--head", "1.2.3"), "a head is named LAYER.HEAD, as in 18.6; got '1.2.3'"),
        (("weights", "--neuron", "1.x"), "a neuron is named LAYER.NEURON, as in 18.7; got '1.x'"),
        (("weights", "--neuron", "2"), "the MLP of layer 2 has no single row of neurons; layers that have: 0, 1"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(run: Any, options: Any, expected: str) -> None:
    code, out, err = run(*options)
    assert (code, out) == (2, "") and "Traceback" not in err
    assert f"caseback: {expected}" in err
    assert Study().ids() == ()


@pytest.mark.parametrize("options", [("heads",), ("attention", "ada red"), ("weights",), ("weights", "--head", "0.1")])
def test_a_family_that_hides_its_attention(run: Any, place: Path, options: Any) -> None:
    code, out, err = run(*options, "--model", place / "b")
    assert (code, out) == (2, "") and "Traceback" not in err
    assert "bloom has no " in err and "`caseback model families` lists those" in err
    assert Study().ids() == ()
