"""What is measured after the last token, one number per example.

With l the logits, p = softmax(l), A the answers and F the foils of a pair:

    logit_diff = mean_{a in A} l_a - mean_{f in F} l_f
    prob_diff  = sum_{a in A} p_a  - sum_{f in F} p_f
    loss       = -log sum_{a in A} p_a
    kl         = sum_v r_v (log r_v - log p_v),  r = softmax of the reference's logits
    top1_agree = 1 where argmax l is argmax of the reference's logits, else 0

Everything is computed in float32 at least, whatever the model runs in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import TaskError
from caseback.tasks.encode import PairBatch

__all__ = ["kl", "logit_diff", "loss", "metric_of", "prob_diff", "right", "top1", "top1_agree"]


def logit_diff(logits: Float[Tensor, "batch vocab"], pairs: PairBatch) -> Float[Tensor, "batch"]:
    """Mean logit of the answers minus mean logit of the foils; differentiable."""
    logits = _wide(logits)
    return _mean(logits, pairs.answers) - _mean(logits, pairs.foils)


def prob_diff(logits: Float[Tensor, "batch vocab"], pairs: PairBatch) -> Float[Tensor, "batch"]:
    """Probability of the answers minus probability of the foils, in [-1, 1]; differentiable."""
    probabilities = _wide(logits).softmax(dim=-1)
    return _sum(probabilities, pairs.answers) - _sum(probabilities, pairs.foils)


def loss(logits: Float[Tensor, "batch vocab"], pairs: PairBatch) -> Float[Tensor, "batch"]:
    """Negative log probability of the answers, in nats; differentiable."""
    logs = _wide(logits).log_softmax(dim=-1).gather(1, pairs.answers.clamp(min=0))
    return -logs.where(pairs.answers >= 0, -torch.inf).logsumexp(dim=1)


def kl(logits: Float[Tensor, "batch vocab"], reference: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
    """Kullback-Leibler divergence of the prediction from the reference's, KL(reference || prediction), in nats."""
    p, r = _wide(logits).log_softmax(dim=-1), _wide(reference).log_softmax(dim=-1)
    return (r.exp() * (r - p)).sum(dim=-1)


def top1_agree(logits: Float[Tensor, "batch vocab"], reference: Float[Tensor, "batch vocab"]) -> Bool[Tensor, "batch"]:
    """Whether both predict the same likeliest token."""
    return logits.argmax(dim=-1) == reference.argmax(dim=-1)


def top1(logits: Float[Tensor, "batch vocab"], pairs: PairBatch) -> Bool[Tensor, "batch"]:
    """Whether the likeliest token is one of the answers."""
    return (logits.argmax(dim=-1, keepdim=True) == pairs.answers).any(dim=-1)


def right(values: Float[Tensor, "batch"], sign: int) -> Bool[Tensor, "batch"]:
    """Whether a difference metric has the declared sign: the rule behind every accuracy. A tie is wrong."""
    return values * sign > 0


_METRICS: dict[str, Callable[[Tensor, PairBatch], Tensor]] = {"logit_diff": logit_diff, "prob_diff": prob_diff}


def metric_of(name: str) -> Callable[[Tensor, PairBatch], Tensor]:
    """The difference metric of that name, a function of (logits, pairs)."""
    if name not in _METRICS:
        raise TaskError(f"there is no metric {name!r}; there are: {', '.join(_METRICS)}")
    return _METRICS[name]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _sum(values: Float[Tensor, "batch vocab"], ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch"]:
    return values.gather(1, ids.clamp(min=0)).where(ids >= 0, 0).sum(dim=1)


def _mean(values: Float[Tensor, "batch vocab"], ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch"]:
    return _sum(values, ids) / (ids >= 0).sum(dim=1)
