"""How the library's tasks are made: a recipe says what pair number i is, and `build` draws distinct numbers.

A recipe counts its prompts from 0 to size - 1 and turns each number into one pair, so drawing without replacement gives
distinct prompts, the largest possible task is known, and the same (n, seed) gives the same task on every machine. With
a model at hand, pairs that do not fit its tokenizer - a name of two tokens, a counterfactual of another length - are
passed over while drawing, in the same order; without one the pairs are as they come, and `Task.check` drops what does
not fit.

A template is the prompt with `|` between its spans and `{slots}` in them: the hand-written schema lies in the text
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from caseback.core.errors import TaskError
from caseback.tasks.encode import Encoder, LanguageModel, MetricName, Unfit
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema, Span
from caseback.tasks.task import Task

__all__ = ["Prompt", "Recipe", "build", "digits", "fill"]

TRIES = 50
"""Numbers drawn per pair asked for before a recipe is given up on this tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a generated task consists of."""

    name: str
    description: str
    schema: Schema
    metric: MetricName
    size: int
    """Number of distinct clean prompts."""
    pair: Callable[[int, Random], Pair]
    """Pair number i, 0 <= i < size; the generator draws what is not part of the clean prompt."""


class Prompt(NamedTuple):
    text: str
    spans: tuple[Span, ...]


def build(recipe: Recipe, n: int, *, seed: int, model: LanguageModel | None) -> Task:
    """The task of n distinct pairs; raises TaskError with the largest possible n when there are not so many."""
    if n < 1:
        raise TaskError(f"the task {recipe.name!r} was asked for n={n} pairs; n is at least 1")
    if n > recipe.size:
        raise TaskError(f"the task {recipe.name!r} was asked for n={n} pairs; it has {recipe.size} at most")
    encoder = Encoder(model) if model is not None else None
    pairs: list[Pair] = []
    unfit: TaskError | None = None
    tries = min(recipe.size, TRIES * (n + 20))
    for number in Random(f"{recipe.name} {seed}").sample(range(recipe.size), tries):
        pair = recipe.pair(number, Random(f"{recipe.name} {seed} {number}"))
        try:
            if encoder is not None:
                encoder(pair, place=len(pairs))
            pairs.append(pair)
        except Unfit as error:
            unfit = error
        if len(pairs) == n:
            break
    else:
        name = model.name if model is not None else "this model"
        whole = f"it has {len(pairs)} at most" if tries == recipe.size else f"only {len(pairs)} of {tries} drawn do"
        raise TaskError(
            f"the task {recipe.name!r} was asked for n={n} pairs that fit the tokenizer of {name}; {whole} (for example, {unfit})"
        )
    fits = f", tokens of {model.name}" if model is not None else ""
    return Task(
        name=recipe.name,
        description=recipe.description,
        pairs=tuple(pairs),
        schema=recipe.schema,
        metric=recipe.metric,
        source=f"caseback library, n={n}, seed={seed}{fits}",
        seed=seed,
    )


def digits(number: int, *sizes: int) -> list[int]:
    """The number in the mixed base of the sizes: one index per size, together as many as the sizes' product.

    >>> digits(7, 2, 5)
    [1, 3]
    """
    found = []
    for size in sizes:
        found.append(number % size)
        number //= size
    return found


def fill(template: str, schema: Schema, **words: str) -> Prompt:
    """The template's text with its slots filled, and its spans.

    >>> fill("{a}| is|:", Schema(name="s", spans=("a", "is", "colon")), a="Rome")
    Prompt(text='Rome is:', spans=(('a', 0, 4), ('is', 4, 7), ('colon', 7, 8)))
    """
    text, spans = "", []
    for name, piece in zip(schema.spans, template.split("|"), strict=True):
        start = len(text)
        text += piece.format_map(words)
        spans.append((name, start, len(text)))
    return Prompt(text, tuple(spans))


def tokens_of(model: LanguageModel, word: str) -> int:
    """How many tokens a word, written with its leading space, is inside a text."""
    return len(model.tokens("It is" + word)) - len(model.tokens("It is"))
