"""Subject-verb agreement across a distractor: 'As we all know, the keys near the cabinet' → ' are', not ' is'. (after
Linzen et al. 2016, arXiv 1611.01368)

The last word before the verb is another noun. In half of the pairs it has the other number than the subject, so the
nearest noun misleads (an attractor). Beginnings, adjectives and the words in between differ in length. The
counterfactual turns the subject's number and leaves the distractor alone.
"""

from __future__ import annotations

import math
from random import Random

from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.build import Recipe, build, digits, fill
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["SCHEMA", "agreement"]

SCHEMA = Schema(
    name="agreement",
    spans=("prefix", "determiner", "subject", "link", "the", "distractor"),
    descriptions={
        "prefix": "everything before the subject's article",
        "determiner": "the article of the subject and its adjectives",
        "subject": "the noun the verb agrees with",
        "link": "what ties the two nouns",
        "the": "the article of the second noun",
        "distractor": "the noun just before the verb",
    },
)
_TEMPLATE = "{prefix}| {determiner}| {subject}| {link}| the| {distractor}"
_PREFIXES = (
    "As we all know,",
    "He said that",
    "At the end of the day,",
    "In this old story,",
    "It is clear from the report that",
)
_DETERMINERS = ("the", "the old", "the very small", "the other")
_LINKS = ("near", "behind", "next to", "in front of", "on the other side of", "that stood close to")
_NOUNS = (
    "actor artist author book boat boy bridge brother building car cat chair child doctor dog door driver engine "
    "farmer flower friend garden girl guard horse house island key king letter light manager mountain officer "
    "painter picture pilot player rock road river sister student table teacher tower tree worker window"
).split()
_PLURALS = {"child": "children"}
_VERBS = ((" is", " was", " has"), (" are", " were", " have"))


def agreement(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'As we all know, the keys near the cabinet' → ' are', ' were', ' have' against ' is', ' was', ' has'."""
    sizes = (2, 2, len(_PREFIXES), len(_DETERMINERS), len(_LINKS), len(_NOUNS), len(_NOUNS) - 1)

    def pair(number: int, rng: Random) -> Pair:
        plural, distractor_plural, prefix, determiner, link, first, second = digits(number, *sizes)
        subject, distractor = _NOUNS[first], _NOUNS[second + (second >= first)]
        words = {
            "prefix": _PREFIXES[prefix],
            "determiner": _DETERMINERS[determiner],
            "link": _LINKS[link],
            "distractor": _number(distractor, distractor_plural),
        }
        clean = fill(_TEMPLATE, SCHEMA, subject=_number(subject, plural), **words)
        counterfactual = fill(_TEMPLATE, SCHEMA, subject=_number(subject, 1 - plural), **words)
        return Pair(
            clean=clean.text,
            counterfactual=counterfactual.text,
            answers=_VERBS[plural],
            foils=_VERBS[1 - plural],
            spans=clean.spans,
        )

    description = (
        "Give the verb the subject's number, with another noun in between; in half of the pairs that noun misleads."
    )
    recipe = Recipe(
        name="agreement", description=description, schema=SCHEMA, metric="logit_diff", size=math.prod(sizes), pair=pair
    )
    return build(recipe, n, seed=seed, model=model)


def _number(noun: str, plural: int) -> str:
    return _PLURALS.get(noun, noun + "s") if plural else noun
