"""The library: every task on every kind of tokenizer, distinct, seeded, with spans and a split."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from caseback.core import registry
from caseback.core.errors import TaskError
from caseback.tasks import Task, agreement, capitals, gender_bias, greater_than, ioi, ioi_baba, library

from .readers import BROKEN, NUMBERS, Reader

NAMES = ("agreement", "capitals", "gender-bias", "greater-than", "ioi", "ioi-baba")


def test_the_names() -> None:
    assert set(NAMES) <= set(library.names())
    assert [make(2).name for make in (agreement, capitals, gender_bias, greater_than, ioi, ioi_baba)] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_five_hundred_pairs(name: str) -> None:
    task = library.get(name, n=500, seed=3)
    assert task.n == len({pair.clean for pair in task.pairs}) == 500
    assert task.description
    assert "seed=3" in task.source
    assert task.schema is not None
    assert set(task.schema.descriptions) <= set(task.schema.spans)
    assert task.discovery.n == task.held_out.n == 250
    shown = [
        {t for pair in side.pairs for t in (pair.clean, pair.counterfactual)}
        for side in (task.discovery, task.held_out)
    ]
    assert not shown[0] & shown[1]
    assert all("".join(text for _, text in pair.pieces) == pair.clean for pair in task.pairs)
    assert not any(
        "  " in text or text != text.strip() for pair in task.pairs for text in (pair.clean, pair.counterfactual)
    )
    assert len({len(pair.clean.split()) for pair in task.pairs}) >= 2  # several lengths


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    assert library.get(name, n=30, seed=1) == library.get(name, n=30, seed=1)
    assert library.get(name, n=30, seed=1).pairs != library.get(name, n=30, seed=2).pairs


def test_another_process_makes_the_same_task() -> None:
    """No hash order, no clock: the prompts are equal under another hash seed."""
    code = "from caseback.tasks import library; print([library.get(n, n=5).pairs for n in library.names()])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str([library.get(name, n=5).pairs for name in library.names()])


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_fits_the_model_at_hand(name: str, numbers: str) -> None:
    reader = Reader(numbers, bos=numbers == "whole", trimmed=numbers == "pairs")
    task = library.get(name, n=60, model=reader)
    batch = task.encode(reader)
    last = list(batch.clean.spans.values())[-1]
    assert ((last[:, 1] - last[:, 0]) == 1).all()
    assert (last[:, 1] == batch.clean.lengths).all()
    assert "tokens of reader" in task.source


@pytest.mark.parametrize("name", NAMES)
def test_too_many_pairs(name: str) -> None:
    with pytest.raises(
        TaskError, match=rf"the task '{name}' was asked for n=1000000000 pairs; it has \d+ at most"
    ) as error:
        library.get(name, n=10**9)
    most = int(re.search(r"has (\d+) at most", str(error.value))[1])  # type: ignore[index]
    with pytest.raises(TaskError, match=f"it has {most} at most"):
        library.get(name, n=most + 1)
    if most < 2000:
        assert library.get(name, n=most).n == most
    with pytest.raises(TaskError, match="n is at least 1"):
        library.get(name, n=0)


def test_too_many_pairs_for_a_tokenizer() -> None:
    """The maximum of a small task is counted; a large one is given up after a share of its numbers."""
    reader = Reader()
    with pytest.raises(TaskError, match="it has (0|[1-9][0-9]*) at most") as error:
        capitals(10**5, model=reader)
    most = int(re.search(r"has (\d+) at most", str(error.value))[1])  # type: ignore[index]
    assert capitals(most, model=reader).n == most

    class Letters(Reader):
        def tokens(self, text: str) -> list[int]:
            return list(text.encode())

        def offsets(self, text: str) -> list[tuple[int, int]]:
            return [(i, i + 1) for i in range(len(text))]

    with pytest.raises(TaskError) as refused:
        ioi(10, model=Letters())
    assert "n=10 pairs that fit the tokenizer of reader; only 0 of 1500 drawn do (for example, pair 1: " in str(
        refused.value
    )


def test_an_unknown_task() -> None:
    with pytest.raises(TaskError, match="there is no task 'ioj'; there are: agreement, capitals, "):
        library.get("ioj")


def test_a_task_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OFFERS", dict(registry._OFFERS))
    registry.register("task", "mine", f"{ioi.__module__}:ioi")
    assert "mine" in library.names()
    assert library.get("mine", n=3) == ioi(3)


# --- what each task asks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ioi, ioi_baba])
def test_ioi(make: object) -> None:
    for pair in make(100).pairs:  # type: ignore[operator]
        words, other = pair.clean.replace(",", "").split(), pair.counterfactual.replace(",", "").split()
        io, s = pair.answers[0].strip(), pair.foils[0].strip()
        assert (words.count(io), words.count(s)) == (1, 2)
        named = [(a, b) for a, b in zip(words, other, strict=True) if a != b]
        assert sorted(a for a, _ in named) == sorted([io, s, s])
        strangers = [b for _, b in named]
        assert len(set(strangers)) == 3
        assert not set(strangers) & {io, s}
        spans = dict(pair.pieces)
        assert spans["IO"] == f" {io}"
        assert spans["S1"] == spans["S2"] == f" {s}"
        assert spans["to"] == " to"


def test_the_two_orders_are_two_schemas() -> None:
    orders = [[name for name in make(2).schema.spans if name in ("IO", "S1", "S2")] for make in (ioi, ioi_baba)]
    assert orders == [["IO", "S1", "S2"], ["S1", "IO", "S2"]]


FORMS = {
    None: ([" 17", "32", " 1", "7"], ["3", "4"], ["0", "2"]),
    "digits": ([" 17", "32", " 1", "7"], ["3", "4"], ["0", "2"]),
    "pairs": ([" 17", "32", " 17"], ["33", "99"], ["00", "32"]),
    "triples": ([" ", "1732", " "], ["173", "174"], ["170", "172"]),
    "whole": ([" 1732", " year"], [" 1733", " 1799"], [" 1700", " 1732"]),
}


@pytest.mark.parametrize(("numbers", "form"), FORMS.items())
def test_years_as_the_tokenizer_writes_them(
    numbers: str | None, form: tuple[list[str], list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, only in (("_OPENINGS", "The"), ("_NOUNS", "war"), ("_CENTURIES", "17")):
        monkeypatch.setattr(sys.modules[greater_than.__module__], name, (only,))
    task = greater_than(89, model=Reader(numbers) if numbers else None)
    pair = next(pair for pair in task.pairs if " 1732 " in pair.clean)
    spans = dict(pair.pieces)
    assert [spans[name] for name in ("XX1", "YY", "XX2", "end") if name in spans] == form[0][
        : len(form[0]) - (numbers == "whole")
    ]
    assert pair.clean.endswith(form[0][-1])
    assert pair.counterfactual == pair.clean.replace("1732", "1701")
    assert set(form[1]) <= set(pair.answers)
    assert set(form[2]) <= set(pair.foils)
    assert len(pair.answers) + len(pair.foils) == (10 if numbers in (None, "digits", "triples") else 100)


def test_a_later_year_is_possible_after_every_answer_and_no_foil() -> None:
    for pair in greater_than(200).pairs:
        start = int(dict(pair.pieces)["YY"])
        assert all(int(f"{digit}9") > start for digit in pair.answers)
        assert all(int(f"{digit}9") <= start for digit in pair.foils)


def test_agreement_misleads_half_of_the_time() -> None:
    task = agreement(400)
    spans = [dict(pair.pieces) for pair in task.pairs]
    plural = [one["subject"].endswith(("s", "children")) for one in spans]
    misled = [one["distractor"].endswith(("s", "children")) != many for one, many in zip(spans, plural, strict=True)]
    assert 150 < sum(misled) < 250
    assert 150 < sum(plural) < 250
    assert all(
        (pair.answers == (" are", " were", " have")) == many for pair, many in zip(task.pairs, plural, strict=True)
    )


def test_gender_bias_turns_with_the_occupations() -> None:
    for pair in gender_bias(100).pairs:
        spans = dict(pair.pieces)
        assert spans["again"] == spans["first"]
        swapped = [
            {spans["first"]: spans["second"], spans["second"]: spans["first"]}.get(f" {w}", f" {w}")
            for w in re.findall(r"\w+|\W+", pair.clean)
        ]
        assert re.findall(r"\w+", "".join(swapped)) == re.findall(r"\w+", pair.counterfactual)


def test_capitals_need_one_token() -> None:
    task = capitals(100, model=Reader())
    assert not any(name in pair.answers[0] for pair in task.pairs for name in BROKEN)
    assert all(pair.answers != pair.foils for pair in task.pairs)


def test_a_generated_task_is_a_task() -> None:
    assert isinstance(ioi(2), Task)
