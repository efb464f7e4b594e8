"""Cross-evaluation as a run: every relation's operator on the subjects of every other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from caseback.core.errors import RelationError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.model.model import Model
from caseback.relations.cross import Operator, cross_evaluate
from caseback.relations.judge import JudgeConfig, judge_split, template_of
from caseback.relations.library import resolve
from caseback.relations.observe import Observed, draw, observe
from caseback.study.finding import Finding, Looking, LookingConfig, heat, sheet

__all__ = ["CROSS", "CrossConfig", "cross"]


@dataclass(frozen=True, kw_only=True)
class CrossConfig(LookingConfig):
    """Which relations."""

    relations: tuple[str, ...]
    """Library relations' names, or files; at least two."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if len(set(self.relations)) < 2:
            raise RelationError("a cross-evaluation needs at least two different relations")

    @property
    def label(self) -> str:
        return f"{len(self.relations)} relations"

    def data(self) -> str:
        """SHA-256 of the relations."""
        return sha256_json([asdict(resolve(name)) for name in self.relations])


def cross(config: CrossConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Judge every relation unless `have["splits"]` brings its finished run's first split, then apply each operator to all
    subjects."""
    given = getattr(stages, "have", {}).get("splits", {})
    operators: dict[str, Operator] = {}
    seen: dict[str, Observed] = {}
    names = [resolve(name).name for name in config.relations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RelationError(f"two of the relations are called {twice[0]!r}; name them apart")
    for i, name in enumerate(config.relations):
        relation = resolve(name)

        def judged(name: str = name) -> Checkpoint:
            if name in given:
                kept = given[name]
                return Checkpoint({key: kept.arrays[key] for key in "Wb"}, {"chosen": kept.data["chosen"]})
            found = judge_split(model, resolve(name), config.judge, progress=progress)
            return Checkpoint({key: found.arrays[key] for key in "Wb"}, {"chosen": found.chosen})

        saved = stages.stage(f"operator-{i}", judged)
        W, b = (torch.from_numpy(np.array(saved.arrays[key])).to(model.hf.dtype).to(model.device) for key in "Wb")
        chosen = saved.data["chosen"]
        operators[relation.name] = Operator(W=W, b=b, beta=float(chosen["beta"]), layer=int(chosen["layer"]))
        training, rest = draw(relation.samples, config.judge.train, seed=config.judge.seed)
        examples = [] if config.judge.zero_shot else [relation.samples[j] for j in training]
        asked = observe(
            model, [relation.samples[j] for j in rest], template_of(relation, config.judge), examples, progress=progress
        )
        seen[relation.name] = asked[np.flatnonzero(asked.known)]

    def evaluated() -> Checkpoint:
        found = cross_evaluate(model, operators, seen, seed=config.seed)
        names = ("right", "twin", "bias", "own", "asked", "majority", "n")
        return Checkpoint({name: getattr(found, name) for name in names})

    a = stages.stage("matrix", evaluated).arrays
    axes = (("subjects of", names), ("operator of", names))
    n = len(names)
    off = ~np.eye(n, dtype=bool)
    rows = [
        [
            name,
            *(float(v) for v in (a["right"][i, i], a["right"][i][off[i]].max(), a["asked"][i][off[i]].max())),
            names[int(np.where(off[i], a["asked"][i], -1).argmax())],
            float(a["majority"][i]),
        ]
        for i, name in enumerate(names)
    ]
    claim = (
        f"On the subjects they were chosen on the operators give the model's answer in {np.diag(a['right']).mean():.0%}, on the "
        f"subjects of other relations in {a['right'][off].mean():.0%} (bias alone {a['bias'][off].mean():.0%}, a random operator of "
        f"the same spectrum {a['twin'][off].mean():.0%})."
    )
    sections = [
        {
            "title": "The model's answer",
            "text": "Share of B's known subjects (columns) for which A's operator (rows) gives the token the model gives when asked "
            "for B. The diagonal was chosen on the same subjects and flatters.",
            "heat": heat(*axes, a["right"], format="percent"),
            "table": sheet(
                "text operator of, percent own subjects, percent best other, percent most answers of the other's kind, "
                "text which, percent majority",
                rows,
            ),
        },
        {
            "title": "An answer of the other's kind",
            "text": "Share for which A's operator gives a token that is B's answer for some subject: high off the diagonal means "
            "that the operator reads a property the two share, not its relation.",
            "heat": heat(*axes, a["asked"], format="percent"),
        },
        {
            "title": "An answer of its own kind",
            "text": "Share for which A's operator gives a token that is A's answer for some subject.",
            "heat": heat(*axes, a["own"], format="percent"),
        },
    ]
    table = {"relations": names, **{name: value.tolist() for name, value in a.items()}}
    notes = ["A column's majority is what the best constant could reach."]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=int(a["n"].sum()))


CROSS = Looking("cross", CrossConfig, "Cross-evaluation", cross)
