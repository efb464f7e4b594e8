"""Killed anywhere, begun again, the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caseback.core.errors import StudyError
from caseback.core.progress import silent
from caseback.study import Checkpoint, Event, RunFolder, Study
from caseback.study.resume import cost, is_locked, locked, read_events

from . import toy

HERE = Path(__file__).parent


@pytest.mark.parametrize(("how", "least"), [("points", 50), ("random", 30), ("clock", 15)])
def test_kill_9_and_resume_gives_the_same_bytes(memory, how, least):
    ended = subprocess.run(
        [sys.executable, HERE / "crash.py", memory, how], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["difference"] is None
    assert said["kills"] >= least


@pytest.fixture
def run(tmp_path):
    (tmp_path / "arrays").mkdir()
    return RunFolder(tmp_path, toy.spec(), progress=silent, have={})


def again(run: RunFolder) -> RunFolder:
    return RunFolder(run.path, run.spec, progress=silent, have={})


def kinds(run: RunFolder) -> list[str]:
    return [event.kind for event in read_events(run.path) if event.kind != "progress"]


def test_a_stage_is_computed_once(run):
    calls = []

    def compute() -> Checkpoint:
        calls.append(1)
        return Checkpoint({"x": np.ones(3)}, {"pair": (1, 2), "bad": float("inf")})

    first = run.stage("a", compute)
    second = again(run).stage("a", compute)
    assert len(calls) == 1
    assert first.data == second.data == {"pair": [1, 2], "bad": None}
    assert np.array_equal(first.arrays["x"], second.arrays["x"])
    assert kinds(run) == ["stage-started", "stage-finished", "stage-reopened"]


def test_a_fold_goes_on_where_it_stopped(run):
    calls = []

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        calls.append(i)
        if len(calls) == 4:
            raise RuntimeError("stop")
        return Checkpoint(data={"sum": (state.data["sum"] if state else 0) + i})

    with pytest.raises(RuntimeError):
        run.fold("f", 5, step)
    assert again(run).fold("f", 5, step).data == {"sum": 10}
    assert calls == [0, 1, 2, 3, 3, 4]
    begun = [e.data["done"] for e in read_events(run.path) if e.kind == "stage-started"]
    assert begun == [0, 3]


def in_parts(calls: list[str], stop: str = "") -> Callable[[RunFolder], Checkpoint]:
    """A stage of two steps of two parts each, the second part a fold; it breaks off where `stop` says."""

    def one(name: str, value: float) -> Checkpoint:
        if name == stop:
            raise RuntimeError(name)
        calls.append(name)
        return Checkpoint({"x": np.array([value])})

    def compute(run: RunFolder) -> Checkpoint:
        def step(state: Checkpoint | None, i: int) -> Checkpoint:
            first = run.stage("first", lambda: one(f"{i} first", 10.0 * i + 1))
            second = run.fold(
                "second", 2, lambda half, j: one(f"{i} second {j}", j + (half.arrays["x"][0] if half else 5))
            )
            if stop == f"{i} end":
                raise RuntimeError(stop)
            sums = first.arrays["x"] + second.arrays["x"] + (state.arrays["x"] if state else 0)
            return Checkpoint({"x": sums})

        return run.fold("whole", 2, step)

    return compute


PARTS = ["0 first", "0 second 0", "0 second 1", "1 first", "1 second 0", "1 second 1"]


@pytest.mark.parametrize("stop", [*PARTS, "0 end", "1 end"])
def test_a_step_is_taken_up_part_by_part(run, stop):
    calls: list[str] = []
    with pytest.raises(RuntimeError, match=stop):
        in_parts(calls, stop)(run)
    assert (run.path / "parts").exists() or stop == "0 first"
    resumed = again(run)
    found = in_parts(calls)(resumed)
    assert calls == PARTS, "each once"
    assert found.arrays["x"] == 1 + 6 + 11 + 6
    assert not (run.path / "parts").exists()
    resumed.write_result({})
    assert list(json.loads((run.path / "result.json").read_text())["arrays"]) == ["whole"]


def test_parts_of_a_step_that_is_saved_are_not_taken_for_the_next(run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("caseback.study.resume._drop", stopped)  # killed between saving the step and dropping its parts
        in_parts([])(run)
    assert (run.path / "parts").exists()
    assert in_parts([])(again(run)).arrays["x"] == 24
    assert not (run.path / "parts").exists()


def stopped(folder: Path) -> None:
    if folder.parent.name == "parts":
        raise KeyboardInterrupt


def test_a_part_is_asked_for_once_a_step(run):
    def twice() -> Checkpoint:
        run.stage("part", Checkpoint)
        return run.stage("part", Checkpoint)

    with pytest.raises(ValueError, match="'a/0/part' was asked for before"):
        run.stage("a", twice)


def test_progress_is_told_and_recorded(tmp_path):
    (tmp_path / "arrays").mkdir()
    told = []
    run = RunFolder(tmp_path, toy.spec(), progress=lambda *where: told.append(where), have={})
    run.fold("f", 2, lambda state, i: Checkpoint())
    assert told == [("f", 0, 2), ("f", 1, 2), ("f", 2, 2)]
    (event,) = [e for e in read_events(tmp_path) if e.kind == "progress"]
    assert event.data["stage"] == "f"
    assert event.data["total"] == 2
    assert event.data["peak_memory_mb"] > 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other steps", "foreign"])
def test_a_damaged_checkpoint_is_computed_again_and_said(run, damage):
    value = Checkpoint({"x": np.arange(100.0)})
    run.stage("a", lambda: value)
    path = run.path / "arrays" / "a.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "flipped":
        content[-9] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other steps":
        again(run).fold("a", 2, lambda state, i: value)
    else:
        other = RunFolder(run.path, toy.spec(steps=9), progress=silent, have={})
        path.unlink()
        other.stage("a", lambda: value)
    calls = []
    got = again(run).stage("a", lambda: calls.append(1) or value)
    assert calls == [1]
    assert np.array_equal(got.arrays["x"], value.arrays["x"])
    assert kinds(run)[-3:] == ["damaged", "stage-started", "stage-finished"]


def test_a_broken_last_line_of_events_breaks_no_other(run):
    run.event("one")
    with open(run.path / "events.jsonl", "ab") as events:
        events.write(b'{"at": "2026')
    run.event("two", note="x")
    assert [e.kind for e in read_events(run.path)] == ["one", "unreadable", "two"]


def test_cost_is_that_of_all_sessions():
    def event(kind: str, seconds: float, memory: float) -> Event:
        return Event("", kind, {"seconds": seconds, "cpu_seconds": seconds / 2, "peak_memory_mb": memory})

    events = (event("started", 0.0, 10.0), event("progress", 5.0, 90.0), event("resumed", 0.0, 20.0))
    events += (event("result", 2.0, 30.0),)
    took = cost(events)
    assert (took.seconds, took.cpu_seconds, took.peak_memory_mb, took.sessions) == (7, 3.5, 90, 2)
    assert cost(()).sessions == 0


def test_bad_stage_names_are_our_own_defect(run):
    with pytest.raises(ValueError, match="lower-case"):
        run.stage("../x", Checkpoint)


def test_another_model_or_other_data_are_refused(run):
    run.confirm(model=run.spec.model, data="d0")
    with pytest.raises(StudyError, match=r"other model files \(model.safetensors differ"):
        run.confirm(model={"files": {"model.safetensors": "11"}})
    with pytest.raises(StudyError, match="began with other data than 'The Task!'"):
        run.confirm(data="d1")


def test_the_lock_is_one_process_and_dies_with_it(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=HERE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(StudyError, match="busy"), locked(path, wait=0.1, busy=lambda: "busy"):
            raise AssertionError
        holder.kill()
    with locked(path, wait=1.0, busy=lambda: "busy"):
        assert is_locked(path)
    assert not is_locked(path)


HOLD = """
import sys, time
from pathlib import Path
from caseback.study.resume import locked
with locked(Path(sys.argv[1]), wait=1.0, busy=lambda: "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_full_disk_loses_nothing(tmp_path):
    # A limit on file size makes the kernel refuse the write in the middle of the fold, as a full disk does.
    script = """
import resource, sys, toy
from caseback.core.errors import StudyError
from caseback.study import Study
study = Study(sys.argv[1])
def fill(stage, done, total):
    if (stage, done) == ("sum", 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    print(study.run(toy.spec(), progress=fill).status)
except StudyError as error:
    print(error)
"""

    def attempt(limit: int) -> str:
        command = [sys.executable, "-c", script, str(tmp_path), str(limit)]
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True, timeout=60).stdout

    assert "the disk is full" in attempt(500)
    (row,) = Study(tmp_path).runs()
    assert row.status == "unfinished"  # the line that it failed did not fit either
    before = Study(tmp_path).find("latest").stage("draw").arrays["rows"]
    assert attempt(10**7) == "finished\n"
    record = Study(tmp_path).find("latest")
    assert record.id == row.id
    assert np.array_equal(record.stage("draw").arrays["rows"], before)
