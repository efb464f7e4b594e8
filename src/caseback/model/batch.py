"""A batch of token sequences with named spans: what a model is run on.

Rows are padded on the right unless said otherwise, so position p of a row is its p-th token. A span is a token range
[start, end) per row; it may be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Token ids, which of them are real, and where the named spans lie."""

    ids: Int[Tensor, "batch pos"]
    """Token ids; any id where `mask` is False."""
    mask: Bool[Tensor, "batch pos"]
    """True at real tokens."""
    spans: Mapping[str, Int[Tensor, "batch 2"]] = field(default_factory=dict)
    """Span name → token range [start, end) per row, in schema order."""

    @property
    def n(self) -> int:
        return self.ids.shape[0]

    @property
    def last(self) -> Int[Tensor, "batch"]:
        """Index of each row's last real token."""
        positions = torch.arange(self.ids.shape[1], device=self.ids.device)
        return torch.where(self.mask, positions, -1).amax(dim=1)

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Number of real tokens of each row."""
        return self.mask.sum(dim=1)

    def __getitem__(self, rows: slice | Sequence[int]) -> Batch:
        """The chosen rows, cut to the width they need."""
        ids, mask = self.ids[rows], self.mask[rows]
        used = mask.any(dim=0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 0
        spans = {name: ranges[rows] for name, ranges in self.spans.items()}
        return Batch(ids[:, :width], mask[:, :width], spans)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device), {k: v.to(device) for k, v in self.spans.items()})

    @staticmethod
    def pad(rows: Sequence[Sequence[int]], *, pad: int = 0, side: str = "right") -> Batch:
        """Token lists → one padded batch without spans."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, where] = torch.tensor(list(row), dtype=torch.long)
            mask[i, where] = True
        return Batch(ids, mask)
