"""What a prompt is made of, as alignment sees it: units, and which of their words are content.

A *unit* is what may not be cut: a token, joined to its neighbours inside a word, except where the counterfactual differs
from there on (1732 and 1701 are cut into 17 and 32) and before the last token, which stands alone.

A word is *wording* or it fills a place. Prompts tell: of two prompts that are most alike, the one has another word where
the other has this one, between the same neighbours. A filler is *content* when it or the words that replace it are what
the question is about: counterfactuals change them, or prompts repeat them. So a name that is mentioned once, in passing, is
known for one because other prompts have there the names that matter.

Invariant: units cover the tokens in order, each token in one unit; the lexicon depends on the prompts only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np

from caseback.core.errors import SchemaError
from caseback.tasks.encode import LanguageModel
from caseback.tasks.pair import Pair

__all__ = ["MENTIONS", "SHAPES", "Lexicon", "Unit", "lexicon_of", "mentions", "units", "units_of"]

SHAPES = ("lower", "capital", "digits", "other")
MENTIONS = ("none", "first", "again", "once")
"""A unit of no content; content mentioned first of several times, again, or once."""

NEIGHBOURS = 8
"""Prompts most alike that a prompt is compared with."""
FILLER = 0.1
"""Share of the comparisons in which a filler is replaced, at least."""
CONTENT = 0.25
"""Share of the prompts in which a word is changed, or its replacements are changed or repeated, if it is content."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece a span may begin or end at."""

    word: str
    """Its text in lower case, without space around it."""
    shape: str
    start: int
    """Characters [start, end) of the prompt; the space before the text is included."""
    end: int
    tokens: tuple[int, int]
    """Tokens [first, last + 1)."""
    changed: bool | None = None
    """Whether the counterfactual has other text at these tokens; None where there is none to compare with."""
    salient: bool = False


def units(
    prompt: str,
    offsets: Sequence[tuple[int, int]],
    counterfactual: Sequence[str] | None = None,
    salient: Sequence[bool] | None = None,
) -> list[Unit]:
    """The units of a prompt from its tokens' character ranges.

    `counterfactual` holds the texts of the counterfactual's tokens, as many as the prompt's; `salient` one flag a token.

    >>> [u.word for u in units("a 12b", [(0, 1), (1, 3), (3, 4), (4, 5)])]
    ['a', '12', 'b']
    """
    texts = [prompt[start:end].strip() for start, end in offsets]
    n = len(offsets)
    changed = None if counterfactual is None else [a != b.strip() for a, b in zip(texts, counterfactual, strict=True)]
    for i in range(1, n if changed else 0):  # of 1731 and 1701, 31 differs as a whole
        assert changed is not None
        changed[i] |= changed[i - 1] and _goes_on(prompt, offsets, texts, i)
    joined = [0 < i < n - 1 and _goes_on(prompt, offsets, texts, i) for i in range(n)]
    if changed is not None:
        joined = [j and (changed[i] == changed[i - 1] or not texts[i][:1].isdigit()) for i, j in enumerate(joined)]
    if n > 2 and not texts[n - 2]:  # white space never begins a unit of its own, not even before the last token
        joined[n - 2] = True
    starts = [i for i in range(n) if not joined[i]]
    found = []
    for a, b in pairwise([*starts, n]):
        start = 0 if a == 0 else max(offsets[a - 1][1], 0)
        text = prompt[start : offsets[b - 1][1]].strip()
        found.append(
            Unit(
                word=text.lower(),
                shape=_shape(text),
                start=start,
                end=len(prompt) if b == n else offsets[b - 1][1],
                tokens=(a, b),
                changed=None if changed is None else any(changed[a:b]),
                salient=salient is not None and any(salient[a:b]),
            )
        )
    return found


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


def lexicon_of(prompts: Sequence[Sequence[Unit]]) -> Lexicon:
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
    share = {word: marked[word] / n for word, n in present.items()}
    replaced, weight = Counter[str](), defaultdict[str, float](float)
    for (word, other), n in swapped.items():
        replaced[word] += n
        weight[word] += n * share[other]
    content = {word for word, n in differing.items() if n >= CONTENT * present[word]}
    content |= {w for w, n in replaced.items() if n >= FILLER * seen[w] and weight[w] >= CONTENT * n}
    return Lexicon(known=frozenset(present), content=frozenset(w for w in content if w[:1].isalnum()))


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
