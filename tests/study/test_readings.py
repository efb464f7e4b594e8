"""Readings as runs: what the record says is what the reading found, and a killed run ends alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caseback.core.errors import LoadError, ReadingError, RelationError, SiteError
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.reading.dla import attribute_logits
from caseback.reading.heads import find_heads, repeated
from caseback.reading.lens import logit_lens
from caseback.reading.patching import patch_grid
from caseback.relations.relation import write_relation
from caseback.study import Record, Study
from caseback.study.finding import Looking
from caseback.study.readings import ATTRIBUTE, DLA, HEADS, INPUT, LENS, PATCH, PATHS, SCRUB
from caseback.tasks import write_task
from caseback.zoo import planted

from ..relations.small import affine_of, relation_of
from .looking import die_after, is_valid, look, plain_table

PLANTED, AFFINE = planted(n=12), affine_of()
PROMPT = "the friend of subject3 is"
READINGS: dict[str, tuple[Looking, Model, dict[str, Any]]] = {
    "lens": (LENS, AFFINE.model, {"prompt": PROMPT, "answers": ("object3",)}),
    "attribute": (ATTRIBUTE, AFFINE.model, {"prompt": PROMPT, "relation": "friend.json", "objects": ("object3",)}),
    "attribute-input": (INPUT, AFFINE.model, {"prompt": PROMPT, "steps": 4}),
    "patch": (PATCH, PLANTED.model, {"task": "t.jsonl", "n": 6}),
    "patch z": (PATCH, PLANTED.model, {"task": "t.jsonl", "n": 6, "site": "z", "direction": "noise", "source": "mean"}),
    "paths": (PATHS, PLANTED.model, {"task": "t.jsonl", "n": 6, "sender": "mlp_out.1"}),
    "scrub": (SCRUB, PLANTED.model, {"task": "t.jsonl", "n": 12, "hypothesis": "h.json", "draws": 2, "others": 3}),
    "dla": (DLA, PLANTED.model, {"task": "t.jsonl", "n": 6, "neurons": 3}),
    "dla features": (DLA, PLANTED.model, {"task": "t.jsonl", "n": 6, "dictionary": "features"}),
    "heads": (HEADS, PLANTED.model, {"sequences": 3, "length": 8}),
}

HYPOTHESIS = {
    "about": "the weather is fetched when it is today's and asked for",
    "output": ["say"],
    "nodes": {
        "say": {"sites": ["mlp_out.3@end"], "agree": ["cue"], "inputs": ["fetch"]},
        "fetch": {"sites": ["z.2.3@end"], "agree": ["cue", "tag", "end"]},
    },
}
Ask = Callable[..., Record]


def write_features(model: Model, folder: str, *, layer: int = 3) -> None:
    """±coordinates of what an MLP adds, as SAELens keeps a dictionary: nothing is missed."""
    both = torch.cat([torch.eye(model.d_model), -torch.eye(model.d_model)])
    zero = {"b_enc": torch.zeros(len(both)), "b_dec": torch.zeros(model.d_model)}
    Path(folder).mkdir()
    save_file({"W_enc": both.T.contiguous(), "W_dec": both, **zero}, Path(folder) / "sae_weights.safetensors")
    config = {"architecture": "standard", "metadata": {"hook_name": f"blocks.{layer}.hook_mlp_out"}}
    (Path(folder) / "cfg.json").write_text(json.dumps(config))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in an empty folder that holds the relation and the task."""
    monkeypatch.chdir(tmp_path)
    write_relation(relation_of(AFFINE), "friend.json")
    write_task(PLANTED.task, "t.jsonl")
    write_features(PLANTED.model, "features")
    Path("h.json").write_text(json.dumps(HYPOTHESIS))
    return Study(tmp_path / "casebook")


@pytest.fixture
def ask(study: Study) -> Ask:
    def run(name: str, *, force: bool = False, **changed: Any) -> Record:
        looking, model, settings = READINGS[name]
        return look(study, looking, looking.Config(**{**settings, **changed}), model, force=force)

    return run


def section(record: Record, begins: str) -> dict[str, Any]:
    (found,) = [one for one in record.stage("view").data["sections"] if one["title"].startswith(begins)]
    return dict(found)


@pytest.mark.parametrize("name", READINGS)
def test_killed_between_stages_it_ends_in_the_same_table(study: Study, ask: Ask, name: str) -> None:
    straight = ask(name)
    assert is_valid(straight)
    config = straight.spec.config(READINGS[name][0].Config)
    assert READINGS[name][0].spec(config, READINGS[name][1], passed={}).digest == straight.spec.digest
    for stages in range(len(straight.saved())):
        die_after(stages, lambda: ask(name, force=True))
        killed = study.find("latest")
        assert killed.status != "finished" and len(killed.saved()) == stages
        resumed = study.resume(killed.id, have={"model": READINGS[name][1]})
        assert plain_table(resumed) == plain_table(straight)
        assert resumed.stage("view").data == straight.stage("view").data
        assert is_valid(resumed)


