"""A command that looks at a model: its config is made, the model loaded, the run carried out and said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caseback.cli.progress import progress
from caseback.cli.say import say

if TYPE_CHECKING:
    from caseback.study.finding import Looking

__all__ = ["carry_out"]


def carry_out(looking: Looking, asked: dict[str, Any], own: dict[str, Any]) -> None:
    """Carry out a reading as a run: `asked` holds the command's arguments, `own` those of its config alone. Relations whose
    operators it uses are judged first."""
    from caseback.study import Study

    common = {name: asked[name] for name in ("model", "seed", "dtype", "device", "twin") if name in asked}
    config = looking.Config(**common, **own)
    passed = {name: value for name, value in own.items() if isinstance(value, str | int | None)}
    with progress() as tick:
        record = Study(asked["out"]).ask(looking.name, config, passed=passed, progress=tick, force=asked["force"])
    say(record, as_json=asked["as_json"])
