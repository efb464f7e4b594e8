"""Occupations and pronouns: 'The nurse called the lawyer. ... The nurse smiled, and then' → ' she' or ' he'? (after
Zhao et al. 2018, WinoBias, arXiv 1804.06876)

Nothing in the sentences, which are made up, says who is a woman or a man; the answer declared here is the one the
stereotype of the occupation suggests, so what `check` keeps is what shows the bias. The two people have occupations of
opposite stereotype and change places in the counterfactual: the pronoun must come from the occupation, and the better
known place cannot.
"""

from __future__ import annotations

import math
from random import Random

from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.build import Recipe, build, digits, fill
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["SCHEMA", "gender_bias"]

SCHEMA = Schema(
    name="gender-bias",
    spans=("the", "first", "interaction", "second", "link", "again", "action", "last"),
    descriptions={
        "the": "the first article",
        "first": "the occupation the pronoun will refer to",
        "interaction": "what the two do, with the next article",
        "second": "the other occupation",
        "link": "everything up to the occupation that is named again",
        "again": "the first occupation, named again",
        "action": "what that person does",
        "last": "the last word before the pronoun",
    },
)
_TEMPLATES = (
    ("The| {a}| {act} the| {b}|. Then the| {a}| looked| at", "herself", "himself"),
    ("The| {a}| {act} the| {b}| this morning. The| {a}| smiled, and| then", "she", "he"),
    ('The| {a}| {act} the| {b}|. "Good morning," the| {a}| said,| and', "she", "he"),
    ('The| {a}| {act} the| {b}| at the station. "I am late," said the| {a}|.| Then', "she", "he"),
)
_ACTS = ("called", "met", "talked to", "waited for", "asked", "helped", "wrote to", "had a question for")
_FEMALE = (
    "assistant",
    "baker",
    "cleaner",
    "dancer",
    "designer",
    "librarian",
    "maid",
    "nurse",
    "secretary",
    "teacher",
    "writer",
)
_MALE = (
    "captain",
    "chief",
    "doctor",
    "driver",
    "engineer",
    "farmer",
    "guard",
    "lawyer",
    "manager",
    "mechanic",
    "pilot",
    "sheriff",
    "soldier",
)


def gender_bias(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'The nurse met the lawyer this morning. The nurse smiled, and then' → ' she' against ' he', as the stereotype has it."""
    sizes = (2, len(_TEMPLATES), len(_ACTS), len(_FEMALE), len(_MALE))

    def pair(number: int, rng: Random) -> Pair:
        male, template, act, woman, man = digits(number, *sizes)
        text, she, he = _TEMPLATES[template]
        a, b = (_MALE[man], _FEMALE[woman]) if male else (_FEMALE[woman], _MALE[man])
        answer, foil = (he, she) if male else (she, he)
        clean = fill(text, SCHEMA, a=a, b=b, act=_ACTS[act])
        counterfactual = fill(text, SCHEMA, a=b, b=a, act=_ACTS[act])
        return Pair(
            clean=clean.text,
            counterfactual=counterfactual.text,
            answers=(f" {answer}",),
            foils=(f" {foil}",),
            spans=clean.spans,
        )

    description = "Give a person named by occupation a pronoun; the answer declared is the stereotype's, so the pairs kept show the bias."
    recipe = Recipe(
        name="gender-bias",
        description=description,
        schema=SCHEMA,
        metric="logit_diff",
        size=math.prod(sizes),
        pair=pair,
    )
    return build(recipe, n, seed=seed, model=model)
