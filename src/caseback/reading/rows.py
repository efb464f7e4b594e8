"""Many patches of one run as rows of one batch, computing only what a patch can change.

A patch at layer l changes nothing before block l: that stream is stored and put in. In a causal model it changes nothing
before its first token either: those tokens' keys and values are stored, and the rows hold the tokens from there on. On
a grid of layers × positions this leaves a quarter of the work. Families whose attention is not the registered one, or
that take no position ids, run whole prompts.

Invariant: the same numbers as one run with one edit (tests/reading/test_patching.py holds every family to it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.model.attention import AttentionCall
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import Start, accepts, execute
from caseback.model.taps import ATTENTION_SITES, Key, Tap
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of

__all__ = ["Patches", "Rows"]

ENOUGH = 128
"""Tokens a forward should have before it is cheaper to start another one with fewer tokens a row."""


@dataclass(frozen=True)
class Patches:
    """Some patches of one site and layer."""

    site: str
    source: Float[Tensor, "_ *rest"]
    """What is put in, like the site's value: one for each patch, or one for all."""
    where: Bool[Tensor, "patch batch pos"]
    heads: Int[Tensor, "patch"] | None
    """The head of each patch; None: all there is."""

    def put(self, value: Tensor) -> Tensor:
        """The source where a patch says so, the value elsewhere; rows are patch by patch."""
        pattern = self.site == "pattern"
        value = value.unflatten(0, self.where.shape[:2])
        mask = self.where[:, :, None] if pattern else self.where  # [patch, batch, (head,) pos]
        if self.heads is not None:
            chosen = torch.arange(value.shape[2 if pattern else 3], device=value.device) == self.heads[:, None]
            mask = mask & chosen[:, None, :, None] if pattern else mask[..., None] & chosen[:, None, None]
        return torch.where(mask[..., None], self.source.to(value), value).flatten(0, 1)

    def after(self, first: int) -> Patches:
        """The same for rows that begin at token `first`."""
        source = self.source
        if source.dim() > 1:
            axis = 3 if self.site == "pattern" else 2
            source = source if source.shape[axis] == 1 else source.narrow(axis, first, source.shape[axis] - first)
        return replace(self, source=source, where=self.where[..., first:])


