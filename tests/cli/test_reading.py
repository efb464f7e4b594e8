"""`caseback lens`, `patch`, `paths`, `scrub`, `dla`, `heads`, `attribute`, `attribute-input` on models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.model.load import load
from caseback.reading.tuned import TunedConfig, save_tuned, train_tuned
from caseback.show.experiments import validate
from caseback.study import Study
from caseback.study.readings import of_prompts
from caseback.zoo import planted
from caseback.zoo.affine import affine
from caseback.zoo.tiny import tiny

from . import friend
from . import planted as planted_files
from .planted import call

PROMPT = "the friend of subject3 is"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model in p/m with its pairs in p/t.jsonl, the affine model in a/m with its relation in a/friend.json."""
    path = tmp_path_factory.mktemp("models")
    for name, make in (("p", planted_files.folder), ("a", friend.folder)):
        (path / name).mkdir()
        make(path / name)
    (path / "p" / "h.json").write_text(
        '{"output": ["say"], "nodes": {"say": {"sites": ["mlp_out.3@end"], "agree": ["cue"]}}}'
    )
    return path


@pytest.fixture
def reading(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with the model it is meant for; the study is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))

    def run(command: str, *options: Any) -> tuple[int, str, str]:
        home = place / ("p" if command in ("patch", "paths", "scrub", "dla", "heads") else "a")
        own = {
            "attribute": ("--relation", home / "friend.json"),
            "patch": (home / "t.jsonl",),
            "paths": (home / "t.jsonl",),
            "scrub": (home / "h.json", home / "t.jsonl"),
            "dla": (home / "t.jsonl",),
        }
        bare = options[:1] == ("bare",)  # the test names task or relation itself
        given, rest = ((), options[1:]) if bare else (own.get(command, ()), options)
        model = () if "--model" in rest else ("--model", home / "m")
        return call(capsys, command, *given, *rest, *model)

    return run


def table(found: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = found
    assert code == 0, err
    return dict(json.loads(out))


def sentence(found: tuple[int, str, str]) -> str:
    code, out, err = found
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("caseback: ")]
    return said.removeprefix("caseback: ")


COMMANDS: dict[str, tuple[Any, ...]] = {
    "lens": (PROMPT, "--answer", "object3", "--answer", "object5"),
    "attribute": (PROMPT, "--object", "object3"),
    "attribute-input": (PROMPT, "--steps", 4),
    "patch": ("--n", 8),
    "paths": ("--n", 8, "--sender", "mlp_out.1"),
    "scrub": ("--n", 8, "--draws", 2, "--others", 2),
    "dla": ("--n", 8, "--neurons", 3),
    "heads": ("--sequences", 3, "--length", 8),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_reading_is_a_run_with_a_page_that_reopens(reading: Any, command: str) -> None:
    asked = COMMANDS[command]
    code, out, err = reading(command, *asked)
    assert code == 0, err
    record = Study().find("latest")
    assert record.spec.method == command and record.status == "finished"
    view = record.stage("view").data
    validate({**view, "environment": dict(record.environment), "cost": {}})
    assert view["claim"] in out and f"run {record.id}" in out and f"page {record.report}" in out
    assert record.report is not None and "<!doctype html>" in record.report.read_text()[:20].lower()
    found = table(reading(command, *asked, "--json"))
    assert found["run"] == record.id  # as text and as JSON it is one run
    assert {"model", "task", "seconds", "peak_memory_mb"} <= set(found)
    before = Study().ids()
    again = table(reading(command, *asked, "--json", "--force"))
    assert again["run"] not in before and set(Study().ids()) == {*before, again["run"]}
    timed = {"run", "seconds", "peak_memory_mb"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in found.items() if k not in timed}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "attribute"])
def test_the_twin_is_another_run_and_says_something_else(reading: Any, command: str) -> None:
    trained = table(reading(command, *COMMANDS[command], "--json"))
    twin = table(reading(command, *COMMANDS[command], "--twin", "--json"))
    assert twin["model"].startswith("random twin of ") and twin["run"] != trained["run"]
    other = table(reading(command, *COMMANDS[command], "--twin", "--seed", 1, "--json"))
    name = {
        "lens": "top_probability",
        "attribute-input": "scores",
        "patch": "effect",
        "paths": "v",
        "scrub": "recovered",
        "dla": "terms",
    }.get(command, "copying")
    assert trained[name] != twin[name] != other[name]


def test_a_twin_is_read_with_an_operator_of_its_own(reading: Any) -> None:
    found = table(reading("attribute", PROMPT, "--twin", "--json"))
    mine = table(reading("attribute", PROMPT, "--json"))
    assert found["tokens"] == mine["tokens"] and found["top"] != mine["top"]
    judged = [Study().find(row.id).spec.params for row in Study().runs() if row.method == "relation"]
    assert sorted(params["twin"] for params in judged) == [False, True]


# --- the numbers ---------------------------------------------------------------------------------------------------------------------


