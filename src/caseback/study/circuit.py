"""The circuit study as a method of the casebook: from a task's name and a model's name to a record that can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from caseback.circuits.describe import describe
from caseback.circuits.discover import DiscoverConfig, discover
from caseback.circuits.graph import Circuit, Graph, Scores
from caseback.circuits.parts import require
from caseback.circuits.select import best_first, largest, top_n
from caseback.core.errors import CircuitError, StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.model.load import load
from caseback.model.load import look as look_at_model
from caseback.model.model import Model
from caseback.study.resume import RunFolder
from caseback.study.spec import Spec
from caseback.study.store import Record, Study
from caseback.tasks import Task, read_task
from caseback.tasks.files import look_at_pairs

__all__ = ["METHOD", "CircuitConfig", "Kept", "circuit_of", "circuit_spec", "data_hash", "headline"]


@dataclass(frozen=True, kw_only=True)
class CircuitConfig:
    """The edges that carry a task's answer: scored and chosen on one half of the pairs, measured on the other.

    Holds all a resumed run needs to begin where it stopped.
    """

    task: str
    """A library task's name, or a file of pairs."""
    n: int | None = None
    """Pairs, both splits together; None: all of a file, the library's default otherwise."""
    seed: int = 0
    """Of the task's generator."""
    model: str | None = None
    """Hub repository, folder or .gguf file; None: the default model."""
    dtype: str = "float32"
    device: str = "cpu"
    schema: str | None = None
    """A schema file whose spans replace the task's; "none" ignores positions, "tokens" makes every token position a span."""
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
    """How edges are scored, chosen and measured; the seed is that of the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "discover", replace(self.discover, seed=self.seed))

    def look(self) -> None:
        """Raise, in a sentence, what can be told before a model is loaded."""
        look_at_model(self.model)
        look_at_pairs(self.task, self.n)

    def load_model(self, progress: Progress) -> Model:
        return load(self.model, dtype=self.dtype, device=self.device, progress=progress)

    def read_task(self, model: Model) -> Task:
        """The task with the spans this study asks for."""
        from caseback.tasks.respan import respan

        return respan(read_task(self.task, n=self.n, seed=self.seed, model=model), self.schema, model)


def data_hash(task: Task) -> str:
    """SHA-256 of the pairs, their spans and their split, wherever they were read from."""
    return sha256_json([{name: value for name, value in asdict(pair).items() if name != "row"} for pair in task.pairs])


def circuit_spec(config: CircuitConfig, model: Model, task: Task, *, passed: Mapping[str, Any]) -> Spec:
    """What makes this study the same as another: configuration, model files, pairs."""
    return Spec.of("circuit", config, task=task.name, model=asdict(model.source), data=data_hash(task), passed=passed)


@dataclass(frozen=True)
class Kept:
    """The circuit of a run at some size."""

    circuit: Circuit
    scores: Scores
    limit: int
    """Edges it was allowed at most."""


def circuit_of(record: Record, edges: int | None = None) -> Kept:
    """The circuit of a finished circuit run with at most `edges` edges (default: the size its page opens with).

    Raises StudyError for a run of another method, CircuitError where no circuit is so small.
    """
    if record.spec.method != "circuit":
        raise StudyError(f"run {record.id} is of the method {record.spec.method!r}; only a circuit run holds a circuit")
    limit = edges or int(record.details["chosen"]["edges"])
    config = record.spec.config(CircuitConfig).discover
    view, sums = record.stage("view").data, record.stage("score").arrays
    n = len(sums["lengths"])
    scores = Scores(
        graph=Graph.from_json(view["graph"]),
        residual=(sums["residual"] / n).astype(np.float32),
        crossing=(sums["crossing"] / n).astype(np.float32),
        lengths=sums["lengths"],
        method={"name": view["settings"]["scores"], "metric": view["task"]["metric"]}
        | {"reference": config.reference, "steps": config.steps},
    )
    select = best_first if config.selection == "best-first" else top_n
    ranking = select(scores, merge=config.merge, sign=config.sign)
    circuit = largest(ranking, lambda each: float(each.n_edges), float(limit))
    if not circuit.n_edges:
        raise CircuitError(f"no circuit of at most {limit} edges leads from the embedding to the logits; ask for more")
    return Kept(circuit, scores, limit)


def headline(table: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """What the chosen circuit keeps, and what its controls do."""
    i = table["sizes"].index(details["chosen"]["edges"])
    mine, random, agnostic = (
        f"{round(table[name][i], 2) + 0.0:.0%}" for name in ("faithfulness", "random", "agnostic")
    )
    return (
        f"{table['sizes'][i]:,} of {table['sizes'][-1]:,} edges keep {mine} of the answer on held-out prompts; "
        f"as many random edges keep {random}, as many without positions {agnostic}."
    )


class _Circuit:
    name = "circuit"
    Config = CircuitConfig

    def prepare(
        self, config: Any, study: Study, *, passed: Mapping[str, Any], progress: Progress, model: Model | None = None
    ) -> tuple[Spec, dict[str, Any]]:
        """The spec of a config, its model and its task."""
        config.look()
        model = model or config.load_model(progress)
        require(model)  # before its tokenizer is asked for anything
        task = config.read_task(model)
        return circuit_spec(config, model, task, passed=passed), {"model": model, "task": task}

    def run(self, config: CircuitConfig, run: RunFolder, progress: Progress) -> None:
        """check → score → select → choose → evaluate → minimality → patch → view, each stage saved."""
        model: Model = run.have.get("model") or config.load_model(progress)
        task: Task = run.have.get("task") or config.read_task(model)
        run.confirm(model=asdict(model.source), data=data_hash(task))
        found = discover(model, task, config.discover, stages=run, progress=progress)
        view = run.stage("view", lambda: describe(found))
        about = found.about
        table = {"model": about.model, "task": about.task, "n": about.n, "accuracy": about.accuracy, **found.table()}
        run.write_result(
            table,
            details={
                "chosen": view.data["chosen"],
                "areas": view.data["areas"],
                "validation": {k: v for k, v in view.data["validation"].items() if k != "sample"},
            },
        )


METHOD = _Circuit()