@pytest.mark.parametrize("name", [name for name in READINGS if name != "attribute"])
def test_a_random_twin_can_be_looked_at(study: Study, name: str) -> None:
    looking, model, settings = READINGS[name]
    record = look(study, looking, looking.Config(**settings, twin=True), random_twin(model))
    assert is_valid(record)
    assert record.table["model"].startswith("random twin of ")


def test_lens(ask: Ask) -> None:
    record = ask("lens")
    found, model = record.table, AFFINE.model
    batch = model.encode([PROMPT])
    plain = logit_lens(model, batch, answers=[model.tokenizer.convert_tokens_to_ids("object3")])
    assert found["sites"] == list(plain.sites) and found["tokens"] == PROMPT.split()
    assert np.allclose(found["top_probability"], plain.top_probs[:, 0, :, 0].numpy())
    ranks = section(record, "Rank of 'object3'")["heat"]
    assert ranks["y"]["labels"] == list(reversed(plain.sites))
    assert [int(row[-1]) for row in ranks["texts"]] == plain.answer_ranks[:, 0, -1, 0].flip(0).tolist()
    assert [int(row[-1]) for row in ranks["texts"]][:2] == [0, 0]
    last = section(record, "How far from the output")["heat"]["values"][0]
    assert np.allclose(last, 0, atol=1e-6)
    assert "reads 'object3'" in record.stage("view").data["claim"]


def test_attribute(study: Study, ask: Ask) -> None:
    record = ask("attribute", prompt="subject1 of subject2 is subject3")
    own = record.table["layers"].index(record.table["layer"])
    assert [record.table["top"][own][i] for i in (0, 2, 4)] == ["object1", "object2", "object3"]
    rank = np.array(record.table["object_rank"])[own, :, 0]
    assert rank[4] == 0 and rank[:4].min() > 0


def test_attribute_input(ask: Ask) -> None:
    """The subject decides the answer, and every method sees it."""
    found = ask("attribute-input").table
    assert found["answer"] == "object3"
    for name, scores in found["scores"].items():
        assert len(scores) == len(found["tokens"]) == 5
        assert int(np.abs(scores).argmax()) == 3, name
    ours = ask("attribute-input", answer="object5", foil="object3")
    assert ours.table["answer"] == "object5" and ours.table["metric"] < 0


def test_patch(ask: Ask) -> None:
    for name in ("patch", "patch z"):
        record = ask(name)
        found, settings = record.table, READINGS[name][2]
        assert found["n"] == 6
        effect = np.array(found["effect"])
        assert effect.shape == (4, 4 if "z" in name else 1, 7)
        assert all(found[k] == v for k, v in settings.items() if k in found and k != "task")
        rows = section(record, "Effect of each place")["table"]["rows"]
        assert len(rows) == 12
        sizes = [abs(row[2][0]) for row in rows]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(np.abs(effect).max())
        assert all(row[2][1] <= row[2][0] <= row[2][2] for row in rows)
    whole = patch_grid(PLANTED.model, PLANTED.task.encode(PLANTED.model))
    again = ask("patch", n=None)
    assert np.allclose(again.table["effect"], whole.effect, atol=1e-5)


def test_dla(ask: Ask) -> None:
    record = ask("dla", n=None)
    split = attribute_logits(PLANTED.model, PLANTED.task.encode(PLANTED.model), neurons=3)
    found = record.table
    assert found["terms"] == pytest.approx(
        dict(zip(split.names, split.terms.mean(axis=-1).tolist(), strict=True)), abs=1e-5
    )
    assert sum(found["terms"].values()) == pytest.approx(found["total"], abs=1e-4)
    assert found["error"] < 1e-4
    neurons = section(record, "Neurons of layer 3")["table"]["rows"]
    assert {row[0] for row in neurons[:2]} == {"0", "1"}  # the two units that say the answer
    assert "m3 has the largest term in size" in record.stage("view").data["claim"]


def test_dla_over_features(ask: Ask) -> None:
    """The unit that says the answer writes one coordinate, so one pair of features has the whole term."""
    record = ask("dla features", n=None)
    found, plain = record.table, ask("dla", n=None).table
    assert found["terms"] == plain["terms"] and found["site"] == "mlp_out.3"
    sums = found["sums"]
    assert sums["mlp_out.3"] == pytest.approx(plain["terms"]["m3"], abs=1e-4)
    assert sums["mlp_out.3"] + sums["everything else"] == pytest.approx(sums["the metric"], abs=1e-4)
    parts = sum(found["features"].values()) + sums["other features"] + sums["decoder's bias"] + sums["error"]
    assert parts == pytest.approx(sums["mlp_out.3"], abs=1e-4) and sums["error"] == pytest.approx(0, abs=1e-5)
    say = PLANTED.model.d_model
    first, second = (int(name) for name in list(found["features"])[:2])
    assert first % say == second % say  # +d and -d of one coordinate
    judged = found["accounted_for"]
    assert judged["the dictionary"] == pytest.approx(1, abs=1e-4)
    assert max(judged["turned"], judged["shuffled"]) < 0.5
    claim = record.stage("view").data["claim"]
    assert (
        claim.startswith(f"Feature {first} of mlp_out.3 has the largest term in size") and "for 100% of that" in claim
    )


