"""An aligner lays a schema on prompts it has never seen: a profile, one column a span, learned from prompts with spans.

Where the spans of the examples come from is all one - a hand, an alignment (`induce`), a language model (`propose`) -
so whoever has laid a schema on some prompts can lay it on all, without asking again. The idea is that of a profile of
aligned sequences (Krogh et al. 1994): walking a prompt from left to right, column k emits a segment of some length,

    score = sum over columns k of  log P_k(length) + log P_k(first) + sum log P_k(inner) + log P_k(last),

and the spans are the segments of the best walk (dynamic programming, exact). A unit is seen through four features: its
word (separately as a segment's first, inner and last; the mean of first and last where it is alone); its shape (lower
case, capital, digits, other); whether it differs from the counterfactual at the same place; and whether it is the
first, a later or the only mention of content (`units.py`). All probabilities are smoothed counts.

Invariant: what `lay` returns passes the rules of `schema.py`: every span, in order, contiguous, last token alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from caseback.core.errors import SchemaError
from caseback.tasks.encode import LanguageModel
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema, Span, token_ranges
from caseback.tasks.task import Task
from caseback.tasks.units import MENTIONS, SHAPES, Lexicon, Unit, lexicon_of, mentions, merged, stem_of, units_of

__all__ = [
    "Aligner",
    "Column",
    "Laid",
    "cuts_of",
    "fit",
    "learn",
    "lay",
    "lay_on",
]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What was counted of one span over the examples."""

    lengths: Mapping[int, int]
    """Units a span → examples; 0 is an empty span."""
    first: Mapping[str, int]
    """First word → examples."""
    inner: Mapping[str, int]
    """Word that is neither first nor last → how often."""
    last: Mapping[str, int]
    """Last word → examples; a word alone is first and last."""
    shapes: tuple[int, ...]
    """Units of each of SHAPES."""
    changed: tuple[int, int]
    """Units like the counterfactual's, and unlike; units that have none are in neither."""
    mentions: tuple[int, ...]
    """Units of each of MENTIONS."""


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """A schema that can be laid on new prompts."""

    schema: Schema
    columns: tuple[Column, ...]
    """One a span."""
    lexicon: Lexicon
    n: int
    """Examples it was learned from."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": self.schema.to_dict(),
            "n": self.n,
            "stem": self.lexicon.stem,
            "known": sorted(self.lexicon.known),
            "content": sorted(self.lexicon.content),
            "columns": [
                {
                    "lengths": {str(k): v for k, v in sorted(c.lengths.items())},
                    "first": dict(sorted(c.first.items())),
                    "inner": dict(sorted(c.inner.items())),
                    "last": dict(sorted(c.last.items())),
                    "shapes": list(c.shapes),
                    "changed": list(c.changed),
                    "mentions": list(c.mentions),
                }
                for c in self.columns
            ],
        }

    @staticmethod
    def from_dict(data: object) -> Aligner:
        """The aligner in what `to_dict` gave; raises SchemaError that names the field."""
        if not isinstance(data, Mapping) or "schema" not in data:
            raise SchemaError("an aligner is an object with the fields schema, n, stem, known, content and columns")
        schema = Schema.from_dict(data["schema"])
        columns, n, stem = data.get("columns"), _count(data.get("n")), _count(data.get("stem"))
        if not isinstance(columns, list) or len(columns) != len(schema.spans):
            raise SchemaError(
                f"the aligner's 'columns' must be a list of {len(schema.spans)} objects, one for each span"
            )
        words = {}
        for name in ("known", "content"):
            value = data.get(name)
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise SchemaError(f"the aligner's {name!r} must be a list of words")
            words[name] = frozenset(value)
        if stem is None:
            raise SchemaError("the aligner's 'stem' must be a number of digits")
        if not n:
            raise SchemaError("the aligner's 'n' must be the number of examples it was learned from")
        return Aligner(
            schema=schema, columns=tuple(map(_column, schema.spans, columns)), lexicon=Lexicon(stem=stem, **words), n=n
        )


def _count(value: object) -> int | None:
    """The value when it is a count, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else None


