"""Seven small tasks for bench/schemas.py, to see how the rules of `caseback.tasks.induce` carry over.

The rules were chosen while looking at the tasks of the library. REVISED were written after that and run; the rules were
then changed to do better on them (first run: homes .80, things .61, week 1, lists .75), so their figures are as
favourable as the library's. UNSEEN were written after that change. Their first run, left out by opening, gave gifts
1.00, sums .59 and sizes .93; for sums the cutting of numbers and the spreading of kinds were mended afterwards, so the
figures of gifts and sizes are the ones to trust most.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from caseback.tasks import LanguageModel, Pair, Schema, Task

__all__ = ["REVISED", "UNSEEN"]

_NAMES = "Anna Ben Carl Diana Emma Frank Grace Henry Jack Julia Laura Mark Nancy Oliver Peter Rachel".split()
_CITIES = "Paris Rome London Berlin Madrid Vienna Athens Dublin Oslo Prague Lisbon Moscow".split()
_COLOURS = "red blue green black white yellow brown pink".split()
_OBJECTS = "ball box car chair coat cup door hat lamp pen shoe table".split()
_ANIMALS = "cat dog horse lion mouse rabbit fox bear duck goat wolf frog".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_WORDS = "apple bridge cloud desk engine forest garden hammer island jacket kettle ladder mirror needle orange".split()

Draw = Callable[[Random], tuple[dict[str, str], dict[str, str], str, str]]
"""Random numbers → words of the clean prompt, of the counterfactual, answer, foil."""


def _one_token(word: str, model: LanguageModel) -> bool:
    """At the beginning of a text, and within one."""
    begin = len(model.tokens("")), len(model.tokens("a"))
    return len(model.tokens(word)) == begin[0] + 1 and len(model.tokens(f"a {word}")) == begin[1] + 1


def _task(
    name: str, spans: str, templates: tuple[str, ...], draw: Draw, model: LanguageModel, *, n: int, seed: int
) -> Task:
    """Pairs of all templates in turn, of words that are one token; `|` stands between the spans of a template."""
    rng, names = Random(f"{name} {seed}"), tuple(spans.split())
    pairs: dict[str, Pair] = {}
    while len(pairs) < n:
        words, other, answer, foil = draw(rng)
        if not all(word.isdigit() or _one_token(word, model) for word in words.values()):
            continue
        template = templates[len(pairs) % len(templates)]
        text, ranges = "", []
        for span, piece in zip(names, template.split("|"), strict=True):
            start, text = len(text), text + piece.format_map(words)
            ranges.append((span, start, len(text)))
        counterfactual = template.replace("|", "").format_map(other)
        pair = Pair(
            clean=text, counterfactual=counterfactual, answers=(f" {answer}",), foils=(f" {foil}",), spans=tuple(ranges)
        )
        pairs.setdefault(text, pair)
    return Task(name=name, pairs=tuple(pairs.values()), schema=Schema(name=name, spans=names), seed=seed)


def homes(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """Who lives where; the counterfactual swaps the cities."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        (a, b), (x, y) = rng.sample(_NAMES, 2), rng.sample(_CITIES, 2)
        return {"a": a, "b": b, "x": x, "y": y}, {"a": a, "b": b, "x": y, "y": x}, y, x

    templates = (
        "|{a}| lives in| {x}|, while| {b}| lives in| {y}|. Surely| {b}| lives| in",
        "In this story,| {a}| works in| {x}| and| {b}| works in| {y}|. So it is true that| {b}| works| in",
        "My friend| {a}| was born in| {x}|, but my friend| {b}| was born in| {y}|. Remember that| {b}| was born| in",
        "Yesterday| {a}| flew from| {x}| and| {b}| flew from| {y}|. The plane of| {b}| came| from",
        "Every summer| {a}| goes to| {x}|, and every winter| {b}| goes to| {y}|. In January you find| {b}|| in",
    )
    return _task(
        "homes", "opening a verb_a x joint b verb_b y middle b_again verb last", templates, draw, model, n=n, seed=seed
    )


