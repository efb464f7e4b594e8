"""A copy circuit: one head moves the name it finds to the last position.

    embedding @name → value of a1.h2 → (name to end) → logits

At the last word the head looks for whatever is marked as a name; which name it is passes through the value alone. So
between prompts that differ in the name, just three edges matter: the value's input at the name, the value's way from the
name to the end, and the head's output into the logits.
"""

from __future__ import annotations

import random

from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task
from caseback.zoo.handmade import Hand, ZooModel, draw_pairs, pair_of

__all__ = ["copying"]

NAMES = ("ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hana")
FILLERS = ("then", "today", "went", "home", "later", "slowly", "far", "down", "there", "again")
END = "called"


def copying(*, n: int = 32, seed: int = 0) -> ZooModel:
    """A Llama of two layers; `seed` fixes its background weights and its n pairs."""
    words = ("[pad]", *NAMES, *FILLERS, END)
    hand = Hand.llama(
        words, [*(f"is {x}" for x in NAMES), *(f"say {x}" for x in NAMES), "name", "end"], layers=2, seed=seed
    )
    for name in NAMES:
        hand.embed(name, **{f"is {name}": 1.0, "name": 1.0})
        hand.unembed(name, **{f"say {name}": 4.0})
    hand.embed(END, end=1.0)
    last = 15  # the slowest rotary coordinate of a head
    hand.head(
        1,
        2,
        q=[("end", last, 3.0)],
        k=[("name", last, 4.0)],
        v=[(f"is {name}", i, 1.0) for i, name in enumerate(NAMES)],
        o=[(i, f"say {name}", 1.0) for i, name in enumerate(NAMES)],
    )
    spans = ("before", "name", "after", "end")

    def draw(source: random.Random) -> Pair:
        name, other = source.sample(NAMES, 2)
        before, after = (" ".join(source.choices(FILLERS, k=source.randint(1, 3))) for _ in range(2))
        texts = dict(zip(spans, (before, name, after, END), strict=True))
        return pair_of(texts, {"name": other}, answer=name, foil=other)

    return ZooModel(
        name="copying",
        description="head 2 of layer 1 copies the name to the last position",
        model=hand.done("copying"),
        task=Task(
            name="copying",
            description="Say the one name of the sentence again.",
            pairs=draw_pairs(n, seed, draw),
            schema=Schema(name="copying", spans=spans),
            source="caseback.zoo.copy_circuit",
            seed=seed,
        ),
        truth=frozenset({"embed->a1.h1<v>@name", "a1.h2<v>@name->end", "a1.h2->logits@end"}),
    )