def _column(span: str, data: object) -> Column:
    fields = data if isinstance(data, Mapping) else {}

    def counts(name: str) -> dict[str, int]:
        value = fields.get(name)
        if not isinstance(value, Mapping) or not all(
            isinstance(k, str) and _count(v) is not None for k, v in value.items()
        ):
            raise SchemaError(f"the aligner's column {span!r}: {name!r} must be an object with counts")
        return dict(value)

    def row(name: str, size: int) -> tuple[int, ...]:
        value = fields.get(name)
        if not isinstance(value, list) or len(value) != size or None in map(_count, value):
            raise SchemaError(f"the aligner's column {span!r}: {name!r} must be a list of {size} counts")
        return tuple(value)

    lengths = counts("lengths")
    if not any(lengths.values()) or not all(k.isascii() and k.isdigit() and len(k) < 7 for k in lengths):
        raise SchemaError(f"the aligner's column {span!r}: 'lengths' must have numbers of units as keys")
    unlike = row("changed", 2)
    return Column(
        lengths={int(k): v for k, v in lengths.items()},
        first=counts("first"),
        inner=counts("inner"),
        last=counts("last"),
        shapes=row("shapes", len(SHAPES)),
        changed=(unlike[0], unlike[1]),
        mentions=row("mentions", len(MENTIONS)),
    )


def fit(schema: Schema, prompts: Sequence[Sequence[Unit]], cuts: Sequence[Sequence[int]], lexicon: Lexicon) -> Aligner:
    """Count. `cuts[i]` holds the unit at which each span of prompt i begins; the last span ends with the prompt."""
    tallies = [_Tally() for _ in schema.spans]
    for prompt, starts in zip(prompts, cuts, strict=True):
        repeated = mentions(prompt, lexicon)
        for tally, (a, b) in zip(tallies, pairwise([*starts, len(prompt)]), strict=True):
            tally.add(prompt[a:b], repeated[a:b])
    return Aligner(schema=schema, columns=tuple(t.column() for t in tallies), lexicon=lexicon, n=len(prompts))


class _Tally:
    """A column while it is counted."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()
        self.first: Counter[str] = Counter()
        self.inner: Counter[str] = Counter()
        self.last: Counter[str] = Counter()
        self.shapes: Counter[str] = Counter()
        self.changed: Counter[bool | None] = Counter()
        self.mentions: Counter[int | None] = Counter()

    def add(self, segment: Sequence[Unit], repeated: Sequence[int | None]) -> None:
        self.lengths[len(segment)] += 1
        self.first.update(unit.word for unit in segment[:1])
        self.inner.update(unit.word for unit in segment[1:-1])
        self.last.update(unit.word for unit in segment[-1:])
        self.shapes.update(unit.shape for unit in segment)
        self.changed.update(unit.changed for unit in segment)
        self.mentions.update(repeated)

    def column(self) -> Column:
        return Column(
            lengths=dict(self.lengths),
            first=dict(self.first),
            inner=dict(self.inner),
            last=dict(self.last),
            shapes=tuple(self.shapes[s] for s in SHAPES),
            changed=(self.changed[False], self.changed[True]),
            mentions=tuple(self.mentions[m] for m in range(len(MENTIONS))),
        )


def lay(aligner: Aligner, prompt: str, found: Sequence[Unit]) -> tuple[Span, ...]:
    """The schema's spans on a prompt, given its units, as character ranges."""
    found = merged(found, aligner.lexicon.stem)
    starts = cuts_of(aligner, found)
    places = [found[i].start if i < len(found) else len(prompt) for i in starts]
    names = aligner.schema.spans
    return tuple((name, a, b) for name, (a, b) in zip(names, pairwise([*places, len(prompt)]), strict=True))


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A task with the spans of a schema, and what it had to leave out."""

    task: Task
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Clean prompt on which the schema cannot be laid → the rule that would be broken."""


def lay_on(aligner: Aligner, task: Task, model: LanguageModel) -> Laid:
    """Lay the schema on every prompt of a task, in place of the spans it has.

    A prompt on which no valid spans exist (its tokens forbid it) is dropped; raises SchemaError when none is left.
    """
    kept: list[Pair] = []
    dropped: dict[str, str] = {}
    for pair in task.pairs:
        spans = lay(aligner, pair.clean, units_of(pair, model))
        try:
            token_ranges(pair.clean, model.offsets(pair.clean)[int(model.bos) :], spans)
        except SchemaError as error:
            dropped[pair.clean] = str(error)
        else:
            kept.append(replace(pair, spans=spans))
    if not kept:
        reason = next(iter(dropped.values()))
        raise SchemaError(f"the schema {aligner.schema.name!r} fits no prompt of {task.name!r}; for example, {reason}")
    return Laid(task=replace(task, pairs=tuple(kept), schema=aligner.schema), dropped=dropped)


def learn(task: Task, model: LanguageModel) -> Aligner:
    """The aligner of the spans a task has, whoever wrote them."""
    if task.schema is None:
        raise SchemaError(f"the task {task.name!r} has no spans to learn from; induce or propose a schema first")
    fine = [units_of(pair, model) for pair in task.pairs]
    stem = stem_of(fine)
    prompts = [merged(found, stem) for found in fine]
    cuts = []
    for pair, prompt in zip(task.pairs, prompts, strict=True):
        ranges = token_ranges(pair.clean, model.offsets(pair.clean)[int(model.bos) :], pair.spans)
        cuts.append([sum(unit.tokens[0] < start for unit in prompt) for start, _ in ranges])
    return fit(task.schema, prompts, cuts, lexicon_of(prompts, stem))


