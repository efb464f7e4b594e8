"""`caseback exchange`: what a run found leaves in the field's JSON, comes back, and measures as it did."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.circuits import exchange
from caseback.circuits.evaluate import measure
from caseback.circuits.exchange import group
from caseback.zoo import planted

from .planted import call, folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def caseback(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: call(capsys, *arguments)


@pytest.fixture(scope="module")
def run(place: Path) -> dict[str, Any]:
    """A finished circuit run in the study place/cb."""
    from caseback.circuits.discover import DiscoverConfig
    from caseback.model.load import load
    from caseback.study import Study
    from caseback.study.circuit import CircuitConfig, circuit_spec

    discover = DiscoverConfig(points=4, draws=1, patched=2, minimal=2, patch_pairs=2)
    config = CircuitConfig(task=str(place / "t.jsonl"), model=str(place / "m"), discover=discover)
    model = load(config.model)
    task = config.read_task(model)
    record = Study(place / "cb").run(circuit_spec(config, model, task, passed={}), have={"model": model, "task": task})
    return record.table


def test_a_run_is_written_and_measures_the_same(
    place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    code, said, err = caseback(
        "exchange", "write", run["run"], out, "--study", place / "cb", "--edges", run["sizes"][1]
    )
    assert code == 0, err
    assert f"{run['sizes'][1]:,} of 3,619 edges, in 7 spans" in said
    code, said, err = caseback("exchange", "read", out, "--task", place / "t.jsonl", "--model", place / "m", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert found["positions"] is True and found["edges"] == run["sizes"][1]
    assert found["faithfulness"] == pytest.approx(run["faithfulness"][1], abs=1e-6)
    for name in ("low", "high"):  # the same pairs in another order, so other resamples
        assert found[name] == pytest.approx(run[name][1], abs=1e-3)
    assert found["random"] < 0.2
    assert found["strongest"][0]["edge"] in planted().truth
    assert json.loads(out.read_text())["cfg"]["d_model"] == 64


def test_the_default_size_is_the_pages(place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    found = json.loads(caseback("exchange", "write", "latest", out, "--study", place / "cb", "--json")[1])
    assert found["edges"] == found["asked"] in run["sizes"]
    text = caseback("exchange", "read", out)[1]
    assert f"{found['edges']} of 3,619 edges, in 7 spans (before, cue" in text
    assert "faithfulness" not in text
    found = json.loads(
        caseback("exchange", "write", "latest", out, "--study", place / "cb", "--edges", 15, "--json")[1]
    )
    assert found["edges"] <= found["asked"] == 15


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(
    place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(part: Any, path: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(part))

    monkeypatch.setattr("caseback.circuits.exchange.os.replace", refuse)
    code, out, err = caseback("exchange", "write", run["run"], tmp_path / "c.json", "--study", place / "cb")
    assert (code, out) == (2, "")
    assert f"not permitted to use {tmp_path / 'c.json'} (Permission denied)" in err


def test_a_study_folder_that_cannot_be_made_is_named_as_it_was_asked_for(
    place: Path, caseback: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "study"
    code, said, err = caseback("circuit", place / "t.jsonl", "--model", place / "m", "--out", out)
    assert (code, said) == (2, "")
    assert f"caseback: the study folder {out} cannot be made (" in err


def test_a_file_without_positions_is_measured_in_all_of_them(
    place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    caseback("exchange", "write", "latest", out, "--study", place / "cb", "--edges", run["sizes"][1])
    data = json.loads(out.read_text())
    del data["positions"]
    out.write_text(json.dumps(data))
    code, said, err = caseback("exchange", "read", out, "--task", place / "t.jsonl", "--model", place / "m", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert found["positions"] is False and found["spans"] == ["all"]
    assert any("nothing of positions" in note for note in found["notes"])
    # the same as the circuit expanded to the task's spans
    zoo = planted(n=24)
    pairs = zoo.task.held_out.encode(zoo.model)
    held = group(exchange.read(out), 2)
    from caseback.circuits.parts import graph_of

    whole = measure(zoo.model, pairs, [held.circuit.expand(graph_of(zoo.model, tuple(pairs.clean.spans)))])
    assert found["faithfulness"] == pytest.approx(whole.faithfulness()[0].value, abs=1e-5)
    assert found["kl"] == pytest.approx(float(whole.kl.mean()), abs=1e-5)


def test_without_scores_there_is_no_random_control(
    place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    caseback("exchange", "write", "latest", out, "--study", place / "cb")
    data = json.loads(out.read_text())
    del data["positions"]
    for edge in data["edges"].values():
        edge["score"] = 0.0
    out.write_text(json.dumps(data))
    text = caseback("exchange", "read", out, "--task", place / "t.jsonl", "--model", place / "m")[1]
    assert "random of equal size not known, the file has no scores" in text


def test_what_cannot_be_done_is_a_sentence(place: Path, run: dict[str, Any], caseback: Any, tmp_path: Path) -> None:
    out, study = tmp_path / "c.json", place / "cb"

    def refused(*arguments: Any) -> str:
        code, said, err = caseback("exchange", *arguments)
        assert code == 2 and not said and "Traceback" not in err
        return " ".join(err.split())

    assert "there is no folder" in refused("write", "latest", tmp_path / "no" / "c.json", "--study", study)
    assert "is a folder" in refused("write", "latest", tmp_path, "--study", study)
    assert "there is no run 'x'" in refused("write", "x", out, "--study", study)
    assert "no circuit of at most 1 edges leads" in refused("write", "latest", out, "--study", study, "--edges", 1)
    assert not out.exists()
    assert f"there is no file {out}; give the JSON of" in refused("read", out)
    out.write_text("{")
    assert "is not a JSON file" in refused("read", out)
    caseback("exchange", "write", "latest", out, "--study", study)
    assert "say on which --task" in refused("read", out, "--model", place / "m")
    other = tmp_path / "other.jsonl"
    lines = [json.loads(line) for line in (place / "t.jsonl").read_text().splitlines()]
    lines[0]["schema"]["spans"][1] = "hint"
    for line in lines[1:]:
        line["spans"][1][0] = "hint"
    other.write_text("\n".join(map(json.dumps, lines)))
    said = refused("read", out, "--task", other, "--model", place / "m")
    assert "has the spans before, cue" in said and "the task before, hint" in said
    data = json.loads(out.read_text())
    small = {k: v for k, v in data.items() if k != "positions"} | {"cfg": {**data["cfg"], "n_layers": 3}}
    keep = {k: v for k, v in data["edges"].items() if "a3." not in k and "m3" not in k}
    small |= {"edges": keep, "nodes": {k: v for k, v in data["nodes"].items() if "a3." not in k and k != "m3"}}
    out.write_text(json.dumps(small))
    assert "3 layers of 4 heads on 2 KV heads; " in refused(
        "read", out, "--task", place / "t.jsonl", "--model", place / "m"
    )


def test_only_a_circuit_run_holds_a_circuit(place: Path, caseback: Any, tmp_path: Path) -> None:
    study = tmp_path / "cb"
    caseback("experiment", "positions", place / "t.jsonl", "--model", place / "m", "--out", study)
    code, _, err = caseback("exchange", "write", "latest", tmp_path / "c.json", "--study", study)
    assert code == 2
    assert "is of the method 'positions'; only a circuit run holds a circuit" in err
    assert np.all([not path.name.endswith(".json") for path in tmp_path.iterdir()])
