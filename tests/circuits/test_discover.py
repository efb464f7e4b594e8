"""The whole study on a model with a known circuit: what it finds, that it can be killed and resumed, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from caseback.circuits.describe import describe
from caseback.circuits.discover import DiscoverConfig, Discovery, discover
from caseback.circuits.graph import Circuit
from caseback.circuits.select import prune
from caseback.core.errors import CircuitError, FamilyError, TaskError
from caseback.core.stages import Checkpoint
from caseback.model.model import Model
from caseback.tasks.metrics import logit_diff
from caseback.zoo import ZOO, ZooModel
from caseback.zoo.handmade import word_tokenizer
from caseback.zoo.tiny import tiny

SMALL = DiscoverConfig(points=6, draws=2, patched=5, minimal=6, patch_pairs=4, control_pairs=8, tokens=90)


@pytest.fixture(scope="module")
def zoo() -> ZooModel:
    return ZOO["induction"]()


@pytest.fixture(scope="module")
def found(zoo: ZooModel) -> Discovery:
    return discover(zoo.model, zoo.task, SMALL)


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_the_circuit_is_found_and_the_controls_find_nothing(found: Discovery, zoo: ZooModel) -> None:
    faithful = [f.value for f in found.circuit.faithfulness()]
    first = found.ranking.circuit(len(zoo.truth))
    assert set(first.names()) == zoo.truth
    assert Circuit.of(found.scores.graph, sorted(zoo.truth)) <= found.ranking.circuit(50)
    assert faithful[0] == pytest.approx(1, abs=0.1), "50 edges hold the nine"
    assert faithful[-1] == pytest.approx(1, abs=1e-4), "the whole graph is the model"
    assert found.chosen == 0
    random = [f.value for f in found.random_mean().faithfulness()]
    agnostic = [f.value for f in found.agnostic.faithfulness()]
    rest = [f.value for f in found.complement.faithfulness()]
    assert np.abs(random[:2]).max() < 0.1 and np.abs(rest).max() < 0.1
    assert agnostic[0] < 0.5 and agnostic[-1] == pytest.approx(1, abs=1e-4)


def test_the_table_s_lists_are_parallel_and_plain(found: Discovery) -> None:
    table = found.table()
    lists = [table[name] for name in ("sizes", "faithfulness", "low", "high", "random", "agnostic")]
    assert {len(values) for values in lists} == {len(found.sizes)} and len(found.sizes) == SMALL.points
    assert list(found.sizes) == sorted(set(found.sizes))
    assert all(low <= value <= high for value, low, high in zip(table["faithfulness"], table["low"], table["high"]))
    assert json.loads(json.dumps(table)) == table
    assert table["cpr"] > 0.9 and table["cmd"] < 0.1
    assert list(found.token_edges) == sorted(found.token_edges)
    areas = found.areas()
    assert set(areas) == {"circuit", "random", "agnostic"}
    assert areas["circuit"]["cpr_log"] > areas["agnostic"]["cpr_log"] > areas["random"]["cpr_log"]


def test_controls_are_as_large_as_the_circuit_at_most(found: Discovery) -> None:
    """Random and position-agnostic circuits have at most its live token-level edges, and not many fewer."""
    from caseback.circuits.discover import _controls

    circuits = [found.ranking.circuit(n) for n in (60, 400)]
    random, agnostic = _controls(found.scores, found.ranking, circuits, SMALL)
    lengths = found.scores.lengths
    for i, circuit in enumerate(circuits):
        for control in random[2 * i : 2 * i + 2]:
            assert control.size(lengths) <= circuit.size(lengths)
        assert agnostic[i].size(lengths) <= circuit.size(lengths)
        assert agnostic[i] == prune(agnostic[i]), "only live edges are counted"
    assert random[2].size(lengths) > 0.8 * circuits[1].size(lengths)
    assert random[0] != random[1]


def test_results_stand_in_the_order_of_the_pairs(found: Discovery, zoo: ZooModel) -> None:
    """Prompts are run sorted by length, and their numbers put back."""
    held_out, discovery = zoo.task.held_out.encode(zoo.model), zoo.task.discovery.encode(zoo.model)
    assert len(set(held_out.clean.lengths.tolist())) > 1
    expected = logit_diff(zoo.model.logits(held_out.clean), held_out).double().numpy()
    np.testing.assert_allclose(found.circuit.full, expected, rtol=1e-4)
    np.testing.assert_allclose(found.random.full, expected[: SMALL.control_pairs], rtol=1e-4)
    np.testing.assert_allclose(found.minimality[1].full, expected[: SMALL.patch_pairs], rtol=1e-4)
    assert found.scores.lengths.sum(axis=1).tolist() == discovery.clean.lengths.tolist()


def test_each_edge_of_the_circuit_is_needed_and_its_score_is_its_effect(found: Discovery, zoo: ZooModel) -> None:
    graph = found.scores.graph
    tried, _ = found.minimality
    losses = {graph.name(edge): f.value for edge, f in zip(tried, found.losses(), strict=True)}
    assert len(losses) == SMALL.minimal
    assert all(losses[name] > 0.1 for name in set(losses) & zoo.truth) and set(losses) & zoo.truth
    assert all(abs(loss) < 0.05 for name, loss in losses.items() if name not in zoo.truth)
    assert found.patched.exact.shape == (10, 4) and found.patched.n_top == 5
    assert found.agreement().pearson > 0.9
    assert found.n_held_out == found.about.kept - len(found.scores.lengths)


def test_what_was_asked_and_what_it_cost(found: Discovery, zoo: ZooModel) -> None:
    about = found.about
    assert (about.model, about.task, about.metric) == ("zoo/induction", "induction", "logit_diff")
    assert (about.n, about.kept, about.accuracy, dict(about.dropped)) == (32, 32, 1, {})
    assert len(about.prompts) == 3
    prompt = about.prompts[0]
    assert [span[0] for span in prompt["spans"]] == list(found.scores.graph.spans)
    assert len(prompt["tokens"]) == len(prompt["counterfactual"]) == prompt["spans"][-1][2]
    n, half, sizes = 32, 16, len(found.sizes)
    choose = SMALL.control_pairs * (2 + sizes)
    evaluate = half * (2 + 2 * sizes)
    random = SMALL.control_pairs * (2 + SMALL.draws * sizes)
    completeness = SMALL.control_pairs * (2 + sizes)
    minimality = SMALL.patch_pairs * (2 + 1 + SMALL.minimal)
    patch = SMALL.patch_pairs * (2 + 2 * SMALL.patched)
    shown = 3
    assert found.forwards == n + shown + 2 * half + choose + evaluate + random + completeness + minimality + patch


def test_the_description_is_plain_data_of_the_same_study(found: Discovery) -> None:
    described = describe(found)
    data = described.data
    assert json.loads(json.dumps(data)) == data
    assert data["curve"]["edges"] == list(found.sizes)
    assert {len(values) for values in data["curve"].values()} == {len(found.sizes)}
    assert len(data["table"]) == 5 and len(data["minimality"]["rows"]) == SMALL.minimal
    index, rank = described.arrays["index"], described.arrays["rank"]
    assert len(index) == len(rank) == len(set(index.tolist()))
    live = [i for i, n in enumerate(found.sizes) if n < len(index)]
    for i in live:  # the circuit of n edges is those of rank ≤ n
        circuit = Circuit.of(found.scores.graph, index[rank <= found.sizes[i]])
        assert circuit.n_edges == found.sizes[i]
        assert circuit.size(found.scores.lengths) == pytest.approx(found.token_edges[i])


def test_another_seed_draws_other_controls_and_leaves_the_scores(found: Discovery, zoo: ZooModel) -> None:
    other = discover(zoo.model, zoo.task, replace(SMALL, seed=1, points=3))
    assert np.array_equal(other.scores.flat, found.scores.flat)
    assert not np.array_equal(other.random.metric[:2], found.random.metric[:2])
    assert not np.array_equal(other.patched.edges, found.patched.edges)


def equal(one: Discovery, other: Discovery) -> bool:
    a, b = describe(one), describe(other)
    same = all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
    return same and json.dumps(a.data) == json.dumps(b.data) and one.table() == other.table()


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "top-n", "merge": "qkv"},
        {"reference": "mean", "mixing": "peap"},
        {"reference": "zero", "sign": "positive"},
        {"steps": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_way_of_looking_ends_at_the_whole_model(zoo: ZooModel, changes: dict[str, Any]) -> None:
    config = replace(SMALL, points=3, draws=1, minimal=2, patched=2, patch_pairs=2, **changes)
    found = discover(zoo.model, zoo.task[:16], config)
    assert found.circuit.faithfulness()[-1].value == pytest.approx(1, abs=1e-4)
    assert len(found.table()["random"]) == len(found.sizes)
    assert json.loads(json.dumps(describe(found).data))["settings"]["mixing"] == config.mixing


# --- killed and resumed ----------------------------------------------------------------------------------------------


class Mortal:
    """Stages that save every step as a file would (arrays copied, data as JSON) and die after some steps."""

    def __init__(self, saved: dict[str, tuple[int, dict[str, np.ndarray], str]], steps: int):
        self.saved, self.left = saved, steps

    def stage(self, name: str, compute: Callable[[], Checkpoint]) -> Checkpoint:
        return self.fold(name, 1, lambda state, i: compute())

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        done, arrays, data = self.saved.get(name, (0, {}, "{}"))
        state = Checkpoint(arrays, json.loads(data)) if done else None
        for i in range(done, steps):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            new = step(state, i)
            arrays = {key: np.array(value) for key, value in new.arrays.items()}
            self.saved[name] = (i + 1, arrays, json.dumps(new.data))
            state = Checkpoint(arrays, json.loads(json.dumps(new.data)))
        assert state is not None
        return state


def test_a_study_killed_again_and_again_ends_with_the_same(found: Discovery, zoo: ZooModel) -> None:
    """On another copy of the model: equal seeds give equal studies, down to the last digit of every number."""
    model = ZOO["induction"]().model
    saved: dict[str, tuple[int, dict[str, np.ndarray], str]] = {}
    kills = 0
    while True:
        try:
            resumed = discover(model, zoo.task, SMALL, stages=Mortal(saved, 1 + kills % 3))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 5
    assert all(saved[name][0] > 1 for name in ("score", "evaluate")), "saved chunk by chunk"
    assert resumed.forwards == found.forwards
    assert equal(resumed, found)


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_a_family_without_circuits_is_refused_before_anything_is_run(zoo: ZooModel) -> None:
    words = [f"w{i}" for i in range(64)]
    model = Model(tiny("falcon"), word_tokenizer(words))
    with pytest.raises(FamilyError, match="falcon has no circuits: its model file has attention code of its own"):
        discover(model, zoo.task, SMALL)
    assert model.cost.forwards == 0


def test_a_task_nothing_is_answered_right_of_is_refused(zoo: ZooModel) -> None:
    wrong = replace(zoo.task, sign=-1)
    with pytest.raises(TaskError) as error:
        discover(zoo.model, wrong, SMALL)
    assert "\n" not in str(error.value)
    assert "32" in str(error.value)


def test_a_split_left_empty_is_refused(zoo: ZooModel) -> None:
    """All held-out pairs are asked the wrong way round, so they are dropped."""
    pairs = [
        pair if pair.split == "discovery" else replace(pair, answers=pair.foils, foils=pair.answers)
        for pair in zoo.task.pairs
    ]
    with pytest.raises(
        CircuitError, match="of 32 pairs 16 are answered right, and they leave one split empty; ask for more"
    ):
        discover(zoo.model, replace(zoo.task, pairs=tuple(pairs)), SMALL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is a whole number of at least 1, not 0"),
        ({"draws": 0}, "draws is a whole number of at least 1, not 0"),
        ({"patched": 0}, "patched is a whole number of at least 1, not 0"),
        ({"minimal": -1}, "minimal is a whole number of at least 1, not -1"),
        ({"patch_pairs": 0}, "patch_pairs is a whole number of at least 1"),
        ({"control_pairs": 0}, "control_pairs is a whole number of at least 1"),
        ({"tokens": 0}, "tokens is a whole number of at least 1"),
        ({"points": 1}, "a curve has at least 2 points, not 1"),
        ({"target": 0.0}, r"the target faithfulness lies in \(0, 1\], not 0.0"),
        ({"target": 1.5}, r"the target faithfulness lies in \(0, 1\], not 1.5"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CircuitError, match=sentence):
        DiscoverConfig(**changes)


def test_peap_with_zero_is_refused_before_anything_is_run() -> None:
    with pytest.raises(CircuitError, match="use the counterfactual or the mean reference"):
        DiscoverConfig(reference="zero", mixing="peap")
