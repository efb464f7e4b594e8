"""The prompt box: its parts are what the readings say, stale questions are dropped, and bad ones answered in a sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from caseback.core.errors import ReadingError
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.reading.heads import patterns
from caseback.reading.inputs import attribute_inputs
from caseback.reading.lens import logit_lens
from caseback.reading.patching import patch_grid
from caseback.show import live as live_module
from caseback.show.grids import LONGEST
from caseback.show.live import ASKED, PARTS, Live, look_of
from caseback.show.server import application
from caseback.study import Study
from caseback.tasks import Pair
from caseback.tasks.encode import encode

from ..relations.small import affine_of, model_of

PROMPT, OTHER = "the friend of subject3 is", "the friend of subject1 is"
MODEL = affine_of().model


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(Study(tmp_path), lambda name: MODEL)
    yield made
    made.close()


def in_a_loop(coroutine: Any) -> Any:
    """Run it in a thread of its own: a browser test before this one may have left its loop running in ours."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def read(live: Live, **asked: Any) -> dict[str, Any]:
    """Part → what it says."""

    async def collect() -> dict[str, Any]:
        return {part["part"]: part async for part in live.read(look_of({"text": PROMPT, "client": "c", **asked}))}

    return in_a_loop(collect())


def test_the_parts_are_what_the_readings_say(live: Live) -> None:
    said = read(live)
    assert list(said) == ["model", *PARTS]
    batch = MODEL.encode([PROMPT])
    n = batch.ids.shape[1]
    assert len(said["tokens"]["words"]) == n and said["tokens"]["ids"] == batch.ids[0].tolist()
    lens = logit_lens(MODEL, batch)
    assert np.allclose(said["lens"]["probability"], lens.top_probs[:, 0, :, 0], atol=1e-3)
    assert np.allclose([row[0] for row in said["next"]["probability"]], lens.top_probs[-1, 0, :, 0], atol=1e-3)
    assert said["next"]["ids"][-1] == int(lens.top_ids[-1, 0, -1, 0])  # elsewhere it is an even guess
    found = patterns(MODEL, batch)
    layer, head = map(int, said["attention"]["head"].split("."))
    assert np.allclose(said["attention"]["pattern"], found.pattern[layer, 0, head], atol=1e-3)
    assert said["attention"]["token"] == n - 1
    answer = int(MODEL.logits(batch)[0].argmax())
    expected = attribute_inputs(MODEL, batch, lambda logits: logits[:, answer], method="occlusion")
    assert np.allclose(said["inputs"]["scores"], expected.scores[0], rtol=1e-3, atol=1e-4)
    assert all(part["ms"] >= 0 for part in said.values())


def test_another_token_and_head_are_read_from_what_is_kept(live: Live) -> None:
    first = read(live)
    again = read(live, parts=["attention", "inputs"], token=2, head="0.0", method="gradient")
    assert again["attention"]["head"] == "0.0" and again["attention"]["token"] == 2
    assert len(again["inputs"]["scores"]) == 3  # of the tokens up to it
    assert "lens" not in again
    kept = read(live)
    assert kept["lens"]["probability"] == first["lens"]["probability"]


# --- the random twin --------------------------------------------------------------------------------------------------


def test_the_twin_is_asked_the_same_of_the_same_head_and_answer(live: Live) -> None:
    trained = read(live, token=3)
    said = read(live, token=3, parts=[part for part in ASKED if part != "patch"])
    twin = random_twin(MODEL)
    batch = MODEL.encode([PROMPT])
    lens = logit_lens(twin, batch)
    assert np.allclose(said["twin.lens"]["probability"], lens.top_probs[:, 0, :, 0], atol=1e-3)
    assert said["twin.attention"]["head"] == trained["attention"]["head"]
    layer, head = map(int, trained["attention"]["head"].split("."))
    assert np.allclose(said["twin.attention"]["pattern"], patterns(twin, batch).pattern[layer, 0, head], atol=1e-3)
    assert said["twin.inputs"]["answer"] == trained["inputs"]["answer"]
    answer = trained["next"]["ids"][3]
    begun = MODEL.encode([PROMPT.rpartition(" ")[0]])
    expected = attribute_inputs(twin, begun, lambda logits: logits[:, answer], method="occlusion")
    assert np.allclose(said["twin.inputs"]["scores"], expected.scores[0], rtol=1e-3, atol=1e-4)
    assert said["twin.inputs"]["scores"] != trained["inputs"]["scores"]


