"""Studies begun from the page: forms say what configs say, a process carries the study out, stops and goes on with it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.testclient import TestClient

from caseback.core.errors import CasebackError, StudyError
from caseback.show import forms
from caseback.show.jobs import Jobs
from caseback.show.server import application
from caseback.study import Study
from caseback.study.asked import config_of

from ..cli import friend

TOKEN = "token"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 3
    """How deep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    seed: int = 0
    """Of all that is drawn."""
    model: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
    """What is asked.

    At length.
    """

    text: str
    """Any text; None is
    refused."""
    how: Literal["a", "b"] = "b"
    share: float | None = 0.5
    names: tuple[str, ...] = ("x",)
    sizes: tuple[int, ...] = ()
    sure: bool = True
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_form_says_what_a_config_says() -> None:
    fields = {field["name"]: field for field in forms.fields_of(Config)}
    assert list(fields) == ["text", "how", "share", "names", "sizes", "sure", "inner", "seed", "model"]
    assert fields["text"] == {
        "name": "text",
        "doc": "Any text; not set is refused.",
        "needed": True,
        "common": False,
        "kind": "text",
        "default": None,
    }
    assert (fields["how"]["kind"], fields["how"]["choices"], fields["how"]["default"]) == ("choice", ["a", "b"], "b")
    assert (fields["share"]["kind"], fields["share"]["default"]) == ("number", 0.5)
    assert (fields["names"]["kind"], fields["names"]["default"]) == ("texts", ["x"])
    assert fields["sizes"]["kind"] == "numbers"
    assert fields["sure"]["kind"] == "flag"
    assert fields["inner"]["fields"][0]["doc"] == "How deep."
    assert fields["seed"]["common"] and fields["seed"]["doc"] == "Of all that is drawn."