def things(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """Which thing has which colour; the counterfactual swaps the colours."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        (o, p), (c, d) = rng.sample(_OBJECTS, 2), rng.sample(_COLOURS, 2)
        return {"o": o, "p": p, "c": c, "d": d}, {"o": o, "p": p, "c": d, "d": c}, c, d

    templates = (
        "The| {o}| is| {c}| and the| {p}| is| {d}|. What colour is the| {o}|? It| is",
        "On the table there is a| {o}| that is| {c}| and a| {p}| that is| {d}|. So the colour of the| {o}|| is",
        "My sister has a| {o}|, which is| {c}|, and also a| {p}|, which is| {d}|. Everybody can see that her| {o}|| is",
        "The old| {o}| was painted| {c}|, the old| {p}| was painted| {d}|. If you look at the| {o}|, you see that it| is",
        "I saw a| {o}|. It was| {c}|. I saw a| {p}|. It was| {d}|. Question: what was the| {o}|? Answer:| it",
    )
    spans = "opening object_1 link_1 colour_1 joint object_2 link_2 colour_2 question object_1_again end last"
    return _task("things", spans, templates, draw, model, n=n, seed=seed)


def week(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """The day after; the counterfactual names another day. There are 35 prompts at most."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        i, j = rng.sample(range(7), 2)
        return {"day": _DAYS[i]}, {"day": _DAYS[j]}, _DAYS[(i + 1) % 7], _DAYS[(j + 1) % 7]

    templates = (
        "If today is| {day}|, then tomorrow| is",
        "Yesterday was| {day}|, so today| is",
        "The meeting was moved from| {day}| to the next day, which| is",
        "The day after| {day}|| is",
        "Everybody who has looked into a calendar knows that| {day}| comes right| before",
    )
    return _task("week", "opening day link last", templates, draw, model, n=min(n, 35), seed=seed)


def lists(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """A list of words repeated; in the counterfactual all words but the first change places."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        t, u, v, w = rng.sample(_WORDS, 4)
        return {"t": t, "u": u, "v": v, "w": w}, {"t": t, "u": w, "v": u, "w": v}, w, v

    templates = (
        "Repeat:| {t}| {u}| {v}| {w}|.| {t}| {u}| {v}",
        "The words are| {t}| {u}| {v}| {w}|, and once more they are| {t}| {u}| {v}",
        "She read the list aloud:| {t}| {u}| {v}| {w}|. Then he read it:| {t}| {u}| {v}",
        "Say| {t}| {u}| {v}| {w}| again and again:| {t}| {u}| {v}",
    )
    return _task("lists", "opening w1 w2 w3 w4 middle w1_again w2_again last", templates, draw, model, n=n, seed=seed)


def gifts(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """Who has the thing now; the counterfactual swaps giver and taker."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        (a, b), o = rng.sample(_NAMES, 2), rng.choice(_OBJECTS)
        return {"a": a, "b": b, "o": o}, {"a": b, "b": a, "o": o}, b, a

    templates = (
        "|{a}| gave the| {o}| to| {b}|. Now the| {o}| belongs| to",
        "This morning| {a}| sold a| {o}| to| {b}|, so the owner of the| {o}|| is",
        "We know that| {a}| threw her| {o}| towards| {b}|. The person who has caught the| {o}| is| called",
        "Two days ago| {a}| mailed the old| {o}| to| {b}|. Today the postman brought the| {o}| to the house| of",
        "Because it was raining,| {a}| lent an extra| {o}| to| {b}|. If you need the| {o}|, please| ask",
    )
    return _task(
        "gifts",
        "opening giver verb object to taker middle object_again end last",
        templates,
        draw,
        model,
        n=n,
        seed=seed,
    )


def sums(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """Two numbers added; the counterfactual has another second number."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        x, (y, z) = rng.randint(11, 49), rng.sample(range(11, 50), 2)
        return {"x": str(x), "y": str(y)}, {"x": str(x), "y": str(z)}, str(x + y), str(x + z)

    templates = (
        "The sum of| {x}| and| {y}|| is",
        "|{x}| plus| {y}|| equals",
        "Question: what do you get when you add| {x}| to| {y}|? Answer| :",
        "He had| {x}| coins and found| {y}| more, which makes a total| of",
        "In the first year there were| {x}| pupils, in the second| {y}|. Together they| are",
    )
    return _task("sums", "opening first joint second end last", templates, draw, model, n=n, seed=seed)


def sizes(model: LanguageModel, *, n: int, seed: int = 0) -> Task:
    """Which animal is smaller; the counterfactual swaps the animals."""

    def draw(rng: Random) -> tuple[dict[str, str], dict[str, str], str, str]:
        a, b = rng.sample(_ANIMALS, 2)
        return {"a": a, "b": b}, {"a": b, "b": a}, b, a

    templates = (
        "The| {a}| is bigger than the| {b}|, so the smaller one is| the",
        "In the picture the| {a}| stands in front of a much smaller| {b}|. Point at the small animal: the| small",
        "A| {a}| weighs more than a| {b}|. The lighter of the two is| the",
        "Once upon a time a big| {a}| met a little| {b}| in the woods. Who was little? It was| the",
        "Everyone could see that the| {a}| was twice as tall as the| {b}|, and they all looked down on| the",
    )
    return _task("sizes", "opening big relation small end last", templates, draw, model, n=n, seed=seed)


REVISED = (homes, things, week, lists)
UNSEEN = (gifts, sums, sizes)
