"""The server's gate and its answers: who is let in, what is refused, and that the list is the casebook's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from caseback.core.errors import StudyError
from caseback.show.guard import MAX_BODY
from caseback.show.server import application, serve
from caseback.study import Study

from .trial import spec

PORT, TOKEN = 8765, "token-of-this-test"
HOST = f"127.0.0.1:{PORT}"
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Seven toy runs: five finished, one that failed, one of a hostile task."""
    study = Study(tmp_path_factory.mktemp("casebook"))
    for seed in range(5):
        study.run(spec(f"task {seed % 2}", seed=seed))
    with pytest.raises(ZeroDivisionError):
        study.run(spec("task 0", fail="defect"))
    study.run(spec(HOSTILE, seed=9))
    return study


@pytest.fixture(scope="module")
def client(study: Study) -> Iterator[TestClient]:
    app = application(study, token=TOKEN, port=PORT)
    with TestClient(app, base_url=f"http://{HOST}", headers={"x-caseback-token": TOKEN}) as client:
        yield client


def ok(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- the gate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/dom.js", "/api/runs"])
@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "", f"{HOST}.evil.example"]
)
def test_another_name_for_this_server_is_refused(client: TestClient, path: str, host: str) -> None:
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "its own address" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/static/dom.js", "/api/runs"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://{HOST}", "http://127.0.0.1:1", ""])
def test_another_page_is_refused(client: TestClient, path: str, origin: str) -> None:
    assert client.get(path, headers={"origin": origin}).status_code == 403


def test_its_own_page_is_not(client: TestClient) -> None:
    for host in (HOST, f"localhost:{PORT}"):
        ok(client.get("/api/runs", headers={"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}))
    for site in ("cross-site", "same-site", "none"):
        assert client.get("/api/runs", headers={"sec-fetch-site": site}).status_code == 403


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + " x", TOKEN.upper(), "\u00e9"])
def test_nothing_is_told_without_the_token(client: TestClient, token: str) -> None:
    headers = {"x-caseback-token": token.encode()}
    for path in ("/api/runs", "/api/live", "/api/compare?a=x&b=y", "/api/nosuch"):
        assert client.get(path, headers=headers).status_code == 401
    assert client.post("/api/runs", json={}, headers=headers).status_code == 401
    assert client.post("/", json={}, headers=headers).status_code == 401


def test_a_request_is_short_json(client: TestClient) -> None:
    def post(content: Any, kind: str = "application/json") -> int:
        return int(client.post("/api/runs", content=content, headers={"content-type": kind}).status_code)

    assert post(b"{}", "text/plain") == 415
    assert post(b"{}", "application/x-www-form-urlencoded") == 415
    assert [post(bad) for bad in (b"[]", b"{", b"", b"\xff", b"[" * 60_000)] == [400] * 5
    assert post(b'"' + b"x" * MAX_BODY + b'"') == 413
    assert post(iter([b"x" * MAX_BODY, b"x"])) == 413  # without a length
    assert post(b"{}") == 405  # what may not be changed cannot


def test_every_answer_is_sealed(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/", "/run/x", "/static/dom.js", "/api/runs", "/api/nosuch", "/nosuch")]
    answers.append(client.get("/", headers={"host": "evil.example"}))
    for answer in answers:
        csp = answer.headers["content-security-policy"]
        assert "default-src 'none'" in csp and "script-src 'self' 'sha256-" in csp and "unsafe" not in csp
        assert "frame-ancestors 'none'" in csp and "trusted-types 'none'" in csp
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answers[0].headers["content-type"].startswith("text/html")
    assert client.options("/api/runs", headers={"origin": f"http://{HOST}"}).status_code != 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/app/",
        "/static//etc/passwd",
        "/static/app/app.js/..",
    ],
)
def test_only_the_static_files_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


# --- the list ----------------------------------------------------------------------------------------------------------


def test_the_list_is_the_casebook_s(client: TestClient, study: Study) -> None:
    found = ok(client.get("/api/runs"))
    assert [row["id"] for row in found["rows"]] == [row.id for row in study.runs()]
    assert (found["total"], found["of"], found["pages"]) == (7, 7, 1)
    assert dict(map(tuple, found["facets"]["status"])) == {"finished": 6, "failed": 1}
    assert found["rows"][0]["task"] == HOSTILE
    assert "ZeroDivisionError" in next(row["note"] for row in found["rows"] if row["status"] == "failed")


