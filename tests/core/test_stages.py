"""Stages in memory: each step sees the state before it, progress counts the steps."""

from __future__ import annotations

import numpy as np

from caseback.core.stages import Checkpoint, InMemory, Stages


def count(state: Checkpoint | None, i: int) -> Checkpoint:
    total = np.zeros(1) if state is None else state.arrays["total"]
    return Checkpoint({"total": total + i}, {"seen": [*(state.data["seen"] if state else ()), i]})


def test_a_fold_hands_the_state_from_step_to_step() -> None:
    seen: list[tuple[str, int, int]] = []
    done = InMemory(lambda stage, done, total: seen.append((stage, done, total))).fold("sum", 4, count)
    assert done.arrays["total"].tolist() == [6]
    assert done.data["seen"] == [0, 1, 2, 3]
    assert seen == [("sum", i, 4) for i in range(5)]


def test_a_stage_is_a_fold_of_one_step() -> None:
    seen: list[tuple[str, int, int]] = []
    stages = InMemory(lambda stage, done, total: seen.append((stage, done, total)))
    assert stages.stage("one", lambda: Checkpoint(data={"answer": 42})).data == {"answer": 42}
    assert seen == [("one", 0, 1), ("one", 1, 1)]
    assert isinstance(stages, Stages)


def test_an_empty_checkpoint_holds_nothing() -> None:
    assert Checkpoint().arrays == {} and Checkpoint().data == {}
