"""What a method found, as plain data that the terminal, the page and the record share.

A finding is a claim in one sentence, a flat table for tools, and sections of curves, heat maps and tables for readers.
`Looking` is a method around a function that makes one of a model and a config; `study.experiments` has another for those
that ask a task's pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint
from caseback.evidence import Interval
from caseback.model.load import load
from caseback.model.load import look as look_at_model
from caseback.model.model import Model
from caseback.study.resume import RunFolder
from caseback.study.spec import Spec

if TYPE_CHECKING:
    from caseback.study.store import Study

__all__ = ["Finding", "Looking", "LookingConfig", "cell", "heat", "line", "payload", "sheet"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a method found, as plain data."""

    claim: str
    """One sentence."""
    table: Mapping[str, Any]
    """Numbers and parallel lists, for tools."""
    sections: Sequence[Mapping[str, Any]]
    """For readers; the schema is in `show.experiments`."""
    notes: Sequence[str]
    """How it was measured and what it does not say."""
    measured: int
    """Pairs, samples or prompts behind the numbers."""


@dataclass(frozen=True, kw_only=True)
class LookingConfig:
    """What every method that looks at a model is told."""

    model: str | None = None
    """Hub repository, folder or .gguf file; None: the default model."""
    seed: int = 0
    """Of all that is drawn."""
    dtype: str = "float32"
    device: str = "cpu"
    twin: bool = False
    """Look at the model's twin with random weights instead: the control."""

    def load_model(self, progress: Progress) -> Model:
        """The model that is looked at."""
        model = load(self.model, dtype=self.dtype, device=self.device, progress=progress)
        if self.twin:
            from caseback.model.twin import random_twin

            return random_twin(model, seed=self.seed)
        return model

    def look(self) -> None:
        """Raise, in a sentence, what can be told before a model is loaded: files and names that are not there, too few of
        something."""
        look_at_model(self.model)
        self.data()

    @property
    def label(self) -> str:
        """What is looked at, for a table of runs."""
        raise NotImplementedError

    def data(self) -> str | None:
        """SHA-256 of the texts that are looked at; None where the config says it all."""
        return None

    def settled(self, study: Study, model: Model, progress: Progress) -> LookingConfig:
        """The config with the runs it builds on named; those that are not there yet are made."""
        return self


Find = Callable[[Any, Model, RunFolder, Progress], Finding]


@dataclass(frozen=True)
class Looking:
    """A method of the casebook around a function that looks at a model."""

    name: str
    Config: Any
    title: str
    find: Find = field(repr=False)

    def spec(self, config: Any, model: Model, *, passed: Mapping[str, Any]) -> Spec:
        """What makes two runs the same: configuration, model files, texts."""
        return Spec.of(
            self.name, config, task=config.label, model=asdict(model.source), data=config.data(), passed=passed
        )

    def prepare(
        self, config: Any, study: Study, *, passed: Mapping[str, Any], progress: Progress, model: Model | None = None
    ) -> tuple[Spec, dict[str, Any]]:
        """The spec of a config, and the model."""
        config.look()
        model = model or config.load_model(progress)
        config = config.settled(study, model, progress)
        return self.spec(config, model, passed=passed), {"model": model}

    def run(self, config: Any, run: RunFolder, progress: Progress) -> None:
        """Look, save what a page needs, end with the table."""
        model: Model = run.have.get("model") or config.load_model(progress)
        run.confirm(model=asdict(model.source), data=config.data())
        found = self.find(config, model, run, progress)
        task = {"name": config.label, "description": "", "metric": "", "measured": found.measured}
        view = payload(f"{self.title}: {config.label} in {model.name}", model, task, found, asdict(config))
        run.stage("view", lambda: Checkpoint(data=view))
        run.write_result({"model": model.name, "task": config.label, **found.table})


def payload(
    title: str, model: Model, task: Mapping[str, Any], found: Finding, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a page is drawn from (`show.experiments`)."""
    return {
        "kind": "experiment",
        "version": 1,
        "title": title,
        "claim": found.claim,
        "model": {"id": model.name, "revision": model.source.revision},
        "task": dict(task),
        "sections": list(found.sections),
        "settings": {**settings, "model_files": dict(model.source.files)},
        "notes": list(found.notes),
    }


def sheet(columns: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A table: columns as "kind name, kind name"; a cell that is a list is a value with its interval."""
    named = [column.strip().split(" ", 1) for column in columns.split(",")]
    return {"columns": [{"kind": kind, "name": name} for kind, name in named], "rows": [list(row) for row in rows]}


def cell(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]


def line(name: str, look: str, x: Iterable[Any], y: Iterable[Any]) -> dict[str, Any]:
    """A line of a curve."""
    return {"name": name, "look": look, "x": [float(v) for v in x], "y": [float(v) for v in y]}


def heat(
    x: tuple[str, Sequence[str]],
    y: tuple[str, Sequence[str]],
    values: Any,
    *,
    format: str = "number",
    scale: str = "sequential",
    texts: Sequence[Sequence[str]] | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """A heat map: each axis a name and its labels, values [y, x]."""
    axes = {name: {"name": axis[0], "labels": list(axis[1])} for name, axis in (("x", x), ("y", y))}
    cells = {"values": [[float(v) for v in row] for row in values], "format": format, "scale": scale}
    return (
        {**axes, **cells}
        | ({"texts": [list(row) for row in texts]} if texts else {})
        | ({"note": note} if note else {})
    )