def cuts_of(aligner: Aligner, found: Sequence[Unit]) -> list[int]:
    """The unit at which each span begins: the best walk of the columns, the last one holding the last unit alone."""
    if not found:
        raise SchemaError("the prompt has no tokens, so no schema can be laid on it")
    inner = len(found) - 1
    seen = found[:inner], mentions(found, aligner.lexicon)[:inner], _general(aligner, found[:inner])
    best = np.full(inner + 1, -np.inf)
    best[0] = 0.0
    came: list[np.ndarray] = []
    for column in aligner.columns[:-1]:
        total = best[:, None] + _segments(column, *seen)
        came.append(total.argmax(axis=0))
        best = total.max(axis=0)
    cuts = [inner]
    for back in reversed(came):
        cuts.append(int(back[cuts[-1]]))
    return cuts[::-1]


def _general(aligner: Aligner, found: Sequence[Unit]) -> Float[np.ndarray, "units"]:
    """How common each unit's word is over all columns; an unknown word has half a count."""
    counts = Counter[str]()
    for column in aligner.columns:
        for words in (column.first, column.inner, column.last):
            counts.update(words)
    total = sum(counts.values()) + 0.5 * (len(counts) + 1)
    return np.array([counts[unit.word] + 0.5 for unit in found]) / total


def _segments(
    column: Column,
    found: Sequence[Unit],
    repeated: Sequence[int | None],
    general: Float[np.ndarray, "units"],
) -> Float[np.ndarray, "n_plus_1 n_plus_1"]:
    """log P of the segment [i, j) as this column's, at [i, j]; -inf below the diagonal."""
    n = len(found)
    known = {*column.first, *column.inner, *column.last}
    room = len(known) / (sum(column.shapes) + len(known)) if known else 1.0  # a word was new so often (Witten-Bell)
    first, inner, last = (
        np.log((1 - room) * np.array([c.get(u.word, 0) for u in found]) / (sum(c.values()) or 1) + room * general)
        for c in (column.first, column.inner, column.last)
    )
    upto = np.concatenate([[0.0], np.cumsum(inner)])  # inner words of [i, j): upto[j - 1] - upto[i + 1]
    roles = np.concatenate([[0.0], np.cumsum(_roles(column, found, repeated))])
    score = roles[None, :] - roles[:, None]
    i, j = np.triu_indices(n + 1, 2)
    score[i, j] += first[i] + upto[j - 1] - upto[i + 1] + last[j - 1]
    one = np.arange(n)
    score[one, one + 1] += (first + last) / 2
    i, j = np.indices(score.shape)
    length = _lengths(column.lengths, n)
    return np.where(j >= i, score + length[np.maximum(j - i, 0)], -np.inf)


def _roles(column: Column, found: Sequence[Unit], repeated: Sequence[int | None]) -> Float[np.ndarray, "units"]:
    """log P of each unit's shape, mention and change, as far as they are known; half an example is added to each value."""
    shapes, kinds, changed = (
        np.log((np.array(c) + 0.5) / (sum(c) + 0.5 * len(c))) for c in (column.shapes, column.mentions, column.changed)
    )
    score = shapes[[SHAPES.index(unit.shape) for unit in found]]
    score += [0.0 if m is None else kinds[m] for m in repeated]
    score += [0.0 if unit.changed is None else changed[int(unit.changed)] for unit in found]
    return score


def _lengths(lengths: Mapping[int, int], most: int) -> Float[np.ndarray, "sizes"]:
    """log P(length) for lengths 0 to `most`, from the chance to go on after each unit.

    The chance is counted, with one example of the chance beyond the longest segment seen. That chance is next to none
    for a span that is one unit everywhere, so that slots do not swallow what is new.
    """
    n, kinds, longest = sum(lengths.values()), len(lengths), max(lengths)
    mean = sum(k * v for k, v in lengths.items()) / n
    beyond = mean / (mean + 1) * kinds / (kinds + 1) if longest > 1 else 0.5 / (n + 1)
    stop, going = np.zeros(most + 1), 0.0
    for size in range(most + 1):
        longer = sum(v for k, v in lengths.items() if k > size)
        reached = longer + lengths.get(size, 0)
        on = (longer + beyond) / (reached + 1) if size <= longest else beyond
        stop[size] = going + math.log(1 - on)
        going += math.log(on)
    return stop
