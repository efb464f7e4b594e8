"""How well are schemas induced? Boundary F1 against the hand-written spans, on wordings and lengths never seen.

    python -m bench.schemas                 the table (about a minute on one core)
    python -m bench.schemas --n 64 ioi      quicker, some tasks

*Unseen wordings.* WORDING names the spans of a task that tell its templates apart (the opening of an IOI prompt, the
link of an agreement prompt). Each text of such a span is held out in turn: the schema is induced from the prompts
without it and laid on those with it. *Unseen lengths.* Induced from the shorter half of the prompts and laid on the
longer, and the other way round.

*F1* compares the tokens at which spans begin, leaving out the first token and the last one, where every schema has a
boundary. Per prompt, then the mean; intervals (95 %) resample the held-out wordings, for lengths the prompts. Controls
on the same prompts: every token its own span (single); as many spans as induced, of equal length (equal); the induced
lengths in random order (shuffled, mean of 5). "from hand" is the ceiling of the aligner: learned from the hand-written
spans of the same prompts the schema was induced from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

import caseback
from bench.fresh_tasks import REVISED, UNSEEN
from caseback.evidence.intervals import mean_interval, ratio_interval
from caseback.tasks import LanguageModel, Task, library, token_ranges
from caseback.tasks.aligner import Aligner, lay, learn
from caseback.tasks.induce import induce
from caseback.tasks.units import units_of

WORDING = {
    "ioi": ("prefix",),
    "ioi-baba": ("prefix",),
    "greater-than": ("The",),
    "agreement": ("prefix", "determiner", "link"),
    "gender-bias": ("interaction", "link"),
    "capitals": ("prefix", "link"),
}
"""Task of the library → spans that tell its templates apart; the tasks of fresh_tasks.py have "opening"."""
DRAWS = 5

COLUMNS = ("induced", "single", "equal", "shuffled", "hand")


def f1(found: set[int], true: set[int]) -> float:
    return 2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0


def boundaries(starts: Sequence[int], n: int) -> set[int]:
    return {start for start in starts if 0 < start < n - 1}


@dataclass
class Scores:
    """Per held-out set, the F1 of each of its prompts in each of COLUMNS."""

    sets: list[np.ndarray] = field(default_factory=list)  # [prompt, column]

    def add(self, rows: list[list[float]]) -> None:
        self.sets.append(np.array(rows))

    def summary(self, *, by_set: bool) -> dict[str, object]:
        rows = np.concatenate(self.sets)
        if by_set and len(self.sets) > 1:
            counts = np.array([float(len(s)) for s in self.sets])
            interval = ratio_interval(np.array([s[:, 0].sum() for s in self.sets]), counts)
        else:
            interval = mean_interval(rows[:, 0])
        means = dict(zip(COLUMNS, rows.mean(axis=0).tolist(), strict=True))
        return {"n": len(rows), "sets": len(self.sets), "low": interval.low, "high": interval.high, **means}


def wordings(task: Task) -> Iterator[list[int]]:
    """The prompts with each text of each span that tells templates apart."""
    assert task.schema is not None
    for span in WORDING.get(task.name, ("opening",)):
        k = task.schema.spans.index(span)
        by_text: dict[str, list[int]] = {}
        for i, pair in enumerate(task.pairs):
            by_text.setdefault(pair.pieces[k][1], []).append(i)
        yield from by_text.values()


def lengths(task: Task, model: LanguageModel) -> Iterator[list[int]]:
    """The prompts longer than the median, and the others."""
    sizes = np.array([len(model.tokens(pair.clean)) for pair in task.pairs])
    longer = sizes > np.median(sizes)
    for chosen in (longer, ~longer):
        if 0 < chosen.sum() < len(sizes):
            yield np.flatnonzero(chosen).tolist()


def judge(task: Task, model: LanguageModel, held_out: list[int]) -> list[list[float]]:
    """Induce without the held-out prompts, lay on them, compare with the spans a hand wrote."""
    test = set(held_out)
    train = task[[i for i in range(task.n) if i not in test]]
    induced, by_hand = induce(train, model), learn(train, model)
    rng = Random(0)
    rows = []
    for i in held_out:
        pair = task.pairs[i]
        offsets = model.offsets(pair.clean)[int(model.bos) :]
        n = len(offsets)
        true = boundaries([a for a, b in token_ranges(pair.clean, offsets, pair.spans) if b > a], n)

        def laid(aligner: Aligner, pair=pair, offsets=offsets) -> list[tuple[int, int]]:
            spans = lay(aligner, pair.clean, units_of(pair, model))
            return [(a, b) for a, b in token_ranges(pair.clean, offsets, spans) if b > a]

        found = laid(induced)
        inner = [b - a for a, b in found[:-1]]
        equal = [round(k * (n - 1) / len(inner)) for k in range(len(inner))] if inner else []
        shuffled = []
        for _ in range(DRAWS):
            order = rng.sample(inner, len(inner))
            shuffled.append(f1(boundaries(np.cumsum([0, *order]).tolist(), n), true))
        rows.append(
            [
                f1(boundaries([a for a, _ in found], n), true),
                f1(boundaries(range(n), n), true),
                f1(boundaries(equal, n), true),
                float(np.mean(shuffled)),
                f1(boundaries([a for a, _ in laid(by_hand)], n), true),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fresh = {make.__name__: make for make in (*REVISED, *UNSEEN)}
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join((*WORDING, *fresh))}; all of them without one")
    parser.add_argument("--n", type=int, default=200, help="prompts a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=None, help="whose tokenizer is used; the default model without one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    args = parser.parse_args()
    model = caseback.load(args.model)
    if not args.json:
        print(f"{model.name}, n={args.n}, seed={args.seed}\n")
        print(f"{'task':14}{'held out':10}{'sets':>5}{'n':>6}  {'F1':>5}  {'95 %':13}", end="")
        print(f"{'single':>8}{'equal':>7}{'shuffled':>10}{'from hand':>11}")
    for name in args.tasks or (*WORDING, *fresh):
        if not args.json and fresh.get(name) in (REVISED[0], UNSEEN[0]):
            print(f"-- {'REVISED' if fresh[name] is REVISED[0] else 'UNSEEN'} of bench/fresh_tasks.py")
        if name in fresh:
            task = fresh[name](model, n=args.n, seed=args.seed)
        else:
            task = library.get(name, n=args.n, seed=args.seed, model=model)
        for kind, held_out in (("wording", wordings(task)), ("length", lengths(task, model))):
            scores = Scores()
            for rows in held_out:
                scores.add(judge(task, model, rows))
            if not scores.sets:
                print(f"{name}: all prompts have the same {kind}", file=sys.stderr)
                continue
            s = scores.summary(by_set=kind == "wording")
            if args.json:
                print(json.dumps({"task": name, "held_out": kind, **s}), flush=True)
                continue
            print(
                f"{name:14}{kind:10}{s['sets']:5}{s['n']:6}  {s['induced']:5.3f}  [{s['low']:.3f} {s['high']:.3f}]",
                end="",
            )
            print(f"{s['single']:8.3f}{s['equal']:7.3f}{s['shuffled']:10.3f}{s['hand']:11.3f}", flush=True)


if __name__ == "__main__":
    main()
