"""A task: one question asked many times, split once and for all into the half circuits are found on and the half they
are judged on.

The split is a property of the pairs, not of the moment: it is fixed when a Task is made, travels with `check`, subsets
and files, and holds no prompt - clean or counterfactual - on both sides. Pairs that share a prompt text, directly or
through others, go together; these groups are dealt in order of appearance to the side that is further below its share,
so the split is deterministic and as even as the groups allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import TaskError
from caseback.core.progress import Progress, silent
from caseback.evidence.intervals import Interval, proportion_interval
from caseback.tasks.encode import LanguageModel, MetricName, PairBatch, encode
from caseback.tasks.pair import Pair, Split
from caseback.tasks.schema import Schema

__all__ = ["Check", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Pairs that ask the same thing, with the schema and the metric they share."""

    name: str
    description: str = ""
    """One sentence: what is asked and what makes it hard."""
    pairs: tuple[Pair, ...]
    schema: Schema | None = None
    """The spans every pair has; None when the pairs have none."""
    metric: MetricName = "logit_diff"
    sign: int = 1
    """The sign (1 or -1) of the metric on a pair that is answered as the task declares."""
    source: str = ""
    """Where the pairs come from: a generator or a file."""
    seed: int | None = None
    """The generator's seed."""
    discovery_share: float = 0.5
    """Share of the pairs in the discovery half, in (0, 1), where they do not bring their split along."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise TaskError(f"the task {self.name!r} has no pair; give at least one")
        if self.sign not in (1, -1):
            raise TaskError(f"the task {self.name!r} has 'sign' {self.sign}; it is 1 or -1")
        if not 0 < self.discovery_share < 1:
            raise TaskError(
                f"the task {self.name!r} has 'discovery_share' {self.discovery_share}; it lies between 0 and 1"
            )
        expected = self.schema.spans if self.schema else ()
        for place, pair in enumerate(self.pairs):
            names = tuple(name for name, _, _ in pair.spans)
            if names != expected:
                raise TaskError(
                    f"{pair.where(place)}: 'spans' are {', '.join(names) or 'missing'}, while the task {self.name!r} has "
                    f"{', '.join(expected) or 'no schema'}; every pair has the same spans in the same order"
                )
        seen: dict[tuple[str, str], int] = {}
        for place, pair in enumerate(self.pairs):
            first = seen.setdefault((pair.clean, pair.counterfactual), place)
            if first != place:
                raise TaskError(
                    f"{pair.where(place)}: both prompts repeat {self.pairs[first].where(first)}; keep one of the two"
                )
        object.__setattr__(self, "pairs", _split(self.pairs, self.discovery_share))  # frozen for everybody else

    @property
    def n(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: slice | Sequence[int]) -> Task:
        """The task of the chosen pairs; each keeps its side of the split."""
        chosen = self.pairs[rows] if isinstance(rows, slice) else tuple(self.pairs[i] for i in rows)
        return replace(self, pairs=chosen)

    def take(self, n: int) -> Task:
        """The first n pairs, taken from both sides of the split in proportion."""
        if not 1 <= n <= self.n:
            raise TaskError(f"the task {self.name!r} was asked for n={n} pairs; it has {self.n}")
        sides = {
            side: [i for i, pair in enumerate(self.pairs) if pair.split == side] for side in ("discovery", "held_out")
        }
        found = round(n * len(sides["discovery"]) / self.n)
        found = min(max(found, n - len(sides["held_out"])), len(sides["discovery"]))
        return self[sorted(sides["discovery"][:found] + sides["held_out"][: n - found])]

    @property
    def discovery(self) -> Task:
        """The half circuits are found on."""
        return self._side("discovery")

    @property
    def held_out(self) -> Task:
        """The half circuits are judged on; shares no prompt with `discovery`."""
        return self._side("held_out")

    def _side(self, side: Split) -> Task:
        rows = [i for i, pair in enumerate(self.pairs) if pair.split == side]
        if not rows:
            raise TaskError(
                f"the task {self.name!r} has no {side.replace('_', '-')} pair among its {self.n}; take more pairs, "
                "with more than one counterfactual among them: pairs that share a prompt stay on one side"
            )
        return self[rows]

    def encode(self, model: LanguageModel) -> PairBatch:
        """The pairs as tensors for this model; raises TaskError that names the first pair that does not fit it."""
        return encode(self.pairs, model, metric=self.metric)

    def check(self, model: LanguageModel, *, batch_size: int = 16, progress: Progress = silent) -> Check:
        """Ask the model every pair and keep those answered as declared; raises TaskError when none is."""
        from caseback.tasks.check import check

        return check(self, model, batch_size=batch_size, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a model does on a task, and the pairs that are left to study it on."""

    task: Task
    """The pairs whose metric has the declared sign, each on its side of the split."""
    model: str
    """Name of the model asked."""
    n: int
    """Pairs asked for."""
    fit: int
    """Pairs that are well tokenised in this model, and so were asked."""
    accuracy: float
    """Share of the `fit` pairs whose metric has the declared sign."""
    top1: float
    """Share of the `fit` pairs whose likeliest next token is one of the answers."""
    values: Float[Tensor, "fit"]
    """The metric of each pair that was asked, in order."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason → number of pairs left out."""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason → up to three sentences that show it."""

    @property
    def mean(self) -> float:
        """Mean of the metric over the pairs that were asked."""
        return float(self.values.mean())

    @property
    def interval(self) -> Interval:
        """The accuracy with Wilson's interval."""
        return proportion_interval(round(self.accuracy * self.fit), self.fit)

    def __str__(self) -> str:
        lines = [
            f"{self.task.name} on {self.model}: {self.task.n} of {self.n} pairs kept",
            f"  accuracy {self.interval} of {self.fit} well-tokenised pairs "
            f"(mean {self.task.metric} {self.mean:.3f}; top-1 {self.top1:.3f})",
        ]
        for reason, count in self.dropped.items():
            lines.append(f"  dropped {count}: {reason}")
            lines += [f"    {example}" for example in self.examples[reason]]
        return "\n".join(lines)


