"""A relation judged: 1 where the map is known, chance where there is none, and no sample has a part in its own choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from caseback.core.errors import RelationError
from caseback.model.twin import random_twin
from caseback.relations import causal, faithful
from caseback.relations.judge import CONTROLS, JudgeConfig, Split, judge_split, n_known, pooled, template_of

from .small import affine_of, relation_of

CONFIG = JudgeConfig(pairs=24)


@cache
def judged(split: int = 0) -> Split:
    zoo = affine_of()
    return judge_split(zoo.model, relation_of(zoo), CONFIG, split)


def test_an_affine_relation_is_faithful_and_causal() -> None:
    found = judged()
    assert found.n_asked == len(found.sample) == 35
    for name in ("strict", "prefix", "embedding"):
        assert found.arrays[name].all(), name
    edited = ~np.isnan(found.arrays["causal"])
    assert edited.sum() == 24
    for name in ("causal", "causal_swap"):
        assert (found.arrays[name][edited] == 1).all(), name
    assert found.chosen["rank"] == found.chosen["cut"] == affine_of().rank
    assert found.chosen["layer"] in (0, 1) and found.chosen["edit_layer"] == 0
    assert [one[0].replace("subject", "object") for one in found.said] == [one[1] for one in found.said]
    assert all(one[1] == one[2] == one[3] for one in found.said)


@pytest.mark.parametrize("split", [0, 1])
def test_its_controls_are_at_chance(split: int) -> None:
    """35 objects: chance is 1/35, of edits too."""
    found = judged(split).arrays
    for name in set(CONTROLS) - {"embedding"}:
        assert found[name].mean() <= 0.15, name
    for name in ("causal_random", "causal_unembedding"):
        assert np.nanmean(found[name]) <= 0.2, name


def test_the_map_is_kept() -> None:
    found, zoo = judged().arrays, affine_of()
    assert float(np.abs(found["W"] - zoo.W.numpy()).max()) < 1e-6
    assert float(np.abs(found["b"] - zoo.b.numpy()).max()) < 1e-6
    assert (found["singular"] > 1e-4).sum() == zoo.rank


def test_another_split_trains_on_others_and_the_same_is_the_same() -> None:
    zoo = affine_of()
    again = judge_split(zoo.model, relation_of(zoo), CONFIG, 0)
    assert again.sample.tolist() == judged().sample.tolist()
    assert again.folds == judged().folds
    for name, value in judged().arrays.items():
        np.testing.assert_array_equal(again.arrays[name], value)
    assert set(judged(1).sample.tolist()) != set(judged().sample.tolist())


def test_zero_shot() -> None:
    zoo = affine_of()
    found = judge_split(zoo.model, relation_of(zoo), JudgeConfig(pairs=8, zero_shot=True))
    assert found.arrays["strict"].all()


# --- choice and report ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """What the choices were made on and the scores counted on, call by call."""
    seen: dict[str, list[Any]] = {"choose": [], "control": [], "majority": [], "embedding": [], "edit": []}
    inner = {name: getattr(faithful.Answers, name) for name in ("choose", "control", "majority", "embedding")}
    edits = causal.Edited.choose

    def choose(self: Any, rows: Any) -> Any:
        seen["choose"].append(set(map(int, rows)))
        return inner["choose"](self, rows)

    def control(self: Any, name: str, choose: Any, report: Any) -> Any:
        seen["control"].append((set(choose.tolist()), set(report.tolist())))
        return inner["control"](self, name, choose, report)

    def counted(name: str) -> Any:
        def call(self: Any, choose: Any, report: Any) -> Any:
            seen[name].append((set(choose.tolist()), set(report.tolist())))
            return inner[name](self, choose, report)

        return call

    def edit(self: Any, rows: Any) -> Any:
        seen["edit"].append(set(map(int, rows)))
        return edits(self, rows)

    monkeypatch.setattr(faithful.Answers, "choose", choose)
    monkeypatch.setattr(faithful.Answers, "control", control)
    monkeypatch.setattr(faithful.Answers, "majority", counted("majority"))
    monkeypatch.setattr(faithful.Answers, "embedding", counted("embedding"))
    monkeypatch.setattr(causal.Edited, "choose", edit)
    yield seen


def test_the_half_that_chooses_and_the_half_that_reports_share_no_sample(rows: dict[str, list[Any]]) -> None:
    zoo = affine_of()
    judge_split(zoo.model, relation_of(zoo), CONFIG)
    first, second, whole = rows["choose"]
    assert not first & second and first | second == whole == set(range(35))
    assert abs(len(first) - len(second)) <= 1
    for name in ("control", "majority", "embedding"):
        assert {frozenset(choose) for choose, _ in rows[name]} == {frozenset(first), frozenset(second)}
        for choose, report in rows[name]:
            assert not choose & report and choose | report == whole
    first, second, whole = rows["edit"]
    assert not first & second and first | second == whole == set(range(24))
    assert len(first) == len(second)


@pytest.mark.parametrize("half", [0, 1])
def test_labels_of_the_reported_half_cannot_change_its_choice(monkeypatch: pytest.MonkeyPatch, half: int) -> None:
    """Answers and edits made noisy, so that choices could differ; then everything about one half is made anew."""
    zoo, order = affine_of(), np.random.default_rng(0).permutation(35)
    reported = np.sort(order[1 - half :: 2])
    inner, inner_edit = faithful.answers, causal.edit
    places = np.sort(order[: CONFIG.pairs])
    also = np.isin(places, reported)

    def noisy(changed: bool) -> Split:
        def answers(*args: Any, **named: Any) -> Any:
            found = inner(*args, **named)
            draw = np.random.default_rng(1)
            lre = np.where(draw.random(found.lre.shape) < 0.5, found.lre, 0)
            token = found.token.copy()
            if changed:
                token[reported] = np.random.default_rng(2).permutation(token[reported])
                lre[..., reported] = np.where(draw.random(lre[..., reported].shape) < 0.5, token[reported], 0)
            return replace(found, token=token, lre=lre)

        def edit(*args: Any, **named: Any) -> Any:
            found = inner_edit(*args, **named)
            draw = np.random.default_rng(3)
            lre = draw.random(found.lre.shape) < 0.5
            if changed:
                lre[..., also] = draw.random(lre[..., also].shape) < 0.5
            return replace(found, lre=lre)

        with monkeypatch.context() as patch:
            patch.setattr(faithful, "answers", answers)
            patch.setattr(causal, "edit", edit)
            return judge_split(zoo.model, relation_of(zoo), CONFIG)

    before, after = noisy(False), noisy(True)
    assert before.folds[half] == after.folds[half]
    assert before.folds[1 - half] != after.folds[1 - half], "the other half's choice was free to change"
    assert not np.array_equal(before.arrays["strict"][reported], after.arrays["strict"][reported])


def test_pure_noise_is_not_chosen_into_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right with probability .3 at every layer and β: the best of 36 cells seems far better, the reported score is .3."""
    zoo, inner = affine_of(), faithful.answers
    scores, best = [], []
    for seed in range(5):

        def answers(*args: Any, seed: int = seed, **named: Any) -> Any:
            found = inner(*args, **named)
            right = np.random.default_rng(seed).random(found.lre.shape) < 0.3
            return replace(found, lre=np.where(right, found.token, 0))

        monkeypatch.setattr(faithful, "answers", answers)
        found = judge_split(zoo.model, relation_of(zoo), JudgeConfig(pairs=4))
        scores.append(found.arrays["strict"].mean())
        best.append(found.arrays["by_layer"].max())
    assert abs(np.mean(scores) - 0.3) < 0.1
    assert np.mean(best) > 0.42


