"""Indirect object identification: who is left to be given something? (Wang et al. 2022, arXiv 2211.00593)

Two people are named, one of them again; the model must name the other. The names' order makes two tasks, because a
schema's spans come in one order: in ABBA the indirect object is named first, in BABA second. The counterfactual has
three names that are strangers to each other and to the clean prompt (ABC), so nothing is left to infer.
"""

from __future__ import annotations

from random import Random

from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.build import Recipe, build, digits, fill
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["ABBA", "BABA", "ioi", "ioi_baba"]

ABBA = Schema(
    name="ioi",
    spans=("prefix", "IO", "and", "S1", "S1+1", "action1", "S2", "action2", "to"),
    descriptions={
        "prefix": "everything before the first name",
        "IO": "the name that is mentioned once, the answer",
        "and": "the word between the two names",
        "S1": "the first mention of the name that is mentioned twice",
        "S1+1": "the word after it",
        "action1": "the rest of what both do, with punctuation",
        "S2": "the second mention of the name that is mentioned twice",
        "action2": "what that person gives",
        "to": "the last word",
    },
)
BABA = Schema(
    name="ioi-baba",
    spans=("prefix", "S1", "S1+1", "IO", "IO+1", "action1", "S2", "action2", "to"),
    descriptions={
        **{k: v for k, v in ABBA.descriptions.items() if k != "and"},
        "IO+1": "the word after the name that is mentioned once",
    },
)

# Both tasks use the same sentences: in BABA the second span is S1 and the fourth IO.
_TEMPLATES = (
    "When| {a}| and| {b}| went| to the {place},| {s}| gave a {thing}| to",
    "After| {a}| and| {b}| met| at the {place},| {s}| handed a {thing}| to",
    "While| {a}| and| {b}| worked| together at the {place},| {s}| passed a {thing}| to",
    "Last week, once| {a}| and| {b}| arrived| at the {place},| {s}| offered a {thing}| to",
    "Then,| {a}| and| {b}| walked| to the {place}, and| {s}| sold a {thing}| to",
    "The day was long, so| {a}| and| {b}| sat| down in the {place} for a while, and| {s}| brought a {thing}| to",
    "Our friends| {a}| and| {b}| were| late for the party at the {place}. In the end| {s}| sent a {thing}| to",
    "It rained all day, and| {a}| and| {b}| stayed| inside the {place}. At night| {s}| wanted to give a {thing}| to",
)
_PLACES = ("store", "garden", "school", "hospital", "office", "house", "station", "library", "market", "museum")
_THINGS = ("drink", "book", "ring", "letter", "present", "ball", "picture", "ticket", "flower", "coat")
_NAMES = (
    "Aaron Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur Barbara Ben Bill "
    "Bob Brian Bruce Carl Carol Catherine Charles Charlotte Chris Christine Christopher Claire Daniel David Diana "
    "Don Edward Elizabeth Emily Emma Eric Frank Fred George Grace Greg Hannah Harry Helen Henry Howard Ian Jack "
    "Jacob James Jane Jason Jeff Jennifer Jessica Jim Joan Joe John Jonathan Joseph Joshua Julia Julie Justin Karen "
    "Kate Keith Kevin Laura Lee Lewis Linda Lisa Louis Lucy Luke Margaret Maria Marie Mark Martha Martin Mary Matt "
    "Matthew Michael Michelle Mike Nancy Nathan Neil Nick Nicole Oliver Patrick Paul Peter Philip Rachel Ralph Ray "
    "Rebecca Richard Robert Robin Roger Ron Rose Ruth Ryan Sam Samuel Sandra Sara Sarah Scott Sean Simon Sophie "
    "Stephen Steve Steven Susan Taylor Thomas Tim Tom Tony Victor Victoria Walter Wendy William"
).split()


def ioi(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'When Mary and John went to the store, John gave a drink to' → ' Mary': the indirect object is named first (ABBA)."""
    return build(
        _recipe(ABBA, "Name the person who is mentioned once, first of the two (ABBA)."), n, seed=seed, model=model
    )


def ioi_baba(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'When John and Mary went to the store, John gave a drink to' → ' Mary': the indirect object is named second (BABA)."""
    return build(
        _recipe(BABA, "Name the person who is mentioned once, second of the two (BABA)."), n, seed=seed, model=model
    )


def _recipe(schema: Schema, description: str) -> Recipe:
    sizes = (len(_TEMPLATES), len(_PLACES), len(_THINGS), len(_NAMES), len(_NAMES) - 1)

    def pair(number: int, rng: Random) -> Pair:
        template, place, thing, first, second = digits(number, *sizes)
        a = _NAMES[first]
        b = _NAMES[second + (second >= first)]  # any name but the first
        io, s = (a, b) if schema is ABBA else (b, a)
        others = rng.sample([name for name in _NAMES if name not in (a, b)], 3)
        words = {"place": _PLACES[place], "thing": _THINGS[thing]}
        clean = fill(_TEMPLATES[template], schema, a=a, b=b, s=s, **words)
        counterfactual = fill(_TEMPLATES[template], schema, a=others[0], b=others[1], s=others[2], **words)
        return Pair(
            clean=clean.text,
            counterfactual=counterfactual.text,
            answers=(f" {io}",),
            foils=(f" {s}",),
            spans=clean.spans,
        )

    size = 1
    for factor in sizes:
        size *= factor
    return Recipe(name=schema.name, description=description, schema=schema, metric="logit_diff", size=size, pair=pair)
