"""A schema: the named parts every prompt of a task is made of, in order, and how they come to lie on tokens.

Prompts of one task differ in wording and length, so "position 7" means nothing across them; "the second mention of the
subject" does. A `Schema` is the ordered list of such names (Haklay et al. 2025, arXiv 2502.04577, section 4). It is
applied to a prompt by giving one piece of text per name. Whoever gives the pieces - a hand-written template, an
alignment, a language model - goes through the same two functions here, so "valid" means one thing:

* the names are the schema's, each once, in its order;
* the pieces, one after another, are the prompt. White space between two pieces may be left out of them and then belongs
  to the later one. A piece may be empty;
* on tokens: a token belongs to the span that holds its first character that is not white space, no token reaches into a
  second span, and the last span is exactly one token, because the prediction is read there.

Invariant: spans cover the prompt without gap or overlap, as character ranges; token ranges cover its tokens in the same
way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caseback.core.errors import SchemaError

__all__ = ["BOS", "Schema", "Span", "apply_pieces", "encodable", "kind_of", "problems", "token_ranges"]

BOS = "bos"
"""The span of a beginning-of-sequence token that a tokenizer puts before the text; in no schema, first in a batch."""

Span = tuple[str, int, int]
"""A span's name and its range [start, end) in characters of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Names of the spans that cover every prompt of a task, in order.

    >>> Schema(name="echo", spans=("word", "arrow")).spans
    ('word', 'arrow')
    """

    name: str
    """What the schema is called in results."""
    spans: tuple[str, ...]
    """Span names in the order in which they stand in every prompt; the last one is a single token."""
    descriptions: Mapping[str, str] = field(default_factory=dict)
    """Span name → what belongs into it; may leave spans out."""

    def __post_init__(self) -> None:
        if not self.spans:
            raise SchemaError(f"the schema {self.name!r} has no span; give at least one name")
        for name in self.spans:
            if not name or name != name.strip() or not name.isprintable():
                raise SchemaError(
                    f"the schema {self.name!r} has a span named {name!r}; a name is printable text without space around it"
                )
            if name == BOS:
                raise SchemaError(
                    f"the schema {self.name!r} has a span named {BOS!r}, which is kept for the tokenizer's own first token; "
                    "choose another name"
                )
            if self.spans.count(name) > 1:
                raise SchemaError(
                    f"the schema {self.name!r} has two spans named {name!r}; names must be distinct, as in 'the_1', 'the_2'"
                )
        if not all(encodable(text) for text in (self.name, *self.descriptions.values())):
            raise SchemaError(
                f"the schema {self.name!r} holds half of a surrogate pair, which is no character; remove it"
            )
        for name in self.descriptions:
            if name not in self.spans:
                raise SchemaError(
                    f"the schema {self.name!r} describes a span {name!r} that it does not have; its spans are {_listed(self.spans)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain data for JSON."""
        return {"name": self.name, "spans": list(self.spans), "descriptions": dict(self.descriptions)}

    @staticmethod
    def from_dict(data: object) -> Schema:
        """The schema in what `to_dict` gave; raises SchemaError that names the field."""
        if not isinstance(data, Mapping):
            raise SchemaError(
                'a schema is an object such as {"name": "ioi", "spans": ["prefix", "IO", "to"]}, not ' + kind_of(data)
            )
        name, spans, descriptions = data.get("name", "schema"), data.get("spans"), data.get("descriptions", {})
        if not isinstance(name, str):
            raise SchemaError(f"the schema's 'name' must be text, not {kind_of(name)}")
        if not isinstance(spans, list) or not all(isinstance(span, str) for span in spans):
            raise SchemaError(f"the schema's 'spans' must be a list of names in order, not {kind_of(spans)}")
        if not isinstance(descriptions, Mapping) or not all(
            isinstance(x, str) for pair in descriptions.items() for x in pair
        ):
            raise SchemaError("the schema's 'descriptions' must be an object from span names to texts")
        unknown = [key for key in data if key not in ("name", "spans", "descriptions")]
        if unknown:
            raise SchemaError(
                f"the schema has the unknown field {unknown[0]!r}; its fields are name, spans, descriptions"
            )
        return Schema(name=name, spans=tuple(spans), descriptions=dict(descriptions))


def apply_pieces(schema: Schema, prompt: str, pieces: object, *, allow_empty: bool = True) -> tuple[Span, ...]:
    """Lay one piece of text per span on the prompt; raises SchemaError with every rule that is broken.

    `pieces` is a mapping from names to texts or a sequence of (name, text).

    >>> schema = Schema(name="echo", spans=("word", "again", "arrow"))
    >>> apply_pieces(schema, "left left =>", [("word", "left"), ("again", "left"), ("arrow", "=>")])
    (('word', 0, 4), ('again', 4, 9), ('arrow', 9, 12))
    """
    spans, wrong = _lay(schema, prompt, pieces, allow_empty=allow_empty)
    if wrong:
        raise SchemaError("; ".join(wrong))
    return spans


