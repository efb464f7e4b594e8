"""What a prompt is made of, as alignment sees it: units, and which of their words are content.

A *unit* is what may not be cut: a token, joined to its neighbours inside a word or number, except before the last token,
which stands alone. Numbers are cut too where the counterfactuals say so: if they keep the first two digits of nearly all
the numbers they change (1732, 1701), every longer number is cut after two.

A word is *wording* or it fills a place. Prompts tell: of two prompts that are most alike, the one has another word where
the other has this one, between the same neighbours. A filler is *content* when it or the words that replace it are what
the question is about: counterfactuals change them, or prompts repeat them. So a name that is mentioned once, in passing, is
known for one because other prompts have there the names that matter.

Invariant: units cover the tokens in order, each token in one unit; the lexicon depends on the prompts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np

from caseback.core.errors import SchemaError
from caseback.tasks.encode import LanguageModel
from caseback.tasks.pair import Pair

__all__ = ["MENTIONS", "SHAPES", "Lexicon", "Unit", "lexicon_of", "mentions", "merged", "stem_of", "units", "units_of"]

SHAPES = ("lower", "capital", "digits", "other")
MENTIONS = ("none", "first", "again", "once")
"""A unit of no content; content mentioned first of several times, again, or once."""

STEM = 0.9
"""Share of the changed numbers whose first digits must be kept, and equally many, for numbers to be cut there."""
NEIGHBOURS = 8
"""Prompts most alike that a prompt is compared with."""
FILLER = 0.1
"""Share of the comparisons in which a filler is replaced, at least."""
CONTENT = 0.25
"""Share of the prompts in which a word is changed, or its replacements are changed or repeated, if it is content."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece a span may begin or end at."""

    text: str
    """Without space around it."""
    word: str
    """The text in lower case, by which units are compared."""
    shape: str
    start: int
    """Characters [start, end) of the prompt; the space before the text is included."""
    end: int
    tokens: tuple[int, int]
    """Tokens [first, last + 1)."""
    changed: bool | None = None
    """Whether the counterfactual has other text at these tokens; None where there is none to compare with."""
    salient: bool = False
    goes_on: bool = False
    """Whether it goes on with the number of the unit before it."""


def units(
    prompt: str,
    offsets: Sequence[tuple[int, int]],
    counterfactual: Sequence[str] | None = None,
    salient: Sequence[bool] | None = None,
) -> list[Unit]:
    """The units of a prompt from its tokens' character ranges, with every digit token apart; see `merged`.

    `counterfactual` holds the texts of the counterfactual's tokens, as many as the prompt's; `salient` one flag a token.

    >>> found = units("ab 12c", [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)])
    >>> [unit.word for unit in found], [unit.word for unit in merged(found)]
    (['ab', '1', '2', 'c'], ['ab', '12', 'c'])
    """
    texts = [prompt[start:end].strip() for start, end in offsets]
    n = len(offsets)
    changed = None if counterfactual is None else [a != b.strip() for a, b in zip(texts, counterfactual, strict=True)]
    on = [i > 0 and _goes_on(prompt, offsets, texts, i) for i in range(n)]
    joined = [on[i] and i < n - 1 and not (texts[i - 1] and texts[i][:1].isdigit()) for i in range(n)]
    if n > 2 and not texts[n - 2]:  # white space is no unit of its own, not even before the last token
        joined[n - 2] = True
    found = []
    for a, b in pairwise([*(i for i in range(n) if not joined[i]), n]):
        start = 0 if a == 0 else offsets[a - 1][1]
        text = prompt[start : offsets[b - 1][1]].strip()
        unit = Unit(
            text=text,
            word=text.lower(),
            shape=_shape(text),
            start=start,
            end=len(prompt) if b == n else offsets[b - 1][1],
            tokens=(a, b),
            changed=None if changed is None else any(changed[a:b]),
            salient=salient is not None and any(salient[a:b]),
            goes_on=on[a] and text[:1].isdigit(),
        )
        found.append(unit)
    return found


def merged(found: Sequence[Unit], stem: int = 0) -> list[Unit]:
    """The units with the digits of a number joined, but cut after `stem` digits (0: nowhere) and before the last unit."""
    out: list[Unit] = []
    for i, unit in enumerate(found):
        if unit.goes_on and i < len(found) - 1 and not (stem and _digits(found, i) == stem):
            last = out.pop()
            unit = replace(
                unit,
                text=last.text + unit.text,
                word=last.word + unit.word,
                start=last.start,
                tokens=(last.tokens[0], unit.tokens[1]),
                changed=None if unit.changed is None else bool(last.changed or unit.changed),
                salient=last.salient or unit.salient,
                goes_on=last.goes_on,
            )
        out.append(unit)
    return out


def stem_of(prompts: Sequence[Sequence[Unit]]) -> int:
    """The digits that counterfactuals keep at the beginning of the numbers they change, where these are always as many."""
    kept: Counter[int] = Counter()
    for prompt in prompts:
        for i, unit in enumerate(prompt):
            number_changed = unit.goes_on and any(u.changed for u in _number(prompt, i)[:-1])
            if unit.changed and unit.shape == "digits" and not number_changed:
                kept[_digits(prompt, i)] += 1
    if not kept:
        return 0
    stem, times = kept.most_common(1)[0]
    return stem if times >= STEM * sum(kept.values()) else 0