def _split(pairs: tuple[Pair, ...], share: float) -> tuple[Pair, ...]:
    """The pairs, each on a side; raises TaskError when sides were given and a prompt is on both."""
    given = [pair.split is not None for pair in pairs]
    if any(given) and not all(given):
        place = given.index(False)
        raise TaskError(
            f"{pairs[place].where(place)}: 'split' is missing while other pairs have one; give it to every pair or to none"
        )
    if all(given):
        sides: dict[str, tuple[Split | None, int]] = {}
        for place, pair in enumerate(pairs):
            for text in (pair.clean, pair.counterfactual):
                side, first = sides.setdefault(text, (pair.split, place))
                if side != pair.split:
                    raise TaskError(
                        f"{pair.where(place)}: 'split' is {pair.split!r}, but a prompt of this pair is also in "
                        f"{pairs[first].where(first)}, which is {side!r}; put both on one side"
                    )
        return pairs
    groups = _groups(pairs)
    size = Counter(groups)
    side_of: dict[int, Split] = {}
    discovery = total = 0
    for group in groups:
        if group not in side_of:
            total += size[group]
            side_of[group] = "discovery" if discovery + size[group] / 2 <= share * total else "held_out"
            discovery += size[group] if side_of[group] == "discovery" else 0
    return tuple(replace(pair, split=side_of[group]) for pair, group in zip(pairs, groups, strict=True))


def _groups(pairs: Sequence[Pair]) -> list[int]:
    """For each pair, the first pair it is tied to by shared prompt texts (union-find)."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        for text in (pair.clean, pair.counterfactual):
            a, b = root(first.setdefault(text, i)), root(i)
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(pairs))]