def problems(
    schema: Schema,
    prompt: str,
    pieces: object,
    offsets: Sequence[tuple[int, int]] | None = None,
    *,
    allow_empty: bool = True,
) -> list[str]:
    """Every rule that applying these pieces to the prompt would break, one sentence each; an empty list means valid.

    `offsets` are the character ranges of the prompt's tokens, without a BOS; with them the rules on tokens are checked as well.
    """
    spans, wrong = _lay(schema, prompt, pieces, allow_empty=allow_empty)
    if not wrong and offsets is not None:
        try:
            token_ranges(prompt, offsets, spans)
        except SchemaError as error:
            wrong = [str(error)]
    return wrong


def token_ranges(prompt: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Token range [start, end) of each span, in the spans' order; the one place where characters become tokens.

    `offsets` are the character ranges of the tokens, without a BOS; a tokenizer may count a token's leading space or not.
    Raises SchemaError when a token holds text of two spans or when the last span is not exactly one token.
    """
    filled = [i for i, (_, start, end) in enumerate(spans) if end > start]
    starts = [spans[i][1] for i in filled]

    def owner(position: int) -> int:
        return filled[max(bisect_right(starts, position) - 1, 0)]

    counts = [0] * len(spans)
    for start, end in offsets:
        text = prompt[start:end]
        first = start + len(text) - len(text.lstrip()) if text.strip() else start
        last = start + len(text.rstrip()) - 1 if text.strip() else start
        mine, other = owner(first), owner(last)
        if mine != other:
            raise SchemaError(
                f"the token {text!r} holds text of the spans {spans[mine][0]!r} and {spans[other][0]!r}; "
                "put the boundary between them where a token begins"
            )
        counts[mine] += 1
    if counts[-1] != 1:
        name, start, end = spans[-1]
        raise SchemaError(
            f"the last span, {name!r}, is {prompt[start:end]!r}, which is {_tokens(counts[-1])} here; "
            "it must be exactly one, because the prediction is read there"
        )
    ranges, position = [], 0
    for count in counts:
        ranges.append((position, position + count))
        position += count
    return ranges


def _lay(schema: Schema, prompt: str, pieces: object, *, allow_empty: bool) -> tuple[tuple[Span, ...], list[str]]:
    """The spans and the rules broken; the spans mean something only when no rule is."""
    if isinstance(pieces, Mapping):
        items: list[Any] = list(pieces.items())
    elif isinstance(pieces, Sequence) and not isinstance(pieces, str):
        items = list(pieces)
    else:
        return (), [f"the spans must be an object from names to texts or a list of [name, text], not {kind_of(pieces)}"]
    for item in items:
        if not (
            isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2 and isinstance(item[0], str)
        ):
            return (), [f"every span must be given as [name, text], not as {_short(item)}"]
        if not isinstance(item[1], str):
            return (), [f"the text of the span {item[0]!r} must be text, not {kind_of(item[1])}"]
    names = [name for name, _ in items]
    wrong = [f"the span {name!r} is missing" for name in schema.spans if name not in names]
    wrong += [
        f"there is a span {name!r}, which the schema does not have"
        for name in dict.fromkeys(names)
        if name not in schema.spans
    ]
    wrong += [f"the span {name!r} is given {names.count(name)} times" for name in schema.spans if names.count(name) > 1]
    if not wrong and tuple(names) != schema.spans:
        wrong.append(f"the spans are in the order {_listed(names)}; the schema's order is {_listed(schema.spans)}")

    spans: list[Span] = []
    cursor = 0
    for name, text in items:
        if not text:
            if not allow_empty:
                wrong.append(f"the span {name!r} is empty")
            spans.append((name, cursor, cursor))
            continue
        end = _match(prompt, cursor, text)
        if end is None:
            found = prompt.find(text.strip(), cursor)
            if text.strip() not in prompt:
                wrong.append(f"the text of the span {name!r}, {text!r}, does not stand in the prompt")
            elif found < 0:
                wrong.append(f"the text of the span {name!r}, {text!r}, does not stand after the span before it")
            else:
                wrong.append(f"the text {prompt[cursor:found].strip()!r} before the span {name!r} is in no span")
            end = found + len(text.strip()) if found >= 0 else cursor
        spans.append((name, cursor, end))
        cursor = end
    if prompt[cursor:].strip():
        wrong.append(f"the text {prompt[cursor:].strip()!r} at the end of the prompt is in no span")
    elif spans:
        spans[-1] = (spans[-1][0], spans[-1][1], len(prompt))
    return tuple(spans), wrong


def _match(prompt: str, cursor: int, text: str) -> int | None:
    """Where the piece ends when it stands at the cursor, white space before it forgiven; None when it does not."""
    if prompt.startswith(text, cursor):
        return cursor + len(text)
    core = text.strip()
    start = cursor + len(prompt[cursor:]) - len(prompt[cursor:].lstrip())
    return start + len(core) if core and prompt.startswith(core, start) else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count or 'no'} token{'s' if count else ''}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def encodable(text: str) -> bool:
    """Whether the text is made of characters alone; JSON can smuggle halves of surrogate pairs into a string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """What a value read from JSON is, in words for messages."""
    kinds = {
        type(None): "nothing",
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)
