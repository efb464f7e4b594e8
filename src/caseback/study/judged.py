"""Judged operators for the methods that use them: such a run names the relation runs whose operators it takes.

`cite` judges the relations that no run is named for, each as a run of the same study, and names them all; so a config
says whose operators it uses, nothing is judged twice, and a run that is resumed reads them where it read them before. A
run that was taken away, damaged, or is of another model or relation is refused in a sentence.

A relation is often judged best at the embedding. For uses that follow the fact through the model, `Judged.at` has the
operator of any layer, fitted anew on the same samples where it is not the one the run kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from caseback.core.errors import RelationError, StudyError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, Stages
from caseback.model.model import Model
from caseback.relations.causal import RANKS
from caseback.relations.cross import Operator
from caseback.relations.faithful import BETAS
from caseback.relations.judge import JudgeConfig, drawn, template_of
from caseback.relations.library import resolve
from caseback.relations.observe import Observed, observe
from caseback.relations.operator import fit
from caseback.relations.prompt import ask
from caseback.relations.relation import Relation, Sample
from caseback.study.finding import LookingConfig
from caseback.study.relation import RelationConfig
from caseback.study.resume import RunFolder
from caseback.study.spec import plain
from caseback.study.store import Study

__all__ = ["Judged", "UsesConfig", "cite", "judged", "known", "prompts_of", "read_judged", "refuse_twin"]


@dataclass(frozen=True, kw_only=True)
class UsesConfig(LookingConfig):
    """What a method that uses judged operators is told."""

    judged: tuple[str, ...] = ()
    """Ids of the relation runs whose operators are used, one a relation; none yet where they are still to be judged."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How operators are judged that no run in the study has judged yet; the seed is that of the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", replace(self.judge, seed=self.seed))

    @property
    def relations_used(self) -> tuple[str, ...]:
        """Names or files of the relations whose operators are used."""
        raise NotImplementedError

    def check(self, model: Model) -> None:
        """Refuse what this model cannot be asked, before any relation is judged for it."""

    def settled(self, study: Study, model: Model, progress: Progress) -> UsesConfig:
        """With a relation run for every operator it uses."""
        return cite(self, study, model, progress)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A relation's operator as its run left it."""

    run: str
    relation: Relation
    judge: JudgeConfig
    chosen: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    """The first split's (`caseback.relations.judge.Split`)."""

    @property
    def training(self) -> list[Sample]:
        """What the operator was estimated on."""
        return [self.relation.samples[i] for i in drawn(self.relation, self.judge)[0]]

    @property
    def middle(self) -> int:
        """The judged layer if it lies between a third and two thirds of the model; else the one there at which the
        operator was most faithful, all samples counted; of equals the lowest."""
        score, best = self.arrays["by_layer"].max(axis=1), int(self.chosen["layer"])
        first, last = len(score) // 3, min(2 * len(score) // 3, len(score) - 1)
        return best if first <= best <= last else first + int(score[first : last + 1].argmax())

    def rank(self, layer: int) -> int:
        """The rank whose edit succeeded most often at the edited layer nearest to this one; of equals the lowest."""
        near = int(np.abs(self.arrays["edit_layers"] - layer).argmin())
        success = self.arrays["edited"][near]
        if np.isnan(success).any():
            raise RelationError(
                f"nothing could be edited when {self.relation.name!r} was judged, so no rank is known to work"
            )
        return RANKS[int(success.argmax())]

    def operator(self, model: Model) -> Operator:
        """At the layer it was judged at."""
        return _operator(self.arrays, float(self.chosen["beta"]), int(self.chosen["layer"]), model)

    def at(self, layer: int, model: Model, stages: Stages, progress: Progress = silent) -> Operator:
        """At any layer, with the β most faithful there; a stage where it is not the layer that was judged best."""
        if not 0 <= layer < model.n_layers:
            raise RelationError(f"there is no operator at layer {layer}; there are 0 to {model.n_layers - 1}")
        if layer == self.chosen["layer"]:
            return self.operator(model)

        def fitted() -> Checkpoint:
            found = fit(
                model,
                self.training,
                template_of(self.relation, self.judge),
                shots=not self.judge.zero_shot,
                sketch=self.judge.sketch,
                seed=self.judge.seed,
                stages=stages,
            )
            parts = {"W": found.matrix(layer), "b": found.b[layer]}
            return Checkpoint({name: part.float().cpu().numpy() for name, part in parts.items()})

        beta = BETAS[int(self.arrays["by_layer"][layer].argmax())]
        return _operator(stages.stage("operator", fitted).arrays, beta, layer, model)

    def known(self, model: Model, progress: Progress = silent, *, stages: Stages | None = None) -> Observed:
        """The samples it was judged on."""
        return known(model, self.relation, self.judge, progress, stages=stages)


