"""Cross-evaluation as a run: every relation's operator on the subjects of every other."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from caseback.core.errors import RelationError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint
from caseback.model.model import Model
from caseback.relations.cross import cross_evaluate
from caseback.relations.library import resolve
from caseback.study.finding import Finding, Looking, heat, sheet
from caseback.study.judged import UsesConfig, judged, refuse_twin
from caseback.study.resume import RunFolder

__all__ = ["CROSS", "CrossConfig", "cross"]

KEPT = ("right", "twin", "bias", "own", "asked", "majority", "n")


@dataclass(frozen=True, kw_only=True)
class CrossConfig(UsesConfig):
    """Which relations."""

    relations: tuple[str, ...]
    """Library relations' names, or files; at least two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_twin(self)
        if len(set(self.relations)) < 2:
            raise RelationError("a cross-evaluation needs at least two different relations")

    @property
    def label(self) -> str:
        return f"{len(self.relations)} relations"

    @property
    def relations_used(self) -> tuple[str, ...]:
        return self.relations

    def data(self) -> str:
        """SHA-256 of the relations; raises RelationError for one there is not, and for two of one name."""
        found = [resolve(name) for name in self.relations]
        names = [one.name for one in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RelationError(f"two of the relations are called {twice[0]!r}; name them apart")
        return sha256_json([asdict(one) for one in found])


def cross(config: CrossConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Apply the operator of each relation to the subjects of all."""
    found = judged(config, run, model, progress)
    names = [one.relation.name for one in found]

    def evaluated() -> Checkpoint:
        operators = {one.relation.name: one.operator(model) for one in found}
        seen = {one.relation.name: one.known(model, progress) for one in found}
        matrix = cross_evaluate(model, operators, seen, seed=config.seed)
        return Checkpoint({name: getattr(matrix, name) for name in KEPT})

    a = run.stage("matrix", evaluated).arrays
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
    table = {"relations": names, **{name: a[name].tolist() for name in KEPT}}
    notes = [
        "A column's majority is what the best constant could reach.",
        f"The operators are those of the runs {', '.join(one.run for one in found)}.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=int(a["n"].sum()))


CROSS = Looking("cross", CrossConfig, "Cross-evaluation", cross)
