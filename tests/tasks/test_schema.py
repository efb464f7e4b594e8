"""Schemas: what is laid on a prompt, what is refused and in which words, and where characters become tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caseback.core.errors import SchemaError
from caseback.tasks.schema import Schema, apply_pieces, problems, token_ranges

from .readers import Reader

ECHO = Schema(name="echo", spans=("first", "joint", "second", "arrow"), descriptions={"first": "a word"})
PROMPT = "left and right =>"
PIECES = [("first", "left"), ("joint", " and"), ("second", " right"), ("arrow", " =>")]
SPANS = (("first", 0, 4), ("joint", 4, 8), ("second", 8, 14), ("arrow", 14, 17))


def test_pieces_become_spans_that_cover_the_prompt() -> None:
    assert apply_pieces(ECHO, PROMPT, PIECES) == SPANS
    assert apply_pieces(ECHO, PROMPT, dict(PIECES)) == SPANS
    assert problems(ECHO, PROMPT, PIECES, Reader().offsets(PROMPT)) == []


@pytest.mark.parametrize(
    "texts", [("left", "and", "right", "=>"), ("left ", "and ", "right ", "=>"), (" left", " and", " right", " => ")]
)
def test_white_space_between_pieces_is_forgiven(texts: tuple[str, ...]) -> None:
    spans = apply_pieces(ECHO, PROMPT, zip_pieces(texts))
    assert token_ranges(PROMPT, Reader().offsets(PROMPT), spans) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [PROMPT[start:end].strip() for _, start, end in spans] == ["left", "and", "right", "=>"]


def test_white_space_can_be_a_piece_of_its_own() -> None:
    assert apply_pieces(ECHO, "a\n\nb c", zip_pieces(("a", "\n\n", "b", "c"))) == (
        ("first", 0, 1),
        ("joint", 1, 3),
        ("second", 3, 4),
        ("arrow", 4, 6),
    )


def zip_pieces(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(ECHO.spans, texts, strict=True))


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        (dict(PIECES[:3]), "the span 'arrow' is missing"),
        ([*PIECES, ("tail", "")], "there is a span 'tail', which the schema does not have"),
        ([*PIECES, PIECES[3]], "the span 'arrow' is given 2 times"),
        (
            [PIECES[1], PIECES[0], *PIECES[2:]],
            "the spans are in the order joint, first, second, arrow; the schema's order is",
        ),
        (
            zip_pieces(("left", "and", "wrong", "=>")),
            "the text of the span 'second', 'wrong', does not stand in the prompt",
        ),
        (
            zip_pieces(("left", "and", "left", "=>")),
            "the text of the span 'second', 'left', does not stand after the span",
        ),
        (zip_pieces(("left", "", "right", "=>")), "the text 'and' before the span 'second' is in no span"),
        (zip_pieces(("left", "and", "right", "")), "the text '=>' at the end of the prompt is in no span"),
        ("left", "the spans must be an object from names to texts or a list of [name, text], not text"),
        (None, "the spans must be an object from names to texts or a list of [name, text], not nothing"),
        ([["first"]], "every span must be given as [name, text], not as ['first']"),
        ({"first": 3}, "the text of the span 'first' must be text, not a number"),
        ({"first": ["left"]}, "the text of the span 'first' must be text, not a list"),
    ],
)
def test_a_broken_rule_is_a_sentence(pieces: object, sentence: str) -> None:
    found = problems(ECHO, PROMPT, pieces)
    assert any(problem.startswith(sentence) for problem in found), found
    with pytest.raises(SchemaError) as error:
        apply_pieces(ECHO, PROMPT, pieces)
    assert sentence in str(error.value)


def test_empty_spans_are_a_choice() -> None:
    pieces = zip_pieces(("left and", "", "right", "=>"))
    assert apply_pieces(ECHO, PROMPT, pieces)[1] == ("joint", 8, 8)
    assert problems(ECHO, PROMPT, pieces, allow_empty=False) == ["the span 'joint' is empty"]


def test_the_last_span_is_one_token() -> None:
    pieces = zip_pieces(("left", "and", "", "right =>"))
    [problem] = problems(ECHO, PROMPT, pieces, Reader().offsets(PROMPT))
    assert problem.startswith("the last span, 'arrow', is ' right =>', which is 2 tokens here; it must be exactly one")


def test_a_token_over_a_boundary_is_named() -> None:
    pieces = zip_pieces(("le", "ft and", "right", "=>"))
    [problem] = problems(ECHO, PROMPT, pieces, Reader().offsets(PROMPT))
    assert problem.startswith("the token 'left' holds text of the spans 'first' and 'joint'")


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_token_goes_with_its_first_character(trimmed: bool) -> None:
    """Whether the tokenizer counts the leading space or not, and on which side of the boundary the space lies."""
    offsets = Reader(trimmed=trimmed).offsets(PROMPT)
    for shift in (0, 1):
        spans = [(name, start + shift * (i > 0), end + shift * (i < 3)) for i, (name, start, end) in enumerate(SPANS)]
        assert token_ranges(PROMPT, offsets, spans) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_character_of_several_tokens() -> None:
    prompt = "日本 right =>"
    offsets = Reader().offsets(prompt)
    ranges = token_ranges(prompt, offsets, [("a", 0, 1), ("b", 1, 2), ("c", 2, 8), ("d", 8, 11)])
    assert ranges == [(0, 3), (3, 6), (6, 7), (7, 8)]


@given(
    st.lists(st.sampled_from(["left", " and", " right", " 17", ",", "\n\n", " ?", "日", " "]), min_size=2, max_size=12),
    st.data(),
)
@settings(deadline=None)
def test_any_cut_at_tokens_comes_back(words: list[str], data: st.DataObject) -> None:
    """Token ranges → characters → pieces → characters → token ranges."""
    reader, prompt = Reader(), "".join(words) + " =>"
    offsets = reader.offsets(prompt)
    ends = sorted({end for _, end in offsets[:-1]})
    cuts = sorted(data.draw(st.lists(st.sampled_from(ends), min_size=2, max_size=2)))
    bounds = [0, *cuts, offsets[-2][1], len(prompt)]
    spans = tuple((name, start, end) for name, (start, end) in zip(ECHO.spans, pairwise(bounds), strict=True))
    ranges = token_ranges(prompt, offsets, spans)
    assert [start for start, _ in ranges] == [sum(end <= bound for _, end in offsets) for bound in bounds[:-1]]
    pieces = [(name, prompt[start:end]) for name, start, end in spans]
    again = apply_pieces(ECHO, prompt, pieces)
    assert again == spans
    assert token_ranges(prompt, offsets, again) == ranges


@given(
    st.text(max_size=30),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=6), x, max_size=4),
    ),
)
@settings(deadline=None)
def test_anything_is_judged_and_nothing_breaks(prompt: str, pieces: object) -> None:
    assert isinstance(problems(ECHO, prompt, pieces), list)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"spans": ()}, "has no span"),
        ({"spans": ("a", "a")}, "has two spans named 'a'"),
        ({"spans": ("a", "")}, "has a span named ''"),
        ({"spans": (" a",)}, "has a span named ' a'"),
        ({"spans": ("a\nb",)}, "has a span named 'a\\nb'"),
        ({"spans": ("bos", "a")}, "has a span named 'bos', which is kept"),
        ({"spans": ("a",), "descriptions": {"b": ""}}, "describes a span 'b' that it does not have; its spans are a"),
    ],
)
def test_a_schema_that_is_none(fields: dict, sentence: str) -> None:
    with pytest.raises(SchemaError) as error:
        Schema(name="s", **fields)
    assert sentence in str(error.value)


def test_a_schema_as_data() -> None:
    assert Schema.from_dict(ECHO.to_dict()) == ECHO


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "a schema is an object such as"),
        ({}, "'spans' must be a list of names in order, not nothing"),
        ({"spans": "ab"}, "'spans' must be a list of names in order, not text"),
        ({"spans": ["a", 1]}, "'spans' must be a list of names"),
        ({"spans": ["a"], "name": 3}, "'name' must be text, not a number"),
        ({"spans": ["a"], "descriptions": ["a"]}, "'descriptions' must be an object"),
        ({"spans": ["a"], "colour": 1}, "has the unknown field 'colour'"),
    ],
)
def test_data_that_is_no_schema(data: object, sentence: str) -> None:
    with pytest.raises(SchemaError) as error:
        Schema.from_dict(data)
    assert sentence in str(error.value)
