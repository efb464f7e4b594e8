"""Tasks: the split that travels with the pairs, and what makes a task no task."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.core.errors import TaskError
from caseback.tasks import Pair, Schema, Task


def pair(clean: object, counterfactual: object, **fields: object) -> Pair:
    return Pair(clean=f"p{clean}", counterfactual=f"p{counterfactual}", answers=(" a",), foils=(" b",), **fields)  # type: ignore[arg-type]


def task(*pairs: Pair, **fields: object) -> Task:
    return Task(name="t", pairs=pairs, **fields)  # type: ignore[arg-type]


def texts(part: Task) -> set[str]:
    return {text for one in part.pairs for text in (one.clean, one.counterfactual)}


def test_two_halves() -> None:
    whole = task(*(pair(i, f"x{i}") for i in range(9)))
    assert (whole.n, whole.discovery.n, whole.held_out.n) == (9, 5, 4)
    assert {one.split for one in whole.discovery.pairs} == {"discovery"}
    assert set(whole.discovery.pairs) | set(whole.held_out.pairs) == set(whole.pairs)
    assert task(*(pair(i, f"x{i}") for i in range(10)), discovery_share=0.8).discovery.n == 8


pairs_of_few_prompts = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda x: x[0] != x[1]),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(pairs_of_few_prompts, st.floats(0.1, 0.9), st.data())
@settings(deadline=None)
def test_no_prompt_on_both_sides(numbers: list[tuple[int, int]], share: float, data: st.DataObject) -> None:
    whole = task(*(pair(a, b) for a, b in numbers), discovery_share=share)
    sides = {side: [one for one in whole.pairs if one.split == side] for side in ("discovery", "held_out")}
    assert sum(len(side) for side in sides.values()) == whole.n
    shown = {side: {t for one in found for t in (one.clean, one.counterfactual)} for side, found in sides.items()}
    assert not shown["discovery"] & shown["held_out"]
    # a subset keeps every pair on its side, so what was held out stays held out
    rows = data.draw(st.lists(st.sampled_from(range(whole.n)), min_size=1, unique=True))
    assert whole[rows].pairs == tuple(whole.pairs[row] for row in rows)
    assert task(*whole.pairs).pairs == whole.pairs


def test_pairs_that_share_a_prompt_stay_together() -> None:
    whole = task(pair(0, 1), pair(2, 3), pair(1, 4), pair(5, 3), pair(6, 7))
    side = {one.clean: one.split for one in whole.pairs}
    assert side["p0"] == side["p1"]
    assert side["p2"] == side["p5"]


def test_one_group_has_no_other_half() -> None:
    whole = task(*(pair(i, "x") for i in range(5)))
    assert whole.discovery.n == 5
    with pytest.raises(
        TaskError, match="the task 't' has no held-out pair among its 5; take more pairs, with more than one"
    ):
        _ = whole.held_out
    with pytest.raises(TaskError, match="no discovery pair"):
        _ = task(pair(1, 2, split="held_out")).discovery


def test_a_given_split_is_kept() -> None:
    whole = task(pair(0, 1, split="held_out"), pair(2, 3, split="held_out"), pair(4, 5, split="discovery"))
    assert [one.split for one in whole.pairs] == ["held_out", "held_out", "discovery"]


def test_a_given_split_must_not_leak() -> None:
    with pytest.raises(TaskError) as error:
        task(pair(0, 1, split="discovery", row=2), pair(2, 0, split="held_out", row=3))
    assert str(error.value).startswith(
        "row 3: 'split' is 'held_out', but a prompt of this pair is also in row 2, which is"
    )
    with pytest.raises(TaskError, match="pair 2: 'split' is missing while other pairs have one"):
        task(pair(0, 1, split="discovery"), pair(2, 3))


@given(st.integers(2, 30), st.floats(0.1, 0.9), st.data())
@settings(deadline=None)
def test_take_keeps_the_proportion(size: int, share: float, data: st.DataObject) -> None:
    whole = task(*(pair(i, f"x{i}") for i in range(size)), discovery_share=share)
    n = data.draw(st.integers(1, size))
    part = whole.take(n)
    assert part.n == n
    assert set(part.pairs) <= set(whole.pairs)
    counts = [sum(one.split == "discovery" for one in x.pairs) for x in (part, whole)]
    assert abs(counts[0] - n * counts[1] / size) <= 1


def test_take_more_than_there_are() -> None:
    with pytest.raises(TaskError, match="the task 't' was asked for n=3 pairs; it has 2"):
        task(pair(0, 1), pair(2, 3)).take(3)
    with pytest.raises(TaskError, match="n=0"):
        task(pair(0, 1)).take(0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pairs": ()}, "the task 't' has no pair"),
        ({"sign": 0}, "'sign' 0; it is 1 or -1"),
        ({"discovery_share": 1.0}, "'discovery_share' 1.0; it lies between 0 and 1"),
        ({"pairs": (pair(0, 1), pair(0, 1))}, "pair 2: both prompts repeat pair 1; keep one of the two"),
        ({"schema": Schema(name="s", spans=("a",))}, "pair 1: 'spans' are missing, while the task 't' has a"),
        ({"pairs": (pair(0, 1, spans=(("a", 0, 2),)),)}, "pair 1: 'spans' are a, while the task 't' has no schema"),
    ],
)
def test_a_task_that_is_none(fields: dict, sentence: str) -> None:
    with pytest.raises(TaskError) as error:
        replace(task(pair(0, 1)), **fields)
    assert sentence in str(error.value)