def test_the_twin_is_made_when_it_is_asked_for_and_once(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(model: Model) -> Model:
        made.append(model)
        return random_twin(model)

    monkeypatch.setattr(live_module, "random_twin", counted)
    read(live)
    assert made == []
    for text in (PROMPT, OTHER):
        read(live, text=text, parts=["twin.lens"])
    assert made == [MODEL]


# --- the grid against a second prompt ---------------------------------------------------------------------------------


def grid_of(live: Live, **asked: Any) -> tuple[list[dict[str, Any]], dict[int, list[float]]]:
    """What is said of a grid, message by message, and its rows by layer."""

    async def collect() -> list[dict[str, Any]]:
        look = look_of({"text": PROMPT, "client": "c", "parts": ["patch"], "other": OTHER, **asked})
        return [part async for part in live.read(look) if part["part"] != "model"]

    said = in_a_loop(collect())
    return said, {layer: row for part in said for layer, row in part.get("rows", [])}


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("family", ["affine", "llama", "gpt2"])
def test_the_rows_are_those_of_the_patching_grid(tmp_path: Path, site: str, direction: Any, family: str) -> None:
    if family == "affine":  # what it says after either prompt is compared
        model, first, second, asked = MODEL, PROMPT, OTHER, {}
        words = ("object3", "object1")
    else:
        model, first, second = model_of(family), "the w4 of w11 w31 is", "the w4 of w12 w31 is"
        words = ("w50", "w51")
        asked = {"answer": words[0], "foil": words[1]}
    live = Live(Study(tmp_path), lambda name: model)
    said, rows = grid_of(live, text=first, other=second, site=site, direction=direction, **asked)
    live.close()
    assert (said[0]["answer"], said[0]["foil"]) == words
    pair = Pair(clean=first, counterfactual=second, answers=(" " + words[0],), foils=(" " + words[1],), spans=())
    grid = patch_grid(model, encode([pair], model), site, direction=direction)
    assert [layer for part in said[1:] for layer, _ in part["rows"]] == list(grid.layers)[::-1]
    assert [part["left"] for part in said] == list(range(len(grid.layers), -1, -1))
    assert said[0]["start"] == pytest.approx(grid.start[0], abs=1e-5)
    assert said[0]["other"] == pytest.approx(grid.other[0], abs=1e-5)
    expected = grid.effect[:, 0]
    if (family, site) != ("affine", "mlp_out"):  # whose MLPs write nothing
        assert np.abs(expected).max() > 1e-3
    assert np.allclose([rows[layer] for layer in grid.layers], expected, atol=2e-3)
    assert all(row[:3] == [0, 0, 0] for row in rows.values())  # before the first difference, exactly


def test_a_grid_that_was_broken_off_goes_on_where_it_stopped(live: Live) -> None:
    async def some() -> None:
        asked = {"text": PROMPT, "client": "c", "parts": ["patch"], "other": OTHER}
        first = live.read(look_of(asked))
        for _ in range(3):  # model, what it is about, one row
            await anext(first)
        await anext(live.read(look_of({"text": OTHER, "client": "c", "parts": ["tokens"]})))
        assert [part["part"] async for part in first] == ["stale"]

    in_a_loop(some())
    said, rows = grid_of(live)
    assert len(said[0]["rows"]) >= 1  # already there
    assert len(rows) == MODEL.n_layers and said[-1]["left"] == 0
    again, same = grid_of(live)
    assert len(again) == 1 and same == rows


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"other": ""}, "write the second one"),
        ({"other": PROMPT}, "are the same; change a word"),
        ({"other": "the friend of subject1"}, "the first prompt has 5 tokens and the second 4"),
        ({"other": "is " * 200}, "this page reads 128 at most"),
        ({"text": "is " * 40, "other": "of " * 40}, f"here grids of {LONGEST} are made"),
        ({"answer": "object1", "foil": "object1"}, "compared with itself"),
        ({"answer": "\ud800"}, "no UTF-8"),
    ],
)
def test_a_grid_that_cannot_be_is_said(live: Live, asked: dict[str, Any], why: str) -> None:
    [said], rows = grid_of(live, **asked)
    assert why in said["error"] and rows == {}
    assert "error" not in read(live)  # the other parts come