@dataclass(frozen=True)
class Rows:
    """A run, kept so that patches of it are cheap."""

    model: Model
    pairs: PairBatch
    batch: Batch
    """The run patched into."""
    streams: Mapping[int, Float[Tensor, "batch pos d_model"]]
    keys: Mapping[int, tuple[Tensor, Tensor, Tensor]]
    """Layer → keys, values [batch, kv_head, pos, dim] and mask; empty where prompts are run whole."""
    start: Float[np.ndarray, "example"]
    """Its metric."""
    rows: int
    """Sequences run at a time."""

    @staticmethod
    def of(model: Model, pairs: PairBatch, batch: Batch, layers: Sequence[int], *, rows: int) -> Rows:
        """Run the batch once and keep what patches at these layers need."""
        streams: dict[int, Tensor] = {}
        keys: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        whole = (
            model.family.attention != "registered"
            or len(model.site_layers["q"]) < model.n_layers
            or not accepts(model, "position_ids")
        )
        logits = execute(
            model,
            batch,
            {("resid_pre", layer): partial(_keep, streams, layer) for layer in layers},
            attend=None if whole else partial(_recorded, keys),
        )
        assert logits is not None
        start = metric_of(pairs.metric)(logits, pairs).double().cpu().numpy()
        return Rows(model, pairs, batch, streams, keys if len(keys) == model.n_layers else {}, start, rows)

    def grid(
        self, site: str, layer: int, source: Tensor, where: Bool[Tensor, "column batch pos"], heads: int | None
    ) -> Float[np.ndarray, "head column example"]:
        """The metric with `source` ([1 or column, …]) put in at each head (or all there is) and column."""
        n_heads, n_columns = heads or 1, len(where)
        head, column = (torch.tensor(x.ravel(), device=where.device) for x in np.indices((n_heads, n_columns)))
        first = _first(where)[column]
        found = np.empty((n_heads * n_columns, self.batch.n))
        for some in self._batches(first):
            values = source if len(source) == 1 else source[column[some]]
            patches = Patches(site, values, where[column[some]], None if heads is None else head[some])
            found[some.cpu().numpy()] = self.run(layer, patches, int(first[some].min()))
        return found.reshape(n_heads, n_columns, -1)

    def _batches(self, first: Int[Tensor, "patch"]) -> Iterator[Int[Tensor, "patch"]]:
        """Patches that begin at about the same token, so that few tokens are run in vain; at most `rows` rows each."""
        order = first.argsort(stable=True)
        begins = first[order].tolist() if self.keys else [0] * len(order)
        n, width = self.batch.ids.shape
        at_once, start = max(1, self.rows // n), 0
        for end in range(1, len(order) + 1):
            full = end - start == at_once or end == len(order)
            enough = (end - start) * n * (width - begins[start]) >= ENOUGH
            if full or (enough and begins[end] != begins[end - 1]):
                yield order[start:end]
                start = end

    def run(self, layer: int, patches: Patches, first: int = 0) -> Float[np.ndarray, "patch example"]:
        """The metric under each patch, none of which is before token `first`."""
        first = min(first, int(self.batch.last.min())) if self.keys else 0
        n, patches = len(patches.where), patches.after(first)
        many = Batch(self.batch.ids[:, first:].repeat(n, 1), self.batch.mask[:, first:].repeat(n, 1))
        stream = Start(layer, self.streams[layer][:, first:].repeat(n, 1, 1))
        with self._positions(n, first):
            if self.keys:
                inside = patches.site in ATTENTION_SITES
                attend = partial(self._attend, patches if inside else None, layer, n, first)
                taps: dict[Key, Tap] = {} if inside else {(patches.site, layer): patches.put}
                logits = execute(self.model, many, taps, start=stream, attend=attend)
            else:
                logits = execute(self.model, many, {(patches.site, layer): patches.put}, start=stream)
        assert logits is not None
        pairs = self.pairs
        answers, foils = pairs.answers.repeat(n, 1), pairs.foils.repeat(n, 1)
        found = metric_of(pairs.metric)(logits, PairBatch(many, many, answers, foils, pairs.metric))
        return found.double().cpu().numpy().reshape(n, -1)

    @contextmanager
    def _positions(self, n: int, first: int) -> Iterator[None]:
        """Tell the model which positions the tokens have that are left."""
        if first == 0:
            yield
            return
        given = self.model.arguments(self.batch).get("position_ids")
        if given is None:
            given = torch.arange(self.batch.ids.shape[1], device=self.batch.ids.device).expand_as(self.batch.ids)
        positions = given[:, first:].repeat(n, 1)
        self.model.block_output  # noqa: B018 - found by a run of its own, which these positions do not fit
        with self.model.lock:
            hook = partial(_with_positions, positions)
            handle = self.model.hf.register_forward_pre_hook(hook, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

    def _attend(
        self, patches: Patches | None, layer: int, n: int, first: int, call: AttentionCall
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the tokens that are left to all tokens, with the patch where it lies inside attention."""
        q, k, v = call.q, call.k, call.v
        here = patches if patches is not None and call.layer == layer else None
        if here is not None and here.site != "pattern":
            given = {"q": q, "k": k, "v": v}
            given[here.site] = here.put(given[here.site].transpose(1, 2)).transpose(1, 2)
            q, k, v = given.values()
        old_k, old_v, mask = self.keys[call.layer]
        k, v = (torch.cat([old[:, :, :first].repeat(n, 1, 1, 1), new], dim=2) for old, new in ((old_k, k), (old_v, v)))
        whole = replace(call, mask=mask[:, :, first:].expand(self.batch.n, -1, -1, -1).repeat(n, 1, 1, 1))
        z, pattern = whole.eager(q, k, v)
        if here is not None and here.site == "pattern":
            pattern = here.put(pattern)
            group = pattern.shape[1] // v.shape[1]
            z = (pattern.to(v.dtype) @ v.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous()
        return z, pattern


def _first(where: Bool[Tensor, "column batch pos"]) -> Int[Tensor, "column"]:
    """The first token of each column in any row; the last of all where it has none."""
    anywhere = where.any(dim=1)
    return torch.where(anywhere.any(dim=1), anywhere.long().argmax(dim=1), where.shape[2] - 1)


def _keep(streams: dict[int, Tensor], layer: int, value: Tensor) -> Tensor:
    streams[layer] = value.clone()
    return value


def _recorded(keys: dict[int, tuple[Tensor, Tensor, Tensor]], call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    if call.mask is not None and call.mask.shape[-2:] == (call.q.shape[2], call.k.shape[2]):
        keys[call.layer] = call.k, call.v, call.mask
    return call.eager(call.q, call.k, call.v)


def _with_positions(positions: Tensor, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args, kwargs | {"position_ids": positions}
