"""Input attribution: which tokens of a prompt does a number depend on?

Everything happens on the stream entering block 0, x, against a baseline x′ with nothing to say at the same positions:

    gradient × input        (x − x′) · ∂M/∂x                              (Shrikumar et al. 2017, arXiv 1704.02685)
    integrated gradients    (x − x′) · ∫₀¹ ∂M/∂x (x′ + α (x − x′)) dα      (Sundararajan et al. 2017, arXiv 1703.01365, eq. 1)
    occlusion               M(x) − M(x with this token at x′)             (Zeiler & Fergus 2014, arXiv 1311.2901)

summed over dimensions, one score a token, positive where the token raises the metric. Integrated gradients add up to
M(x) − M(x′); the integral is Gauss-Legendre quadrature, and what is missing is reported, never spread over the tokens.
Occluding each token by itself need not add up, and says so by the same number. A prompt made of baselines is off the
model's distribution; two baselines that disagree are the way to see how much that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.model.batch import Batch
from caseback.model.grad import capture
from caseback.model.hooks import Hooks
from caseback.model.model import Model
from caseback.model.run import Start, run

__all__ = ["METHODS", "Baseline", "InputAttribution", "Method", "attribute_inputs"]

Method = Literal["gradient", "integrated", "occlusion"]
METHODS: tuple[Method, ...] = ("occlusion", "gradient", "integrated")
Baseline = Literal["mean", "bos", "pad", "zero"]
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class InputAttribution:
    """One score a token, in units of the metric."""

    method: Method
    baseline: Baseline | int
    scores: Float[np.ndarray, "example pos"]
    """nan at padding."""
    metric: Float[np.ndarray, "example"]
    baseline_metric: Float[np.ndarray, "example"]
    """The metric with every token at the baseline."""
    steps: int | None
    """Points of the quadrature; None where there is no integral."""

    @property
    def completeness_error(self) -> Float[np.ndarray, "example"]:
        """Σ scores − (metric − baseline_metric): 0 for an exact integral, and no more than a description elsewhere."""
        return np.asarray(np.nansum(self.scores, axis=1) - (self.metric - self.baseline_metric))


def attribute_inputs(
    model: Model,
    batch: Batch,
    metric: Metric,
    *,
    method: Method = "integrated",
    baseline: Baseline | int = "mean",
    steps: int = 32,
    rows: int = 32,
    progress: Progress = silent,
) -> InputAttribution:
    """Scores of every token for `metric(logits [batch, vocab]) → [batch]`, the logits being those after the last token.

    `baseline` is what a token is compared with: the mean of all token embeddings, the tokenizer's BOS or padding token,
    a token id, or a zero stream (which takes position embeddings away too). Cost in forwards (and backwards, but for
    occlusion) of the batch: 1, `steps`, or the number of tokens; `rows` sequences at a time.

    Raises ReadingError for a baseline the tokenizer does not have and for a method there is not.
    """
    if method not in METHODS:
        raise ReadingError(f"there is no input attribution {method!r}; there are: {', '.join(METHODS)}")
    if steps < 1:
        raise ReadingError(f"an integral needs at least one step, got {steps}; 32 is the default")
    batch = batch.to(model.device)
    everywhere = torch.ones_like(batch.mask)
    x, from_ = _stream(model, batch, ~everywhere, baseline), _stream(model, batch, everywhere, baseline)
    full, empty = _at(model, batch, metric, x), _at(model, batch, metric, from_)
    difference = (x - from_) * batch.mask[..., None]
    if method == "occlusion":
        scores = full[:, None] - _occluded(model, batch, metric, x, from_, rows, progress)
    else:
        points, weights = np.polynomial.legendre.leggauss(steps) if method == "integrated" else ([1.0], [2.0])
        gradient = torch.zeros_like(x)
        size = max(1, rows // batch.n)
        for begin in range(0, len(points), size):
            alphas = torch.tensor((np.asarray(points[begin : begin + size]) + 1) / 2).to(x)
            shares = torch.tensor(np.asarray(weights[begin : begin + size]) / 2).to(x)
            found = _gradients(model, batch, metric, from_ + alphas[:, None, None, None] * (x - from_))
            gradient += torch.einsum("s,sbpd->bpd", shares, found)
            progress("attribute inputs", min(begin + size, len(points)), len(points))
        scores = (difference * gradient).sum(dim=-1)
    return InputAttribution(
        method=method,
        baseline=baseline,
        scores=scores.masked_fill(~batch.mask, torch.nan).double().cpu().numpy(),
        metric=full.double().cpu().numpy(),
        baseline_metric=empty.double().cpu().numpy(),
        steps=steps if method == "integrated" else None,
    )


def _baseline_token(model: Model, baseline: Baseline | int) -> int:
    if isinstance(baseline, int):
        if not 0 <= baseline < model.d_vocab:
            raise ReadingError(f"there is no token {baseline} to compare with; this model has {model.d_vocab}")
        return baseline
    if baseline not in ("bos", "pad"):
        raise ReadingError(f"there is no baseline {baseline!r}; there are: mean, bos, pad, zero, or a token id")
    found = getattr(model.tokenizer, f"{baseline}_token_id", None)
    if found is None:
        raise ReadingError(
            f"{model.name} has no {baseline} token to compare with; use baseline='mean', 'zero' or a token id"
        )
    return int(found)


def _stream(
    model: Model, batch: Batch, where: Bool[Tensor, "batch pos"], baseline: Baseline | int
) -> Float[Tensor, "batch pos d_model"]:
    """The stream entering block 0 with the tokens of `where` at the baseline, position embeddings kept (but for zero)."""
    ids = batch.ids
    with Hooks() as hooks:
        if baseline == "mean":
            embed = model.module(model.family.embed)
            with torch.no_grad():
                mean = embed(torch.arange(model.d_vocab, device=ids.device)).float().mean(dim=0)
            hooks.out_of(embed, partial(_replace, where, mean))
        elif baseline != "zero":
            ids = ids.masked_fill(where, _baseline_token(model, baseline))
        stream = run(model, Batch(ids, batch.mask), read=["resid_pre.0"], logits=None, stop=0)["resid_pre.0"]
    return stream.masked_fill(where[..., None], 0) if baseline == "zero" else stream


def _replace(where: Bool[Tensor, "batch pos"], mean: Float[Tensor, "d"], value: Tensor) -> Tensor:
    return torch.where(where[..., None], mean.to(value), value)


def _per_block(metric: Metric, logits: Float[Tensor, "rows vocab"], n: int) -> Float[Tensor, "blocks batch"]:
    return torch.stack([metric(part) for part in logits.split(n)])


def _repeated(batch: Batch, times: int) -> Batch:
    return Batch(batch.ids.repeat(times, 1), batch.mask.repeat(times, 1))


def _at(model: Model, batch: Batch, metric: Metric, stream: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch"]:
    logits = run(model, batch, start=Start(0, stream)).logits
    assert logits is not None
    return metric(logits)


def _gradients(
    model: Model, batch: Batch, metric: Metric, streams: Float[Tensor, "step batch pos d"]
) -> Float[Tensor, "step batch pos d"]:
    """∂M/∂x at every stream."""
    key = ("resid_pre", 0)
    captured = capture(model, _repeated(batch, len(streams)), [key], embed=streams.flatten(0, 1))
    with torch.enable_grad():
        values = _per_block(metric, captured.logits, batch.n)
        found = captured.gradients(values.flatten(), [key])[key]
    model.cost.backwards += len(found)
    return found.unflatten(0, streams.shape[:2])


def _occluded(
    model: Model, batch: Batch, metric: Metric, x: Tensor, from_: Tensor, rows: int, progress: Progress
) -> Float[Tensor, "batch pos"]:
    """The metric with one token at the baseline, token by token."""
    width, at_once = x.shape[1], max(1, rows // batch.n)
    out = []
    for places in torch.arange(width, device=x.device).split(at_once):
        here = torch.arange(width, device=x.device) == places[:, None]
        streams = torch.where(here[:, None, :, None], from_, x).flatten(0, 1)
        logits = run(model, _repeated(batch, len(places)), start=Start(0, streams)).logits
        assert logits is not None
        out.append(_per_block(metric, logits, batch.n))
        progress("attribute inputs", int(places[-1]) + 1, width)
    return torch.cat(out).T
