"""Path patching: through which of its readers does a head matter?

Patching a head's output shows its whole effect. Path patching shows the part that goes from a sender straight to one
receiver (Wang et al. 2022, arXiv 2211.00593, appendix B; Goldowsky-Dill et al. 2023, arXiv 2304.05969):

1. run the prompts with the sender's output from the other run, everything after it frozen at its own value (all
   attention; the MLPs too unless `through_mlps`), and note what each receiver's q, k or v becomes. That one run holds
   every receiver's value, for a receiver is read before it could pass anything on. Its logits are the path sender → logits;
2. for each receiver, a run as it is but for that one q, k or v. These are rows of one batch (`caseback.reading.rows`).

A `k` or `v` receiver is a KV head, shared by its query heads. The sender's part is replaced in z, so a norm behind the
output projection (Gemma 2, OLMo 2) sees the replaced z; `circuits.patch_edges` keeps that norm's scale, patches one span
at a time, and counts M(full) − M(without), the opposite sign. Elsewhere the two agree edge by edge, with all of a
path's spans taken together (tests/reading/test_paths.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.evidence import ratio_interval
from caseback.evidence.intervals import DEFAULT, Interval, Resampling
from caseback.model.batch import Batch
from caseback.model.edits import Call, Edit, Patch
from caseback.model.model import Model
from caseback.model.run import Run, plan_sites
from caseback.model.sites import Site, parse
from caseback.reading.columns import By, columns_of
from caseback.reading.patching import Direction, Grid
from caseback.reading.rows import Rows
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of

__all__ = ["Channel", "Paths", "path_patch"]

Channel = Literal["q", "k", "v"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths:
    """What one sender does through each receiver."""

    sender: str
    span: str | None
    """The span whose tokens' sender output was replaced; None: all tokens."""
    through_mlps: bool
    """Whether MLPs between the sender and a receiver carry the difference on."""
    grids: Mapping[str, Grid]
    """Channel → effects by layer (those after the sender), head and column of the receiver."""
    logits: Float[np.ndarray, "example"]
    """The metric under the path from the sender to the logits."""
    start: Float[np.ndarray, "example"]
    other: Float[np.ndarray, "example"]

    def direct(self, *, how: Resampling = DEFAULT) -> Interval:
        """Effect of the path to the logits: 0 = the run patched into, 1 = the other run."""
        return ratio_interval(self.logits - self.start, self.other - self.start, how=how)


