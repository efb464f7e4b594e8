"""The check: what is kept, what is dropped and why, and that a model without knowledge is at chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caseback.core.errors import TaskError
from caseback.model.model import Model
from caseback.tasks import Pair, Task, ioi, library
from caseback.zoo.tiny import TINY, tiny

from .readers import Reader, knowing


def pair(word: str, **fields: Any) -> Pair:
    given = {
        "clean": f"{word} left =>",
        "counterfactual": f"{word} right =>",
        "answers": (" left",),
        "foils": (" right",),
    }
    return Pair(**(given | fields))


def test_right_answers_are_kept_on_their_side() -> None:
    task = ioi(40, model=Reader())
    found = task.check(knowing(task, 0.75))
    assert (found.n, found.fit, found.task.n, found.accuracy) == (40, 40, 30, 0.75)
    assert found.task.pairs == task.pairs[:30]
    assert found.dropped == {"wrong answer": 10}
    assert [shown.split(":")[0] for shown in found.examples["wrong answer"]] == ["pair 31", "pair 32", "pair 33"]
    assert found.top1 == 0.75
    assert found.values.tolist() == [2.0] * 30 + [-2.0] * 10
    assert found.mean == 1.0
    assert str(found).splitlines()[:3] == [
        "ioi on reader: 30 of 40 pairs kept",
        "  accuracy 0.750 [0.598, 0.858] of 40 well-tokenised pairs (mean logit_diff 1.000; top-1 0.750)",
        "  dropped 10: wrong answer",
    ]


def test_the_declared_sign_is_what_counts() -> None:
    task = Task(name="t", pairs=tuple(pair(word) for word in ("up", "down", "to", "in")), sign=-1)
    found = task.check(knowing(task, 0.25))
    assert [one.clean for one in found.task.pairs] == ["down left =>", "to left =>", "in left =>"]


def test_what_does_not_fit_is_not_asked() -> None:
    task = Task(
        name="t",
        pairs=(
            pair("up"),
            pair("down", answers=(" Jonathan",), row=5),
            pair("to", counterfactual="to right right =>"),
            pair("in", foils=(" left left",)),
        ),
    )
    found = task.check(knowing(task))
    assert (found.n, found.fit, found.task.n, found.accuracy) == (4, 1, 1, 1.0)
    assert found.dropped == {"bad tokenisation": 2, "counterfactual of another length": 1}
    assert found.examples["bad tokenisation"][0].startswith("row 5: answer ' Jonathan' is ")
    assert "pair 3: 'counterfactual' has 4 tokens" in str(found)


def test_nothing_right_is_refused() -> None:
    task = ioi(6, model=Reader())
    with pytest.raises(TaskError) as error:
        task.check(knowing(task, 0.0))
    assert str(error.value).startswith(
        "reader answers none of the 6 pairs of the task 'ioi' as declared (6 wrong answer, such as"
    )


def test_nothing_that_fits_is_refused() -> None:
    task = Task(name="t", pairs=(pair("up", answers=(" Jonathan",)),))
    with pytest.raises(
        TaskError, match="no pair of the task 't' fits the tokenizer of reader: 1 bad tokenisation, such as pair 1: "
    ):
        task.check(Reader())


def test_batches_change_nothing_but_progress() -> None:
    task = ioi(10, model=Reader())
    steps: list[tuple[str, int, int]] = []
    reader = knowing(task, 0.5)
    found = task.check(reader, batch_size=4, progress=lambda *step: steps.append(step))
    assert steps == [("check", 4, 10), ("check", 8, 10), ("check", 10, 10)]
    assert [batch.n for batch in reader.batches] == [4, 4, 2]
    assert torch.equal(found.values, task.check(knowing(task, 0.5), batch_size=100).values)
    with pytest.raises(TaskError, match="the batch size is 0"):
        task.check(reader, batch_size=0)


@pytest.fixture(scope="module")
def ignorant() -> Model:
    """A tiny random Llama that reads with a real tokenizer."""
    reader = Reader()
    kept = TINY["llama"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "llama", kept | {"vocab_size": reader.tokenizer.get_vocab_size()})
        hf = tiny("llama")
    from transformers import PreTrainedTokenizerFast

    return Model(hf, PreTrainedTokenizerFast(tokenizer_object=reader.tokenizer))


@pytest.mark.parametrize("name", library.names())
def test_random_weights_are_at_chance(name: str, ignorant: Model) -> None:
    """Half right where answers and foils are alike in number; a prob_diff against more foils than answers is below."""
    task = library.get(name, n=120, model=ignorant)
    try:
        found = task.check(ignorant, batch_size=40)
    except TaskError as error:
        assert "answers none of the 120" in str(error)  # no better than chance either
        return
    assert found.accuracy < 0.66
    if task.metric == "logit_diff":
        assert found.accuracy > 0.34
    assert found.top1 < 0.1


@pytest.mark.default_model
def test_the_default_model_does_the_first_task(default_model: Any) -> None:
    """One batch; `caseback task check TASK` measures all tasks on all pairs."""
    found = ioi(16, model=default_model).check(default_model)
    assert found.fit == 16
    assert found.accuracy >= 0.9
    assert found.mean > 2
