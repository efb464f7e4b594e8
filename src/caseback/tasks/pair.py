"""One question to a model, and its counterpart that should be answered otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from caseback.core.errors import TaskError
from caseback.tasks.schema import Span, encodable

__all__ = ["Pair", "Split"]

Split = Literal["discovery", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clean prompt, a counterfactual prompt of the same number of tokens, and the continuations that tell them apart.

    Answers and foils are written exactly as they continue the prompt, the leading space included: `" Mary"` after `"... a drink to"`.
    """

    clean: str
    """The prompt the answers are right for."""
    counterfactual: str
    """The prompt that takes the reason for the answers away; token for token as long as `clean`."""
    answers: tuple[str, ...]
    """Right continuations, at least one, one token each."""
    foils: tuple[str, ...]
    """Wrong continuations the answers are measured against, at least one, one token each."""
    spans: tuple[Span, ...] = ()
    """(name, start, end) character ranges of `clean`, in schema order, covering it; start == end is an empty span; () means no schema."""
    split: Split | None = None
    """Which half of its task the pair is in; a Task assigns it where nobody did."""
    row: int | None = field(default=None, compare=False)
    """Row in the user's file, counted from 1 as an editor does; used in messages."""

    def __post_init__(self) -> None:
        where = self.where()
        fields = {
            "clean": (self.clean,),
            "counterfactual": (self.counterfactual,),
            "answers": self.answers,
            "foils": self.foils,
        }
        for name, texts in fields.items():
            if not texts or not all(texts):
                raise TaskError(f"{where}: '{name}' is empty; write the prompt, or texts as they continue it (' Mary')")
            if len(set(texts)) < len(texts):
                raise TaskError(f"{where}: '{name}' holds {max(texts, key=texts.count)!r} twice; name each once")
            if not all(encodable(text) for text in texts):
                raise TaskError(f"{where}: '{name}' holds half of a surrogate pair, which is no character; remove it")
        if not self.clean.strip() or not self.counterfactual.strip():
            raise TaskError(f"{where}: a prompt is nothing but white space; write the prompt")
        if self.clean == self.counterfactual:
            raise TaskError(
                f"{where}: 'counterfactual' is the same prompt as 'clean', so nothing could be told apart; "
                "change what the answer depends on"
            )
        both = sorted(set(self.answers) & set(self.foils))
        if both:
            raise TaskError(f"{where}: {both[0]!r} is in 'answers' and in 'foils'; it can only be in one")
        position = 0
        for name, start, end in self.spans:
            if start != position or end < start or end > len(self.clean):
                raise TaskError(
                    f"{where}: the span {name!r} is [{start}, {end}) of a prompt of {len(self.clean)} characters, while the "
                    f"span before it ends at {position}; spans follow one another without gap and cover the prompt"
                )
            position = end
        if self.spans and position != len(self.clean):
            raise TaskError(
                f"{where}: the spans end at character {position} of {len(self.clean)}; the last one reaches the prompt's end"
            )

    def where(self, place: int | None = None) -> str:
        """What messages call the pair: its row, or else its place among the others (counted from 0)."""
        if self.row is not None:
            return f"row {self.row}"
        return "the pair" if place is None else f"pair {place + 1}"

    @property
    def pieces(self) -> tuple[tuple[str, str], ...]:
        """(span name, its text), in order; the texts make up the clean prompt."""
        return tuple((name, self.clean[start:end]) for name, start, end in self.spans)
