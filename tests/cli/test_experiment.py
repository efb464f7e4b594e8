"""`caseback experiment` on a model whose circuit is known: the numbers, the record, the page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.circuits.positions import aggregate, compare
from caseback.study import Record, Study
from caseback.study.experiments import schemas as schemas_module
from caseback.zoo import planted

from .planted import call, folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def experiment(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an experiment on the planted task; the study is the test's own."""
    monkeypatch.setenv("CASEBACK_STUDY", str(tmp_path / "casebook"))

    def run(name: str, *options: Any) -> tuple[int, str, str]:
        return call(capsys, "experiment", name, place / "t.jsonl", "--model", place / "m", *options)

    return run


def table(found: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = found
    assert code == 0, err
    return dict(json.loads(out))


def test_positions_prints_the_published_table(experiment: Any) -> None:
    found = table(experiment("positions", "--json"))
    assert found["aggregation"] == ["cancellation"] * 3 + ["overestimation"] * 3
    assert found["share"] == [0.01, 0.05, 0.1] * 2
    assert found["n"] == found["kept"] == 24
    zoo = planted(n=24)
    rows = compare(aggregate(zoo.model, zoo.task.encode(zoo.model)))
    for name in ("difference", "difference_control", "spearman", "spearman_control"):
        assert found[name] == pytest.approx([getattr(row, name) for row in rows], abs=1e-6)
    code, out, _ = experiment("positions")  # the same run again, as text
    assert code == 0
    assert found["run"] in out
    assert "Of the best 1% of the edges, ignoring positions replaces" in out
    assert "cancellation" in out and "ρ control" in out


def test_schemas_draws_a_curve_for_each(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(experiment("schemas", "--points", 5, "--json"))
    assert found["schemas"] == ["hand", "induced", "none"]
    assert found["spans"] == [7, 6, 1]
    assert found["held_out"] == 12
    rows = [dict(zip(ROW, row, strict=True)) for row in zip(*(found[name] for name in ROW), strict=True)]
    for name in found["schemas"]:
        mine = [row for row in rows if row["schema"] == name]
        sizes = [row["token_edges"] for row in mine]
        assert sizes == sorted(sizes)
        assert mine[-1]["faithfulness"] == pytest.approx(1, abs=1e-4)
        assert mine[0]["random"] < 0.1
        assert (mine[0]["faithfulness"] > 0.9) == (name != "none")  # without positions so few edges do not do it
        assert all(row["low"] <= row["faithfulness"] <= row["high"] for row in mine)
    assert found["needed_80"][0] < 0.5 * found["needed_80"][2]
    page = Study().find(found["run"]).report
    assert page is not None and "without positions" in page.read_text()
    assert found["run"] in call(capsys, "runs")[1]
    assert "needed_80" in call(capsys, "show", "latest")[1]
    assert call(capsys, "report", "latest")[1].strip() == str(page)


ROW = "schema edges token_edges faithfulness low high random".split()


def test_a_proposed_schema_is_a_further_curve(experiment: Any, place: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "schema.json"
    call(capsys, "schema", "induce", place / "t.jsonl", "--model", place / "m", "--out", file)
    found = table(experiment("schemas", "--points", 3, "--proposed", file, "--json"))
    assert found["schemas"] == ["hand", "induced", "proposed", "none"]
    rows = {
        name: [row for row in zip(*(found[c] for c in ROW), strict=True) if row[0] == name]
        for name in ("induced", "proposed")
    }
    assert [row[1:6] for row in rows["induced"]] == [row[1:6] for row in rows["proposed"]]
    notes = Study().find(found["run"]).stage("view").data["notes"]
    assert any("induced and those proposed cut every pair alike" in note for note in notes)
    with_other = json.loads(file.read_text())
    with_other["aligner"]["n"] += 1
    file.write_text(json.dumps(with_other))
    assert table(experiment("schemas", "--points", 3, "--proposed", file, "--json"))["run"] != found["run"]


def test_patching_holds_scores_against_exact_effects(experiment: Any) -> None:
    options = ("--top", 14, "--random", 20, "--pairs", 2, "--steps", "1,5")
    found = table(experiment("patching", *options, "--json"))
    assert found["pairs"] == 2
    assert found["scores"] == ["EAP"] * 3 + ["EAP-IG (5)"] * 3
    assert found["subset"] == ["all", "top", "random"] * 2
    assert found["edges"] == [found["patched"], found["n_top"], found["n_random"]] * 2
    assert 14 <= found["n_top"] <= 28
    whole = found["subset"].index("all")
    assert found["spearman"][whole] > 0.8 and found["sign"][whole] > 0.8
    assert found["spearman_low"][whole] <= found["spearman"][whole] <= found["spearman_high"][whole]
    worst = Study().find(found["run"]).stage("view").data["sections"][1]["table"]["rows"]
    exact = {row[0]: row[3][0] for row in worst}
    assert planted().truth & set(exact) and min(exact[name] for name in planted().truth & set(exact)) > 2
    assert "EAP-IG (5)" in experiment("patching", *options)[1]


@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_other_references(experiment: Any, reference: str) -> None:
    found = table(experiment("schemas", "--points", 3, "--reference", reference, "--json"))
    assert found["faithfulness"][-1] == pytest.approx(1, abs=1e-4)
    found = table(experiment("patching", "--top", 5, "--random", 0, "--pairs", 2, "--reference", reference, "--json"))
    assert found["subset"] == ["all", "top"]


def test_a_stopped_run_is_resumed_to_the_same_table(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seen = schemas_module.measure, []

    def stop(*arguments: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(schemas_module, "measure", stop)
    code, _, err = experiment("schemas", "--points", 3, "--json")
    assert code == 130 and "caseback resume" in err
    monkeypatch.setattr(schemas_module, "measure", real)
    stopped: Record = Study().find("latest")
    assert set(stopped.saved()) == {"score-hand", "score-induced", "evaluate-hand"}
    code, out, err = call(capsys, "resume", "latest", "--json")
    assert code == 0, err
    resumed = json.loads(out)
    straight = table(experiment("schemas", "--points", 3, "--force", "--json"))
    same = set(straight) - {"run", "seconds", "peak_memory_mb"}
    assert {name: resumed[name] for name in same} == {name: straight[name] for name in same}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("schemas", "--proposed", "none.json"), "there is no schema file 'none.json'"),
        (("patching", "--steps", "1,x"), "--steps is '1,x'"),
        (("patching", "--steps", "5,5"), "different numbers of gradient points"),
        (("patching", "--top", 10**6), "the graph has 3619 edges"),
        (("positions", "--reference", "noise"), "'noise' is not one of"),
        (("positions", "--n", 99), "was asked for n=99 pairs; it has 24"),
        (("positions", "--nosuch"), "No such option"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(experiment: Any, options: Any, sentence: str) -> None:
    code, out, err = experiment(*options)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err
    assert Study().ids() == ()


def test_a_task_without_spans_has_no_curve_by_hand(place: Path, tmp_path: Path, experiment: Any, capsys: Any) -> None:
    lines = [json.loads(line) for line in (place / "t.jsonl").read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    lines[0].pop("schema")
    bare.write_text("\n".join(json.dumps({k: v for k, v in line.items() if k != "spans"}) for line in lines))
    command = ("experiment", "schemas", bare, "--model", place / "m", "--points", 3, "--json")
    found = table(call(capsys, *command))
    assert found["schemas"] == ["induced", "none"]
    assert np.isfinite(found["faithfulness"]).all()
