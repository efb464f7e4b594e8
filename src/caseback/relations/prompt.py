"""A relation asked of a subject: the text, its tokens, and where the subject ends.

A prompt is the few-shot examples, a line each ("template(subject) object"), then the template with the subject that is
asked. The subject is found by the characters it was written to, never by searching for it: "cat" stands in "category".
An object's tokens are those that follow the question's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.tasks.schema import encodable

if TYPE_CHECKING:
    from caseback.relations.relation import Sample

__all__ = ["Prompt", "answered", "ask", "batch_of", "first_token", "object_tokens"]

SUBJECT = "subject"
"""Name of the span that holds the subject's last token."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question, as this model's tokens."""

    text: str
    subject: str
    object: str
    """What the relation's data says; not part of the prompt."""
    ids: Int[Tensor, "pos"]
    at: int
    """Index of the subject's last token."""
    ends: tuple[int, ...] = (-1,)
    """Places, counted from the prompt's end, whose final streams have z as their mean; -1: the last token."""


def ask(model: Model, template: str, sample: Sample, examples: Sequence[Sample] = ()) -> Prompt:
    """The prompt for a sample; raises RelationError where the subject's last token is not the subject's own."""
    before, after = template.split("{}")
    lines = [f"{before}{one.subject}{after} {one.object}\n" for one in examples]
    head = "".join(lines) + before
    text = head + sample.subject + after
    start, end = len(head), len(head) + len(sample.subject)
    offsets = model.offsets(text)
    places = [i for i, (a, b) in enumerate(offsets) if a < end <= b]
    if not places:
        raise RelationError(f"the subject {sample.subject!r} does not end in a token of {text!r}")
    at = places[-1]
    first, after_last = offsets[at]
    if after_last > end:
        raise RelationError(
            f"the subject {sample.subject!r} shares its last token with what follows it in the template {template!r}; "
            "put a space after '{}'"
        )
    if text[first:start].strip():
        raise RelationError(
            f"the subject {sample.subject!r} shares its last token with what precedes it in the template {template!r}; "
            "put a space before '{}'"
        )
    return Prompt(text=text, subject=sample.subject, object=sample.object, ids=torch.tensor(model.tokens(text)), at=at)


def batch_of(model: Model, prompts: Sequence[Prompt]) -> Batch:
    """Prompts side by side, padded on the right, with the subject's last token as a span."""
    padded = Batch.pad([prompt.ids.tolist() for prompt in prompts])
    at = torch.tensor([[prompt.at, prompt.at + 1] for prompt in prompts])
    return Batch(padded.ids, padded.mask, {SUBJECT: at}).to(model.device)


def object_tokens(model: Model, question: str, object: str) -> tuple[int, ...]:
    """An object's tokens where it follows a question after a space, which is the first of them where it stands alone. Raises
    RelationError where the question's own tokens are not the ones it has without an object."""
    if not encodable(object):
        raise RelationError(f"the object {object!r} holds bytes that are no UTF-8; give it as text")
    asked, whole = model.tokens(question), model.tokens(f"{question} {object}")
    if len(whole) <= len(asked) or whole[: len(asked)] != asked:
        raise RelationError(
            f"the object {object!r} shares a token with what precedes it in {question[-60:]!r}; end the template with a "
            "whole word"
        )
    return tuple(whole[len(asked) :])


def answered(model: Model, prompt: Prompt) -> Prompt:
    """The prompt with its object written behind it but for the object's last token; its ends predict the object's tokens."""
    tokens = object_tokens(model, prompt.text, prompt.object)
    ids = torch.cat([prompt.ids, prompt.ids.new_tensor(tokens[:-1])])
    return replace(prompt, text=f"{prompt.text} {prompt.object}", ids=ids, ends=tuple(range(-len(tokens), 0)))


def first_token(model: Model, text: str) -> int:
    """The first token of an object as it follows a prompt, after a space; raises RelationError where it has none."""
    if not encodable(text):
        raise RelationError(f"the object {text!r} holds bytes that are no UTF-8; give it as text")
    if not text.strip():
        raise RelationError("an answer or object is empty; give a word")
    line = model.tokens("a " + text)
    alone = len(model.tokens("a"))
    if len(line) <= alone:
        raise RelationError(f"the object {text!r} has no token of its own in {model.name}")
    return line[alone]