# --- pooled ----------------------------------------------------------------------------------------------------------------------------


def made(sample: list[int], values: list[float]) -> Split:
    arrays = {"strict": np.array(values)}
    return Split(sample=np.array(sample), n_asked=9, arrays=arrays, chosen={}, folds=[], said=[], n_known=len(sample))


def test_a_sample_counts_once_however_often_it_was_tested() -> None:
    splits = [made([4, 1, 2], [1, 0, np.nan]), made([1, 3, 2], [1, 1, np.nan]), made([1], [1])]
    assert pooled(splits, "strict").tolist() == pytest.approx([2 / 3, 1, 1])  # of samples 1, 3, 4
    with pytest.raises(RelationError, match="no sample has a value of strict"):
        pooled([made([2], [np.nan])], "strict")


def test_pooled_over_real_splits() -> None:
    found = pooled([judged(0), judged(1)], "strict")
    assert len(found) == len({*judged(0).sample.tolist(), *judged(1).sample.tolist()}) and (found == 1).all()


# --- refusals --------------------------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_too_little() -> None:
    zoo = affine_of()
    twin = random_twin(zoo.model)
    sentence = (
        r"knows [0-5] of 35 samples of 'friend' under the template 'the friend of \{\} is'; at least 6 are needed: "
    )
    with pytest.raises(RelationError, match=sentence):
        judge_split(twin, relation_of(zoo), CONFIG)
    known, asked = n_known(twin, relation_of(zoo))
    assert asked == 35 and known <= 5
    assert n_known(zoo.model, relation_of(zoo)) == (35, 35)