def test_lens_sees_where_the_answer_appears(reading: Any) -> None:
    found = table(reading("lens", *COMMANDS["lens"], "--json"))
    assert found["tokens"] == PROMPT.split()
    assert found["sites"] == ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2"]
    assert [row[-1] for row in found["top"]][2:] == ["object3", "object3"] and found["top"][1][-1] != "object3"
    assert Study().find("latest").stage("view").data["claim"].endswith("the lens says so from resid_post.1 on.")
    writes = table(reading("lens", PROMPT, "--site", "attn_out", "--json"))
    assert writes["sites"] == ["attn_out.0", "attn_out.1", "attn_out.2"] and writes["top"][1][-1] == "object3"


def test_attribute_reads_a_subject_wherever_it_stands(reading: Any) -> None:
    found = table(reading("attribute", "is subject7 the friend of subject3", "--object", "object7", "--json"))
    own = found["layers"].index(found["layer"])
    assert found["top"][own][1] == "object7" and found["top"][own][5] == "object3"
    runs = Study().runs()
    assert sorted(row.method for row in runs) == ["attribute", "relation"]  # the relation was judged, once
    reading("attribute", "subject9")
    assert sorted(row.method for row in Study().runs()) == ["attribute", "attribute", "relation"]


def test_patch_and_dla_find_the_planted_path(reading: Any) -> None:
    stream = table(reading("patch", "--n", 8, "--json"))
    assert stream["columns"][-1] == "end" and stream["layers"] == [0, 1, 2, 3] and stream["n"] == 8
    assert stream["effect"][3][0][-1] == pytest.approx(1, abs=0.02)
    heads = table(reading("patch", "--n", 8, "--site", "z", "--json"))
    assert heads["effect"][2][3][-1] > 0.9  # a2.h3 at the end
    noise = table(reading("patch", "--n", 8, "--site", "z", "--direction", "noise", "--source", "zero", "--json"))
    assert noise["direction"] == "noise" and noise["effect"] != heads["effect"]
    terms = table(reading("dla", "--n", 8, "--json"))
    assert terms["terms"]["m3"] == pytest.approx(terms["total"], rel=0.05)
    assert sum(terms["terms"].values()) == pytest.approx(terms["total"], abs=1e-4)


def test_scrub_says_what_is_wrong(reading: Any, place: Path) -> None:
    pairs = place / "p" / "t.jsonl"
    assert sentence(reading("scrub", "bare", "nowhere", pairs)).startswith("there is no hypothesis 'nowhere'")
    assert "is no JSON" in sentence(reading("scrub", "bare", pairs, pairs))
    Path("h.json").write_text('{"output": ["a"], "nodes": {"a": {"sites": ["z.7.0@end"]}}}')
    assert "has z at layers 0 to 3" in sentence(reading("scrub", "bare", "h.json", pairs))


def test_paths_of_the_planted_model(reading: Any) -> None:
    found = table(reading("paths", "--n", 8, "--sender", "mlp_out.1", "--json"))
    assert found["v"][0][1] > 0.9 and found["whole"][0] > 0.9 and found["direction"] == "noise"
    denoised = table(reading("paths", "--n", 8, "--sender", "mlp_out.1", "--direction", "denoise", "--json"))
    assert denoised["run"] != found["run"]
    assert denoised["v"][0][1] == pytest.approx(denoised["whole"][0], abs=0.05) and denoised["v"][0][1] > 0.3
    through = table(reading("paths", "--n", 8, "--sender", "z.0.1", "--through-mlps", "--span", "end", "--json"))
    assert through["through_mlps"] and through["span"] == "end"
    said = sentence(reading("paths", "--n", 8))
    assert "--sender z.LAYER.HEAD (layers 0 to 3, heads 0 to 3) or mlp_out.LAYER" in said and said.endswith(")")


