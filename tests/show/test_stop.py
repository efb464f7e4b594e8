"""A run begun outside the server is stopped as by Ctrl-C: only the process that holds its lock, only with the token."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from caseback.core.errors import StudyError
from caseback.show import stop as stopping
from caseback.show.server import application
from caseback.study import Record, Study
from caseback.study.resume import locked

from .test_begin import until
from .trial import spec

ROOT = Path(__file__).parents[2]
TOKEN = "token"
WORK = """
import signal, sys
# what is begun in the background of a script is deaf; these are so when they are told to be
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[2] == "deaf" else signal.default_int_handler)
from caseback.study import Study
from tests.show.trial import spec
Study(sys.argv[1]).run(spec("slow one", steps=2000, pause=0.05))
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "casebook")


@pytest.fixture
def client(study: Study) -> Iterator[TestClient]:
    app = application(study, token=TOKEN, port=1)
    with TestClient(app, base_url="http://127.0.0.1:1", headers={"x-caseback-token": TOKEN}) as client:
        yield client


class Outside:
    """A study in a process that no server knows of."""

    def __init__(self, study: Study, how: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(study.path), how], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        self.record: Record = until(lambda: next(iter(self._at_work(study)), None))

    def _at_work(self, study: Study) -> list[Record]:
        assert self.process.poll() is None
        found = [study.find(run) for run in study.ids()]
        return [record for record in found if any(event.kind == "progress" for event in record.events)]

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_it_is_stopped_and_can_be_gone_on_with(study: Study, client: TestClient) -> None:
    with Outside(study) as outside:
        path = f"/api/runs/{outside.record.id}/stop"
        assert client.post(path, json={}, headers={"x-caseback-token": "x"}).status_code == 401
        assert client.get(path).status_code == 405
        assert outside.process.poll() is None
        answer = client.post(path, json={})
        assert (answer.status_code, answer.json()) == (200, {"process": outside.process.pid})
        assert "was stopped; `caseback resume" in outside.process.communicate(timeout=60)[1]
    again = study.find(outside.record.id)
    assert again.status == "interrupted" and again.saved()
    refused = client.post(path, json={})
    assert refused.status_code == 400 and "is not computed now" in refused.json()["error"]
    assert client.post("/api/runs/nosuch/stop", json={}).status_code == 404


def test_a_process_that_does_not_hold_the_run_is_left_alone(study: Study) -> None:
    """The number in the events has been given to another process since."""
    record = study.run(spec("done"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        claim(record, other.pid)
        with locked(record.path / "lock", wait=0.0, busy=str), pytest.raises(StudyError, match="another machine"):
            stopping.stop(record)
        assert other.poll() is None
        assert other.communicate(b"\n")[0] is None
        assert other.returncode == 0  # it read its line: nothing had reached it
    with locked(record.path / "lock", wait=0.0, busy=str), pytest.raises(StudyError, match="another machine"):
        stopping.stop(record)  # by now there is no such process


def claim(record: Record, pid: Any) -> None:
    with (record.path / "events.jsonl").open("a") as events:
        events.write(f'{{"at": "2026-01-01T00:00:00Z", "kind": "resumed", "pid": {pid}}}\n')


def test_a_process_of_another_user_is_left_alone(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outside(study) as outside:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(StudyError, match="another user"):
            stopping.stop(outside.record)
        assert outside.process.poll() is None


def test_a_process_that_does_not_listen_is_said(study: Study) -> None:
    with Outside(study, "deaf") as outside:
        with pytest.raises(StudyError, match=f"kill {outside.process.pid}"):
            stopping.stop(outside.record)
        assert outside.process.poll() is None


def test_the_server_does_not_stop_itself(study: Study) -> None:
    working = threading.Thread(target=lambda: study.run(spec("own", steps=20, pause=0.1)))
    working.start()
    record = until(lambda: next((study.find(run) for run in study.ids()), None))
    until(lambda: record.events)
    with pytest.raises(StudyError, match="this server's own process"):
        stopping.stop(record)
    working.join()


@pytest.mark.parametrize("pid", ["null", "true", "0", "1", "-1", '"1"'])
def test_a_number_that_is_none_is_no_process(study: Study, pid: str) -> None:
    record = study.run(spec("done"))
    claim(record, pid)
    with (
        locked(record.path / "lock", wait=0.0, busy=str),
        pytest.raises(StudyError, match="does not say which process"),
    ):
        stopping.stop(record)


def test_other_systems_are_told_to_stop_it_there(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    record = study.run(spec("done"))
    claim(record, 2**22 + 1)
    monkeypatch.setattr(stopping.sys, "platform", "darwin")
    with locked(record.path / "lock", wait=0.0, busy=str), pytest.raises(StudyError, match="on this system"):
        stopping.stop(record)
