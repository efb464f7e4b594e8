"""The frame of every experiment: from a config to a record that can be resumed, with the finding in plain data.

Invariant: the stages hold all that took the model long, and what is made from them is arithmetic. So a resumed run ends
in the table of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from caseback.circuits.graph import Scores
from caseback.circuits.parts import graph_of, layers_of, require
from caseback.circuits.reference import Mean, Reference, mean_reference
from caseback.circuits.score import ScoreConfig, batches, score, span_names
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.model.load import load
from caseback.model.load import look as look_at_model
from caseback.model.model import Model
from caseback.study.circuit import data_hash
from caseback.study.finding import Finding, cell, payload, sheet
from caseback.study.resume import RunFolder
from caseback.study.spec import Spec
from caseback.study.store import Study
from caseback.tasks import PairBatch, Task, read_task
from caseback.tasks.files import look_at_pairs

__all__ = ["Experiment", "ExperimentConfig", "Finding", "cell", "mean_of", "renamed", "scored", "sheet"]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What every experiment is told."""

    task: str
    """A library task's name, or a file of pairs."""
    n: int | None = None
    """Pairs, both splits together; None: all of a file, the library's default otherwise."""
    model: str | None = None
    """Hub repository, folder or .gguf file; None: the default model."""
    reference: Reference = "counterfactual"
    """What a removed edge carries."""
    seed: int = 0
    """Of the task's generator, and of what is drawn."""
    dtype: str = "float32"
    device: str = "cpu"
    tokens: int = 320
    """Tokens processed at a time."""

    def look(self) -> None:
        """Raise, in a sentence, what can be told before a model is loaded."""
        look_at_model(self.model)
        look_at_pairs(self.task, self.n)

    def load_model(self, progress: Progress) -> Model:
        return load(self.model, dtype=self.dtype, device=self.device, progress=progress)

    def read_task(self, model: Model) -> Task:
        return read_task(self.task, n=self.n, seed=self.seed, model=model)

    def data(self, task: Task) -> str:
        """SHA-256 of all that is looked at beside the model."""
        return data_hash(task)


Find = Callable[[Any, Model, Task, Stages, Progress], Finding]


@dataclass(frozen=True)
class Experiment:
    """A method of the casebook around a function that finds something."""

    name: str
    Config: Any
    title: str
    find: Find = field(repr=False)

    def spec(self, config: ExperimentConfig, model: Model, task: Task, *, passed: Mapping[str, Any]) -> Spec:
        """What makes two runs the same: configuration, model files, pairs."""
        source, data = asdict(model.source), config.data(task)
        return Spec.of(self.name, config, task=task.name, model=source, data=data, passed=passed)

    def prepare(
        self, config: Any, study: Study, *, passed: Mapping[str, Any], progress: Progress, model: Model | None = None
    ) -> tuple[Spec, dict[str, Any]]:
        """The spec of a config, its model and its task."""
        config.look()
        model = model or config.load_model(progress)
        require(model)  # before its tokenizer is asked for anything
        task = config.read_task(model)
        return self.spec(config, model, task, passed=passed), {"model": model, "task": task}

    def run(self, config: ExperimentConfig, run: RunFolder, progress: Progress) -> None:
        """Check the task, find, save what a page needs, end with the table."""
        model: Model = run.have.get("model") or config.load_model(progress)
        task: Task = run.have.get("task") or config.read_task(model)
        run.confirm(model=asdict(model.source), data=config.data(task))
        require(model)
        check = task.check(model, progress=progress)  # asked again by a resumed run: one forward a pair
        found = self.find(config, model, check.task, run, progress)
        about = {"n": task.n, "kept": check.task.n, "accuracy": check.accuracy}
        told = {"name": task.name, "description": task.description, "metric": task.metric, **about}
        told |= {"measured": found.measured, "dropped": dict(check.dropped)}
        view = payload(f"{self.title}: {task.name} in {model.name}", model, told, found, asdict(config))
        run.stage("view", lambda: Checkpoint(data=view))
        run.write_result({"model": model.name, "task": task.name, **about, **found.table})


def mean_of(model: Model, pairs: PairBatch, how: ScoreConfig) -> Mean | None:
    """The means over some pairs that the "mean" reference takes; None for the other references."""
    if how.reference != "mean":
        return None
    return mean_reference(model, layers_of(model), batches(pairs, how.tokens), span_names(pairs))


def scored(
    stage: str,
    model: Model,
    pairs: PairBatch,
    how: ScoreConfig,
    mean: Mean | None,
    stages: Stages,
    progress: Progress,
) -> Scores:
    """The scores of some pairs, read from the stage where it is saved."""

    def compute() -> Checkpoint:
        found = score(model, pairs, how, mean=mean, progress=renamed(progress, stage))
        return Checkpoint(found.to_arrays(), {"method": dict(found.method)})

    saved = stages.stage(stage, compute)
    return Scores.from_arrays(graph_of(model, span_names(pairs)), saved.arrays, saved.data["method"])


def renamed(progress: Progress, name: str, *, before: int = 0, of: int | None = None) -> Progress:
    """The same progress under a stage's name, as a part of `of` steps that begins after `before`."""

    def watch(stage: str, done: int, total: int) -> None:
        progress(name, before + done, total if of is None else of)

    return watch
