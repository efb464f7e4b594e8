"""An induction pair: "ada red ... bob blue ... ada" is continued with "red", by two heads in two layers.

    embedding @name → value of a0.h1 → (name to the colour after it) → key of a1.h2 @colour → (colour to end) → logits

The first head looks one position back and notes which word stood there; the second, at the last word, looks for the place
that notes that very word, and says the colour it finds. The counterfactual prompt exchanges the two names, so both colours'
keys change and the answer becomes the other colour. Eight edges carry the two notes, one carries the answer out.
"""

from __future__ import annotations

import random

from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task
from caseback.zoo.handmade import Hand, ZooModel, draw_pairs, pair_of

__all__ = ["induction"]

NAMES = ("ada", "bob", "cleo", "dan", "eve", "finn")
COLOURS = ("red", "blue", "green", "white", "black", "pink")
FILLERS = ("then", "later", "now", "again", "soon", "here")
POSITIONS = 14


def induction(*, n: int = 32, seed: int = 0) -> ZooModel:
    """A GPT-2 of two layers; `seed` fixes its background weights and its n pairs."""
    words = ("[pad]", *NAMES, *COLOURS, *FILLERS)
    hand = Hand.gpt2(
        words,
        [
            *(f"is {word}" for word in NAMES + COLOURS),
            *(f"after {name}" for name in NAMES),
            *(f"say {colour}" for colour in COLOURS),
            *(str(position) for position in range(POSITIONS)),
        ],
        layers=2,
        seed=seed,
    )
    for word in NAMES + COLOURS:
        hand.embed(word, **{f"is {word}": 1.0})
    for colour in COLOURS:
        hand.unembed(colour, **{f"say {colour}": 4.0})
    for position in range(POSITIONS):
        hand.position(position, **{str(position): 1.0})
    hand.head(
        0,
        1,
        q=[(str(position + 1), position, 5.0) for position in range(POSITIONS - 1)],
        k=[(str(position), position, 5.0) for position in range(POSITIONS - 1)],
        v=[(f"is {name}", i, 1.0) for i, name in enumerate(NAMES)],
        o=[(i, f"after {name}", 1.0) for i, name in enumerate(NAMES)],
    )
    hand.head(
        1,
        2,
        q=[(f"is {name}", i, 4.0) for i, name in enumerate(NAMES)],
        k=[(f"after {name}", i, 4.0) for i, name in enumerate(NAMES)],
        v=[(f"is {colour}", i, 1.0) for i, colour in enumerate(COLOURS)],
        o=[(i, f"say {colour}", 1.0) for i, colour in enumerate(COLOURS)],
    )
    spans = ("before", "name", "colour", "between", "other", "foil", "after", "end")

    def draw(source: random.Random) -> Pair:
        (name, other), (colour, foil) = source.sample(NAMES, 2), source.sample(COLOURS, 2)
        before, between, after = (" ".join(source.choices(FILLERS, k=source.randint(1, 2))) for _ in range(3))
        texts = dict(zip(spans, (before, name, colour, between, other, foil, after, name), strict=True))
        return pair_of(texts, {"name": other, "other": name}, answer=colour, foil=foil)

    notes = [
        edge
        for name, place in (("name", "colour"), ("other", "foil"))
        for edge in (
            f"embed->a0.h1<v>@{name}",
            f"a0.h1<v>@{name}->{place}",
            f"a0.h1->a1.h2<k>@{place}",
            f"a1.h2<k>@{place}->end",
        )
    ]
    return ZooModel(
        name="induction",
        description="head 1 of layer 0 notes the word before; head 2 of layer 1 finds the note that matches the last word",
        model=hand.done("induction"),
        task=Task(
            name="induction",
            description="Say the colour that followed the last word when it stood there before.",
            pairs=draw_pairs(n, seed, draw),
            schema=Schema(name="induction", spans=spans),
            source="caseback.zoo.induction_pair",
            seed=seed,
        ),
        truth=frozenset([*notes, "a1.h2->logits@end"]),
    )
