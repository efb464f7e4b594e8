"""Pairs as tensors for the model at hand.

What a pair says in characters must hold in tokens before a number can be trusted: every answer and foil is one token
*as it continues the prompt*, the two prompts have the same number of tokens, no token reaches across a span's boundary,
and the last span is the one token the prediction is read at. Whatever breaks a rule is named with its row; nothing is
cut, padded on the left or guessed.

Rule for answers: the answer's token t is the one with tokens(prompt + answer) = tokens(prompt) + [t]. So " Mary" after
"... a drink to" and "4" after "... the year 17" are judged in place, where a tokenizer might merge or split them. The
result is remembered for prompts that end in the same word.

Invariant: both sides of a PairBatch have the same mask and the same spans; a tokenizer's own BOS is the first span,
named "bos".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.core.errors import SchemaError, TaskError
from caseback.model.batch import Batch
from caseback.tasks.pair import Pair
from caseback.tasks.schema import BOS, token_ranges

__all__ = ["LanguageModel", "MetricName", "PairBatch", "encode"]

MetricName = Literal["logit_diff", "prob_diff"]

BAD_TOKENS = "bad tokenisation"
OTHER_LENGTH = "counterfactual of another length"


@runtime_checkable
class LanguageModel(Protocol):
    """What a task needs of a model: its tokens and its prediction. `caseback.load()` gives one."""

    @property
    def name(self) -> str: ...

    @property
    def bos(self) -> bool:
        """Whether the tokenizer puts a token before the text by itself."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Token ids, the tokenizer's own BOS included."""
        ...

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character range of each token of `tokens(text)`."""
        ...

    def logits(self, batch: Batch) -> Float[Tensor, "batch vocab"]:
        """The logits after each row's last real token, without gradient."""
        ...


@dataclass(frozen=True)
class PairBatch:
    """Pairs as token tensors, right-padded, with spans as token ranges."""

    clean: Batch
    counterfactual: Batch
    """Same shape, same mask and same spans as `clean`."""
    answers: Int[Tensor, "batch n_answers"]
    """Token ids of the right continuations; -1 where a row has fewer."""
    foils: Int[Tensor, "batch n_foils"]
    """Token ids of the wrong continuations; -1 where a row has fewer."""
    metric: MetricName

    @property
    def n(self) -> int:
        return self.clean.n

    def __getitem__(self, rows: slice | Sequence[int]) -> PairBatch:
        """The chosen pairs, cut to the width they need."""
        return PairBatch(self.clean[rows], self.counterfactual[rows], self.answers[rows], self.foils[rows], self.metric)

    def chunk(self, size: int) -> Iterator[PairBatch]:
        """The pairs in order, at most `size` at a time."""
        for start in range(0, self.n, size):
            yield self[start : start + size]

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(
            self.clean.to(device),
            self.counterfactual.to(device),
            self.answers.to(device),
            self.foils.to(device),
            self.metric,
        )


class Unfit(TaskError):
    """A pair that breaks a rule in this model's tokens; `reason` is the rule's short name."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Encoded(NamedTuple):
    """One pair in tokens."""

    clean: list[int]
    counterfactual: list[int]
    ranges: dict[str, tuple[int, int]]
    answers: list[int]
    foils: list[int]


class Encoder:
    """Turns pairs into tokens of one model, and remembers what it has seen."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self._answers: dict[tuple[str, str], int | str] = {}

    def __call__(self, pair: Pair, *, place: int = 0) -> Encoded:
        """The pair in tokens; raises Unfit. `place` numbers a pair that has no row."""
        where = pair.where(place)
        clean, counterfactual = self.model.tokens(pair.clean), self.model.tokens(pair.counterfactual)
        if len(clean) != len(counterfactual):
            raise Unfit(
                f"{where}: 'counterfactual' has {len(counterfactual)} tokens and 'clean' has {len(clean)} in this model; "
                f"write one of equal length, or let `check` drop the pair ({_short(pair.counterfactual)})",
                OTHER_LENGTH,
            )
        ranges = {BOS: (0, 1)} if self.model.bos and pair.spans else {}
        if pair.spans:
            first = 1 if self.model.bos else 0
            try:
                spans = token_ranges(pair.clean, self.model.offsets(pair.clean)[first:], pair.spans)
            except SchemaError as error:
                raise Unfit(f"{where}: 'spans': {error}", BAD_TOKENS) from None
            ranges |= {
                name: (start + first, end + first) for (name, _, _), (start, end) in zip(pair.spans, spans, strict=True)
            }
        answers = [self._continuation(pair.clean, clean, text, where, "answer") for text in pair.answers]
        foils = [self._continuation(pair.clean, clean, text, where, "foil") for text in pair.foils]
        if set(answers) & set(foils):
            raise Unfit(
                f"{where}: an answer and a foil are the same token in this model ({pair.answers} against {pair.foils}); change one",
                BAD_TOKENS,
            )
        return Encoded(clean, counterfactual, ranges, answers, foils)

    def _continuation(self, prompt: str, ids: list[int], text: str, where: str, field: str) -> int:
        """The one token by which `text` continues the prompt."""
        key = (prompt[prompt.rstrip().rfind(" ") + 1 :], text)
        if key not in self._answers:
            joined = self.model.tokens(prompt + text)
            if joined[: len(ids)] != ids:
                self._answers[key] = (
                    "melts into the last token of the prompt; end the prompt elsewhere or choose another one"
                )
            elif len(joined) != len(ids) + 1:
                self._answers[key] = (
                    f"is {len(joined) - len(ids)} tokens in this model; use one that is a single token, leading space included"
                )
            else:
                self._answers[key] = joined[-1]
        found = self._answers[key]
        if isinstance(found, str):
            raise Unfit(f"{where}: {field} {text!r} {found}, or let `check` drop the pair", BAD_TOKENS)
        return found


def encode(pairs: Sequence[Pair], model: LanguageModel, *, metric: MetricName = "logit_diff") -> PairBatch:
    """The pairs as tensors; raises TaskError that names the field and the row of the first pair that does not fit this model."""
    encoder = Encoder(model)
    return stack([encoder(pair, place=i) for i, pair in enumerate(pairs)], metric=metric)


def stack(rows: Sequence[Encoded], *, metric: MetricName) -> PairBatch:
    """Encoded pairs of one task as one batch."""
    if not rows:
        raise TaskError("there is no pair to encode; give at least one")
    clean, counterfactual = Batch.pad([row.clean for row in rows]), Batch.pad([row.counterfactual for row in rows])
    spans = {name: torch.tensor([row.ranges[name] for row in rows]) for name in rows[0].ranges}
    return PairBatch(
        Batch(clean.ids, clean.mask, spans),
        Batch(counterfactual.ids, counterfactual.mask, spans),
        _padded([row.answers for row in rows]),
        _padded([row.foils for row in rows]),
        metric,
    )


def _padded(rows: Sequence[list[int]]) -> Int[Tensor, "batch n"]:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