def test_shuffled_objects_are_known_by_chance() -> None:
    zoo = affine_of()
    relation = relation_of(zoo)
    objects = [sample.object for sample in relation.samples]
    known = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(objects))
        samples = tuple(replace(s, object=objects[i]) for s, i in zip(relation.samples, order, strict=True))
        known.append(n_known(zoo.model, replace(relation, samples=samples))[0])
    assert np.mean(known) <= 3  # 35 / 40 are expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layers": "odd"}, "layers are 'even' or 'all', not 'odd'"),
        ({"train": 1}, "train and pairs are at least 2, not 1 and 24"),
        ({"objects": "last"}, "objects are read by their 'first' token or 'whole', not 'last'"),
        ({"pairs": 1}, "train and pairs are at least 2, not 5 and 1"),
    ],
)
def test_a_configuration_that_cannot_be(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RelationError, match=sentence):
        JudgeConfig(**given)


def test_what_the_relation_does_not_have() -> None:
    zoo, relation = affine_of(), relation_of(affine_of())
    assert template_of(relation, JudgeConfig()) == zoo.template
    for zero_shot, field in ((False, "prompt_templates"), (True, "prompt_templates_zs")):
        with pytest.raises(RelationError, match=f"'friend' has 1 {field}, so there is no number 1"):
            template_of(relation, JudgeConfig(template=1, zero_shot=zero_shot))
    with pytest.raises(RelationError, match="40 training samples were asked for of 40"):
        judge_split(zoo.model, relation, JudgeConfig(train=40))


# --- nothing to edit to ----------------------------------------------------------------------------------------------------------------


def has_no_edits(found: Split) -> bool:
    names = ("causal", *(f"causal_{name}" for name in causal.CONTROLS))
    curves = ("edited", *(f"edited_{name}" for name in causal.CONTROLS))
    chosen = [one[name] for one in (found.chosen, *found.folds) for name in ("edit_layer", "rank")]
    return all(np.isnan(found.arrays[name]).all() for name in (*names, *curves)) and chosen == [None] * 6


def test_too_few_edits_leave_faithfulness_and_no_causality() -> None:
    zoo = affine_of()
    found = judge_split(zoo.model, relation_of(zoo), JudgeConfig(pairs=2))
    assert has_no_edits(found) and not has_no_edits(judged())
    assert found.arrays["edited"].shape == judged().arrays["edited"].shape
    for name in ("strict", "by_layer", "W"):
        np.testing.assert_array_equal(found.arrays[name], judged().arrays[name])
    with pytest.raises(RelationError, match="no sample has a value of causal"):
        pooled([found], "causal")


def test_a_half_without_edits_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, order = affine_of(), np.random.default_rng(0).permutation(35)
    few = np.sort(order[: CONFIG.pairs])
    lone = np.isin(few, order[::2])
    sides = iter((lone, ~lone))  # each half draws its targets by itself; here the second finds none

    def targets(seen: Observed, *, seed: int) -> np.ndarray:
        first = next(sides) is lone
        return np.roll(np.arange(len(seen)), 1) if first else np.full(len(seen), -1)

    monkeypatch.setattr(causal, "targets", targets)
    assert has_no_edits(judge_split(zoo.model, relation_of(zoo), CONFIG))


# --- samples that are not known --------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_is_judged_by_what_it_says() -> None:
    zoo = affine_of()
    config = replace(CONFIG, known=False)
    found = judge_split(random_twin(zoo.model), relation_of(zoo), config)
    assert len(found.sample) == found.n_asked == 35 and found.n_known <= 5
    mine, its = (np.array([row[i] for row in found.said]) for i in (2, 3))
    assert 0 < found.arrays["strict"].mean() <= 1
    assert found.arrays["by_layer"].max() >= np.mean(mine == its)
    assert found.arrays["prefix"].mean() <= 0.15
    for name in ("strict", "by_layer", "causal"):  # where all is known it changes nothing
        np.testing.assert_array_equal(
            judge_split(zoo.model, relation_of(zoo), config).arrays[name], judged().arrays[name]
        )


def test_too_few_samples_to_ask() -> None:
    zoo, known = affine_of(), relation_of(affine_of())
    with pytest.raises(RelationError, match="there are 3 samples of 'friend' under .*; at least 6 are needed"):
        judge_split(zoo.model, replace(known, samples=known.samples[:8]), JudgeConfig(known=False))
