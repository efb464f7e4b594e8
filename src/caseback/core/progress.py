"""How a long computation says where it is: a function of (stage, done, total). Methods call it and print nothing themselves."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "silent"]


@runtime_checkable
class Progress(Protocol):
    """Called with the stage's name, the steps done and the steps in all; `done == total` ends the stage."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """The progress nobody watches."""
