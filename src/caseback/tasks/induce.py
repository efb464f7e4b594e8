"""A schema without a language model: line the prompts of a task up, and cut where they agree to differ.

The prompts of a task were written to a plan: some words stand in every prompt (the frame), some places are filled anew
in each (slots), and the rest is wording. The plan shows in three things that need no reading: which words all prompts
share, which places the counterfactual changes, and which words a prompt says twice. So

1. *align*: an anchor is a slot or a frame word that can be told in every prompt: it occurs equally often in the same
   gap between the anchors found so far, or next to the gap's edge. Slots come first, then frame words, until no gap
   yields one (patience sorting, for many sequences in place of two). A slot is what the counterfactual changes, what
   the prompt repeats, and what the same words fill (`units.py`: content);
2. *cut*: a slot is a span. So is a frame word that stands between two slots, in a run of frame words, or before the
   last token; one alone in free wording ("a" in "gave a drink") is wording. A place between two frame words, one of
   them in a run, that always holds one word and not always the same is a slot too;
3. *merge*: what stands before the first slot is one span: a causal model knows nothing of the question there. But a
   frame word with at most two free words between it and a slot opens the slot's phrase ("the keys", "the old keys"),
   and what stands between is cut off with it;
4. *follow*: the word after the first mention of something repeated is a span, since there alone can the second mention
   be linked to the first (previous-token and induction heads);
5. every gap that is left is one span. Its length may vary, and it may be empty.

Spans are named by what they hold. The spans found train an aligner (`aligner.py`), which lays the schema on any prompt.

Invariant: spans that the task brings along are never looked at; the same prompts give the same schema.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from caseback.core.errors import SchemaError
from caseback.tasks.aligner import Aligner, cuts_of, fit
from caseback.tasks.encode import LanguageModel
from caseback.tasks.schema import BOS, Schema
from caseback.tasks.task import Task
from caseback.tasks.units import MENTIONS, Unit, lexicon_of, mentions, merged, stem_of, units_of

__all__ = ["InduceConfig", "induce", "induce_units"]

Range = tuple[int, int]
Kind = Literal["slot", "word", "lead", "next", "gap"]


@dataclass(frozen=True, kw_only=True)
class InduceConfig:
    """What counts as shared; the defaults serve all tasks of the library."""

    share: float = 0.9
    """Share of the prompts in which something must hold to be part of the plan, in (.5, 1]."""
    reach: int = 2
    """Free words between a frame word and the slot whose phrase it opens, at most."""
    rounds: int = 3
    """Times the prompts are laid anew by the aligner learned from them, at most."""

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1 or self.reach < 0 or self.rounds < 0:
            raise SchemaError("share must be above .5 and at most 1, reach and rounds at least 0")


@dataclass(frozen=True)
class _Anchor:
    """A column that can be told in (nearly) every prompt."""

    kind: Kind
    key: tuple[str, ...]
    at: tuple[Range | None, ...]
    """Units [start, end) in each prompt; None where it cannot be told."""


def induce(
    task: Task,
    model: LanguageModel,
    *,
    salient: Sequence[Sequence[bool]] | None = None,
    config: InduceConfig | None = None,
) -> Aligner:
    """The schema the task's prompts were written to, and the aligner that lays it on others.

    Of the model only the tokenizer is used. `salient[i][t]` says whether token t (without BOS) of prompt i weighs much
    for the answer; such a token is a slot although nothing else marks it.
    """
    prompts = [
        units_of(pair, model, salient=None if salient is None else salient[i]) for i, pair in enumerate(task.pairs)
    ]
    return induce_units(prompts, name=f"{task.name} (induced)", config=config)


def induce_units(prompts: Sequence[Sequence[Unit]], *, name: str, config: InduceConfig | None = None) -> Aligner:
    """`induce` for prompts given as units (not merged)."""
    config = config or InduceConfig()
    if len(prompts) < 2 or not all(prompts):
        raise SchemaError(f"a schema is induced by comparing prompts, and there are {len(prompts)}; give two at least")
    stem = stem_of(prompts)
    prompts = [merged(prompt, stem) for prompt in prompts]
    lexicon = lexicon_of(prompts, stem)
    # a prompt that cannot be compared with its counterfactual has no say, unless most are such
    compared = [prompt for prompt in prompts if prompt[0].changed is not None]
    told = compared if len(compared) > len(prompts) / 2 else prompts
    inner = [prompt[:-1] for prompt in told]  # the last unit is the last span, whatever it is
    anchors = _align(inner, [mentions(prompt, lexicon) for prompt in told], config)
    columns = _columns(_cut(anchors, inner, config), inner, config)
    whole = [i for i in range(len(inner)) if all(column.at[i] is not None for column in columns)]
    if len(whole) < 2:
        raise SchemaError("the prompts share no plan by which spans could be told; give prompts of one task")
    cuts = [[_start(column.at[i]) for column in columns] + [len(inner[i])] for i in whole]
    schema = _named(name, columns, [told[i] for i in whole], cuts, config)
    aligner = fit(schema, [told[i] for i in whole], cuts, lexicon)
    for _ in range(config.rounds):
        learned = fit(schema, prompts, [cuts_of(aligner, prompt) for prompt in prompts], lexicon)
        if learned == aligner:
            break
        aligner = learned
    return aligner


def _start(found: Range | None) -> int:
    assert found is not None
    return found[0]


# --- align -----------------------------------------------------------------------------------------------------------


def _occurrences(
    prompts: Sequence[Sequence[Unit]], repeated: Sequence[Sequence[int | None]], config: InduceConfig
) -> list[dict[tuple[str, ...], list[Range]]]:
    """What could be an anchor in each prompt: key → where it occurs.

    Neighbouring units of one role are one slot (a name of two words), unless there are equally many in every prompt.
    """
    seen = Counter(word for prompt in prompts for word in {unit.word for unit in prompt})
    frame = {w for w, n in seen.items() if n >= config.share * len(prompts) and w[:1].isalnum()}
    runs: list[dict[tuple[str, ...], list[Range]]] = []
    for prompt, row in zip(prompts, repeated, strict=True):
        found: dict[tuple[str, ...], list[Range]] = {}
        previous: tuple[str, ...] | None = None
        for i, (unit, mention) in enumerate(zip(prompt, row)):
            key = _role(unit, mention, frame)
            if key is not None and key == previous and key[0] != "word":
                found[key][-1] = (found[key][-1][0], i + 1)
            elif key is not None:
                found.setdefault(key, []).append((i, i + 1))
            previous = key
        runs.append(found)
    for key in {key for found in runs for key in found}:
        sizes = Counter(tuple(b - a for a, b in found.get(key, [])) for found in runs)
        if max(sizes.most_common(1)[0][0], default=0) > 1 and sizes.most_common(1)[0][1] >= config.share * len(runs):
            for found in runs:
                found[key] = [(i, i + 1) for a, b in found.get(key, []) for i in range(a, b)]
    return runs


def _role(unit: Unit, mention: int | None, frame: set[str]) -> tuple[str, ...] | None:
    if unit.changed:
        return "changed", "first" if mention == 1 else "again" if mention == 2 else ""
    if mention:
        return "content", MENTIONS[mention]
    if unit.word in frame:
        return "word", unit.word
    return ("salient",) if unit.salient else None


RANK = {"changed": 0, "content": 1, "salient": 2, "word": 3}


def _align(
    prompts: Sequence[Sequence[Unit]],
    repeated: Sequence[Sequence[int | None]],
    config: InduceConfig,
) -> list[_Anchor]:
    occurrences = _occurrences(prompts, repeated, config)
    keys = {key: None for found in occurrences for key in found}
    anchors: list[_Anchor] = []
    while True:
        best: tuple[tuple[float, ...], int, list[_Anchor]] | None = None
        for place in range(len(anchors) + 1):
            gaps = _gaps(anchors, place, prompts)
            for key in keys:
                inside = [
                    [r for r in found.get(key, []) if gap[0] <= r[0] and r[1] <= gap[1]]
                    for found, gap in zip(occurrences, gaps, strict=True)
                ]
                for new in _told(key, inside, gaps, config):
                    missing = sum(at is None for anchor in new for at in anchor.at)
                    mean = sum(at[0] for at in new[0].at if at) / len(prompts)
                    order = (RANK[key[0]], len(new), missing, mean)
                    if best is None or order < best[0]:
                        best = (order, place, new)
        if best is None:
            return anchors
        anchors[best[1] : best[1]] = best[2]


def _told(
    key: tuple[str, ...], inside: Sequence[Sequence[Range]], gaps: Sequence[Range], config: InduceConfig
) -> list[list[_Anchor]]:
    """The ways in which this key's occurrences inside a gap can be told apart in nearly all prompts.

    By number, when there are as many in each; a frame word also as the last one close before the gap's end, or as the
    one the gap begins with.
    """
    enough = config.share * len(gaps)
    kind: Kind = "word" if key[0] == "word" else "slot"
    times, agreeing = Counter(map(len, inside)).most_common(1)[0]
    ways: list[list[_Anchor]] = []
    if times and agreeing >= enough:
        ways.append(
            [_Anchor(kind, key, tuple(r[t] if len(r) == times else None for r in inside)) for t in range(times)]
        )
    elif kind == "word":
        last = tuple(
            r[-1] if r and gap[1] - r[-1][1] <= config.reach else None for r, gap in zip(inside, gaps, strict=True)
        )
        first = tuple(r[0] if r and r[0][0] == gap[0] else None for r, gap in zip(inside, gaps, strict=True))
        ways += [[_Anchor(kind, key, at)] for at in (last, first) if sum(r is not None for r in at) >= enough]
    return ways


def _gaps(columns: Sequence[_Anchor], place: int, prompts: Sequence[Sequence[Unit]]) -> list[Range]:
    """In each prompt, the units between the columns before `place` and those from it on."""
    gaps = []
    for i, prompt in enumerate(prompts):
        left = next((r[1] for column in reversed(columns[:place]) if (r := column.at[i])), 0)
        right = next((r[0] for column in columns[place:] if (r := column.at[i])), len(prompt))
        gaps.append((left, right))
    return gaps


# --- cut, merge, follow ----------------------------------------------------------------------------------------------


def _cut(anchors: Sequence[_Anchor], prompts: Sequence[Sequence[Unit]], config: InduceConfig) -> list[_Anchor]:
    """The anchors that are spans, with the slots between frame words, without what stands before the first slot."""
    enough = config.share * len(prompts)

    def between(place: int) -> list[int]:
        return [b - a for a, b in _gaps(anchors, place, prompts)]

    sizes = [between(place) for place in range(len(anchors) + 1)]
    touching = [sum(size == 0 for size in row) >= enough for row in sizes]  # [place]: anchors place - 1 and place touch
    kept = {i for i, anchor in enumerate(anchors)}
    kept |= {len(anchors)}  # the last token
    while True:  # a frame word that stands alone is wording, and so is one that was in a run with such only
        lone = set()
        for i in kept - {len(anchors)}:
            sides = [(j, anchors[j].kind if j < len(anchors) else "last") for j in (i - 1, i + 1) if j in kept]
            beside = [kind for j, kind in sides if touching[max(i, j)]]
            if anchors[i].kind == "word" and not ("word" in beside or "last" in beside or beside == ["slot", "slot"]):
                lone.add(i)
        if not lone:
            break
        kept -= lone

    def run(i: int, step: int) -> bool:
        """Whether kept frame words i and i + step touch."""
        pair = (i, i + step)
        words = all(j in kept and j < len(anchors) and anchors[j].kind == "word" for j in pair)
        return words and touching[max(pair)]

    columns: list[_Anchor] = []
    lead: _Anchor | None = None
    for i in range(len(anchors) + 1):
        gaps = _gaps(anchors, i, prompts)
        is_word = [0 <= j < len(anchors) and anchors[j].kind == "word" for j in (i - 1, i)]
        single = sum(size == 1 for size in sizes[i]) >= enough
        varied = len({prompts[n][a].word for n, (a, b) in enumerate(gaps) if b - a == 1}) > 1
        if all(is_word) and single and varied and (run(i, 1) or run(i - 1, -1)):
            slots = tuple(gap if gap[1] - gap[0] == 1 else None for gap in gaps)
            columns.append(_Anchor("slot", ("free",), slots))
        if i == len(anchors):
            break
        near = sum(size <= config.reach for size in sizes[i]) >= enough
        if anchors[i].kind == "slot" and lead is not None and near and not touching[i]:
            phrase = tuple(
                (word[0], slot[0]) if word and slot else None for word, slot in zip(lead.at, anchors[i].at, strict=True)
            )
            columns.append(replace(lead, kind="lead", at=phrase))
        lead = anchors[i] if anchors[i].kind == "word" and i not in kept else None
        if i in kept:
            columns.append(anchors[i])
    first = next((i for i, column in enumerate(columns) if column.kind == "slot"), 0)
    if first and columns[first - 1].kind == "lead":
        first -= 1
    return columns[first:]


def _columns(anchors: Sequence[_Anchor], prompts: Sequence[Sequence[Unit]], config: InduceConfig) -> list[_Anchor]:
    """The anchors with what lies between them: the followers of first mentions, and the gaps."""
    columns: list[_Anchor] = []
    for place in range(len(anchors) + 1):
        gaps = _gaps(anchors, place, prompts)
        filled = sum(b > a for a, b in gaps)
        before = columns[-1] if columns else None
        if before and before.kind == "slot" and before.key[-1] == "first" and filled >= config.share * len(prompts):
            columns.append(_Anchor("next", before.key, tuple((a, a + 1) if b > a else None for a, b in gaps)))
            gaps = [(min(a + 1, b), b) for a, b in gaps]
            filled = sum(b > a for a, b in gaps)
        if filled > (1 - config.share) * len(prompts):
            columns.append(_Anchor("gap", ("gap",), tuple(gaps)))
        if place < len(anchors):
            columns.append(anchors[place])
    return columns


# --- names -----------------------------------------------------------------------------------------------------------


def _named(
    name: str,
    columns: Sequence[_Anchor],
    prompts: Sequence[Sequence[Unit]],
    cuts: Sequence[Sequence[int]],
    config: InduceConfig,
) -> Schema:
    """Names by content: a frame word is called by itself, a slot by what fills it, a gap by what it follows."""
    ends = [[*row[1:], len(prompt)] for prompt, row in zip(prompts, cuts, strict=True)]
    held = [
        [prompt[row[k] : end[k]] for prompt, row, end in zip(prompts, cuts, ends, strict=True)]
        for k in range(len(columns) + 1)
    ]
    texts = [[" ".join(unit.text for unit in segment) for segment in column] for column in held]
    names: list[str] = []
    slots: dict[str, int] = {}
    for k, column in enumerate(columns):
        before = names[-1].removesuffix(" next") if names else ""
        one = column.kind == "gap" and all(len(segment) == 1 for segment in held[k])
        match "slot" if one else column.kind:
            case "slot":
                first = next((n for n, j in slots.items() if _agree(texts[j], texts[k]) >= config.share), None)
                shapes = Counter(unit.shape for segment in held[k] for unit in segment)
                kind = {"capital": "name", "digits": "number"}.get(shapes.most_common(1)[0][0], "word")
                base = f"{first} again" if first else _numbered(kind, names, start=1)
                if not first:
                    slots[base] = k
            case "next":
                base = f"{before} next"
            case "lead":
                base = f"{_plain(column.key[-1])} phrase"
            case "gap":
                base = f"after {before}" if before else "opening"
            case "word":
                base = _plain(column.key[-1])
        names.append(base if base not in names and base != BOS else _numbered(base, names, start=2))
    last = _plain(texts[-1][0]) if len(set(texts[-1])) == 1 else "last"
    names.append(last if last not in names and last != BOS else _numbered(last, names, start=2))
    examples = [" or ".join(repr(text) for text in list(dict.fromkeys(row))[:3]) for row in texts]
    described = {n: f"such as {example}" for n, example in zip(names, examples, strict=True)}
    return Schema(name=name, spans=tuple(names), descriptions=described)


def _agree(a: Sequence[str], b: Sequence[str]) -> float:
    return sum(x.lower() == y.lower() for x, y in zip(a, b, strict=True)) / len(a)


def _plain(word: str) -> str:
    """A frame word as a name."""
    return word[:30] if word and word.isprintable() else "mark"


def _numbered(base: str, taken: Sequence[str], *, start: int) -> str:
    return next(f"{base}-{i}" for i in count(start) if f"{base}-{i}" not in taken)
