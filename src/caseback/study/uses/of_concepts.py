"""Concept vectors as a run: do they find an object in a state, and write it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint
from caseback.model.model import Model
from caseback.relations.concepts import Classified, ConceptEdits, classify, edit_concepts
from caseback.study.finding import Finding, Looking, cell, line, sheet
from caseback.study.resume import RunFolder
from caseback.study.uses.frame import UseConfig, flat, operator_of, tuples

__all__ = ["CONCEPTS", "ConceptsConfig", "concepts"]

CLASSIFIERS = {
    "concepts": "concept vectors",
    "centroid": "nearest mean state (no operator)",
    "twin": "concepts of a random operator, same spectrum",
    "random": "random directions",
    "majority": "most frequent object",
}
MOVES = {
    "onward": "concepts, from a layer onward",
    "single": "concepts, at one layer",
    "swap": "state of another subject (swap)",
    "random": "random directions, onward",
}


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig(UseConfig):
    """Concept vectors of one relation."""

    pairs: int = 24
    """Samples at most that are edited."""


def concepts(config: ConceptsConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Do the concept vectors find an object in a state, and write it?"""
    source, operator, notes = operator_of(config, run, model, progress)
    rank = source.rank(operator.layer)

    def classified() -> Checkpoint:
        seen = source.known(model, progress, stages=run)
        found = classify(model, operator.W, operator.b, operator.layer, seen, seed=config.seed)
        data = {name: getattr(found, name) for name in ("subjects", "objects", "uncovered", "n_objects", "ranks")}
        return Checkpoint(found.right, data)

    def edited() -> Checkpoint:
        found = edit_concepts(
            model,
            operator.W,
            operator.b,
            source.known(model, progress, stages=run),
            rank=rank,
            starts=range(0, model.n_layers, 2),
            pairs=config.pairs,
            seed=config.seed,
            stages=run,
            progress=progress,
        )
        halves = dict(zip(("half", "other"), found.halves, strict=True))
        data = {name: getattr(found, name) for name in ("starts", "amounts", "subjects", "objects", "targets")}
        return Checkpoint({**found.right, **halves}, data)

    saved = run.stage("classified", classified)
    told = Classified(layer=operator.layer, right=saved.arrays, **tuples(saved.data))
    saved = run.stage("edited", edited)
    right = dict(saved.arrays)
    moved = ConceptEdits(halves=(right.pop("half"), right.pop("other")), right=right, **tuples(saved.data))

    accuracy = {name: told.accuracy(name) for name in CLASSIFIERS}
    success = {name: moved.success(name) for name in MOVES}
    rival = max(("centroid", "twin", "random", "majority"), key=lambda name: accuracy[name].value)
    n = len(told.subjects)
    own, best, to = accuracy["concepts"], accuracy[rival], success
    claim = (
        f"At layer {operator.layer} concept vectors put {own.value:.0%} of {n} held-out subjects to the right one of "
        f"{told.n_objects} objects; the best control, {CLASSIFIERS[rival]}, {best.value:.0%}. Moved by them, the model answers "
        f"with another object in {to['onward'].value:.0%} of {to['onward'].n} edits (swap {to['swap'].value:.0%}, random "
        f"directions {to['random'].value:.0%})."
    )
    looks = dict(zip(MOVES, ("own", "second", "third", "random"), strict=True))
    curves = [line(name, look, moved.starts, moved.by_start(name).max(axis=1)) for name, look in looks.items()]
    amounts = [
        [
            "its component along the old vector" if amount is None else f"{amount:g} × the state's length",
            *(float(moved.by_start(name)[:, i].max()) for name in ("onward", "single", "random")),
        ]
        for i, amount in enumerate(moved.amounts)
    ]
    samples = [
        [subject, obj, *("yes" if told.right[name][i] else "no" for name in ("concepts", "centroid"))]
        for i, (subject, obj) in enumerate(zip(told.subjects, told.objects, strict=True))
    ]
    sections: list[dict[str, Any]] = [
        {
            "title": "Which object does a subject have",
            "text": "Share of known subjects put to their object by vectors made of the other half of the samples.",
            "table": sheet(
                "text classifier, percent right", [[CLASSIFIERS[k], cell(found)] for k, found in accuracy.items()]
            ),
        },
        {
            "title": "Edits",
            "text": "Share of edits after which the model gives the target object's answer; layer and amount are chosen on the "
            "other half.",
            "table": sheet("text edit, percent changed", [[MOVES[k], cell(found)] for k, found in success.items()]),
        },
        {
            "title": "Edits by the layer they begin at",
            "text": "At every layer's best amount, over all edits; this flatters, the table above does not.",
            "curve": {"x": "layer", "y": "changed", "axis": "linear", "series": curves},
        },
        {
            "title": "Edits by amount",
            "text": "How far the state is moved, at each amount's best layer.",
            "detail": True,
            "table": sheet("text moved by, percent onward, percent one layer, percent random directions", amounts),
        },
        {
            "title": "Samples",
            "text": "Whether each held-out subject was put to its object.",
            "detail": True,
            "table": sheet("text subject, text object, text concepts, text nearest mean state", samples),
        },
    ]
    table = {
        "relation": source.relation.name,
        "layer": operator.layer,
        "edit_rank": rank,
        "classifier_ranks": list(told.ranks),
        "n": n,
        "n_objects": told.n_objects,
        "left_out": told.uncovered,
        "n_edits": success["onward"].n,
        **flat("accuracy", accuracy),
        **flat("changed", success),
        "starts": list(moved.starts),
        **{f"changed_by_start_{name}": moved.by_start(name).max(axis=1).tolist() for name in MOVES},
        "operator_run": source.run,
    }
    notes += [
        f"Left out: {told.uncovered} known samples, whose object has no sample in the other half or whose subject was seen "
        "before.",
        f"The classifier's rank is chosen on the half that makes its vectors; the edit's is {rank}, the rank at which the "
        "relation's own edit did best near this layer.",
        "Where the nearest mean state is as good, the operator adds nothing to finding the object.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=n)


CONCEPTS = Looking("concepts", ConceptsConfig, "Concept vectors", concepts)
