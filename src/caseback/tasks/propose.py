"""A schema proposed by a language model: generate, unify, apply, judge.

After Haklay et al. 2025, arXiv 2502.04577, section 4.2 and appendices D-E.

The model reads prompts as token lists and names the parts they have in common. One prompt is too few to see what
varies and the whole data set too much to read, so

1. **generate**: each of a few groups of examples is read in one call, which gives one schema;
2. **unify**: one call reads these schemas and all the examples, and gives the schema that is tried;
3. **apply**: one call an example lays that schema on it; the answer goes through the validity rules of `schema.py`
   and, when it breaks some, is asked for again with the broken rules listed;
4. **judge**: a schema that fails on too many of its examples is thrown away, and the next round starts with what went
   wrong. Empty spans are against the rules in the first rounds, because a model that may leave spans empty proposes
   spans that fit few prompts.

An accepted schema is laid on the remaining prompts in the same way. What cannot be laid is dropped and counted. A
mask of salient tokens may be shown to the model.

Everything a model says is a stranger's text: it is size-bounded, read as JSON only, checked, and only ever put back
into a question as JSON. Invariant: given the answers, the result is a function of the arguments, and every call,
token and broken rule is in it.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from caseback.core.errors import SchemaError
from caseback.core.progress import Progress, silent
from caseback.model.chat import Chat, EmptyAnswer, Message
from caseback.tasks.aligner import Laid
from caseback.tasks.encode import LanguageModel
from caseback.tasks.schema import Schema, Span, apply_pieces, problems
from caseback.tasks.task import Task

__all__ = ["Proposal", "ProposeConfig", "Round", "json_object", "propose"]

ANSWER_LIMIT = 32_768
"""Longest answer that is read, in characters."""
SPAN_LIMIT = 40
"""Most spans a proposed schema may have."""
DESCRIPTION_LIMIT = 600
"""Longest description of a span that is kept, in characters."""


@dataclass(frozen=True, kw_only=True)
class ProposeConfig:
    """How a schema is asked for; the defaults are the paper's."""

    groups: int = 3
    """Groups of examples, one generating call each."""
    per_group: int = 5
    """Examples a group."""
    tries: int = 3
    """Calls for one example, or for one schema that could not be read, at most."""
    rounds: int = 10
    """Schemas that are generated and judged at most."""
    strict_rounds: int = 5
    """Rounds in which an empty span is a broken rule."""
    max_error: float = 0.2
    """Share of the examples a schema may fail on and still be accepted."""
    min_valid: float = 0.9
    """Share of all prompts that must have valid spans for the run to count as successful."""
    max_tokens: int = 1000
    """Longest answer asked for, in tokens."""
    temperature: float = 0.0
    """Sampling temperature; 0 is the most likely answer."""
    seed: int = 0
    """Chooses the examples, and is passed to the answerer."""

    def __post_init__(self) -> None:
        if min(self.groups, self.per_group, self.tries, self.rounds, self.max_tokens) < 1 or self.strict_rounds < 0:
            raise SchemaError(
                "groups, per_group, tries, rounds and max_tokens must be at least 1, strict_rounds at least 0"
            )
        if not (0 <= self.max_error <= 1 and 0 <= self.min_valid <= 1):
            raise SchemaError(
                f"max_error and min_valid are shares from 0 to 1, not {self.max_error} and {self.min_valid}"
            )


