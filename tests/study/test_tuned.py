"""A tuned lens as a run: killed after any checkpoint it ends alike; its translators are found again; texts that are none are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caseback.core.errors import ReadingError
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.reading import samples, translators
from caseback.reading.tuned import TunedConfig, load_tuned, save_tuned, tuned_lens
from caseback.study import Record, Study, resume
from caseback.study.readings.of_tuned import TUNE, TuneConfig, find_translators, read_texts
from caseback.zoo.tiny import tiny

from .looking import Killed, is_valid, look, plain_table

QUICK = TunedConfig(steps=5, tokens=16, rate=0.3, words=40)
MODEL = Model(tiny("llama"))


def asked(study: Study, *, force: bool = False, **changed: Any) -> Record:
    return look(study, TUNE, TuneConfig(**{"n": 20, "length": 8, "tuned": QUICK, **changed}), MODEL, force=force)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study("casebook")


def test_killed_after_any_checkpoint_it_ends_alike(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translators, "EVERY", 2)
    monkeypatch.setattr(samples, "ROWS", 8)
    straight = asked(study)
    assert is_valid(straight)
    total = sum(saved.steps for saved in straight.saved().values())
    assert total == 3 + 1 + 2 * 4 + 1 + 1 + 1  # texts, predictions, two translators, judged, translators, view
    real = resume.write_checkpoint
    for checkpoints in range(1, total):
        left = [checkpoints]

        def write(*arguments: Any, left: list[int] = left, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(resume, "write_checkpoint", write)
            asked(study, force=True)
        killed = study.find("latest")
        assert killed.status != "finished" and sum(s.done for s in killed.saved().values()) == checkpoints
        resumed = study.resume(killed.id, have={"model": MODEL})
        assert plain_table(resumed) == plain_table(straight)
        assert resumed.stage("view").data == straight.stage("view").data
        for name, saved in straight.saved().items():
            assert resumed.saved()[name].sha256 == saved.sha256, name


def test_the_table_is_what_was_judged(study: Study) -> None:
    record = asked(study, n=40)
    found, lens = record.table, load_tuned(find_translators(record.id, study), MODEL)
    assert found["sites"] == ["resid_pre.0", "resid_post.0"] and found["texts"] == 40
    assert found["judged"] == lens.judged.constant.shape[0] == 5
    assert np.allclose(found["tuned_lens"], lens.judged.after.mean(axis=1))
    assert np.allclose(found["logit_lens"], lens.judged.before.mean(axis=1))
    assert found["constant"] == pytest.approx(lens.judged.constant.mean())
    assert np.allclose([g[0] for g in found["gain"]], (lens.judged.before - lens.judged.after).mean(axis=1))
    assert found["chosen"] == list(lens.kept)
    sections = record.stage("view").data["sections"]
    assert [len(s["curve"]["series"]) for s in sections] == [3, 2, 3]
    assert len(sections[0]["table"]["rows"]) == 2
    assert "5 texts are few to judge on" in record.stage("view").data["notes"][-1]
    assert "5 texts that trained nothing" in record.stage("view").data["claim"]
    other = asked(study, n=40, seed=1).table
    assert other["constant"] != found["constant"]


def test_translators_are_found_by_run_folder_and_file(study: Study) -> None:
    record = asked(study)
    path = find_translators(record.id, study)
    assert find_translators(record.path, study) == find_translators("latest", study) == path
    lens = load_tuned(path, MODEL)
    save_tuned(lens, "lens.safetensors")
    assert find_translators("lens.safetensors", study) == Path("lens.safetensors")
    again = load_tuned("lens.safetensors", MODEL)
    assert torch.equal(again.weight, lens.weight) and again.config == lens.config
    batch = samples.sample_texts(MODEL, n=2, length=4)
    assert torch.equal(tuned_lens(MODEL, batch, again).kl, tuned_lens(MODEL, batch, lens).kl)
    with pytest.raises(FileNotFoundError):
        find_translators("none.safetensors", study)
    with pytest.raises(ReadingError, match="'nosuch' is neither a file of translators nor a run: there is no run"):
        find_translators("nosuch", study)
    (record.path / "arrays" / "translators.safetensors").unlink()
    with pytest.raises(ReadingError, match="has no translators"):
        find_translators(record.id, study)


def test_a_twin_can_be_tuned(study: Study) -> None:
    record = look(study, TUNE, TuneConfig(n=20, length=8, tuned=QUICK, twin=True), random_twin(MODEL))
    assert is_valid(record) and record.table["model"].startswith("random twin of ")


def test_texts_of_a_file(tmp_path: Path) -> None:
    lines, rows = tmp_path / "t.txt", tmp_path / "t.jsonl"
    lines.write_text("one text\n\n  another  \n")
    rows.write_text("".join(json.dumps({"text": text, "more": 1}) + "\n" for text in ("one text", "another\nline")))
    assert read_texts(lines) == ["one text", "another"]
    assert read_texts(rows) == ["one text", "another\nline"]
    bad = {
        '{"text": 3}\n': "'text' in line 1 of .* is not a text with words in it",
        '{"text": "a"}\n[1]\n': "line 2 of .* is no JSON object with 'text'",
        '{"text": "\\ud800"}\n': "not a text with words",
        "\n": "holds no texts",
    }
    for content, sentence in bad.items():
        rows.write_text(content)
        with pytest.raises(ReadingError, match=sentence):
            read_texts(rows)
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(ReadingError, match="is no UTF-8 text"):
        read_texts(lines)
    with pytest.raises(ReadingError, match=r"t\.csv is neither"):
        read_texts(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "none.txt")


def test_what_is_too_little_is_said(study: Study) -> None:
    with pytest.raises(ReadingError, match="at least 3 texts .* of at least 2 tokens; got 2 of 64"):
        TuneConfig(n=2)
    with pytest.raises(ReadingError, match="got all of 1"):
        TuneConfig(length=1)
    assert TuneConfig(seed=7).tuned.seed == 7
    MODEL.config.bos_token_id = None
    try:
        with pytest.raises(ReadingError, match="no BOS token to begin a text with"):
            asked(study)
    finally:
        MODEL.config.bos_token_id = 1
    assert study.ids() == ()