# --- refusals ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("lens", ""), "the prompt is empty; give some text"),
        (("lens", " \n"), "the text has no tokens; give at least one"),
        (("lens", "the " * 401), "the prompt has 401 tokens; a page shows at most 400: shorten it"),
        (("lens", "the \udcff"), "the prompt holds bytes that are no UTF-8; give it as text"),
        (("lens", PROMPT, "--answer", "\udcff"), "the object '\\udcff' holds bytes that are no UTF-8; give it as text"),
        (("lens", PROMPT, "--site", "nosuch"), "a lens reads the stream, not 'nosuch'; it reads: resid_post, "),
        (("lens", PROMPT, "--site", "z"), "a lens reads the stream, not 'z'; it reads: resid_post, "),
        (("lens", PROMPT, "--site", "resid_post.9"), "resid_post.9"),
        (("lens", PROMPT, "--answer", " "), "an answer or object is empty"),
        (("lens", PROMPT, "--tuned", "none.safetensors"), "there is no file or folder none.safetensors"),
        (("lens", PROMPT, "--model", "none/here"), "none/here"),
        (("attribute", PROMPT, "--object", ""), "an answer or object is empty"),
        (("attribute", ""), "the prompt is empty"),
        (("attribute", "bare", PROMPT, "--relation", "nosuch"), "there is neither a relation nor a file 'nosuch'; "),
        (("attribute-input", "the " * 401), "the prompt has 401 tokens; a page shows at most 400: shorten it"),
        (("attribute-input", PROMPT, "--answer", ""), "an answer or object is empty"),
        (("patch", "bare", "nosuch"), "there is neither a task nor a file 'nosuch'; tasks are agreement, "),
        (("patch", "bare", "."), "is a folder; give the task file in it"),
        (("patch", "--source", "zero"), "denoising puts clean values in, not 'zero'; use direction='noise' with it"),
        (("dla", "bare", "nosuch"), "there is neither a task nor a file 'nosuch'; tasks are agreement, "),
        (("dla", "--neurons", 9), "the MLP of layer 9 has no single row of neurons; layers that have: 0, 1, 2, 3"),
        (
            ("dla", "--dictionary", "nosuch"),
            "there is no dictionary nosuch; give a folder with cfg.json and sae_weights",
        ),
        (("paths", "--sender", "z.1"), "'z.1' is no sender of a path; give one head, as 'z.9.6', or one MLP, as "),
        (("paths", "--sender", "z.9.1"), "z.9"),
        (("paths", "--sender", "z.0.1", "--span", "nosuch"), "the pairs have no span 'nosuch'; they have: "),
        (("paths", "bare", "nosuch"), "there is neither a task nor a file 'nosuch'; tasks are agreement, "),
        (("heads", "--length", 99), "99 different tokens were asked for"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(reading: Any, options: Any, expected: str) -> None:
    assert expected in sentence(reading(*options))
    assert Study().ids() == ()


def test_choices_are_named(reading: Any) -> None:
    for options in (
        ("patch", "--site", "nosuch"),
        ("patch", "--direction", "up"),
        ("heads", "--sequences", "x"),
        ("lens",),
    ):
        code, out, err = reading(*options)
        assert (code, out) == (2, "") and "Traceback" not in err
    assert "resid_mid" in reading("patch", "--site", "nosuch")[2]


def test_a_site_that_a_family_has_not(reading: Any, tmp_path: Path) -> None:
    """Blocks whose attention and MLP stand side by side have no stream between the two."""
    tiny("gpt_neox").save_pretrained(tmp_path / "parallel")
    planted().model.tokenizer.save_pretrained(tmp_path / "parallel")
    said = sentence(reading("patch", "--site", "resid_mid", "--twin", "--model", tmp_path / "parallel"))
    assert "resid_mid" in said
    assert "resid_mid" in sentence(reading("lens", "so", "--site", "resid_mid", "--model", tmp_path / "parallel"))
    assert Study().ids() == ()


def test_a_tuned_lens_and_one_of_another_model(reading: Any, place: Path, tmp_path: Path) -> None:
    """Untrained translators change nothing."""
    untrained = TunedConfig(steps=0, start="logit lens")
    own, other = [PROMPT, "the friend of is", "the is"], ["so", "hm so", "so hm"]
    for name, home, texts in (("own", "a", own), ("other", "p", other)):
        model = load(str(place / home / "m"))
        save_tuned(train_tuned(model, model.encode(texts), config=untrained), tmp_path / f"{name}.st")
    tuned, plain = (table(reading("lens", PROMPT, *more, "--json")) for more in (("--tuned", "own.st"), ()))
    assert tuned["run"] != plain["run"]
    assert tuned["top"] == plain["top"] and np.allclose(tuned["top_probability"], plain["top_probability"])
    assert "were trained on " in sentence(reading("lens", PROMPT, "--tuned", "other.st"))
    said = sentence(reading("lens", PROMPT, "--tuned", "own.st", "--site", "attn_out"))
    assert said == "a tuned lens reads resid_post, what its translators were trained on"
    (tmp_path / "bad.st").write_text("nothing")
    assert "bad.st is not a whole safetensors file" in sentence(reading("lens", PROMPT, "--tuned", "bad.st"))


# --- a stopped run, hostile texts ----------------------------------------------------------------------------------------------------


def test_a_stopped_reading_is_resumed_to_the_same_table(
    reading: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(of_prompts, "attribute_lens", stop)
        code, _, err = reading("attribute", PROMPT, "--json")
    assert code == 130 and "caseback resume" in err
    assert set(Study().find("latest").saved()) == set()  # the operator is in the relation's own run
    resumed = table(call(capsys, "resume", "latest", "--json"))
    straight = table(reading("attribute", PROMPT, "--json", "--force"))
    same = set(straight) - {"run", "seconds", "peak_memory_mb"}
    assert {name: resumed[name] for name in same} == {name: straight[name] for name in same}


def test_hostile_prompts_are_inert(reading: Any, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "the \x1b[31m \u202e \x07 \r friend of\n\nsubject3 is"
    for command in ("lens", "attribute", "attribute-input"):
        code, out, err = reading(command, evil)
        assert code == 0, err
        assert not set("\x1b\u202e\x07\r") & set(out + err)
        assert out.splitlines()[0].startswith("the \ufffd[31m \ufffd \ufffd friend of subject3 is on ")
        assert table(reading(command, evil, "--json"))["prompt"] == evil
    assert not set("\x1b\u202e\x07\r") & set(call(capsys, "runs")[1] + call(capsys, "show", "latest")[1])
    assert affine().pairs[3][1] in out