def test_a_later_question_makes_an_earlier_one_stale(live: Live) -> None:
    async def both() -> tuple[list[str], list[str]]:
        async def ask(client: str) -> list[str]:
            return [part["part"] async for part in live.read(look_of({"text": PROMPT, "client": client}))]

        first = live.read(look_of({"text": PROMPT, "client": "one"}))
        seen = [(await anext(first))["part"]]
        second = await ask("one")
        other = live.read(look_of({"text": PROMPT, "client": "two"}))
        await anext(other)
        seen += [part["part"] async for part in first]
        assert [part["part"] async for part in other] == list(PARTS)  # another page's question is not touched
        return seen, second

    seen, second = in_a_loop(both())
    assert seen == ["model", "stale"]
    assert second == ["model", *PARTS]


def test_a_model_is_loaded_once(tmp_path: Path) -> None:
    loads: list[str | None] = []

    def load(name: str | None) -> Model:
        loads.append(name)
        return MODEL

    live = Live(Study(tmp_path), load)
    assert loads == []
    read(live)
    read(live, text="the friend of subject1 is")
    assert loads == [None]
    assert "is not a model of this casebook" in read(live, model="org/other")["error"]["error"]
    live.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": ""}, "no tokens"),
        ({"text": " ".join(["is"] * 200)}, "this page reads 128 at most"),
        ({"text": "\ud800"}, "no UTF-8"),
        ({"token": 99}, "there is no token 99"),
    ],
)
def test_what_cannot_be_read_is_said(live: Live, asked: dict[str, Any], said: str) -> None:
    assert said in read(live, **asked)["error"]["error"]


@pytest.mark.parametrize(("head", "why"), [("99.0", "there is no head 99.0"), ("x", "LAYER.HEAD")])
def test_a_part_that_cannot_be_is_said_and_the_others_come(live: Live, head: str, why: str) -> None:
    said = read(live, head=head)
    assert why in said["attention"]["error"]
    assert list(said) == ["model", *PARTS] and said["lens"]["sites"]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"text": 3, "client": "c"},
        {"text": "x"},
        {"text": "x", "client": "c" * 99},
        {"text": "x", "client": "c", "parts": ["y"]},
        {"text": "x", "client": "c", "nosuch": 1},
        {"text": "x", "client": "c", "method": "magic"},
        {"text": "x", "client": "c", "token": True},
        {"text": "x", "client": "c", "parts": [["x"]]},
        {"text": "x", "client": "c", "parts": ["twin.next"]},
        {"text": "x", "client": "c", "site": "q"},
        {"text": "x", "client": "c", "direction": "up"},
        {"text": "x", "client": "c", "other": None},
    ],
)
def test_a_question_that_does_not_fit_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ReadingError):
        look_of(asked)


def test_it_comes_in_lines(tmp_path: Path) -> None:
    app = application(Study(tmp_path), token="t", port=1, load=lambda name: MODEL)
    with TestClient(app, base_url="http://127.0.0.1:1", headers={"x-caseback-token": "t"}) as client:
        answer = client.post("/api/prompt", json={"text": PROMPT, "client": "c"})
        assert [json.loads(line)["part"] for line in answer.text.splitlines()] == ["model", *PARTS]
        refused = client.post("/api/prompt", json={"text": PROMPT, "client": "c", "method": "magic"})
        assert refused.status_code == 400 and "magic" in refused.json()["error"]
