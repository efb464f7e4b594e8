"""A schema asked for: the whole way with an oracle that reads the questions, then answers wrong in every way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caseback.core.errors import EndpointError, SchemaError
from caseback.model.chat import EmptyAnswer, Message, Reply, Scripted, Usage
from caseback.tasks.aligner import lay_on, learn
from caseback.tasks.pair import Pair
from caseback.tasks.propose import ANSWER_LIMIT, ProposeConfig, _kind, json_object, propose
from caseback.tasks.schema import problems
from caseback.tasks.task import Task

NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal"]
PROMPTS = [f"{a} saw {b} , so {b} waved to" for a in NAMES for b in NAMES if a != b]
SPANS = ["first", "saw", "second", "joint", "again", "end"]
SCHEMA = {name: f"what is {name}" for name in SPANS}


def words(text: str) -> list[tuple[int, int]]:
    return [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]


class Words:
    """A tokenizer whose tokens are words, with a BOS."""

    name = "words"
    bos = True

    def tokens(self, text: str) -> list[int]:
        return list(range(len(words(text)) + 1))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(0, 0), *words(text)]

    def logits(self, batch: Any) -> Any:
        raise AssertionError("not asked")


def task(prompts: Sequence[str]) -> Task:
    return Task(
        name="waves",
        pairs=tuple(
            Pair(clean=p, counterfactual=p.replace(" saw ", " met "), answers=(" x",), foils=(" y",)) for p in prompts
        ),
    )


def divided(prompt: str) -> dict[str, str]:
    w = prompt.split()
    return dict(zip(SPANS, [w[0], w[1], w[2], " ".join(w[3:5]), " ".join(w[5:7]), w[7]], strict=True))


@dataclass
class Oracle:
    """Knows the schema; `spoil(stage, count, answer)` may change what it says the count-th time at a stage."""

    spoil: Callable[[str, int, str], str] = lambda stage, count, answer: answer
    schema: dict[str, str] = field(default_factory=lambda: SCHEMA)
    name: str = "oracle"
    asked: list[tuple[str, str]] = field(default_factory=list)

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Reply:
        question = messages[-1].content
        stage = "apply" if "\nPrompt:\n" in question else "unify" if "\nSchemas:\n" in question else "generate"
        count = sum(s == stage for s, _ in self.asked)
        self.asked.append((stage, question))
        if stage == "apply":
            prompt = json.loads(question.split("\nPrompt:\n")[1].splitlines()[0])["Text"]
            answer = json.dumps(divided(prompt))
        else:
            answer = json.dumps(self.schema)
        return Reply(text=self.spoil(stage, count, answer), usage=Usage(prompt_tokens=100, completion_tokens=10))


def test_a_schema_is_generated_unified_applied_and_accepted() -> None:
    oracle = Oracle()
    proposal = propose(task(PROMPTS), Words(), oracle)
    assert proposal.accepted
    assert proposal.successful
    assert proposal.valid == proposal.n == len(PROMPTS)
    assert proposal.schema is not None
    assert list(proposal.schema.spans) == SPANS
    assert dict(proposal.schema.descriptions) == SCHEMA
    assert proposal.calls == {"generate": 3, "unify": 1, "apply": len(PROMPTS)}
    assert proposal.errors == {}
    assert proposal.prompt_tokens == 100 * len(oracle.asked)
    assert proposal.completion_tokens == 10 * len(oracle.asked)
    assert proposal.unmetered == 0
    assert len(proposal.examples) == 15
    assert len(proposal.rounds) == 1
    assert not proposal.rounds[0].allow_empty
    for prompt, spans in zip(PROMPTS, proposal.spans, strict=True):
        assert spans is not None
        pieces = [(name, prompt[start:end]) for name, start, end in spans]
        assert not problems(proposal.schema, prompt, pieces, words(prompt))
        assert [text.strip() for _, text in pieces] == list(divided(prompt).values())
    assert json.loads(json.dumps(proposal.to_dict()))["calls"]["apply"] == len(PROMPTS)
    generate = [q for stage, q in oracle.asked if stage == "generate"]
    assert all(q.count('{"Tokens"') == 5 for q in generate)
    assert oracle.asked[3][1].count('{"Tokens"') == 15
    assert "Mask" not in generate[0]
    assert "at least one token" in generate[0]


def test_the_proposed_spans_take_the_place_of_a_tasks_own_and_train_an_aligner() -> None:
    asked = task(PROMPTS)
    proposal = propose(asked, Words(), Oracle(lambda stage, count, a: "no" if stage == "apply" and count < 3 else a))
    laid = proposal.on(asked)
    assert laid.task.n == len(PROMPTS) - 1
    assert list(laid.dropped.values()) == ["no valid spans"]
    again = lay_on(learn(laid.task, Words()), asked, Words())
    assert again.task.n == len(PROMPTS)
    assert not again.dropped
    for pair in again.task.pairs:
        assert [text.strip() for _, text in pair.pieces] == list(divided(pair.clean).values())
    with pytest.raises(SchemaError, match="no schema for 'waves' was accepted in 1 rounds"):
        propose(asked, Words(), Oracle(lambda *_: "no"), config=ProposeConfig(rounds=1)).on(asked)


def test_the_same_answers_give_the_same_proposal() -> None:
    def half(stage: str, count: int, answer: str) -> str:
        return "no" if stage == "apply" and count % 7 == 0 else answer

    assert (
        propose(task(PROMPTS), Words(), Oracle(half)).to_dict()
        == propose(task(PROMPTS), Words(), Oracle(half)).to_dict()
    )


def test_the_mask_is_shown_while_the_schema_is_made() -> None:
    oracle = Oracle()
    masks = [[i in (0, 2, 5) for i in range(8)] for _ in PROMPTS]
    propose(task(PROMPTS), Words(), oracle, masks=masks)
    assert '"Mask": [["' in oracle.asked[0][1]
    assert "Never mention the mask" in oracle.asked[3][1]
    assert "Mask" not in oracle.asked[4][1]
    with pytest.raises(SchemaError, match="one value for every token"):
        propose(task(PROMPTS), Words(), oracle, masks=masks[:-1])


def test_a_broken_answer_is_asked_for_again_with_the_rules_it_broke() -> None:
    def first_wrong(stage: str, count: int, answer: str) -> str:
        return answer.replace('"end": "to"', '"end": ""') if stage == "apply" and count == 0 else answer

    oracle = Oracle(first_wrong)
    proposal = propose(task(PROMPTS[:15]), Words(), oracle)
    assert proposal.valid == 15
    assert proposal.calls["apply"] == 16
    assert sum(proposal.errors.values()) >= 1
    retry = oracle.asked[5][1]
    assert "broke these rules" in retry
    assert "'end'" in retry
    assert "broke these rules" not in oracle.asked[4][1]
    assert all("'" not in kind.replace("schema's", "") for kind in proposal.errors)


def test_a_schema_is_accepted_by_its_error_rate() -> None:
    def bad(n: int) -> Callable[[str, int, str], str]:
        return lambda stage, count, answer: "{}" if stage == "apply" and count < 3 * n else answer

    config = ProposeConfig(rounds=1)
    assert propose(task(PROMPTS), Words(), Oracle(bad(3)), config=config).accepted  # 3 of 15 = 20 %
    refused = propose(task(PROMPTS), Words(), Oracle(bad(4)), config=config)
    assert not refused.accepted
    assert refused.valid == 0
    assert refused.schema is None
    assert refused.rounds[0].failed == 4
    assert refused.calls["apply"] == 3 * 4 + 11  # the rest of the data set was not asked for


def test_a_run_is_successful_by_its_share_of_valid_prompts_and_drops_are_counted() -> None:
    def bad(stage: str, count: int, answer: str) -> str:
        return "nothing" if stage == "apply" and 15 <= count < 15 + 3 * 6 else answer

    proposal = propose(task(PROMPTS), Words(), Oracle(bad))
    assert proposal.accepted
    assert proposal.n == 56
    assert proposal.valid == 50
    assert not proposal.successful
    assert sum(spans is None for spans in proposal.spans) == 6


def test_empty_spans_are_allowed_after_five_failed_rounds() -> None:
    def empty(stage: str, count: int, answer: str) -> str:
        if stage != "apply":
            return answer
        pieces = json.loads(answer)
        return json.dumps({**pieces, "joint": "", "again": pieces["joint"] + " " + pieces["again"]})

    oracle = Oracle(empty)
    proposal = propose(task(PROMPTS[:15]), Words(), oracle)
    assert [r.allow_empty for r in proposal.rounds] == [False] * 5 + [True]
    assert proposal.successful
    assert proposal.calls == {"generate": 18, "unify": 6, "apply": 5 * 15 * 3 + 15}
    questions = [q for stage, q in oracle.asked if stage == "generate"]
    assert "is empty" not in questions[0]
    assert "'joint' is empty" in questions[3]
    assert "at least one token" not in questions[15]


def test_rounds_are_bounded() -> None:
    proposal = propose(
        task(PROMPTS), Words(), Oracle(lambda stage, count, answer: "no"), config=ProposeConfig(rounds=4)
    )
    assert not proposal.accepted
    assert len(proposal.rounds) == 4
    assert proposal.calls == {"generate": 12}
    assert proposal.rounds[0].schema is None
    assert proposal.errors == {"the answer holds no JSON object with entries": 12}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("{}", "no JSON object"),
        ('{"a": "b"}', "2 to 40 spans"),
        (json.dumps({f"s{i}": "x" for i in range(41)}), "2 to 40 spans"),
        ('{"a": 1, "b": "x"}', "not text"),
        ('{"a": {"c": "d"}, "b": "x"}', "not text"),
        ('{"a": "x", "a": "y"}', "two spans named"),
        ('{"": "x", "b": "y"}', "one to three words"),
        ('{"one two three four": "x", "b": "y"}', "one to three words"),
        (json.dumps({"x" * 41: "x", "b": "y"}), "one to three words"),
        ('{"a\\u0000": "x", "b": "y"}', "printable"),
        ('{"bos": "x", "b": "y"}', "kept for the tokenizer"),
        ("[" * 5000, "no JSON object"),
        ('{"a":' * 5000, "no JSON object"),
        ("x" * (ANSWER_LIMIT + 1), "characters"),
        ('{"a": "b"', "no JSON object"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(answer: str, kind: str) -> None:
    proposal = propose(
        task(PROMPTS), Words(), Oracle(lambda stage, count, _: answer), config=ProposeConfig(rounds=1, tries=1)
    )
    assert not proposal.accepted
    assert kind.split()[-1] in next(iter(proposal.errors))


@pytest.mark.parametrize(
    "answer",
    [
        '{"first": ["Ann"]}',
        '{"first": null}',
        '{"first": "{first.__class__}"}',
        '{"__proto__": "x"}',
        '"first"',
        "[1]",
        '{"first": "%s%n"}',
        "\ud800",
        '{"first": "\\ud800"}',
    ],
)
def test_pieces_that_make_no_sense_are_broken_rules(answer: str) -> None:
    proposal = propose(
        task(PROMPTS),
        Words(),
        Oracle(lambda stage, count, good: answer if stage == "apply" else good),
        config=ProposeConfig(rounds=1),
    )
    assert not proposal.accepted
    assert proposal.rounds[0].failed == 15
    assert proposal.errors


def test_an_empty_answer_is_a_failed_try_and_a_dead_endpoint_is_the_end() -> None:
    class Silent:
        name = "silent"

        def ask(
            self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
        ) -> Reply:
            raise EmptyAnswer("nothing came")

    proposal = propose(task(PROMPTS), Words(), Silent(), config=ProposeConfig(rounds=1))
    assert proposal.errors == {"the answer is empty": 3}
    assert proposal.unmetered == 3
    with pytest.raises(EndpointError, match="script has 0 answers"):
        propose(task(PROMPTS), Words(), Scripted([]))


def test_an_answer_that_was_cut_off_says_so() -> None:
    class Cut:
        name = "cut"

        def ask(
            self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
        ) -> Reply:
            return Reply(text='{"first": "the fi', truncated=True)

    proposal = propose(task(PROMPTS), Words(), Cut(), config=ProposeConfig(rounds=1, max_tokens=9))
    assert any("cut off after # tokens" in kind for kind in proposal.errors)
    assert proposal.unmetered == 3


def test_a_span_boundary_inside_a_token_is_refused() -> None:
    def spoil(stage: str, count: int, good: str) -> str:
        return (
            good.replace('"saw": "saw"', '"saw": "sa"').replace('"second": "', '"second": "w ')
            if stage == "apply"
            else good
        )

    proposal = propose(task(PROMPTS), Words(), Oracle(spoil), config=ProposeConfig(rounds=1))
    assert not proposal.accepted
    assert any("the token" in kind for kind in proposal.errors)


def test_the_last_object_in_a_text_is_the_answer() -> None:
    fenced = '<think>{"draft": "1"}</think>\nSure:\n```json\n{"a": "x",\n "b": {"c": 1}}\n```\nHope this {helps}!'
    assert json_object(fenced) == [("a", "x"), ("b", [("c", 1)])]
    assert json_object('{"a": "}{"}') == [("a", "}{")]


@given(st.text(alphabet='{}[]":,\\ab1\n', max_size=200))
def test_any_text_is_an_object_or_a_sentence(text: str) -> None:
    try:
        found: Any = json_object(text)
    except SchemaError:
        return
    assert isinstance(found, list)
    assert found
    assert all(isinstance(key, str) for key, _ in found)


def test_kinds_of_rules_do_not_hold_what_was_said() -> None:
    assert _kind("""the span 'it\\'s 4' is "a" and 12""") == "the span … is … and #"


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"tries": 0}, {"max_error": 1.5}, {"strict_rounds": -1}])
def test_a_config_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        ProposeConfig(**wrong)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(SchemaError, match="3 groups of 5 examples, and there are 14"):
        propose(task(PROMPTS[:14]), Words(), Oracle())
