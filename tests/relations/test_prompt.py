"""Where the subject ends: by the characters it was written to, whatever else the prompt holds."""

from __future__ import annotations

import pytest

from caseback.core.errors import RelationError
from caseback.model.model import Model
from caseback.relations.prompt import SUBJECT, Prompt, ask, batch_of, first_token
from caseback.relations.relation import Sample

from .small import reader

CAT = Sample(subject="cat", object="animal")


def text_at(model: Model, prompt: Prompt) -> tuple[str, int]:
    """The text of the subject's last token, and where it begins."""
    assert model.tokens(prompt.text) == prompt.ids.tolist()
    start, end = model.offsets(prompt.text)[prompt.at]
    return prompt.text[start:end], start


def test_a_subject_inside_another_word() -> None:
    model = reader("cat", "Ġcat")
    prompt = ask(model, "The category of {} is", CAT)
    assert prompt.text == "The category of cat is"
    found, start = text_at(model, prompt)
    assert (found.strip(), start + len(found) - 3) == ("cat", len("The category of "))
    prompt = ask(model, "{} has the category", CAT)
    assert text_at(model, prompt) == ("cat", 0)


def test_a_subject_that_stands_in_the_examples_too() -> None:
    model = reader("cat", "Ġcat")
    examples = [Sample(subject="cat", object="cat"), Sample(subject="a cat", object="cat")]
    prompt = ask(model, "{} is a cat or", CAT, examples)
    assert prompt.text == "cat is a cat or cat\na cat is a cat or cat\ncat is a cat or"
    assert text_at(model, prompt) == ("cat", prompt.text.rindex("\n") + 1)


def test_the_last_token_of_several() -> None:
    model = reader("New", "ĠYork", "Ġis")
    prompt = ask(model, "{} is", Sample(subject="New York", object="city"))
    assert [model.tokenizer.convert_ids_to_tokens(int(i)) for i in prompt.ids] == ["<s>", "New", "ĠYork", "Ġis"]
    assert prompt.at == 2


@pytest.mark.parametrize("subject", ["São Paulo", "東京", "naïve 🙂", "e\u0301"])
def test_subjects_beyond_ascii(subject: str) -> None:
    """The last byte of the subject, where a character takes several tokens."""
    model = reader()
    prompt = ask(model, "Über {} weiß man", Sample(subject=subject, object="x"))
    upto = model.tokens("Über " + subject)
    assert prompt.at == len(upto) - 1
    assert prompt.ids[: prompt.at + 1].tolist() == upto


def test_a_subject_at_the_end() -> None:
    prompt = ask(reader(), "The colour of {}", Sample(subject="sky", object="blue"))
    assert prompt.at == len(prompt.ids) - 1


def test_a_subject_merged_with_what_follows_is_refused() -> None:
    model = reader("cats")
    with pytest.raises(RelationError, match=r"'cat' shares its last token with what follows it in .*'{}s are'; put a"):
        ask(model, "{}s are", CAT)
    assert text_at(reader(), ask(reader(), "{}s are", CAT)) == ("t", 2)


def test_a_subject_merged_with_what_precedes_is_refused() -> None:
    with pytest.raises(RelationError, match=r"'cat' shares its last token with what precedes it in .*; put a space"):
        ask(reader("concat"), "con{} is", CAT)
    assert text_at(reader(), ask(reader(), "con{} is", CAT)) == ("t", 5)


def test_the_first_token_of_an_object_follows_a_space() -> None:
    model = reader("Ġblue", "blue")
    assert model.tokenizer.convert_ids_to_tokens(first_token(model, "blue")) == "Ġblue"
    assert model.tokenizer.convert_ids_to_tokens(first_token(model, "bluebird")) == "Ġblue"


def test_prompts_side_by_side() -> None:
    model = reader()
    prompts = [ask(model, "The friend of {} is", Sample(subject=one, object="x")) for one in ("a", "abcd", "ab")]
    batch = batch_of(model, prompts)
    assert batch.lengths.tolist() == [len(p.ids) for p in prompts]
    assert batch.spans[SUBJECT].tolist() == [[p.at, p.at + 1] for p in prompts]
