"""Where a command is: bars with an ETA on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from caseback.core.progress import Progress

__all__ = ["progress"]

PAUSE = 5.0
"""Seconds between two plain lines of one stage."""


@contextmanager
def progress() -> Iterator[Progress]:
    """The progress of one command, to be passed to what it calls.

    >>> with progress() as tick:
    ...     tick("score", 1, 4)
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        stages: dict[str, int] = {}

        def tick(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield tick


class _Lines:
    """A line when a stage begins, when it ends, and every few seconds between."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, int]] = {}
        self.said = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        first = stage not in self.began
        start, offset = self.began.setdefault(stage, (now, done))
        if not first and done < total and now - self.said < PAUSE:
            return
        self.said = now
        spent, steps = now - start, done - offset
        left = f", {spent / steps * (total - done):.0f} s left" if steps > 0 and done < total else ""
        line = f"{stage}: {done}/{total}" + ("" if first else f", {spent:.0f} s{left}")
        print(line, file=sys.stderr, flush=True)
