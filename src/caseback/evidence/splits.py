"""Find on one part, measure on another: seeded, disjoint, deterministic splits.

Items with the same key (the same prompt, the same name) go to the same part, so nothing measured was seen when it was
found.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int

from caseback.core.errors import CasebackError

__all__ = ["split"]


def split(
    keys: Sequence[Hashable], *, shares: Sequence[float] = (0.5, 0.5), seed: int
) -> tuple[Int[np.ndarray, _], ...]:
    """Indices of each part, ascending: disjoint, together all of `keys`, and no key in two parts.

    Parts are filled key by key in a seeded order, each as near as it gets to its share of the items; shares sum to 1. A
    part that would be empty is refused, because a number measured on it would mean nothing.

    >>> split(["a", "b", "a", "c"], seed=0)
    (array([0, 2, 3]), array([1]))
    """
    if any(share <= 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise CasebackError(f"the shares of a split are positive and sum to 1, got {tuple(shares)}")
    rows: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    groups = list(rows.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.rint(np.cumsum(shares) * len(keys)).astype(int)
    parts: list[list[int]] = [[] for _ in shares]
    part = filled = 0
    for group in order:
        size = len(groups[group])
        if part < len(parts) - 1 and parts[part] and filled + size / 2 > ends[part]:
            part += 1
        parts[part] += groups[group]
        filled += size
    if not all(parts):
        raise CasebackError(
            f"{len(keys)} items with {len(groups)} different keys cannot fill parts of {tuple(shares)}; "
            "give more items or fewer parts"
        )
    return tuple(np.array(sorted(part_rows), dtype=np.int64) for part_rows in parts)
