"""`caseback claim new`, `test`, `list`, `show` on the model whose one head is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from caseback.study import Study
from caseback.tasks import write_task
from caseback.zoo import copying

from .planted import call

Run = Callable[..., tuple[int, str, str]]
SAID = "moves the name to the end"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copying")
    zoo = copying(n=40)
    zoo.model.hf.save_pretrained(path / "m")
    zoo.model.tokenizer.save_pretrained(path / "m")
    write_task(zoo.task, path / "t.jsonl")
    return path


@pytest.fixture
def claim(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a claim command in a folder with the pairs t.jsonl and a study of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))
    (tmp_path / "t.jsonl").write_bytes((model / "t.jsonl").read_bytes())

    def run(command: str, *options: Any) -> tuple[int, str, str]:
        given = ("--model", model / "m") if command == "new" else ()
        return call(capsys, "claim", command, *options, *given)

    return run


def told(found: tuple[int, str, str]) -> Any:
    code, out, err = found
    assert code == 0, err
    return json.loads(out)


def sentence(found: tuple[int, str, str]) -> str:
    code, out, err = found
    assert (code, out) == (2, ""), (out, err)
    (said,) = [line for line in err.splitlines() if line.startswith("caseback: ")]
    return said.removeprefix("caseback: ")


def test_a_claim_from_its_words_to_its_status(claim: Run) -> None:
    made = told(claim("new", "z.1.2@end", SAID, "--attends", "end:name", "--task", "t.jsonl", "--json"))
    assert (made["component"], made["attends"], made["causal"]) == (
        "z.1.2@end",
        ["end", "name"],
        ["sufficiency", "necessity"],
    )
    assert [(each["claim"], each["status"]) for each in told(claim("list", "--json"))] == [
        (made["claim"], "hypothesis")
    ]
    code, out, err = claim("test", "latest")
    assert code == 0, err
    assert f"claim {made['claim']}: supported after 4 tests" in out and SAID in out
    record = Study().find("latest")
    assert record.spec.method == "claim-test" and record.report is not None
    again = told(claim("test", made["claim"][:8], "--json"))
    assert again["run"] == record.id and again["claim"] == made["claim"]
    for row in again["tests"]:
        assert {"test", "value", "low", "high", "control", "over", "bar", "verdict", "forwards", "n", "split"} <= set(
            row
        )
        assert (
            row["forwards"] > 0 and row["pairs"] == again["n"] and row["split"].startswith("held-out half of t.jsonl")
        )
    shown = told(claim("show", "latest", "--json"))
    assert shown["status"] == "supported" and {row["run"] for row in shown["tests"]} == {record.id}
    page = Path(shown["page"]).read_text("utf-8")
    assert "SUPPORTED. z.1.2@end" in page and record.id in page
    code, out, _ = claim("show", "latest")
    assert code == 0 and "SUPPORTED" in out and "Rule: refuted if any test refutes it" in out and record.id in out
    code, out, _ = claim("list")
    assert out.startswith("supported") and "4 tests in 1 run\n" in out


def test_a_false_claim_is_refuted(claim: Run) -> None:
    told(claim("new", "z.1.1@end", SAID, "--task", "t.jsonl", "--says", "needed", "--json"))
    found = told(claim("test", "latest", "--test", "necessity", "--json"))
    assert [(row["test"], row["verdict"]) for row in found["tests"]] == [("necessity", "refutes")]
    assert told(claim("list", "--json"))[0]["status"] == "refuted"


def test_where_a_direction_is_active_is_said_and_tested(claim: Run) -> None:
    save_file({"d": torch.randn(64, generator=torch.Generator().manual_seed(0))}, "d.safetensors")
    Path("found.txt").write_text("ada then\nthen bob\nhome eve\n")
    Path("held.txt").write_text("then ada home\nhome bob ada\nlater eve\n")
    given = ("direction:d.safetensors@resid_pre.0@name", SAID)
    made = told(claim("new", *given, "--active-on", "ada,eve", "--task", "t.jsonl", "--texts", "found.txt", "--json"))
    assert made["active_on"] == ["ada", "eve"] and made["found_on"]["texts"] == "found.txt"
    found = told(claim("test", "latest", "--test", "predict", "--texts", "held.txt", "--json"))
    assert [(row["test"], row["split"]) for row in found["tests"]] == [("predict", "the first 3 texts of held.txt")]
    assert "3 texts of found.txt are among those the claim was found on" in sentence(
        claim("test", "latest", "--texts", "found.txt")
    )
    code, out, _ = claim("show", "latest")
    assert code == 0 and "it is active at the tokens that begin 'ada' or 'eve'" in out
    assert "and on the texts of found.txt" in out and "the first 3 texts of held.txt; 3 prompts run" in out
    told(claim("new", *given, "--active", "name", "--task", "t.jsonl", "--json"))
    (row,) = told(claim("test", "latest", "--test", "predict", "--json"))["tests"]
    assert row["bar"] == "over 75% and the control" and row["pairs"] > 0
    assert "in a span, or on words; not both" in sentence(
        claim("new", *given, "--active", "name", "--active-on", "ada")
    )
    assert "about one direction or feature, which z.1.2@end is not" in sentence(
        claim("new", "z.1.2@end", SAID, "--active", "name")
    )


def test_what_cannot_be_done_is_one_sentence(claim: Run) -> None:
    assert "there are no claims in" in sentence(claim("test", "latest"))
    code, out, _ = claim("list")
    assert code == 0 and "`caseback claim new` makes one" in out
    assert "write two spans as FROM:TO" in sentence(claim("new", "z.1.2@end", SAID, "--attends", "end"))
    assert "write two shares as LOW:HIGH" in sentence(claim("new", "z.1.2@end", SAID, "--effect", "much"))
    assert "give --run or --task, not both" in sentence(
        claim("new", "z.1.2", SAID, "--run", "latest", "--task", "t.jsonl")
    )
    assert "there are no runs in" in sentence(claim("new", "z.1.2", SAID, "--run", "latest"))
    assert "needs a description in words" in sentence(claim("new", "z.1.2", " "))
    told(claim("new", "z.1.2@end", SAID, "--json"))
    assert "name them with --task" in sentence(claim("test", "latest"))
    assert "there is no test 'x'" in sentence(claim("test", "latest", "--task", "t.jsonl", "--test", "x"))
    assert "'nobody' is no claim in" in sentence(claim("show", "nobody"))


def test_hostile_words_stay_words(claim: Run) -> None:
    told(claim("new", "z.1.2@end", "<script>alert(1)</script>\x1b[31m", "--task", "t.jsonl", "--json"))
    code, out, _ = claim("show", "latest")
    assert code == 0 and "\x1b" not in out
    page = (Study().path / "claims").glob("*.html")
    assert "<script>alert" not in next(page).read_text("utf-8")


def test_a_claim_without_tests_shows_no_empty_table(claim: Run) -> None:
    claim("new", "z.1.2@end", SAID, "--task", "t.jsonl")
    code, out, _ = claim("show", "latest")
    assert code == 0 and SAID in out and "verdict" not in out
    assert "Value error" not in claim("new", "z.1.2@end", SAID, "--says", "maybe")[2]