def test_it_is_searched_filtered_sorted_and_paged(client: TestClient) -> None:
    def ids(**asked: Any) -> list[str]:
        return [row["id"] for row in ok(client.get("/api/runs", params=asked))["rows"]]

    everything = ids()
    assert ids(down="false") == everything[::-1]
    assert ids(words="onerror") == everything[:1]
    assert ids(words="nosuchword") == []
    assert len(ids(task="task 1")) == 2
    assert len(ids(task="task")) == 0  # a facet is the whole name
    assert len(ids(status="failed")) == 1
    assert ids(since="2999-01-01") == []
    assert ids(size=3, page=1) + ids(size=3, page=2) + ids(size=3, page=3) == everything
    assert ids(size=3, page=4) == []
    tasks = [row["task"] for row in ok(client.get("/api/runs?sort=task&down=false"))["rows"]]
    assert tasks == sorted(tasks)
    facets = ok(client.get("/api/runs", params={"task": "task 1"}))["facets"]
    assert dict(map(tuple, facets["task"]))["task 0"] == 4  # what another choice would give
    assert dict(map(tuple, facets["status"])) == {"finished": 2}


@pytest.mark.parametrize(
    "asked",
    ["sort=id", "size=0", "size=201", "page=0", "page=x", "page=%C2%B2", "nosuch=1", "size=99999999"],
)
def test_a_list_that_cannot_be_is_refused_in_a_sentence(client: TestClient, asked: str) -> None:
    answer = client.get(f"/api/runs?{asked}")
    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 20


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("runs?since=foo", "since is 'foo'; give a day as YYYY-MM-DD"),
        ("runs?until=2026-02-30", "until is '2026-02-30'; give a day as YYYY-MM-DD"),
        ("runs?status=nope", "no run is 'nope'; runs are finished, running"),
        ("runs?down=maybe", "down is true or false, not 'maybe'"),
        ("runs?page=-1", "page is a whole number from 1 on, not '-1'"),
        ("claims?status=zz", "the list of claims is told whole; it is not asked for 'status'"),
        ("compare", "two runs are compared; give their ids as a and b"),
        ("compare?a=x", "two runs are compared; give their ids as a and b"),
    ],
)
def test_what_is_asked_wrongly_is_said(client: TestClient, path: str, said: str) -> None:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("path", ["runs/x/resume", "runs/x/stop", "jobs/x/cancel"])
def test_a_post_takes_nothing_it_does_not_know(client: TestClient, path: str) -> None:
    answer = client.post(f"/api/{path}", json={"force": True})
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("'force'")


