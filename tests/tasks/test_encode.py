"""Pairs as tensors: every rule that characters must keep in tokens, and the sentence when one is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from caseback.core.errors import TaskError
from caseback.tasks import Pair, Schema, apply_pieces, encode

from .readers import Reader

SCHEMA = Schema(name="echo", spans=("first", "joint", "arrow"))


def pair(first: str = "left", joint: str = " and right", **fields: object) -> Pair:
    clean = f"{first}{joint} =>"
    spans = apply_pieces(SCHEMA, clean, [("first", first), ("joint", joint), ("arrow", " =>")])
    given = {
        "clean": clean,
        "counterfactual": f"up{joint} =>",
        "answers": (f" {first}",),
        "foils": (" up",),
        "spans": spans,
    }
    return Pair(**(given | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("bos", [False, True])
def test_a_batch(bos: bool) -> None:
    reader = Reader(bos=bos)
    pairs = [pair(), pair("down", " and left and right", answers=(" down", " left"))]
    batch = encode(pairs, reader)
    shift = 1 if bos else 0
    assert batch.n == 2
    assert batch.clean.ids.shape == batch.counterfactual.ids.shape == (2, 6 + shift)
    assert batch.clean.lengths.tolist() == [4 + shift, 6 + shift]
    assert torch.equal(batch.clean.mask, batch.counterfactual.mask)
    assert batch.clean.mask[0].tolist() == [True] * (4 + shift) + [False] * 2  # padded on the right
    for row, one in enumerate(pairs):
        length = int(batch.clean.lengths[row])
        assert batch.clean.ids[row, :length].tolist() == reader.tokens(one.clean)
        assert batch.counterfactual.ids[row, :length].tolist() == reader.tokens(one.counterfactual)
    assert list(batch.clean.spans) == ["bos"] * bos + ["first", "joint", "arrow"]
    assert batch.clean.spans == batch.counterfactual.spans
    ranges = torch.stack(list(batch.clean.spans.values()), dim=1)
    assert ranges[0].tolist() == [[0, 1]] * bos + [[shift, 1 + shift], [1 + shift, 3 + shift], [3 + shift, 4 + shift]]
    assert ranges[1, -1].tolist() == [5 + shift, 6 + shift]
    token = {text: reader.tokens(text)[-1] for text in (" left", " down", " up")}
    assert batch.answers.tolist() == [[token[" left"], -1], [token[" down"], token[" left"]]]
    assert batch.foils.tolist() == [[token[" up"]], [token[" up"]]]


def test_without_spans_there_are_none() -> None:
    assert encode([pair(spans=())], Reader(bos=True)).clean.spans == {}


def test_rows_are_chosen_and_chunked() -> None:
    batch = encode(
        [pair(), pair("down", " and left and right"), pair("right", " and left")], Reader(), metric="prob_diff"
    )
    assert batch[[2, 0]].clean.ids.shape == (2, 4)  # no wider than its rows
    assert batch[[2, 0]].clean.ids[1].tolist() == batch.clean.ids[0, :4].tolist()
    chunks = list(batch.chunk(2))
    assert [chunk.n for chunk in chunks] == [2, 1]
    assert [chunk.metric for chunk in chunks] == ["prob_diff"] * 2
    assert chunks[1].clean.spans["arrow"].tolist() == [[3, 4]]
    assert batch.to("cpu").answers.tolist() == batch.answers.tolist()


def refused(change: Pair, **habits: object) -> str:
    with pytest.raises(TaskError) as error:
        encode([pair(), change], Reader(**habits))  # type: ignore[arg-type]
    return str(error.value)


def test_an_answer_is_one_token_in_place() -> None:
    assert refused(pair(answers=(" Jonathan",), row=7)).startswith("row 7: answer ' Jonathan' is ")
    assert "tokens in this model; use one that is a single token, leading space included" in refused(
        pair(answers=(" Jonathan",))
    )
    assert refused(pair(foils=(" left up",))).startswith("pair 2: foil ' left up' is 2 tokens")


def test_an_answer_is_judged_where_it_stands() -> None:
    """A continuation may be one token by itself and melt into the prompt, or be two and so stay."""
    dated = pair(clean="to 17", counterfactual="in 17", answers=("45",), foils=("12",), spans=())
    assert encode([dated], Reader("pairs")).answers.shape == (1, 1)
    assert "answer '45' is 2 tokens" in refused(dated, numbers="digits")
    for numbers in ("triples", "whole"):
        assert "answer '45' melts into the last token of the prompt" in refused(dated, numbers=numbers)


def test_what_is_remembered_is_the_end_of_the_prompt() -> None:
    """White space at the end belongs to it: "left" continues "to" and melts into "to "."""
    plain = pair(clean="so down to", counterfactual="so up to", answers=("left",), foils=("up",), spans=())
    spaced = pair(clean="so left to ", counterfactual="so up to ", answers=("left",), foils=("up",), spans=())
    assert encode([plain], Reader()).n == 1
    with pytest.raises(TaskError, match="pair 2: answer 'left' melts into the last token"):
        encode([plain, spaced], Reader())


def test_an_answer_and_a_foil_are_different_tokens() -> None:
    class Blunt(Reader):
        def tokens(self, text: str) -> list[int]:
            return [min(token, 300) for token in super().tokens(text)]

    with pytest.raises(TaskError, match="pair 1: an answer and a foil are the same token"):
        encode([pair()], Blunt())


def test_a_counterfactual_is_as_long() -> None:
    message = refused(pair(counterfactual="up and down and right =>", row=3))
    assert message.startswith(
        "row 3: 'counterfactual' has 6 tokens and 'clean' has 4 in this model; write one of equal"
    )


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        (
            ("left", " and", " right =>"),
            "pair 2: 'spans': the last span, 'arrow', is ' right =>', which is 2 tokens here",
        ),
        (
            ("le", "ft and right", " =>"),
            "pair 2: 'spans': the token 'left' holds text of the spans 'first' and 'joint'",
        ),
    ],
)
def test_spans_fit_the_tokens(pieces: tuple[str, ...], sentence: str) -> None:
    spans = apply_pieces(SCHEMA, "left and right =>", list(zip(SCHEMA.spans, pieces, strict=True)))
    assert refused(pair(spans=spans)).startswith(sentence)


def test_an_empty_span_has_no_token() -> None:
    spans = apply_pieces(SCHEMA, "left and right =>", [("first", "left and right"), ("joint", ""), ("arrow", "=>")])
    assert encode([pair(spans=spans)], Reader()).clean.spans["joint"].tolist() == [[3, 3]]


def test_nothing_to_encode() -> None:
    with pytest.raises(TaskError, match="no pair to encode"):
        encode([], Reader())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: pair(clean=""), "the pair: 'clean' is empty"),
        (lambda: pair(clean=" \n", spans=()), "a prompt is nothing but white space"),
        (
            lambda: pair(counterfactual="left and right =>", row=2),
            "row 2: 'counterfactual' is the same prompt as 'clean'",
        ),
        (lambda: pair(answers=()), "'answers' is empty"),
        (lambda: pair(foils=("",)), "'foils' is empty"),
        (lambda: pair(answers=(" a", " a")), "'answers' holds ' a' twice"),
        (lambda: pair(answers=(" up",)), "' up' is in 'answers' and in 'foils'"),
        (lambda: pair(answers=("\ud800",)), "'answers' holds half of a surrogate pair"),
        (lambda: pair(spans=(("a", 0, 4), ("b", 5, 17))), "the span 'b' is [5, 17) of a prompt of 17 characters"),
        (lambda: pair(spans=(("a", 0, 4), ("b", 4, 18))), "the span 'b' is [4, 18) of a prompt of 17 characters"),
        (lambda: pair(spans=(("a", 0, 4),)), "the spans end at character 4 of 17"),
    ],
)
def test_a_pair_that_is_none(change: Callable[[], Pair], sentence: str) -> None:
    with pytest.raises(TaskError) as error:
        change()
    assert sentence in str(error.value)
