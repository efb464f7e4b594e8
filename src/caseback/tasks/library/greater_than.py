"""Comparing years: 'The war lasted from the year 1732 to the year 17' → a later year, not an earlier one. (Hanna et al.
2023, arXiv 2305.00586)

Tokenizers write years differently, so the prompt is cut by one rule that holds for all of them: write the end year out
and cut at the last token boundary at or before the end of its century digits. What the model predicts there is one
token that stands for a set of years of the century: it is an answer when one of them is later than the start year, so
that the period can still end properly, and a foil when none is. Where a token is a decade, the start year's own decade
is thus an answer unless the start is its last year.

    tokens of " 1745"   cut after   the next token stands for     last span
    17|45               " 17"       one year                      XX2 = " 17"
     |1|7|4|5           " 17"       a decade                      end = "7"     (XX2 = " 1" before it)
     |174|5             " "         a decade                      XX2 = " "
    1745 (one token)    ""          one year                      year_2

The counterfactual starts in the year ..01, after which nearly every year is later. Without a model at hand the years
are written for tokenizers that split them into digits.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from random import Random

from caseback.core.errors import TaskError
from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.build import Prompt, Recipe, build, digits, fill
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["greater_than"]

_OPENINGS = ("The", "In that country the", "According to the old book, the", "Nobody remembers it today, but the")
_NOUNS = (
    "alliance blockade boom campaign ceasefire conflict crisis debate drought dynasty embargo epidemic expansion "
    "expedition famine feud friendship journey marriage mission occupation operation peace plague project quarrel "
    "rebellion reign revolt rule shortage siege strike struggle treaty trial truce venture voyage war"
).split()
_CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
_FIRST, _LAST = 10, 98  # an earlier decade and a later year must exist
_DESCRIPTIONS = {
    "The": "everything before the noun",
    "noun": "what lasted",
    "XX1": "the part of the start year that is also written at the end",
    "YY": "the rest of the start year, to be compared",
    "XX2": "the written part of the end year, without its last token if it has several",
    "end": "the last token of the written part of the end year",
}


def greater_than(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'The war lasted from the year 1732 to the year 17' → '3' ... '9' against '0' ... '2', as the tokenizer writes years."""
    head, last = (3, 2) if model is None else _cut(model)
    names = ["The", "noun", "lasted", "from", "the_1", "year_1", "XX1", "YY", "to", "the_2", "year_2", "XX2", "end"]
    template = [
        "{opening}",
        " {noun}",
        " lasted",
        " from",
        " the",
        " year",
        "{XX1}",
        "{YY}",
        " to",
        " the",
        " year",
        "{XX2}",
        "{end}",
    ]
    unused = {"XX1", "XX2", "end"} if head == 0 else {"end"} if last == 0 else set()
    template = [piece for name, piece in zip(names, template, strict=True) if name not in unused]
    names = [name for name in names if name not in unused]
    schema = Schema(
        name="greater-than", spans=tuple(names), descriptions={k: v for k, v in _DESCRIPTIONS.items() if k in names}
    )
    steps = {century: _steps(model, century, head) for century in _CENTURIES}
    sizes = (len(_OPENINGS), len(_NOUNS), len(_CENTURIES), _LAST - _FIRST + 1)

    def pair(number: int, rng: Random) -> Pair:
        opening, noun, century, start = digits(number, *sizes)
        start += _FIRST
        written = f" {_CENTURIES[century]}"[:head]

        def prompt(year: int) -> Prompt:
            text = f" {_CENTURIES[century]}{year:02d}"
            words = {"XX1": text[:head], "YY": text[head:], "XX2": written[: last or None], "end": written[last:]}
            return fill("|".join(template), schema, opening=_OPENINGS[opening], noun=_NOUNS[noun], **words)

        clean = prompt(start)
        later = tuple(token for token, years in steps[_CENTURIES[century]].items() if max(years) > start)
        earlier = tuple(token for token, years in steps[_CENTURIES[century]].items() if max(years) <= start)
        return Pair(clean=clean.text, counterfactual=prompt(1).text, answers=later, foils=earlier, spans=clean.spans)

    description = (
        "End a period in a later year than it began in: probability of later years minus probability of the others."
    )
    recipe = Recipe(
        name="greater-than",
        description=description,
        schema=schema,
        metric="prob_diff",
        size=math.prod(sizes),
        pair=pair,
    )
    return build(recipe, n, seed=seed, model=model)


def _bounds(model: LanguageModel, year: str) -> list[int]:
    """Where the tokens of " 1745" begin and end inside a sentence, in characters from its space on."""
    stem = "It lasted to the year"
    offsets = model.offsets(f"{stem} {year}")
    return sorted({0, *(end - len(stem) for _, end in offsets if end > len(stem))})


def _cut(model: LanguageModel) -> tuple[int, int]:
    """(characters of " 17.." that are written, where the last token of them begins or 0), as this tokenizer writes most years."""
    forms: Counter[tuple[int, int]] = Counter()
    for century in _CENTURIES:
        for year in range(_FIRST, _LAST, 3):
            written = [bound for bound in _bounds(model, f"{century}{year}") if bound <= 3]
            forms[written[-1], written[-2] if len(written) > 2 else 0] += 1
    return forms.most_common(1)[0][0]


def _steps(model: LanguageModel | None, century: str, head: int) -> dict[str, list[int]]:
    """The next tokens after the cut, as text, with the years of the century each one stands for."""
    steps: dict[str, list[int]] = defaultdict(list)
    for year in range(100):
        text = f" {century}{year:02d}"
        bounds = [head, head + 1] if model is None else _bounds(model, text[1:])
        if head in bounds:  # a tokenizer may write a few years in another way; they are no answers
            steps[text[head : min(bound for bound in bounds if bound > head)]].append(year)
    if not steps:
        raise TaskError(
            "the task 'greater-than' cannot be written for this tokenizer: "
            f"no year of the century {century} has a token boundary after {head} characters"
        )
    return steps