def path_patch(
    model: Model,
    pairs: PairBatch,
    sender: str,
    *,
    channels: Sequence[Channel] = ("q", "k", "v"),
    span: str | None = None,
    through_mlps: bool = False,
    direction: Direction = "noise",
    columns: By | None = "all",
    rows: int = 64,
    progress: Progress = silent,
) -> Paths:
    """All paths from a sender ("z.9.6", a head, or "mlp_out.3") to every later receiver and to the logits.

    `direction` says which run is patched into, as in `patch_grid`; `columns` are the receiver's positions. Cost: three
    forwards, and a forward a receiver and column from its block on.

    Raises SiteError or FamilyError for a sender the model does not have or a family without q, k, v, ReadingError for a
    site that is no sender, for a span the pairs do not have, and for a channel there is not.
    """
    if direction not in ("denoise", "noise"):
        raise ReadingError(f"there is no direction {direction!r}; there are: denoise, noise")
    if not channels or (unknown := [channel for channel in channels if channel not in ("q", "k", "v")]):
        raise ReadingError(f"a path enters a head by q, k or v, not by {unknown[0] if channels else 'nothing'!r}")
    site = _sender(model, sender)
    assert site.layer is not None
    pairs = pairs.to(model.device)
    if span is not None and span not in pairs.clean.spans:
        raise ReadingError(f"the pairs have no span {span!r}; they have: {', '.join(pairs.clean.spans) or 'none'}")
    layers = tuple(layer for layer in model.site_layers["q"] if layer > site.layer)
    names = columns_of(pairs.clean, columns).names
    metric_fn = metric_of(pairs.metric)
    found: dict[str, list[np.ndarray]] = {channel: [] for channel in channels}
    ends: dict[str, list[np.ndarray]] = {"logits": [], "start": [], "other": []}
    size = min(rows, pairs.n)
    done, in_all = 0, max(1, len(layers)) * len(channels) * -(-pairs.n // size)
    for begin in range(0, pairs.n, size):
        chunk = pairs[begin : begin + size]
        into, other = (chunk.counterfactual, chunk.clean)[:: 1 if direction == "denoise" else -1]
        given = model.run(other, read=[str(Site(site.name, site.layer))])
        seen = _seen(model, into, site, given, span, layers, channels, through_mlps)
        engine = Rows.of(model, chunk, into, layers, rows=rows)
        where = columns_of(into, columns).where & _reached(chunk, span)
        for channel in channels:
            heads = model.heads["query" if channel == "q" else "kv"]
            here = [np.empty((0, heads, len(where), chunk.n))]
            for layer in layers:
                here.append(engine.grid(channel, layer, seen[f"{channel}.{layer}"][None], where, heads)[None])
                done += 1
                progress("paths", done, in_all)
            found[channel].append(np.concatenate(here))
        for name, run in (("logits", seen), ("other", given)):
            assert run.logits is not None
            ends[name].append(metric_fn(run.logits, chunk).double().cpu().numpy())
        ends["start"].append(engine.start)
    values = {name: np.concatenate(parts) for name, parts in ends.items()}
    grids = {
        channel: Grid(
            site=channel,
            layers=layers,
            heads=model.heads["query" if channel == "q" else "kv"],
            columns=names,
            direction=direction,
            source="run",
            exact=True,
            metric=np.concatenate(parts, axis=-1),
            start=values["start"],
            other=values["other"],
        )
        for channel, parts in found.items()
    }
    return Paths(sender=str(site), span=span, through_mlps=through_mlps, grids=grids, **values)


def _sender(model: Model, sender: str) -> Site:
    site, any_layer, any_head = parse(sender)
    if (
        any_layer
        or any_head
        or site.position is not None
        or (site.name, site.head is None)
        not in (
            ("z", False),
            ("mlp_out", True),
        )
    ):
        raise ReadingError(f"{sender!r} is no sender of a path; give one head, as 'z.9.6', or one MLP, as 'mlp_out.3'")
    plan_sites(model, [site, "q.*"])
    return site


def _reached(pairs: PairBatch, span: str | None) -> Bool[Tensor, "batch pos"]:
    """Tokens from the first one on at which the sender is replaced and the two runs differ: before it nothing can change
    in a causal model, so patches there are left out (and the rows are shorter)."""
    two = pairs.clean, pairs.counterfactual
    differ = (two[0].ids != two[1].ids).cummax(dim=1).values & two[0].mask
    return (differ & _sent(two[0], span)).cummax(dim=1).values


def _sent(batch: Batch, span: str | None) -> Bool[Tensor, "batch pos"]:
    """The tokens at which the sender is replaced."""
    return batch.mask if span is None else columns_of(batch, "spans").where[list(batch.spans).index(span)]


def _seen(
    model: Model,
    into: Batch,
    sender: Site,
    given: Run,
    span: str | None,
    layers: Sequence[int],
    channels: Sequence[Channel],
    through_mlps: bool,
) -> Run:
    """The run with the sender replaced and everything after it frozen: every receiver's q, k, v, and the logits."""
    assert sender.layer is not None
    frozen = [f"attn_out.{layer}" for layer in model.site_layers["attn_out"] if layer > sender.layer]
    if not through_mlps:
        first = sender.layer + (sender.name == "mlp_out")
        frozen += [f"mlp_out.{layer}" for layer in model.site_layers["mlp_out"] if layer >= first]
    own = model.run(into, read=frozen, logits=None) if frozen else None
    where = _sent(into, span)
    whole = str(Site(sender.name, sender.layer))
    edits: list[Edit] = [Patch(name, own[name]) for name in frozen] if own else []
    edits.append(Call(whole, _Replaced(given[whole], where, sender.head)))
    return model.run(into, read=[f"{channel}.{layer}" for channel in channels for layer in layers], edit=edits)


@dataclass(frozen=True, eq=False)
class _Replaced:
    """The sender's output of the other run at some tokens, for one head or all there is."""

    given: Float[Tensor, "batch pos *rest"]
    where: Tensor
    head: int | None

    def __call__(self, value: Tensor) -> Tensor:
        if self.head is None:
            return torch.where(self.where[..., None], self.given, value)
        value = value.clone()
        value[:, :, self.head] = torch.where(self.where[..., None], self.given[:, :, self.head], value[:, :, self.head])
        return value