def known(
    model: Model, relation: Relation, judge: JudgeConfig, progress: Progress = silent, *, stages: Stages | None = None
) -> Observed:
    """The samples that count when a relation is judged, as the model is asked then (the first split)."""
    training, rest = ([relation.samples[i] for i in part] for part in drawn(relation, judge))
    examples = [] if judge.zero_shot else training
    found = observe(model, rest, template_of(relation, judge), examples, stages=stages, progress=progress)
    return found[np.flatnonzero(found.known)] if judge.known else found


def prompts_of(config: RelationConfig, model: Model) -> tuple[str, ...]:
    """Every prompt that a relation's judgement asks, of all its splits."""
    relation, how = resolve(config.relation), config.judged
    template, found = template_of(relation, how), []
    for split in range(config.splits):
        training, rest = ([relation.samples[i] for i in part] for part in drawn(relation, how, split))
        for sample in (*training, *rest):
            examples = [] if how.zero_shot else [one for one in training if one is not sample]
            found.append(ask(model, template, sample, examples).text)
    return tuple(found)


def refuse_twin(config: UsesConfig) -> None:
    """Raise RelationError where a use that needs knowledge is asked of a twin."""
    if config.twin:
        raise RelationError(
            "a model with random weights knows nothing, so there is nothing here to look for in it; the control is "
            "the operator's own random twin, which is always measured"
        )


Config = TypeVar("Config", bound=UsesConfig)


def cite(config: Config, study: Study, model: Model, progress: Progress = silent) -> Config:
    """The config with a relation run for every operator it uses; those it does not name are judged now."""
    if config.judged:
        return config
    config.check(model)
    ids = []
    for name in config.relations_used:
        same = {key: getattr(config, key) for key in ("judge", "model", "seed", "dtype", "device", "twin")}
        asked = RelationConfig(relation=name, **same)
        ids.append(study.ask("relation", asked, passed={"relation": name}, progress=progress, model=model).id)
    return replace(config, judged=tuple(ids))


def judged(config: UsesConfig, run: RunFolder, model: Model, progress: Progress = silent) -> tuple[Judged, ...]:
    """The operators a run uses, in the order of its relations. Raises StudyError for a cited run that is not there, is not
    whole, or is not one of this model and relation."""
    study = Study(run.study)
    cited = cite(config, study, model, progress).judged
    if len(cited) != len(config.relations_used):
        raise StudyError(f"{len(cited)} runs are named for {len(config.relations_used)} relations; name one for each")
    return tuple(read_judged(study, id, name, model) for id, name in zip(cited, config.relations_used, strict=True))


def read_judged(study: Study, id: str, name: str, model: Model) -> Judged:
    """The operator of one run, which is of the relation of that name. Raises as `judged` does."""
    relation = resolve(name)
    what = f"run {id}, whose operator of {relation.name!r} is used,"
    anew = f"ask for {relation.name!r} anew"
    if id not in study.ids():
        raise StudyError(f"{what} is not in {study.path}; put its folder back, or {anew}")
    record = study.find(id)
    if record.spec.method != "relation":
        raise StudyError(f"{what} is of the method {record.spec.method!r}; name a relation run")
    if record.status != "finished":
        raise StudyError(f"{what} is {record.status}; `caseback resume {id}` makes it whole")
    if damage := record.damage():
        raise StudyError(f"{what} is damaged ({damage[0]}); `caseback resume {id}` makes it again")
    if record.spec.model.get("files") != plain(model.source.files):
        raise StudyError(f"{what} is of {record.spec.model.get('id')}, not of {model.name}; {anew}")
    config: RelationConfig = record.spec.config(RelationConfig)
    if record.spec.data != RelationConfig(relation=name).data():
        raise StudyError(
            f"{what} is of {config.relation!r} with other samples or templates than {name!r} has now; {anew}"
        )
    if config.judged.objects != "first":
        raise RelationError(f"{what} reads whole objects, and its uses know first tokens only; judge by first tokens")
    split = record.stage("split-0")
    return Judged(run=id, relation=relation, judge=config.judged, chosen=split.data["chosen"], arrays=split.arrays)


def _operator(parts: Mapping[str, np.ndarray], beta: float, layer: int, model: Model) -> Operator:
    W, b = (torch.from_numpy(np.array(parts[name])).to(model.hf.dtype).to(model.device) for name in "Wb")
    return Operator(W=W, b=b, beta=beta, layer=layer)
