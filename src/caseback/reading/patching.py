"""Activation patching as a grid: what does the answer depend on, layer by layer and position by position?

Two runs of a pair differ. A patch takes the value of one place in one run and puts it into the other; how far the metric
follows is the place's effect (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Wang et al. 2022,
arXiv 2211.00593). Denoising puts the clean value into the counterfactual run: is this place enough? Noising puts the
counterfactual value, a mean or zero into the clean run: is it needed? The two differ wherever there is a backup or an OR
(Heimersheim & Nanda 2024, arXiv 2404.15255).

    effect = (M(patched) − M(start)) / (M(other) − M(start)),   means over examples before the division

so 0 is the run that was patched into and 1 the other run. Patches are rows of one batch, and what a patch cannot change
is not computed again (`caseback.reading.rows`). Beside the exact grid there is its first-order estimate, attribution
patching, from two forwards and one backward (Nanda 2023; Syed et al. 2023, arXiv 2310.10348):
M(patched) ≈ M(start) + (a_source − a) · ∂M/∂a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence import agreement, ratio_intervals
from caseback.evidence.intervals import DEFAULT, Interval, Resampling
from caseback.evidence.ranks import Agreement
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import Run, plan_sites
from caseback.model.sites import NAMES
from caseback.reading.columns import By, Columns, columns_of
from caseback.reading.rows import Rows
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of

__all__ = ["SITES", "Direction", "Grid", "PatchSource", "estimate_grid", "grid_agreement", "patch_grid"]

SITES = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
"""The usual rows of a grid; any site with layers will do."""
Direction = Literal["denoise", "noise"]
PatchSource = Literal["run", "mean", "zero"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Patches over layer × head × column, example by example."""

    site: str
    layers: tuple[int, ...]
    heads: int | None
    """Heads of the site (KV heads for k and v); None where it has no heads, and then the head axis has length 1."""
    columns: tuple[str, ...]
    """Spans, token numbers, or "all". Of a pattern, the positions that look, not those looked at."""
    direction: Direction
    source: PatchSource
    exact: bool
    """False: the first-order estimate."""
    metric: Float[np.ndarray, "layer head column example"]
    """The metric under each patch, in its own units."""
    start: Float[np.ndarray, "example"]
    """The metric of the run patched into."""
    other: Float[np.ndarray, "example"]
    """The metric of the other run of the pair (of the counterfactual also where a mean or zero is put in)."""

    @property
    def change(self) -> Float[np.ndarray, "layer head column example"]:
        """Metric under the patch minus metric without, in metric units."""
        return self.metric - self.start

    @property
    def effect(self) -> Float[np.ndarray, "layer head column"]:
        """Mean change over the mean difference of the two runs; nan where that is zero."""
        gap = float((self.other - self.start).mean())
        return np.asarray(self.change.mean(axis=-1) / (gap or np.nan))

    def intervals(self, *, how: Resampling = DEFAULT) -> tuple[Interval, ...]:
        """Bootstrap intervals of the effects, in the order of `effect.ravel()`."""
        flat = self.change.reshape(-1, len(self.start))
        return ratio_intervals(flat, self.other - self.start, how=how)


