"""Isolation as a run: does the edit of one relation leave the others' answers about the same subject alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from caseback.core.errors import RelationError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.core.stages import Checkpoint
from caseback.evidence import Interval
from caseback.model.model import Model
from caseback.relations import library
from caseback.relations.cross import EDITS, Isolation, isolate, siblings
from caseback.relations.relation import Relation
from caseback.study.finding import Finding, Looking, cell, sheet
from caseback.study.judged import known
from caseback.study.resume import RunFolder
from caseback.study.uses.frame import UseConfig, flat, operator_of, tuples

__all__ = ["ISOLATE", "IsolateConfig", "isolation"]

KINDS = {
    "lre": "the operator's inverse",
    "swap": "state of another subject (swap)",
    "random": "random operator's inverse",
}


@dataclass(frozen=True, kw_only=True)
class IsolateConfig(UseConfig):
    """Isolation of one relation's edit."""

    siblings: tuple[str, ...] = ()
    """Names or files; none: the relations of the library that ask of the same subjects."""
    pairs: int = 24
    """Subjects at most that are edited."""

    def asked(self) -> tuple[Relation, ...]:
        """The siblings; raises RelationError where there is none."""
        mine = library.resolve(self.relation)
        if not self.siblings:
            found = siblings(mine, [library.get(name) for name in library.names()])
        else:
            found = tuple(library.resolve(name) for name in self.siblings)
        names = [one.name for one in found]
        if twice := sorted({name for name in names if names.count(name) > 1 or name == mine.name}):
            raise RelationError(f"siblings have names of their own, and {twice[0]!r} stands twice")
        if not found:
            raise RelationError(
                f"no relation of the library asks of the subjects of {mine.name!r}; name one with --sibling"
            )
        return found

    def check(self, model: Model) -> None:
        super().check(model)
        self.asked()

    def data(self) -> str:
        """SHA-256 of the relation and its siblings."""
        return sha256_json([asdict(one) for one in (library.resolve(self.relation), *self.asked())])


def isolation(config: IsolateConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Does the edit of one relation leave the others' answers about the same subject alone?"""
    source, operator, notes = operator_of(config, run, model, progress)
    rank = source.rank(operator.layer)

    def isolated() -> Checkpoint:
        others = {one.name: known(model, one, source.judge, progress) for one in config.asked()}
        found = isolate(
            model,
            operator.W,
            rank,
            operator.layer,
            source.known(model, progress),
            others,
            pairs=config.pairs,
            seed=config.seed,
            stages=run,
        )
        arrays = {name: getattr(found, name) for name in ("success", "telling", "unchanged")}
        return Checkpoint(arrays, {name: getattr(found, name) for name in ("siblings", "subjects", "targets")})

    saved = run.stage("isolated", isolated)
    a = saved.arrays
    found = Isolation(success=a["success"], telling=a["telling"], unchanged=a["unchanged"], **tuples(saved.data))
    rate = {edit: found.rate(edit) for edit in EDITS}
    kept = {edit: found.isolated(edit=edit) for edit in EDITS}
    both = {edit: _maybe(found, edit=edit, successful=True) for edit in EDITS}
    telling = int(found.telling.sum())
    claim = (
        f"At layer {operator.layer} and rank {rank} the edit of {source.relation.name!r} succeeds in {rate['lre'].value:.0%} "
        f"of {len(found.subjects)} pairs (swap {rate['swap'].value:.0%}, random {rate['random'].value:.0%}) and leaves a "
        f"sibling's answer as it was in {kept['lre'].value:.0%} of {telling} cases that can tell (swap "
        f"{kept['swap'].value:.0%}, random {kept['random'].value:.0%})."
    )
    rows = [[KINDS[e], cell(rate[e]), cell(kept[e]), _cell(both[e])] for e in EDITS]
    each = {name: {edit: _maybe(found, name, edit) for edit in EDITS} for name in found.siblings}
    by_sibling = [
        [name, int(found.telling[i].sum()), *map(_cell, each[name].values())] for i, name in enumerate(found.siblings)
    ]
    samples = [
        [
            subject,
            target,
            "yes" if found.success[0, i] else "no",
            ", ".join(_which(found, i, changed=True)) or "–",
            ", ".join(_which(found, i, changed=False)) or "–",
        ]
        for i, (subject, target) in enumerate(zip(found.subjects, found.targets, strict=True))
    ]
    sections: list[dict[str, Any]] = [
        {
            "title": "Success and what is left alone",
            "text": "Changed: the edited relation answers as for the other subject. Left alone: a sibling relation, asked under "
            "the same edit, answers as without it. Only siblings that answer differently for the two subjects are counted.",
            "table": sheet(
                "text edit, percent changed, percent siblings left alone, percent left alone where changed", rows
            ),
        },
        {
            "title": "Each sibling",
            "text": "Share of its answers left alone.",
            "table": sheet(
                "text relation, count cases, percent operator, percent swap, percent random operator", by_sibling
            ),
        },
        {
            "title": "Pairs",
            "text": "What the operator's edit did to each subject.",
            "detail": True,
            "table": sheet(
                "text subject, text edited to, text changed, text siblings changed, text left alone", samples
            ),
        },
    ]
    table = {
        "relation": source.relation.name,
        "siblings": list(found.siblings),
        "layer": operator.layer,
        "rank": rank,
        "n": len(found.subjects),
        "n_telling": telling,
        **flat("changed", rate),
        **flat("left_alone", kept),
        **flat("left_alone_where_changed", {edit: one for edit, one in both.items() if one}),
        "by_sibling": {n: {edit: one.value for edit, one in row.items() if one} for n, row in each.items()},
        "operator_run": source.run,
    }
    notes += [
        "The rank is the one at which the relation's own edit did best near this layer when it was judged.",
        "The swap replaces all that is known of the subject; an edit that does nothing leaves everything alone, so read both "
        "columns together.",
        "Cases of one subject are not independent of each other; the intervals count them as if they were.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=len(found.subjects))


def _cell(found: Interval | None) -> list[float] | None:
    return cell(found) if found else None


def _maybe(
    found: Isolation, sibling: str | None = None, edit: str = "lre", *, successful: bool = False
) -> Interval | None:
    """Isolation where any pair tells it."""
    rows = slice(None) if sibling is None else [found.siblings.index(sibling)]
    told = found.telling[rows] & (found.success[EDITS.index(edit)] | (not successful))
    return found.isolated(sibling, edit, successful=successful) if told.any() else None


def _which(found: Isolation, pair: int, *, changed: bool) -> Sequence[str]:
    """The siblings whose answer the operator's edit of a pair changed, or left alone."""
    return [
        name
        for i, name in enumerate(found.siblings)
        if found.telling[i, pair] and bool(found.unchanged[i, 0, pair]) != changed
    ]


ISOLATE = Looking("isolate", IsolateConfig, "Isolation", isolation)
