"""`caseback model`: what it prints, what it prints as JSON, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caseback.cli.app import main
from caseback.model import check as checking
from caseback.model.families import FAMILIES
from caseback.zoo.tiny import tiny


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `caseback model …`; returns (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["model", *arguments])
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


def test_check_prints_every_identity(run: Any) -> None:
    code, out, _ = run("check", "gemma2")
    assert code == 0
    assert out.splitlines()[0] == "a tiny random gemma2, family gemma2"
    assert all(f"ok  {name}" in out for name in checking.IDENTITIES)


def test_check_says_why_an_identity_was_not_tried(run: Any) -> None:
    code, out, _ = run("check", "gptj")
    assert code == 0
    assert "-   values" in out
    assert f"(not tried: {FAMILIES['gptj'].why_not})" in out


def test_check_as_json(run: Any) -> None:
    code, out, _ = run("check", "llama", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["family"], found["guessed"], found["passed"]) == ("llama", False, True)
    assert set(checking.IDENTITIES) <= {identity["name"] for identity in found["identities"]}
    assert all(0 <= i["error"] <= i["tolerance"] for i in found["identities"] if not i["skipped"])


def test_check_of_a_folder(run: Any, tmp_path: Path) -> None:
    tiny("qwen3").save_pretrained(tmp_path / "mine")
    code, out, _ = run("check", str(tmp_path / "mine"))
    assert code == 0
    assert out.startswith(f"{tmp_path / 'mine'}, family qwen3")


def test_a_failed_identity_is_exit_code_2_and_a_sentence(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checking.IDENTITIES, "heads", ("heads add up", lambda model, batch: 0.5))
    code, out, err = run("check", "llama")
    assert code == 2
    assert "FAIL" in out
    assert err.startswith("caseback: 1 of ")
    assert err.endswith("identities fail on a tiny random llama: heads\n")


def test_a_model_that_is_not_there_is_a_sentence(run: Any) -> None:
    code, out, err = run("check", "no-such-model")
    assert (code, out) == (2, "")
    assert err.startswith("caseback: there is no folder no-such-model here")
    assert err.count("\n") == 1
    assert "()" not in err  # a command's user has no functions to call
    assert run("tree", "--model", "no-such-model") == (code, out, err)


def test_two_models_are_one_too_many(run: Any) -> None:
    code, _, err = run("tree", "llama", "--model", "gemma2")
    assert code == 2
    assert "two models are asked for, llama and --model gemma2" in err


def test_tree_groups_the_layers(run: Any) -> None:
    code, out, _ = run("tree", "llama")
    assert code == 0
    lines = out.splitlines()
    assert "llama, 2 layers × 4 heads (2 KV), d_model 48" in lines[0]
    assert [line.split()[0] for line in lines[3:6]] == ["resid_pre.*", "attn_in.*", "q.*"]
    assert any(line.startswith("k.*") and "0-1" in line and "kv_head=2 d_key=16" in line for line in lines)
    assert len(lines) < 25


def test_tree_of_a_hybrid_shows_which_layers_have_attention_and_why(run: Any) -> None:
    code, out, _ = run("tree", "lfm2", "--json")
    found = json.loads(out)
    layers = {site["site"]: site["layers"] for site in found["sites"]}
    assert code == 0
    assert (layers["z.*"], layers["resid_pre.*"]) == ([1], [0, 1])
    assert "Not here: some of its layers are not softmax attention" in run("tree", "lfm2")[1]


def test_tree_as_json_gives_sizes(run: Any) -> None:
    found = json.loads(run("tree", "gemma2", "--json")[1])
    z = next(site for site in found["sites"] if site["site"] == "z.*")
    assert (found["n_layers"], found["n_heads"], found["n_kv_heads"], found["d_model"]) == (2, 4, 2, 48)
    assert z["axes"] == {"batch": None, "pos": None, "head": 4, "d_value": 16}
    assert (z["heads"], z["transformer_lens"]) == (4, "blocks.*.attn.hook_z")


def test_families_lists_every_row_with_its_reason(run: Any) -> None:
    code, out, _ = run("families")
    assert code == 0
    assert f"{len(FAMILIES)} families." in out
    listed = {line.split()[0]: line for line in out.splitlines()[1 : 1 + len(FAMILIES)]}
    assert set(listed) == set(FAMILIES)
    assert all(row.why_not in listed[name] for name, row in FAMILIES.items())


def test_families_as_json(run: Any) -> None:
    found = {row["family"]: row for row in json.loads(run("families", "--json")[1])["families"]}
    assert found["llama"] == {
        "family": "llama",
        "attention_sites": True,
        "head_gradients": True,
        "circuits": True,
        "why_not": "",
    }
    assert not found["gptj"]["attention_sites"]


def test_families_measured_on_tiny_models(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(FAMILIES):
        if name not in ("llama", "gptj"):
            monkeypatch.delitem(FAMILIES, name)
    found = json.loads(run("families", "--measure", "--json")[1])["families"]
    assert [row["family"] for row in found] == ["gptj", "llama"]
    assert all(row["failed"] == [] and 0 < row["error"] < 1e-5 for row in found)