def grid_agreement(exact: Grid, estimate: Grid) -> Agreement:
    """How well an estimate ranks the patches (Spearman among other measures; top fifth by size), over mean effects."""
    same = ("site", "layers", "heads", "columns", "direction", "source")
    if differing := [name for name in same if getattr(exact, name) != getattr(estimate, name)]:
        raise ReadingError(f"these two grids do not show the same patches: they differ in {', '.join(differing)}")
    truth, guess = (grid.change.mean(axis=-1).ravel() for grid in (exact, estimate))
    return agreement(guess, truth, k=max(1, len(truth) // 5))


def patch_grid(
    model: Model,
    pairs: PairBatch,
    site: str = "resid_pre",
    *,
    direction: Direction = "denoise",
    source: PatchSource = "run",
    columns: By | None = None,
    layers: Sequence[int] | None = None,
    rows: int = 64,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Grid:
    """Patch every layer, head and column of a site by itself; `rows` sequences run at a time. `stages` saves what is known
    after every layer.

    `source` is what is put in: the other run's value, the mean of the counterfactual values over the examples and over
    the tokens of a column, or zero. Cost: two forwards, and for each patch the blocks
    from its layer on and the tokens from its first on (`caseback.reading.rows`).

    Raises SiteError or FamilyError for a site the model does not have, ReadingError for columns the pairs do not have
    and for a direction and source that make no sense together.
    """
    plan = _plan(model, pairs, site, direction, source, columns, layers)
    means = _means(model, plan, rows) if source == "mean" else None
    stages = stages or InMemory(progress)
    names = [f"{site}.{layer}" for layer in plan.layers]
    found: list[np.ndarray] = []
    starts, others = [], []
    size = min(rows, pairs.n)
    done, in_all = 0, len(plan.layers) * -(-pairs.n // size)
    for begin in range(0, pairs.n, size):
        chunk = plan.pairs[begin : begin + size]
        into, other = plan.sides(chunk)
        where = columns_of(into, plan.by).where
        engine = cache(partial(Rows.of, model, chunk, into, plan.layers, rows=rows))
        given = cache(partial(model.run, other, read=names if source == "run" else []))

        def patched(
            state: Checkpoint | None,
            number: int,
            chunk: PairBatch = chunk,
            where: Tensor = where,
            engine: Callable[[], Rows] = engine,
            given: Callable[[], Run] = given,
        ) -> Checkpoint:
            layer = plan.layers[number]
            value = _source(source, given(), means, site, layer, number)
            here = engine().grid(site, layer, value, where, plan.heads)[None]
            before = state.arrays if state else {"start": engine().start, "other": plan.metric(given(), chunk)}
            return Checkpoint({**before, "metric": np.concatenate([before["metric"], here]) if state else here})

        saved = stages.fold(f"patch-{begin}", len(plan.layers), patched).arrays
        done += len(plan.layers)
        progress("patch", done, in_all)
        found.append(saved["metric"])
        starts.append(saved["start"])
        others.append(saved["other"])
    return plan.grid(found, starts, others, exact=True)


def estimate_grid(
    model: Model,
    pairs: PairBatch,
    site: str = "resid_pre",
    *,
    direction: Direction = "denoise",
    source: PatchSource = "run",
    columns: By | None = None,
    layers: Sequence[int] | None = None,
    rows: int = 32,
    progress: Progress = silent,
) -> Grid:
    """The same grid to first order, from two forwards and one backward in all (attribution patching).

    Raises as `patch_grid` does. `grid_agreement` says how far it can be trusted.
    """
    plan = _plan(model, pairs, site, direction, source, columns, layers)
    means = _means(model, plan, rows) if source == "mean" else None
    metric_fn = metric_of(pairs.metric)
    found: list[np.ndarray] = []
    starts, others = [], []
    names = [f"{site}.{layer}" for layer in plan.layers]
    for begin in range(0, pairs.n, rows):
        chunk = plan.pairs[begin : begin + rows]
        into, other = plan.sides(chunk)
        grads = model.grad(into, partial(_metric_of_rows, metric_fn, chunk), at=names)
        given = model.run(other, read=names if source == "run" else [])
        where, start = columns_of(into, plan.by).where, _array(grads.metric)
        here = []
        for number, (layer, name) in enumerate(zip(plan.layers, names, strict=True)):
            value = _source(source, given, means, site, layer, number)
            here.append(start + _array(_first_order(site, value, grads.values[name], grads[name], where)))
        found.append(np.stack(here))
        starts.append(start)
        others.append(plan.metric(given, chunk))
        progress("estimate", min(begin + rows, pairs.n), pairs.n)
    return plan.grid(found, starts, others, exact=False)


# --- what is asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    pairs: PairBatch
    site: str
    layers: tuple[int, ...]
    heads: int | None
    by: By | None
    columns: Columns
    direction: Direction
    source: PatchSource

    def sides(self, pairs: PairBatch) -> tuple[Batch, Batch]:
        """(the run patched into, the other run)."""
        two = (pairs.counterfactual, pairs.clean)
        return two if self.direction == "denoise" else two[::-1]

    def metric(self, run: Run, pairs: PairBatch) -> np.ndarray:
        return _array(metric_of(pairs.metric)(run.logits, pairs))  # type: ignore[arg-type]

    def grid(self, found: list[np.ndarray], starts: list[np.ndarray], others: list[np.ndarray], *, exact: bool) -> Grid:
        return Grid(
            site=self.site,
            layers=self.layers,
            heads=self.heads,
            columns=self.columns.names,
            direction=self.direction,
            source=self.source,
            exact=exact,
            metric=np.concatenate(found, axis=-1),
            start=np.concatenate(starts),
            other=np.concatenate(others),
        )


def _plan(
    model: Model,
    pairs: PairBatch,
    site: str,
    direction: Direction,
    source: PatchSource,
    columns: By | None,
    layers: Sequence[int] | None,
) -> _Plan:
    if direction not in ("denoise", "noise"):
        raise ReadingError(f"there is no direction {direction!r}; there are: denoise, noise")
    if source not in ("run", "mean", "zero"):
        raise ReadingError(f"there is no source {source!r} of a patch; there are: run, mean, zero")
    if source != "run" and direction == "denoise":
        raise ReadingError(f"denoising puts clean values in, not {source!r}; use direction='noise' with it")
    if source == "mean" and site == "pattern":
        raise ReadingError("a pattern has no mean over tokens that see different numbers of tokens; use run or zero")
    if site in NAMES and not NAMES[site].layered:
        raise ReadingError(f"{site} has no layers to make a grid of; sites of a grid are: {', '.join(SITES)}")
    kind = plan_sites(model, [f"{site}.*"])[0].kind
    have = model.site_layers[site]
    chosen = have if layers is None else tuple(layers)
    if not chosen or (missing := [layer for layer in chosen if layer not in have]):
        raise ReadingError(f"{site} has no layer {missing[0] if chosen else '()'}; it has: {', '.join(map(str, have))}")
    heads = model.heads[kind.heads] if kind.heads else None
    pairs = pairs.to(model.device)
    return _Plan(pairs, site, chosen, heads, columns, columns_of(pairs.clean, columns), direction, source)


def _metric_of_rows(metric: Callable[[Tensor, PairBatch], Tensor], pairs: PairBatch, logits: Tensor) -> Tensor:
    return metric(logits, pairs)


def _array(value: Tensor) -> Float[np.ndarray, "*shape"]:
    return value.detach().double().cpu().numpy()


def _means(model: Model, plan: _Plan, rows: int) -> list[Tensor]:
    """Per layer, the mean of the counterfactual values over the tokens of each column, all examples together:
    [column, 1, 1, *rest]."""
    totals: list[Tensor] = []
    count: Tensor | float = 0.0
    for chunk in plan.pairs.chunk(rows):
        batch = chunk.counterfactual
        run = model.run(batch, read=[f"{plan.site}.{layer}" for layer in plan.layers], logits=None)
        where = columns_of(batch, plan.by).where
        here = [torch.einsum("cbp,bp...->c...", where.float(), run[f"{plan.site}.{l}"].float()) for l in plan.layers]
        totals = here if not totals else [a + b for a, b in zip(totals, here, strict=True)]
        count = count + where.sum(dim=(1, 2))
    assert isinstance(count, Tensor)
    per = count.clamp(min=1)
    return [(total / per.view(-1, *[1] * (total.dim() - 1)))[:, None, None] for total in totals]


def _source(
    source: PatchSource, given: Run, means: list[Tensor] | None, site: str, layer: int, number: int
) -> Float[Tensor, "_ *rest"]:
    """What is put in, one entry for every column or one for all."""
    if source == "run":
        return given[f"{site}.{layer}"][None]
    if means is not None:
        return means[number]
    return torch.zeros(1, device=given.batch.ids.device)


def _first_order(
    site: str, source: Tensor, value: Tensor, gradient: Tensor, where: Bool[Tensor, "column batch pos"]
) -> Float[Tensor, "head column batch"]:
    """(source − value) · gradient, summed over each column's tokens."""
    product = ((source.float() - value[None].float()) * gradient.float()).sum(
        dim=-1
    )  # [1 or column, batch, pos(, head)]
    if site == "pattern":
        product = product.movedim(2, -1)
    if product.dim() == 3:
        product = product[..., None]
    product = product.expand(len(where), *product.shape[1:])
    return torch.einsum("cbph,cbp->hcb", product, where.float())