def test_an_address_without_a_page_is_answered_with_the_shell(client: TestClient) -> None:
    for path in ("/zzz", "/run/a/b", "/constructor"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.text == client.get("/").text
    assert client.get("/api/zzz").json() == {"error": "Not Found"}


@pytest.mark.parametrize(
    "words", ['"', "' OR 1=1 --", "*", "a AND", "\x00", "(", "-", "\u202e", "%", "\ud800".encode("utf-8", "replace")]
)
def test_any_words_may_be_searched_for(client: TestClient, words: Any) -> None:
    ok(client.get("/api/runs", params={"words": words}))


# --- one run, two runs -------------------------------------------------------------------------------------------------


def test_a_run_is_told_whole(client: TestClient, study: Study) -> None:
    record = study.find(study.ids()[0])
    found = ok(client.get(f"/api/runs/{record.id}"))
    assert found["table"]["mean"] == record.table["mean"]
    assert found["params"]["seed"] == 0
    assert found["events"][0]["kind"] == "started" and found["events"][-1]["kind"] == "result"
    assert found["environment"] == dict(record.environment)
    assert found["tables"] == ["result", "result-2"]
    assert not found["drawn"]
    space: dict[str, Any] = {}
    exec(found["code"]["python"], space)  # the code shown is code that runs
    assert space["record"].table == record.table


def test_a_run_that_failed_says_why(client: TestClient, study: Study) -> None:
    [failed] = [row for row in study.runs() if row.status == "failed"]
    found = ok(client.get(f"/api/runs/{failed.id}"))
    assert found["status"] == "failed" and found["table"] is None
    assert {"name": "draw", "done": 1, "steps": 1} in found["stages"]
    assert "ZeroDivisionError" in found["events"][-1]["error"]
    assert client.get(f"/api/runs/{failed.id}/payload").status_code == 400


@pytest.mark.parametrize("run", ["nosuch", "latest", "..", "%2e%2e", "%2fetc", "20", ".", "%00", "a%5cb"])
def test_only_whole_ids_are_runs(client: TestClient, run: str) -> None:
    answer = client.get(f"/api/runs/{run}")
    assert answer.status_code in (200, 404)
    assert answer.status_code == 404 or "rows" in answer.json()  # a client folds ".." itself
    assert client.get(f"/api/compare?a={run}&b={run}").status_code == 404


def test_tables_are_csv(client: TestClient, study: Study) -> None:
    answer = client.get(f"/api/runs/{study.ids()[0]}/table", params={"name": "result"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text.splitlines()[0].startswith("sizes,low,high")
    assert client.get(f"/api/runs/{study.ids()[0]}/table?name=x").status_code == 400


def test_two_runs_are_compared(client: TestClient, study: Study) -> None:
    a, b = study.ids()[:2]
    found = ok(client.get(f"/api/compare?a={a}&b={b}"))
    assert {"name": "seed", "a": 0, "b": 1} in found["asked"]
    assert "mean" in [change["name"] for change in found["found"]]
    assert found["note"] and [run["id"] for run in found["runs"]] == [a, b]


def test_a_damaged_run_is_listed_and_refused(tmp_path: Path) -> None:
    study = Study(tmp_path)
    run = study.run(spec())
    (run.path / "spec.json").write_text("{")
    client = TestClient(
        application(study, token=TOKEN, port=PORT), base_url=f"http://{HOST}", headers={"x-caseback-token": TOKEN}
    )
    [row] = ok(client.get("/api/runs"))["rows"]
    assert row["status"] == "damaged"
    assert "damaged" in client.get(f"/api/runs/{run.id}").json()["error"]


def test_a_folder_of_a_hostile_name_is_listed_and_refused(tmp_path: Path) -> None:
    study = Study(tmp_path)
    (tmp_path / "runs" / "<img src=x onerror=alert(1)>").mkdir(parents=True)
    client = TestClient(
        application(study, token=TOKEN, port=PORT), base_url=f"http://{HOST}", headers={"x-caseback-token": TOKEN}
    )
    [row] = ok(client.get("/api/runs"))["rows"]
    assert row["id"] == "<img src=x onerror=alert(1)>" and row["status"] == "damaged"
    assert client.get("/api/runs/%3Cimg%20src=x%20onerror=alert(1)%3E").status_code == 400


def test_the_events_of_a_finished_run_come_and_end(client: TestClient, study: Study) -> None:
    with client.stream("GET", f"/api/runs/{study.ids()[0]}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    name, data = text.split("\n\n")[0].split("\n")
    assert name == "event: events"
    assert json.loads(data.removeprefix("data: "))[0]["kind"] == "started"
    assert text.strip().endswith('event: end\ndata: {"status": "finished"}')


# --- the command -------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=f"port {port} is in use; choose another with --port"):
            serve(Study(tmp_path), port=port, browser=False)


def test_the_command_serves_and_ctrl_c_ends_it(study: Study) -> None:
    command = [sys.executable, "-m", "caseback.cli.app", "view", str(study.path), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        address, _, token = process.stdout.readline().strip().partition("#token=")
        with socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))) as link:
            host = address.removeprefix("http://").rstrip("/")
            link.sendall(f"GET /api/live HTTP/1.1\r\nHost: {host}\r\nX-Caseback-Token: {token}\r\n\r\n".encode())
            assert link.recv(65536).startswith(b"HTTP/1.1 200 OK")
            process.send_signal(signal.SIGINT)  # while a page follows
            assert process.wait(timeout=20) == 0
        said = process.stderr.read()
    assert said == "Only this machine reaches it, and only with this address. Ctrl-C ends it.\n"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "caseback.cli.app", "view", str(tmp_path / "none"), "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "there is no study folder" in done.stderr