def _number(found: Sequence[Unit], i: int) -> Sequence[Unit]:
    """The units of a number up to unit i."""
    first = i
    while found[first].goes_on:
        first -= 1
    return found[first : i + 1]


def _digits(found: Sequence[Unit], i: int) -> int:
    """Digits of the number that stand before unit i."""
    return sum(len(unit.word) for unit in _number(found, i)[:-1])


def units_of(pair: Pair, model: LanguageModel, *, salient: Sequence[bool] | None = None) -> list[Unit]:
    """The units of a pair's clean prompt, compared with its counterfactual where that has as many tokens."""
    skip = int(model.bos)
    offsets, other = model.offsets(pair.clean)[skip:], model.offsets(pair.counterfactual)[skip:]
    texts = [pair.counterfactual[start:end] for start, end in other]
    if salient is not None and len(salient) != len(offsets):
        raise SchemaError(f"{len(salient)} saliency values were given for the {len(offsets)} tokens of {pair.clean!r}")
    return units(pair.clean, offsets, texts if len(other) == len(offsets) else None, salient)


def _goes_on(prompt: str, offsets: Sequence[tuple[int, int]], texts: Sequence[str], i: int) -> bool:
    """Whether token i goes on with the word or number of token i - 1."""
    start, end = offsets[i - 1][1], offsets[i][1]
    if offsets[i][0] < start or not texts[i - 1]:  # parts of one character; white space before a text
        return True
    if not texts[i] or prompt[start:end][:1].isspace() or prompt[offsets[i][0]].isspace():
        return False
    left, right = texts[i - 1][-1], texts[i][0]
    return left.isalpha() and right.isalpha() or left.isdigit() and right.isdigit()


def _shape(text: str) -> str:
    if text.isdigit():
        return "digits"
    return "other" if not text[:1].isalpha() else "capital" if text[0].isupper() else "lower"


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The words of a set of prompts."""

    known: frozenset[str]
    content: frozenset[str]
    """Known words that fill places the question is about."""
    stem: int = 0
    """Digits after which numbers are cut."""


def lexicon_of(prompts: Sequence[Sequence[Unit]], stem: int = 0) -> Lexicon:
    """The words of the prompts and which are content, by comparing each prompt with those most like it."""
    seen, swapped = Counter[str](), Counter[tuple[str, str]]()
    for i, j in _alike(prompts):
        a, b = ([unit.word for unit in prompts[k]] for k in (i, j))
        seen.update(a)
        for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if tag == "replace" and a1 - a0 == b1 - b0:
                swapped.update(zip(a[a0:a1], b[b0:b1], strict=True))
    present, marked, differing = Counter[str](), Counter[str](), Counter[str]()
    for prompt in prompts:
        times = Counter(unit.word for unit in prompt)
        changed = {unit.word for unit in prompt if unit.changed}
        present.update(times.keys())
        differing.update(changed)
        marked.update(word for word, n in times.items() if n > 1 or word in changed)
    replaced = Counter[str]()
    for (word, _), n in swapped.items():
        replaced[word] += n
    share = {word: marked[word] / n for word, n in present.items()}
    for _ in range(
        2
    ):  # a word like those that replace it, and like those that replace these: what fills a place is a kind
        mean = dict.fromkeys(replaced, 0.0)
        for (word, other), n in swapped.items():
            mean[word] += share[other] * n / replaced[word]
        share |= mean
    content = {word for word, n in differing.items() if n >= CONTENT * present[word]}
    content |= {w for w, n in replaced.items() if n >= FILLER * seen[w] and share[w] >= CONTENT}
    return Lexicon(known=frozenset(present), content=frozenset(w for w in content if w[:1].isalnum()), stem=stem)


def _alike(prompts: Sequence[Sequence[Unit]]) -> list[tuple[int, int]]:
    """Each prompt with the prompts it has most words in common with; ties go to the earlier one."""
    index = {word: k for k, word in enumerate(dict.fromkeys(u.word for prompt in prompts for u in prompt))}
    counts = np.zeros((len(prompts), len(index)))
    for i, prompt in enumerate(prompts):
        for unit in prompt:
            counts[i, index[unit.word]] += 1
    pairs = []
    for i in range(len(prompts)):
        common = np.minimum(counts, counts[i]).sum(axis=1) / np.maximum(counts, counts[i]).sum(axis=1)
        common[i] = -1
        order = np.argsort(-common, kind="stable")[: min(NEIGHBOURS, len(prompts) - 1)]
        pairs += [(i, int(j)) for j in order]
    return pairs


def mentions(prompt: Sequence[Unit], lexicon: Lexicon) -> list[int | None]:
    """For each unit the index in MENTIONS; None for a word that is not known."""
    total = Counter(unit.word for unit in prompt)
    seen: Counter[str] = Counter()
    found: list[int | None] = []
    for unit in prompt:
        seen[unit.word] += 1
        if unit.word in lexicon.content:
            found.append(3 if total[unit.word] == 1 else min(seen[unit.word], 2))
        else:
            found.append(0 if unit.word in lexicon.known else None)
    return found
