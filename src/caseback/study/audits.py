"""What each method asks in an audit, and what that costs.

Costs are in prompts, the time of one short prompt in a batch of sixteen (14 ms for the default model on two idle cores);
they were taken from the runs of `caseback audit` on that model, and grow with a model as its forward does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caseback.circuits.discover import DiscoverConfig
from caseback.study.audit import Known, Part, Size, Wish

__all__ = ["CIRCUITS", "DIRECT", "HEADS", "LENS", "PATCHING", "RELATIONS"]

FACT = "The capital of Japan is the city of"
RELATIONS_ASKED = (
    ("factual", "country capital city"),
    ("linguistic", "adjective comparative"),
    ("commonsense", "object superclass"),
    ("bias", "occupation age"),
)
"""One relation of each category."""


def _lens(known: Known) -> Sequence[Wish]:
    looks = (
        ("lens", f"From which layer on does the model know how {FACT!r} goes on?", 60.0),
        ("attribute-input", f"Which words of {FACT!r} does its answer come from?", 150.0),
    )
    return [Wish(question=q, method=m, sizes=[Size(cost, {"prompt": FACT})]) for m, q, cost in looks]


def _heads(known: Known) -> Sequence[Wish]:
    sizes = [Size(500.0 * n / 16, {"sequences": n}) for n in (16, 4)]
    return [
        Wish(question="Which heads are previous-token, duplicate-token, induction heads?", method="heads", sizes=sizes)
    ]


def _direct(known: Known) -> Sequence[Wish]:
    return [
        Wish(
            question=f"Which heads and MLPs write the answer of {task}?",
            method="dla",
            sizes=[Size(3.0 * n, {"task": task, "n": n}) for n in (40, 12)],
        )
        for task in known.best[:2]
    ]


def _circuits(known: Known) -> Sequence[Wish]:
    def size(task: str, n: int, points: int, **more: Any) -> Size:
        return Size(50.0 * n, {"task": task, "n": n, "discover": DiscoverConfig(points=points, **more)})

    few = {"patched": 5, "patch_pairs": 4, "control_pairs": 6, "minimal": 5, "draws": 1}
    return [
        Wish(
            question=f"Which edges, at which words, answer {task}?",
            method="circuit",
            sizes=[size(task, 100, 12), size(task, 40, 8), size(task, 16, 6, **few)],
        )
        for task in known.best[:2]
    ]


def _relations(known: Known) -> Sequence[Wish]:
    from caseback.relations.judge import JudgeConfig

    def size(relation: str, cost: float, pairs: int) -> Size:
        return Size(cost, {"relation": relation, "judge": JudgeConfig(pairs=pairs)})

    return [
        Wish(
            question=f"Is {name!r} ({category}) a linear map of the subject?",
            method="relation",
            sizes=[size(name, 3600.0, 24), size(name, 2800.0, 8)],
        )
        for category, name in RELATIONS_ASKED
    ]


def _patching(known: Known) -> Sequence[Wish]:
    if "capitals" not in known.accuracy:
        return []
    sizes = [Size(60.0 * n, {"task": "capitals", "n": n}) for n in (40, 20, 8)]
    return [
        Wish(question="At which layers and words does a capital's name become the answer?", method="patch", sizes=sizes)
    ]


LENS = Part(order=1, weight=1.0, wishes=_lens)
HEADS = Part(order=2, weight=1.0, wishes=_heads)
DIRECT = Part(order=3, weight=1.0, wishes=_direct)
CIRCUITS = Part(order=4, weight=6.0, wishes=_circuits)
RELATIONS = Part(order=5, weight=3.0, wishes=_relations)
PATCHING = Part(order=6, weight=3.0, wishes=_patching)