def test_what_a_form_says_is_said_to_readers() -> None:
    def each(fields: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for field in fields:
            yield field
            yield from each(field.get("fields", []))

    ours = [
        form for form in forms.forms() if form["method"] not in ("toy", "bare", "trial")
    ]  # those are of other tests
    for form in ours:
        for field in each(form["fields"]):
            where = f"{form['method']}.{field['name']}: {field['doc']}"
            assert field["doc"], where
            assert "()" not in field["doc"] and "None" not in field["doc"], where
            assert all(code.startswith("caseback ") for code in field["doc"].split("`")[1::2]), where


def test_every_method_has_a_form_whose_defaults_it_takes() -> None:
    made = forms.forms()
    assert {form["method"] for form in made} >= {"circuit", "lens", "relation", "patch", "heads"}

    def given(fields: list[dict[str, Any]]) -> dict[str, Any]:
        values = {}
        for field in fields:
            if field["kind"] == "group":
                values[field["name"]] = given(field["fields"])
            elif field["needed"]:
                values[field["name"]] = {"texts": ["x"], "numbers": [1], "integer": 1, "flag": False}.get(
                    field["kind"], "x"
                )
            else:
                values[field["name"]] = field["default"]
        return values

    for form in made:
        needed = given([field for field in form["fields"] if field["needed"]])
        assert taken(form["method"], given(form["fields"])) == taken(form["method"], needed), form["method"]


def taken(method: str, values: dict[str, Any]) -> Any:
    """The config, or what the method says against it."""
    try:
        return config_of(method, values)
    except CasebackError as error:
        assert "it takes" not in str(error) and "has no setting" not in str(error)
        return str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The affine model in m/."""
    return friend.folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = application(Study(tmp_path / "casebook"), token=TOKEN, port=1)
    with TestClient(app, base_url="http://127.0.0.1:1", headers={"x-caseback-token": TOKEN}) as client:
        yield client
    reap(app.jobs)


def reap(jobs: Jobs) -> None:
    """No process outlives its test."""
    for job in jobs._jobs.values():
        job.process.kill()
        job.process.wait()


def until(found: Callable[[], Any], seconds: float = 120) -> Any:
    """The first thing found that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_a_study_is_begun_and_found_in_the_casebook(client: TestClient, place: Path) -> None:
    params = {"prompt": "the friend of subject3 is", "model": str(place / "m")}
    begun = client.post("/api/jobs", json={"method": "lens", "params": params}).json()
    assert (begun["method"], begun["state"]) == ("lens", "running")

    def ended() -> Any:
        [job] = client.get("/api/jobs").json()
        return job["state"] != "running" and job

    job = until(ended)
    assert job["state"] == "finished", job
    run = client.get(f"/api/runs/{job['run']}").json()
    assert run["status"] == "finished" and run["drawn"] and run["params"]["prompt"] == params["prompt"]
    payload = client.get(f"/api/runs/{job['run']}/payload").json()
    assert payload["kind"] == "experiment" and payload["sections"]
    assert client.get("/api/models").json() == [None, params["model"]]
    assert client.post(f"/api/runs/{job['run']}/resume", json={}).status_code == 400  # nothing to go on with


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "nosuch", "params": {}}, "there is no method 'nosuch'"),
        ({"method": "lens", "params": {}}, "needs the setting 'prompt'"),
        ({"method": "lens", "params": {"prompt": 3}}, "lens.prompt is 3; it takes a text"),
        ({"method": "lens", "params": {"prompt": "x", "nosuch": 1}}, "has no setting 'nosuch'"),
        ({"method": "lens"}, "needs the setting"),
        ({"method": 3}, "a study is begun with"),
        ({"params": []}, "a study is begun with"),
        ([], "a request is a JSON object"),
        ({"method": "heads", "settings": {"length": 3}}, "to do it again, force, not 'settings'"),
        ({"method": "dla", "params": {"task": "nosuch"}}, "there is neither a task nor a file 'nosuch'; tasks are"),
        ({"method": "circuit", "params": {"task": "nosuch"}}, "there is neither a task nor a file 'nosuch'; tasks are"),
        ({"method": "dla", "params": {"task": "ioi", "n": -5}}, "2 pairs or more are looked at, not -5"),
        ({"method": "lens", "params": {"prompt": ""}}, "the prompt is empty"),
        ({"method": "lens", "params": {"prompt": "x", "tuned": "/nope"}}, "/nope cannot be read: No such file"),
        ({"method": "heads", "params": {"model": "/nope"}}, "there is no file or folder /nope"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_process_is_begun(
    client: TestClient, asked: Any, said: str
) -> None:
    answer = client.post("/api/jobs", json=asked)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert client.get("/api/jobs").json() == []


def test_what_goes_wrong_in_the_process_is_said(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    client.post("/api/jobs", json={"method": "lens", "params": {"prompt": "x", "model": str(tmp_path / "none")}})
    job = until(lambda: next((job for job in client.get("/api/jobs").json() if job["state"] == "failed"), None))
    assert "none" in job["error"]
    assert client.get("/api/runs").json()["total"] == 0


def test_a_study_is_stopped_and_gone_on_with(tmp_path: Path, place: Path) -> None:
    study = Study(tmp_path / "casebook")
    jobs = Jobs(study)
    params = {"relation": str(place / "friend.json"), "model": str(place / "m"), "splits": 40}
    begun = jobs.start("relation", params)
    run = until(lambda: next((job.get("run") for job in jobs.all()), None))
    assert run in study.ids()
    jobs.cancel(begun["job"])
    until(lambda: jobs.all()[0]["state"] != "running")
    assert jobs.all()[0]["state"] == "stopped"
    assert study.find(run).status == "interrupted"
    again = jobs.resume(run)
    assert again["run"] == run
    with pytest.raises(StudyError, match="there is no job"):
        jobs.cancel("nosuch")
    until(lambda: study.find(run).status == "running")
    with pytest.raises(StudyError, match="is running"):
        jobs.resume(run)
    jobs._jobs[again["job"]].process.kill()  # -9: it says no last word
    lost = until(
        lambda: next((job for job in jobs.all() if job["job"] == again["job"] and job["state"] == "failed"), None)
    )
    assert "exit code -9" in lost["error"]
    assert jobs.close() == 0
    reap(jobs)
