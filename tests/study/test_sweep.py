"""Sweeps: cells of a file, carried out here, by workers that may be killed, and on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from caseback.core.errors import StudyError
from caseback.study import Study
from caseback.study.sweep import Cell, read_sweep, sweep
from caseback.zoo import planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep")
    zoo = planted(n=4)
    zoo.model.hf.save_pretrained(path / "m")
    zoo.model.tokenizer.save_pretrained(path / "m")
    (path / "prompts").write_text(json.dumps([pair.clean for pair in zoo.task.pairs[:3]]))
    return path


@pytest.fixture
def prompts(folder):
    return json.loads((folder / "prompts").read_text())


def cells(folder, prompts, **more):
    return [Cell("lens", {"model": str(folder / "m"), "prompt": prompt, **more}) for prompt in prompts]


def written(path: Path, text: str) -> Path:
    (path / "sweep.toml").write_text(text)
    return path / "sweep.toml"


# --- files -------------------------------------------------------------------------------------------------------------


def test_a_file_is_every_combination(tmp_path):
    file = written(
        tmp_path,
        """
        [[run]]
        method = "circuit"
        n = 40
        discover.points = 6
        [run.each]
        task = ["ioi", "capitals"]
        "discover.steps" = [1, 5]
        [[run]]
        method = "heads"
        """,
    )
    found = read_sweep(file)
    assert [str(cell) for cell in found] == [
        "circuit n=40 discover.points=6 discover.steps=1 task=ioi",
        "circuit n=40 discover.points=6 discover.steps=5 task=ioi",
        "circuit n=40 discover.points=6 discover.steps=1 task=capitals",
        "circuit n=40 discover.points=6 discover.steps=5 task=capitals",
        "heads",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing; a sweep is one or more tables"),
        ("[run]\nmethod = 'heads'", "holds run; a sweep is one or more tables"),
        ("[[run]]\n[other]", "holds run, other"),
        ("[[run]", "is not TOML"),
        ("run = [1]", "a sweep is one or more tables"),
        ("run = " + "[" * 5000, "is not TOML"),
        ("[[run]]\ntask = 'ioi'", "run 1 names no method; there are: "),
        ("[[run]]\nmethod = 'circuit'\ntask = 'ioi'\nsteps = 3", "run 1: circuit has no setting 'steps'"),
        ("[[run]]\nmethod = 'circuit'\n[run.each]\ntask = 'ioi'", "names settings with a list of values each"),
        ("[[run]]\nmethod = 'circuit'\n[run.each]\ntask = []", "names settings with a list of values each"),
        ("[[run]]\nmethod = 'circuit'\ntask = 'a'\n[run.each]\ntask = ['ioi']", "stands both in"),
        ("[[run]]\nmethod = 'circuit'\ntask = 'a'\n[run.each]\n'task.x' = [1]", "'task' is no table"),
        (
            "[[run]]\nmethod = 'heads'\n[[run]]\nmethod = 'heads'",
            "run 2 asks for a cell that stands there already: heads",
        ),
        ("[[run]]\nmethod = 'heads'\n[run.each]\nseed = [" + "1, " * 10001 + "]", "a sweep has at most 10000"),
    ],
)
def test_a_bad_file_is_a_sentence(tmp_path, text, said):
    with pytest.raises(StudyError) as error:
        read_sweep(written(tmp_path, text))
    assert said in str(error.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        read_sweep(tmp_path / "no.toml")


# --- here and in processes -----------------------------------------------------------------------------------------------


def test_cells_become_runs_and_are_reopened(folder, prompts, tmp_path):
    study = Study(tmp_path / "casebook")
    told = []
    first = sweep(study, cells(folder, prompts), progress=lambda *where: told.append(where))
    assert ("cells", 3, 3) in told
    assert sorted(one.run for one in first) == list(study.ids())
    again = sweep(study, cells(folder, prompts))
    assert [one.run for one in again] == [one.run for one in first]


def test_a_cell_that_cannot_be_done_is_reported(folder, prompts, tmp_path):
    study = Study(tmp_path / "casebook")
    bad = Cell("lens", {"model": str(folder / "m"), "prompt": "the", "site": "z"})
    first, second, third = sweep(
        study, [bad, *cells(folder, prompts[:1]), Cell("lens", {"model": "nosuch", "prompt": "x"})]
    )
    assert (first.run, first.attempts) == (None, 1) and "a lens reads the stream" in first.why
    assert second.run and not second.why
    assert third.run is None and "nosuch" in third.why


def test_workers_share_the_study(folder, prompts, tmp_path):
    study = Study(tmp_path / "casebook")
    asked = [*cells(folder, prompts), Cell("lens", {"model": str(folder / "m"), "prompt": "the", "site": "z"})]
    *done, failed = sweep(study, asked, executor="processes", workers=2)
    assert sorted(one.run for one in done) == list(study.ids())
    assert "a lens reads the stream" in failed.why and failed.attempts == 1
    assert [study.find(one.run).table["prompt"] for one in done] == prompts


def test_a_killed_worker_loses_nothing(folder, prompts, tmp_path):
    study = Study(tmp_path / "casebook")
    stop = threading.Event()

    def kill():
        while not stop.is_set():
            for process in children():
                os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    done = sweep(study, cells(folder, prompts), executor="processes", workers=1, retries=1)
    stop.set()
    killer.join()
    assert [study.find(one.run).status for one in done] == ["finished"] * 3
    assert sorted(one.attempts for one in done) == [1, 1, 2]


def test_a_worker_that_is_always_killed_is_reported(folder, prompts, tmp_path):
    stop = threading.Event()

    def kill():
        while not stop.is_set():
            for process in children():
                os.kill(process, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    (failed,) = sweep(Study(tmp_path / "c"), cells(folder, prompts[:1]), executor="processes", workers=1, retries=1)
    stop.set()
    killer.join()
    assert failed.run is None and failed.attempts == 2
    assert failed.why == "its worker ended with exit code -9"


def children() -> list[int]:
    """Spawned workers of this process (the resource tracker is not one)."""
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


# --- Ray -------------------------------------------------------------------------------------------------------------------


def test_on_a_ray_cluster_of_two_workers(folder, prompts, tmp_path):
    pytest.importorskip("ray")
    each = json.dumps(prompts)
    file = written(tmp_path, f"[[run]]\nmethod = 'lens'\nmodel = {str(folder / 'm')!r}\n[run.each]\nprompt = {each}\n")
    command = [sys.executable, "-m", "caseback.cli.app", "sweep", str(file), "--ray", "--workers", "2", "--json"]
    environment = {
        **os.environ,
        "CASEBACK_STUDY": str(tmp_path / "casebook"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])["cells"]
    study = Study(tmp_path / "casebook")
    assert [study.find(one["run"]).table["prompt"] for one in found] == prompts
    assert sorted(one["run"] for one in found) == list(study.ids())
