"""Stages: how a long method says what can be saved, without knowing whether anything is.

A method computes through `stage` (one step) or `fold` (many steps, the state saved after each). In a study the run's
folder carries them out and a killed run goes on from the last step; called directly, `InMemory` just computes. A step
depends on nothing but the state and its number, so both give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from caseback.core.progress import Progress, silent

__all__ = ["Checkpoint", "InMemory", "Stages"]


@dataclass(frozen=True)
class Checkpoint:
    """What a stage leaves: arrays, and anything else as JSON (numbers that are not finite become None there; keep them
    in arrays)."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Stages(Protocol):
    """Where a method's stages are computed."""

    def stage(self, name: str, compute: Callable[[], Checkpoint]) -> Checkpoint:
        """The stage's state, computed unless it is there already."""
        ...

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        """The state after `steps` steps; `step(state, i)` gets None at i = 0."""
        ...


class InMemory:
    """Stages nobody saves."""

    def __init__(self, progress: Progress = silent):
        self._progress = progress

    def stage(self, name: str, compute: Callable[[], Checkpoint]) -> Checkpoint:
        return self.fold(name, 1, lambda state, i: compute())

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        state: Checkpoint | None = None
        for i in range(steps):
            self._progress(name, i, steps)
            state = step(state, i)
        self._progress(name, steps, steps)
        assert state is not None
        return state
