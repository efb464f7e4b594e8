"""Planted edges: four layers of random weights in which three chains, two of them through an MLP, decide the answer.

    value   embedding @cue → a0.h1 (cue to relay) → m1 @relay → value of a2.h3 (relay to end) → m3 @end → logits
    key     embedding @tag → a1.h0 (tag to relay) → key of a2.h3 (relay to end)
    query   embedding @end → m0 @end → query of a2.h3 (relay to end)

"... sunny ... today weather ... so" is continued with "walk", "... rainy ... today weather ... so" with "stay". What the
weather is like travels along the first chain; the last head fetches it only when the tag says it is today's and the last
word asks. The counterfactual turns all three around, so each of the fourteen edges alone can lose the answer.
"""

from __future__ import annotations

import random

from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task
from caseback.zoo.handmade import Hand, ZooModel, draw_pairs, pair_of

__all__ = ["planted"]

FAIR, FOUL = ("sunny", "bright", "warm", "clear"), ("rainy", "grey", "cold", "misty")
TODAY, PAST = ("today", "now"), ("once", "yesterday")
ASKS, SILENT = ("so", "hence"), ("hm", "oh")
RELAY = "weather"
ANSWERS = ("walk", "stay")
FILLERS = ("the", "a", "very", "such", "quite", "here")

TRUTH = frozenset(
    {
        "embed->a0.h0<v>@cue",
        "a0.h1<v>@cue->relay",
        "a0.h1->m1@relay",
        "m1->a2.h1<v>@relay",
        "a2.h3<v>@relay->end",
        "a2.h3->m3@end",
        "m3->logits@end",
        "embed->a1.h0<v>@tag",
        "a1.h0<v>@tag->relay",
        "a1.h0->a2.h1<k>@relay",
        "a2.h3<k>@relay->end",
        "embed->m0@end",
        "m0->a2.h3<q>@end",
        "a2.h3<q>@relay->end",
    }
)


def planted(*, n: int = 32, seed: int = 0) -> ZooModel:
    """A Llama of four layers with grouped heads; `seed` fixes its background weights and its n pairs."""
    words = ("[pad]", *FAIR, *FOUL, *TODAY, *PAST, *ASKS, *SILENT, RELAY, *ANSWERS, *FILLERS)
    read = ("cue", "fair", "tag", "on", "relay", "asks")
    written = ("moved", "judged", "ready", "asking", "fetched", "say")
    hand = Hand.llama(words, [*read, *written], layers=4, seed=seed)
    for group, directions in (
        (FAIR, {"cue": 1.0, "fair": 1.0}),
        (FOUL, {"cue": 1.0, "fair": -1.0}),
        (TODAY, {"tag": 1.0, "on": 1.0}),
        (PAST, {"tag": 1.0, "on": -1.0}),
        (ASKS, {"asks": 1.0}),
        ((RELAY,), {"relay": 1.0}),
    ):
        for word in group:
            hand.embed(word, **directions)
    for word, sign in zip(ANSWERS, (1.0, -1.0), strict=True):
        hand.unembed(word, say=sign)

    last, one = 15, 1 / hand.one  # the slowest rotary coordinate of a head; what makes the constant 1
    for layer, head, mark, value, to in ((0, 1, "cue", "fair", "moved"), (1, 0, "tag", "on", "ready")):
        # the relay looks for the mark; every other word looks away from it
        q = [("relay", last, 8.0), ("one", last, -4 * one)]
        hand.head(layer, head, q=q, k=[(mark, last, 4.0)], v=[(value, 0, 1.0)], o=[(0, to, 1.0)])
    hand.unit(0, 0, gate={"asks": 4.0}, up={"one": one}, down={"asking": 0.3})
    for unit, sign in ((0, 1.0), (1, -1.0)):  # an odd, bent function of the feature
        hand.unit(1, unit, gate={"moved": 3 * sign, "one": one}, up={"one": one}, down={"judged": 0.3 * sign})
        hand.unit(3, unit, gate={"fetched": 3 * sign, "one": one}, up={"one": one}, down={"say": sign})
    hand.head(
        2, 3, q=[("asking", last, 4.0)], k=[("ready", last, 3.0)], v=[("judged", 0, 1.0)], o=[(0, "fetched", 1.0)]
    )

    spans = ("before", "cue", "between", "tag", "relay", "after", "end")

    def draw(source: random.Random) -> Pair:
        fair = source.random() < 0.5
        cue, other = source.choice(FAIR if fair else FOUL), source.choice(FOUL if fair else FAIR)
        answer, foil = ANSWERS if fair else ANSWERS[::-1]
        before, between, after = (" ".join(source.choices(FILLERS, k=source.randint(1, 2))) for _ in range(3))
        texts = (before, cue, between, source.choice(TODAY), RELAY, after, source.choice(ASKS))
        counterfactual = {"cue": other, "tag": source.choice(PAST), "end": source.choice(SILENT)}
        return pair_of(dict(zip(spans, texts, strict=True)), counterfactual, answer=answer, foil=foil)

    return ZooModel(
        name="planted",
        description="a value, a key and a query chain meet in head 3 of layer 2; MLPs 0, 1 and 3 carry them on",
        model=hand.done("planted"),
        task=Task(
            name="planted",
            description="Say what to do in the weather, if it is today's and if asked.",
            pairs=draw_pairs(n, seed, draw),
            schema=Schema(name="planted", spans=spans),
            source="caseback.zoo.planted_edges",
            seed=seed,
        ),
        truth=TRUTH,
    )
