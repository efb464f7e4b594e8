"""Metrics against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from caseback.core.errors import TaskError
from caseback.model.batch import Batch
from caseback.tasks import PairBatch, kl, logit_diff, metric_of, prob_diff, right, top1, top1_agree

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.5, 3.0, 0.0]])
BATCH = Batch.pad([[1, 2], [3]])
PAIRS = PairBatch(BATCH, BATCH, torch.tensor([[0, -1], [2, 1]]), torch.tensor([[1, 3], [0, -1]]), "logit_diff")


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def test_logit_diff_is_a_difference_of_means() -> None:
    assert logit_diff(LOGITS, PAIRS).tolist() == pytest.approx([2.0 - (1.0 - 1.0) / 2, (3.0 + 0.5) / 2 - 0.5])


def test_prob_diff_is_a_difference_of_sums() -> None:
    p, q = softmax([2, 1, 0, -1]), softmax([0.5, 0.5, 3, 0])
    assert prob_diff(LOGITS, PAIRS).tolist() == pytest.approx([p[0] - p[1] - p[3], q[2] + q[1] - q[0]])


def test_kl_from_the_reference() -> None:
    p, r = softmax([2, 1, 0, -1]), softmax([0, 0, 1, 1])
    expected = sum(b * math.log(b / a) for a, b in zip(p, r, strict=True))
    assert float(kl(LOGITS[:1], torch.tensor([[0.0, 0.0, 1.0, 1.0]]))) == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(kl(LOGITS, LOGITS + 7), torch.zeros(2), atol=1e-6)


def test_agreement_and_top1() -> None:
    assert top1_agree(LOGITS, LOGITS * 2).tolist() == [True, True]
    assert top1_agree(LOGITS, LOGITS.flip(1)).tolist() == [False, False]
    assert top1(LOGITS, PAIRS).tolist() == [True, True]
    assert top1(LOGITS.flip(1), PAIRS).tolist() == [False, True]


def test_a_tie_is_wrong() -> None:
    assert right(torch.tensor([0.1, 0.0, -0.1]), 1).tolist() == [True, False, False]
    assert right(torch.tensor([0.1, 0.0, -0.1]), -1).tolist() == [False, False, True]


@pytest.mark.parametrize("metric", [logit_diff, prob_diff])
def test_half_precision_is_widened_and_gradients_flow(metric: object) -> None:
    logits = LOGITS.to(torch.bfloat16).requires_grad_()
    values = metric(logits, PAIRS)  # type: ignore[operator]
    assert values.dtype == torch.float32
    assert torch.allclose(values, metric(LOGITS, PAIRS), atol=2e-2)  # type: ignore[operator]
    [grad] = torch.autograd.grad(values.sum(), [logits])
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0
    assert metric(LOGITS.double(), PAIRS).dtype == torch.float64  # type: ignore[operator]


def test_a_metric_by_name() -> None:
    assert metric_of("prob_diff") is prob_diff
    with pytest.raises(TaskError, match="there is no metric 'loss'; there are: logit_diff, prob_diff"):
        metric_of("loss")