def test_scrub_keeps_what_the_hypothesis_says(ask: Ask, study: Study) -> None:
    found = ask("scrub", others=2).table
    assert found["hypothesis"]["output"] == ["say"] and found["n"] == 12
    assert found["recovered"][1] > 0.9 and found["loss_recovered"][1] > 0.9
    assert found["nothing"][1] < 0 < found["nothing"][2] < 0.9
    assert max(abs(value) for value, *_ in found["elsewhere"]) < 0.3 and len(found["elsewhere"]) == 2
    assert found["without"]["say"][0] == pytest.approx(0, abs=1e-6)  # the empty hypothesis
    trivial = json.dumps({"output": "all"})
    Path("h.json").write_text(trivial)
    assert ask("scrub", others=2).table["recovered"] == [1.0, 1.0, 1.0]
    assert len(study.runs()) == 2  # another hypothesis is another run


def test_paths_find_the_planted_edge(ask: Ask) -> None:
    record = ask("paths", n=None)
    found = record.table
    assert found["layers"] == [2, 3] and np.array(found["q"]).shape == (2, 4) and np.array(found["v"]).shape == (2, 2)
    best = section(record, "What reads mlp_out.1")["table"]["rows"][0]
    assert best[0] == "v.2.1" and best[1][0] == pytest.approx(found["whole"][0], abs=0.05) and abs(best[2]) < 0.05
    assert found["whole"][0] > 0.9 and found["share_of_whole"] == pytest.approx(1, abs=0.1)
    assert found["control"].startswith("z.1.") and abs(found["summed_control"]) < 0.1
    assert "summed over single heads, most into v.2.1" in record.stage("view").data["claim"]
    spanned = ask("paths", span=PLANTED.task.schema.spans[-1] if PLANTED.task.schema else None).table
    assert abs(spanned["whole"][0]) < 0.1  # the value is fetched from the relay, not from the last token
    alone = ask("paths", sender="z.0.1").table
    through = ask("paths", sender="z.0.1", through_mlps=True).table
    assert abs(alone["v"][1][1]) < 0.1 and through["v"][1][1] > 0.9  # layer 2, behind the MLP of layer 1
    last = ask("paths", sender="mlp_out.3").table
    assert last["layers"] == [] and last["logits"] == pytest.approx(last["whole"][0], abs=1e-4)


def test_heads(ask: Ask) -> None:
    record = ask("heads")
    plain = find_heads(PLANTED.model, repeated(PLANTED.model, n=3, length=8, seed=0))
    for kind, scores, control in zip(("previous", "duplicate", "induction"), plain.scores, plain.control, strict=True):
        assert np.allclose(record.table[kind], scores.mean(axis=-1))
        assert np.allclose(record.table[f"{kind}_control"], control.mean(axis=-1))
    assert len(section(record, "Attention")["heats"]) == 3


@pytest.mark.parametrize(
    ("name", "changed", "error", "sentence"),
    [
        ("lens", {"prompt": "the " * 401}, ReadingError, "the prompt has 401 tokens"),
        ("lens", {"site": "attn_out", "tuned": "friend.json"}, ReadingError, "a tuned lens reads resid_post"),
        ("lens", {"tuned": "friend.json"}, ReadingError, "friend.json is not a whole safetensors file"),
        ("lens", {"answers": ("",)}, RelationError, "an answer or object is empty"),
        ("attribute", {"objects": (" ",)}, RelationError, "an answer or object is empty"),
        ("attribute", {"prompt": "the " * 401}, ReadingError, "the prompt has 401 tokens"),
        ("attribute", {"relation": "nosuch"}, RelationError, "neither a relation nor a file 'nosuch'"),
        ("paths", {"sender": None}, ReadingError, "say which head or MLP sends: --sender z.LAYER.HEAD .layers 0 to 3"),
        ("paths", {"sender": "resid_pre.1"}, ReadingError, "'resid_pre.1' is no sender of a path"),
        ("paths", {"sender": "z.9.0"}, SiteError, "z.9"),
        ("paths", {"span": "nosuch"}, ReadingError, "the pairs have no span 'nosuch'; they have: "),
        ("dla features", {"dictionary": "nosuch"}, LoadError, "there is no dictionary nosuch; give a folder"),
        ("dla features", {"dictionary": "far"}, SiteError, "mlp_out.9"),
        ("heads", {"length": 2}, ReadingError, "at least 3 tokens"),
    ],
)
def test_a_refused_reading_leaves_no_run(
    study: Study, ask: Ask, name: str, changed: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    write_features(PLANTED.model, "far", layer=9)
    with pytest.raises(error, match=sentence):
        ask(name, **changed)
    assert study.ids() == ()


def test_labels_are_short_and_on_one_line() -> None:
    config = LENS.Config(prompt="a\n b\t" + "c" * 99)
    assert config.label == "a b " + "c" * 35 + "…"
    assert replace(config, prompt=" x ").label == "x"
