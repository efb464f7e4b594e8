"""Heads, attention and weights as runs: the record says what the reading found, and a killed run ends alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import FamilyError, ReadingError
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.reading.heads import patterns
from caseback.reading.weights import composition, copying_scores, neuron_words, singular_words
from caseback.show.experiments import MAX_CELLS
from caseback.study import Record, Study
from caseback.study.finding import Looking
from caseback.study.readings import ATTENTION, HEADS, WEIGHTS
from caseback.study.readings.of_attention import CELLS, _require_room
from caseback.zoo import induction, planted
from caseback.zoo.affine import affine
from caseback.zoo.tiny import tiny

from .looking import die_after, is_valid, look, plain_table

ZOO = induction(n=2)
MODEL, PROMPT = ZOO.model, ZOO.task.pairs[0].clean
READINGS: dict[str, tuple[Looking, dict[str, Any]]] = {
    "attention": (ATTENTION, {"prompt": PROMPT}),
    "attention of a head": (ATTENTION, {"prompt": PROMPT, "heads": ("1.2",), "layers": (1,)}),
    "weights": (WEIGHTS, {}),
    "weights of a head": (WEIGHTS, {"head": "1.2"}),
    "weights of a layer's neurons": (WEIGHTS, {"neuron": "1"}),
    "weights of a neuron": (WEIGHTS, {"neuron": "1.7"}),
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "casebook")


def ask(study: Study, name: str, model: Model = MODEL, **changed: Any) -> Record:
    looking, settings = READINGS[name]
    return look(study, looking, looking.Config(**{**settings, **changed}), model)


def view(record: Record) -> dict[str, Any]:
    return dict(record.stage("view").data)


def cells(record: Record) -> int:
    maps = [heat for s in view(record)["sections"] for heat in (s.get("heats") or [s.get("heat")]) if heat]
    return sum(len(heat["x"]["labels"]) * len(heat["y"]["labels"]) for heat in maps)


@pytest.mark.parametrize("name", READINGS)
def test_killed_between_stages_it_ends_in_the_same_table(study: Study, name: str) -> None:
    straight = ask(study, name)
    assert is_valid(straight)
    looking, settings = READINGS[name]
    config = looking.Config(**settings)
    for stages in range(len(straight.saved())):
        die_after(stages, lambda: look(study, looking, config, MODEL, force=True))
        resumed = study.resume(study.find("latest").id, have={"model": MODEL})
        assert plain_table(resumed) == plain_table(straight)
        assert resumed.stage("view").data == straight.stage("view").data


@pytest.mark.parametrize("name", READINGS)
def test_a_random_twin_can_be_looked_at(study: Study, name: str) -> None:
    record = ask(study, name, random_twin(MODEL), twin=True)
    assert is_valid(record) and record.table["model"].startswith("random twin of ")


def test_attention_is_that_of_the_patterns(study: Study) -> None:
    found = ask(study, "attention").table
    plain = patterns(MODEL, MODEL.encode([PROMPT]))
    assert plain.weighted is not None
    for name, kind in (("raw", plain.pattern), ("taken", plain.weighted)):
        np.testing.assert_allclose(found[f"{name}_last"], kind[:, 0, :, -1].numpy(), rtol=1e-5)
        shares = kind[:, 0] / kind[:, 0].sum(dim=-1, keepdim=True)
        np.testing.assert_allclose(found[f"{name}_first"], shares[:, :, 1:, 0].mean(dim=-1).numpy(), rtol=1e-4)
        together = kind[:, 0].sum(dim=1)
        together = together[:, 1:, 0] / together[:, 1:].sum(dim=-1)
        np.testing.assert_allclose(found[f"{name}_sunk"], together.mean(dim=-1).numpy(), rtol=1e-4)
        np.testing.assert_allclose(found[f"{name}_maps"]["1.2"], kind[1, 0, 2].numpy(), rtol=1e-5)
    width = len(found["tokens"])
    assert found["first_even"] == pytest.approx(np.mean(1 / np.arange(2, width + 1)))


def test_the_planted_head_takes_most_at_the_last_token(study: Study) -> None:
    record = ask(study, "attention")
    colour = ZOO.task.pairs[0].answers[0].strip()
    assert view(record)["claim"].endswith("of what is taken.")
    assert f"At the last token, head 1.2 looks most at {colour!r}" in view(record)["claim"]
    titles = [section["title"] for section in view(record)["sections"]]
    assert titles[0] == "The last token, head by head" and "Head 1.2" in titles
    one = ask(study, "attention of a head")
    assert one.table["layers"] == [1] and set(one.table["taken_maps"]) == {"1.2"}
    [section] = [s for s in view(one)["sections"] if s["title"] == "Head 1.2"]
    values = section["heats"][0]["values"]
    assert [sum(x is not None for x in row) for row in values] == list(range(1, len(values) + 1))
    assert all(sum(x for x in row if x is not None) == pytest.approx(1, abs=1e-4) for row in values)
    assert view(one)["claim"].startswith("In the layers asked for the first token gets ")


def test_where_what_is_taken_is_not_known_attention_stands_alone(study: Study) -> None:
    """A gate multiplies what the heads of this family move, and weights cannot be read by head; its neurons can."""
    model = Model(tiny("qwen3_5_text"), MODEL.tokenizer)
    record = ask(study, "attention", model)
    assert is_valid(record)
    assert record.table["taken_last"] is None and np.array(record.table["raw_last"]).shape[:2] == (1, 4)
    assert (
        "take" not in view(record)["claim"] and "What is taken is not known in qwen3_5_text" in view(record)["notes"][0]
    )
    with pytest.raises(ReadingError, match="layer 0 has no attention; layers that have: 1"):
        ask(study, "attention", model, heads=("0.1",))
    with pytest.raises(FamilyError, match="no circuits: .*; `--neuron LAYER` reads its neurons"):
        ask(study, "weights", model)
    assert is_valid(ask(study, "weights of a neuron", model))
    kinds = look(study, HEADS, HEADS.Config(sequences=2, length=5), model)
    assert is_valid(kinds) and "copying" not in kinds.table
    assert "Copying is not measured: qwen3_5_text has no circuits" in view(kinds)["notes"][-1]


def test_a_long_prompt_fits_on_the_page(study: Study) -> None:
    model = Model(tiny("gpt2"), MODEL.tokenizer)
    model.config.max_position_embeddings = 64
    record = ask(study, "attention", model, prompt="ada " * 64)
    assert is_valid(record) and cells(record) <= CELLS < MAX_CELLS
    whole = [s for s in view(record)["sections"] if s["title"].startswith("Head ")]
    assert len(whole) == 2, "as many whole maps as there is room for"
    every = ask(
        study, "attention", model, prompt="ada " * 64, heads=tuple(f"{l}.{h}" for l in (0, 1) for h in range(4))
    )
    assert is_valid(every) and cells(every) <= CELLS
    whole = [s for s in view(every)["sections"] if s["title"].startswith("Head ")]
    assert len(whole) == 8
    assert all("Only the last 16 of the 64 tokens that look fit on the page." in s["text"] for s in whole)
    with pytest.raises(
        ReadingError, match="80 layers of 64 heads are more than a page holds; choose at most 52 of the"
    ):
        _require_room(80, 64)
    _require_room(52, 64)


def test_weights_are_those_of_the_readings(study: Study) -> None:
    found, copying, pairs = ask(study, "weights").table, copying_scores(MODEL), composition(MODEL)
    np.testing.assert_allclose(found["copying"], copying.score, rtol=1e-5)
    np.testing.assert_allclose(found["copying_control"], copying.control, rtol=1e-5)
    keys = [one for one in found["strongest"] if one["through"] == "keys"]
    assert (keys[0]["from"], keys[0]["to"]) == ("0.1", "1.2")
    assert (
        keys[0]["score"] == pytest.approx(pairs.scores[1, 0, 1, 1, 2])
        and found["composition_at_random"] == pairs.expected
    )
    head = ask(study, "weights of a head").table
    words = singular_words(MODEL, 1, 2, top=6)
    np.testing.assert_allclose(head["ov_values"][:4], words.values.numpy(), rtol=1e-4)
    decode = MODEL.tokenizer.decode
    assert head["ov_written"][0][0] == [decode([i]) for i in words.written.tokens[0, 0].tolist()]
    np.testing.assert_allclose(head["ov_written_stands_out"], words.written.ratio, rtol=1e-5)
    total = np.linalg.norm(head["ov_values"])
    assert np.linalg.norm(head["ov_values_random"]) == pytest.approx(total, rel=0.02)
    assert head["composition_from"]["k"][0][1] == max(map(max, head["composition_from"]["k"][:1]))
    assert all(x is None for row in head["composition_to"]["k"] for x in row)


def test_neurons_are_those_of_the_reading(study: Study) -> None:
    layer, one = ask(study, "weights of a layer's neurons"), ask(study, "weights of a neuron").table
    words = neuron_words(MODEL, 1, top=6)
    np.testing.assert_allclose(layer.table["stands_out"], words.written.ratio, rtol=1e-5)
    assert layer.table["neurons"][0] == int(words.written.ratio.argmax())
    assert one["written"]["stands_out"] == pytest.approx(words.written.ratio[7])
    assert len(one["written"]["raised"]) == 6 and set(one) >= {"neuron", "written", "read c_fc"}
    zoo = planted(n=2)
    answers = ask(study, "weights of a neuron", zoo.model, neuron="3.0", top=1).table["written"]["raised"]
    assert answers[0] in ("walk", "stay")


def test_heads_without_copying(study: Study) -> None:
    """No eigenvalue of a planted head is other than zero; a model without norms has no weights to read by head."""
    record = ask(study, "weights", planted(n=2).model)
    assert is_valid(record) and view(record)["claim"].startswith("No head has a copying score")
    assert is_valid(ask(study, "weights of a head", planted(n=2).model))
    plain = affine().model
    assert is_valid(look(study, HEADS, HEADS.Config(sequences=2, length=5), plain))
    with pytest.raises(FamilyError, match="input_layernorm is not an RMS or layer norm of block 0$"):
        ask(study, "weights", plain)


@pytest.mark.parametrize(
    ("name", "changed", "error", "sentence"),
    [
        ("attention", {"prompt": "ada"}, ReadingError, "the prompt has one token"),
        ("attention", {"heads": ("1",)}, ReadingError, "a head is named LAYER.HEAD, as in 18.6; got '1'"),
        (
            "attention",
            {"heads": ("2.0",)},
            ReadingError,
            "there is no head 2.0; .* has the layers 0 to 1, each of the heads 0 to 3",
        ),
        (
            "attention",
            {"heads": ("0.1",), "layers": (1,)},
            ReadingError,
            "a head of layer 0 was asked for, which is not among",
        ),
        ("attention", {"layers": (1, 7)}, ReadingError, "layer 7 has no attention pattern; the layers 0, 1 have"),
        ("weights", {"head": "1.-2"}, ReadingError, "a head is named LAYER.HEAD"),
        ("weights", {"head": "1.4"}, ReadingError, "there is no head 1.4"),
        ("weights", {"head": "1.2", "directions": 99}, ReadingError, "99 directions of 6 tokens were asked for"),
        ("weights", {"head": "1.2", "neuron": "1"}, ReadingError, "ask for one at a time"),
        ("weights", {"neuron": "x"}, ReadingError, "a neuron is named LAYER.NEURON, as in 18.7; got 'x'"),
        (
            "weights",
            {"neuron": "9"},
            ReadingError,
            "the MLP of layer 9 has no single row of neurons; layers that have: 0, 1",
        ),
        (
            "weights",
            {"neuron": "1.999"},
            ReadingError,
            "neuron 999 of layer 1 was asked for; it has the neurons 0 to 47",
        ),
    ],
)
def test_what_does_not_exist_is_said(
    study: Study, name: str, changed: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        ask(study, name, **changed)
    assert study.ids() == ()


@pytest.mark.parametrize(
    ("looking", "settings"), [(HEADS, {"sequences": 2}), (ATTENTION, {"prompt": "ada red"}), (WEIGHTS, {})]
)
def test_a_family_with_attention_of_its_own_says_the_way_out(
    study: Study, looking: Looking, settings: dict[str, Any]
) -> None:
    bloom = Model(tiny("bloom"), MODEL.tokenizer)
    with pytest.raises(FamilyError, match="attention code of its own.*; `caseback model families` lists those"):
        look(study, looking, looking.Config(**settings), bloom)
    assert study.ids() == ()
    assert is_valid(look(study, WEIGHTS, WEIGHTS.Config(neuron="1.0"), bloom))