@dataclass(frozen=True, kw_only=True)
class Round:
    """One schema that was tried."""

    schema: Schema | None
    """None when no readable schema came."""
    allow_empty: bool
    failed: int
    """Examples without valid spans."""
    examples: int
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What came of asking."""

    schema: Schema | None
    """The accepted schema, or None."""
    spans: tuple[tuple[Span, ...] | None, ...]
    """Valid spans of each prompt, in the prompts' order; None where there are none."""
    rounds: tuple[Round, ...]
    examples: tuple[int, ...]
    """Indices of the prompts the schema was made from."""
    calls: Mapping[str, int]
    """Calls by stage: generate, unify, apply."""
    errors: Mapping[str, int]
    """Broken rules by kind, over all answers."""
    prompt_tokens: int
    completion_tokens: int
    unmetered: int
    """Calls whose answer did not say what it cost; the token counts leave them out."""
    chat: str
    """Who answered."""
    config: ProposeConfig

    @property
    def accepted(self) -> bool:
        return self.schema is not None

    @property
    def n(self) -> int:
        return len(self.spans)

    @property
    def valid(self) -> int:
        """Prompts with valid spans."""
        return sum(spans is not None for spans in self.spans)

    @property
    def successful(self) -> bool:
        """Whether enough prompts have valid spans for the schema to be used."""
        return self.accepted and self.valid >= self.config.min_valid * self.n

    def on(self, task: Task) -> Laid:
        """The task that was asked about, with the proposed spans in place of its own; raises SchemaError without any."""
        if self.schema is None or not self.valid:
            raise SchemaError(f"no schema for {task.name!r} was accepted in {len(self.rounds)} rounds")
        pairs = zip(task.pairs, self.spans, strict=True)
        return Laid(
            task=replace(task, schema=self.schema, pairs=tuple(replace(p, spans=s) for p, s in pairs if s is not None)),
            dropped={p.clean: "no valid spans" for p, s in zip(task.pairs, self.spans, strict=True) if s is None},
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data for JSON; the spans are left to a task file."""
        return {
            "schema": self.schema.to_dict() if self.schema else None,
            "n": self.n,
            "valid": self.valid,
            "accepted": self.accepted,
            "successful": self.successful,
            "rounds": [
                {
                    "spans": list(r.schema.spans) if r.schema else None,
                    "allow_empty": r.allow_empty,
                    "failed": r.failed,
                    "examples": r.examples,
                    "accepted": r.accepted,
                }
                for r in self.rounds
            ],
            "examples": list(self.examples),
            "calls": dict(self.calls),
            "errors": dict(self.errors),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "unmetered": self.unmetered,
            "chat": self.chat,
            "config": asdict(self.config),
        }


def propose(
    task: Task,
    model: LanguageModel,
    chat: Chat,
    *,
    masks: Sequence[Sequence[bool]] | None = None,
    config: ProposeConfig | None = None,
    progress: Progress = silent,
) -> Proposal:
    """Ask `chat` for a schema of the task's prompts and lay it on them.

    Of `model` only the tokenizer is used. `masks[i][t]` says whether token t (without BOS) of prompt i is salient; they
    are shown while the schema is made. Costs `groups + 1` calls a round and at least one a prompt.
    """
    config = config or ProposeConfig()
    wanted = config.groups * config.per_group
    prompts = [pair.clean for pair in task.pairs]
    if len(prompts) < wanted:
        raise SchemaError(
            f"proposing reads {config.groups} groups of {config.per_group} examples, and there are "
            f"{len(prompts)} prompts; give {wanted} or ask for fewer"
        )
    ranges = [model.offsets(prompt)[int(model.bos) :] for prompt in prompts]
    if masks is not None and [len(mask) for mask in masks] != [len(r) for r in ranges]:
        raise SchemaError("masks must have one value for every token of every prompt")
    name = f"{task.name} (proposed)"
    chosen = tuple(sorted(random.Random(config.seed).sample(range(len(prompts)), wanted)))
    session = _Session(chat, config)

    def shown(i: int) -> dict[str, Any]:
        tokens = [prompts[i][start:end] for start, end in ranges[i]]
        return (
            {"Tokens": tokens}
            if masks is None
            else {"Tokens": tokens, "Mask": [[t, int(m)] for t, m in zip(tokens, masks[i], strict=True)]}
        )

    def lay(schema: Schema, i: int, *, allow_empty: bool) -> tuple[Span, ...] | None:
        return _apply(session, schema, prompts[i], ranges[i], allow_empty=allow_empty)

    rounds: list[Round] = []
    found: dict[int, tuple[Span, ...] | None] = {}
    complaints: list[str] = []
    for number in range(config.rounds):
        progress("schema", number, config.rounds)
        allow_empty = number >= config.strict_rounds
        schema = _schema(
            session, name, [shown(i) for i in chosen], masks is not None, complaints, allow_empty=allow_empty
        )
        if schema:
            session.complaints.clear()  # what was mended while the schema was written is no news
        found = {i: lay(schema, i, allow_empty=allow_empty) for i in chosen} if schema else dict.fromkeys(chosen)
        failed = sum(spans is None for spans in found.values())
        accepted = schema is not None and failed <= config.max_error * wanted
        rounds.append(Round(schema=schema, allow_empty=allow_empty, failed=failed, examples=wanted, accepted=accepted))
        if accepted:
            break
        complaints = [sentence for sentence, _ in Counter(session.complaints).most_common(20)]
        session.complaints.clear()
    last = rounds[-1]
    if last.accepted and last.schema:
        for i in range(len(prompts)):
            progress("apply", i, len(prompts))
            if i not in found:
                found[i] = lay(last.schema, i, allow_empty=last.allow_empty)
        progress("apply", len(prompts), len(prompts))
    return Proposal(
        schema=last.schema if last.accepted else None,
        spans=tuple(found[i] if last.accepted else None for i in range(len(prompts))),
        rounds=tuple(rounds),
        examples=chosen,
        calls=dict(session.calls),
        errors=dict(session.errors.most_common()),
        prompt_tokens=session.prompt_tokens,
        completion_tokens=session.completion_tokens,
        unmetered=session.unmetered,
        chat=chat.name,
        config=config,
    )


@dataclass
class _Session:
    """The asking and its accounts."""

    chat: Chat
    config: ProposeConfig
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0

    def ask(self, stage: str, question: str) -> list[tuple[str, Any]]:
        """The JSON object in the answer, as pairs; raises SchemaError where there is none."""
        self.calls[stage] += 1
        config = self.config
        try:
            reply = self.chat.ask(
                [Message("system", ROLE), Message("user", question)],
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=config.seed,
            )
        except EmptyAnswer:
            self.unmetered += 1
            raise SchemaError("the answer is empty") from None
        self.prompt_tokens += reply.usage.prompt_tokens or 0
        self.completion_tokens += reply.usage.completion_tokens or 0
        self.unmetered += reply.usage.prompt_tokens is None or reply.usage.completion_tokens is None
        try:
            return json_object(reply.text)
        except SchemaError as error:
            cut = f"; it was cut off after {config.max_tokens} tokens, so be shorter" if reply.truncated else ""
            raise SchemaError(f"{error}{cut}") from None

    def note(self, wrong: Sequence[str]) -> None:
        """Count broken rules; the kind of a rule is its sentence without what it quotes."""
        self.errors.update(_kind(sentence) for sentence in wrong)
        self.complaints += wrong


def _kind(sentence: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "…", sentence))


def json_object(text: str) -> list[tuple[str, Any]]:
    """The last JSON object in a text, as (key, value) pairs so that a repeated key is seen; raises SchemaError.

    The last, because a model that thinks aloud ends with its answer. Objects inside it are lists of pairs too.

    >>> json_object('First {"a": 1}. So: {"b": "x"}')
    [('b', 'x')]
    """
    if len(text) > ANSWER_LIMIT:
        raise SchemaError(f"the answer has {len(text)} characters; at most {ANSWER_LIMIT} are read")
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)
    found: list[tuple[str, Any]] | None = None
    position, failures = text.find("{"), 0
    while position >= 0 and failures < 1000:  # every failure may have read to the end
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            failures, end = failures + 1, position + 1
        position = text.find("{", end)
    if not found:
        raise SchemaError("the answer holds no JSON object with entries")
    return found


def _schema(
    session: _Session,
    name: str,
    shown: Sequence[Mapping[str, Any]],
    masked: bool,
    complaints: Sequence[str],
    *,
    allow_empty: bool,
) -> Schema | None:
    """Generate one schema a group and unify them; None when the answerer gave none that can be read."""
    size = session.config.per_group
    rules = (
        DIVIDE
        + (MASK if masked else "")
        + ("" if allow_empty else NOT_EMPTY)
        + SCHEMA_FORM
        + _listing(BEFORE, complaints)
    )
    parts: list[dict[str, str]] = []
    for start in range(0, len(shown), size):
        part = _readable(
            session, "generate", name, GENERATE + rules + "\nPrompts:\n" + _lines(shown[start : start + size])
        )
        if part is None:
            return None
        parts.append({span: part.descriptions.get(span, "") for span in part.spans})
    return _readable(
        session, "unify", name, UNIFY + rules + "\nSchemas:\n" + _lines(parts) + "\nPrompts:\n" + _lines(shown)
    )


def _readable(session: _Session, stage: str, name: str, question: str) -> Schema | None:
    wrong: list[str] = []
    for _ in range(session.config.tries):
        try:
            return _read_schema(name, session.ask(stage, question + _listing(AGAIN, wrong)))
        except SchemaError as error:
            wrong = [str(error)]
            session.note(wrong)
    return None


def _read_schema(name: str, pairs: Sequence[tuple[str, Any]]) -> Schema:
    if not 2 <= len(pairs) <= SPAN_LIMIT:
        raise SchemaError(f"a schema needs 2 to {SPAN_LIMIT} spans, and this has {len(pairs)}")
    for title, description in pairs:
        if not isinstance(description, str):
            raise SchemaError(f"the description of the span {title[:40]!r} is not text")
        if not 1 <= len(title.split()) <= 3 or len(title) > 40:
            raise SchemaError(f"the span title {title[:40]!r} must be one to three words")
    tidy = {
        title: " ".join("".join(c if c.isprintable() else " " for c in text).split())[:DESCRIPTION_LIMIT]
        for title, text in pairs
    }
    return Schema(name=name, spans=tuple(title for title, _ in pairs), descriptions=tidy)


def _apply(
    session: _Session, schema: Schema, prompt: str, ranges: Sequence[tuple[int, int]], *, allow_empty: bool
) -> tuple[Span, ...] | None:
    """Spans of one prompt, or None when every try broke a rule."""
    tokens = [prompt[start:end] for start, end in ranges]
    described = {span: schema.descriptions.get(span, "") for span in schema.spans}
    question = (
        APPLY
        + (MAY_BE_EMPTY if allow_empty else NOT_EMPTY)
        + "\nSchema:\n"
        + _lines([described])
        + "\nPrompt:\n"
        + _lines([{"Text": prompt, "Tokens": tokens}])
    )
    wrong: list[str] = []
    for _ in range(session.config.tries):
        try:
            pieces = session.ask("apply", question + _listing(AGAIN, wrong))
        except SchemaError as error:
            wrong = [str(error)]
        else:
            wrong = problems(schema, prompt, pieces, ranges, allow_empty=allow_empty)
            if not wrong:
                return apply_pieces(schema, prompt, pieces)
        session.note(wrong)
    return None


def _lines(items: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _listing(head: str, sentences: Sequence[str]) -> str:
    return head + "".join("- " + sentence[:300] + "\n" for sentence in sentences) if sentences else ""


ROLE = "You analyse the structure of short texts. You answer with one JSON object and nothing else."

GENERATE = """Below are prompts from one data set, one a line, each as the list of its tokens. They were written to one
plan. Find the plan: a sequence of named parts that every prompt of the data set is made of.
"""

UNIFY = """Below are prompts from one data set, one a line, each as the list of its tokens, and several schemas. Each
schema was written by somebody who saw only some of the prompts; each is a sequence of named parts, with a
description of each part. Write the one schema that fits all the prompts, taking from the others what serves.
"""

DIVIDE = """Rules for a schema:
1. Parts are told apart by what they do in the sentence: who or what is meant, the action, a number, a word
   that joins two parts.
2. The parts stand in reading order, the same in every prompt, and together hold every token from the first to
   the last.
3. A thing that is mentioned twice has one part for each mention.
4. A part is about the plan, not about one prompt: no title may contain a word that stands only in some
   prompts.
5. The last token of a prompt is a part of its own and alone in it.
"""

MASK = """6. The mask marks with 1 the tokens that weigh most for the answer. A marked token deserves a part of its own
   when its like is marked in most prompts. Never mention the mask.
"""

NOT_EMPTY = """Every part holds at least one token in every prompt.
"""

SCHEMA_FORM = """Answer with one JSON object: keys are the titles of the parts in order, one to three words each, all
different; values are one sentence on what belongs into the part, with an example from the prompts.
"""

APPLY = """Below are a schema, an object of named parts in order with their descriptions, and a prompt with its tokens.
Divide the prompt into these parts.
Rules:
1. Answer with one JSON object: the same keys in the same order, no other; each value is the piece of the
   prompt's text that belongs to the part, copied letter by letter.
2. The pieces follow one another and make up the whole prompt: nothing is left out, repeated, moved or
   changed. A piece never ends inside a token.
3. A punctuation mark belongs to the part of the token before it.
4. The last part is exactly the last token.
"""

MAY_BE_EMPTY = """A part that the prompt does not have gets the empty text "".
"""

AGAIN = "\nYour answer before this one broke these rules; avoid that:\n"

BEFORE = "\nA schema that was tried before led to these mistakes; write one that does not:\n"
