"""Files: both formats there and back, every slip a sentence with its row, and nothing but our own errors for any bytes."""

from __future__ import annotations

import json
import os
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caseback.core.errors import CasebackError, TaskError
from caseback.tasks import Pair, Schema, Task, library, read_task, write_task

from .readers import Reader

HEADER = {"task": "echo", "schema": {"name": "echo", "spans": ["first", "joint", "arrow"]}}
LINE = {
    "clean": "left and right =>",
    "counterfactual": "up and right =>",
    "answers": [" left"],
    "foils": [" up"],
    "spans": [["first", "left"], ["joint", " and right"], ["arrow", " =>"]],
}


def jsonl(folder: Path, *lines: object, name: str = "echo.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def csv(folder: Path, text: str, name: str = "echo.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def message(path: Path, **options: Any) -> str:
    with pytest.raises(TaskError) as error:
        read_task(path, **options)
    assert str(error.value).startswith(f"{path}: ") or str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


# --- there and back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", library.names())
@pytest.mark.parametrize("numbers", ["digits", "pairs"])
def test_library_tasks_come_back(name: str, numbers: str, tmp_path: Path) -> None:
    reader = Reader(numbers, bos=numbers == "pairs", trimmed=True)
    task = library.get(name, n=20, model=reader)
    write_task(task, tmp_path / "task.jsonl")
    assert read_task(tmp_path / "task.jsonl") == task
    write_task(task, tmp_path / "task.csv", model=reader)
    back = read_task(tmp_path / "task.csv", model=reader)
    assert back.pairs == task.pairs
    assert (back.schema.spans, back.metric, back.sign) == (task.schema.spans, task.metric, task.sign)  # type: ignore[union-attr]
    write_task(back, tmp_path / "again.csv", model=reader)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "task.csv").read_text()


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
names = texts.filter(str.strip)


@given(
    st.lists(names, min_size=3, max_size=3),
    st.lists(texts.filter(lambda text: not text.startswith("#")), min_size=1, max_size=3, unique=True),
    st.lists(texts, min_size=1, max_size=3, unique=True),
    texts,
    st.sampled_from([1, -1]),
    st.sampled_from(["logit_diff", "prob_diff"]),
    names,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_comes_back(
    tmp_path: Path, words: list[str], answers: list[str], foils: list[str], tail: str, sign: int, metric: Any, name: str
) -> None:
    ends = list(accumulate(map(len, words)))
    pair = Pair(
        clean="".join(words),
        counterfactual="".join(words) + tail,
        answers=tuple(answers),
        foils=tuple(f"#{text}" for text in foils),
        spans=tuple((f"s{i}", start, end) for i, (start, end) in enumerate(pairwise([0, *ends]))),
    )
    schema = Schema(name="s", spans=("s0", "s1", "s2"), descriptions={"s0": name})
    task = Task(name=name, description=name, pairs=(pair,), schema=schema, metric=metric, sign=sign, seed=4)
    write_task(task, tmp_path / "odd.jsonl")
    assert read_task(tmp_path / "odd.jsonl") == task
    reader = Reader()
    try:
        write_task(task, tmp_path / "odd.csv", model=reader)
    except TaskError as error:
        assert "'spans'" in str(error)  # these spans do not lie on this tokenizer's tokens
        return
    back = read_task(tmp_path / "odd.csv", model=reader, allow_empty=True)
    assert (back.pairs[0].clean, back.pairs[0].counterfactual) == (pair.clean, pair.counterfactual)
    assert (back.pairs[0].answers, back.pairs[0].foils) == (pair.answers, pair.foils)
    assert (back.sign, back.metric) == (sign, metric)


def test_empty_spans_come_back_when_declared(tmp_path: Path) -> None:
    empty = LINE | {"spans": [["first", "left and right"], ["joint", ""], ["arrow", " =>"]]}
    path = jsonl(tmp_path, HEADER, empty)
    assert message(path) == "row 2: 'spans': the span 'joint' is empty"
    task = read_task(jsonl(tmp_path, HEADER | {"allow_empty": True}, empty))
    assert read_task(path, allow_empty=True).pairs == task.pairs
    write_task(task, tmp_path / "again.jsonl")
    assert read_task(tmp_path / "again.jsonl").pairs == task.pairs
    write_task(task, tmp_path / "again.csv", model=Reader())
    assert read_task(tmp_path / "again.csv", model=Reader(), allow_empty=True).pairs == task.pairs
    assert "row 2: 'joint' is empty: it begins at 4 and so does what follows" in message(
        tmp_path / "again.csv", model=Reader()
    )


def test_a_file_by_hand(tmp_path: Path) -> None:
    """No header, a BOM, Windows line ends, a blank line, spans as an object, white space left to the reader."""
    path = tmp_path / "mine.JSONL"
    line = LINE | {"spans": {"first": "left", "joint": "and right", "arrow": "=>"}}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line).encode() + b"\r\n\r\n")
    task = read_task(path)
    assert (task.name, task.n, task.metric) == ("mine", 1, "logit_diff")
    assert task.schema == Schema(name="mine", spans=("first", "joint", "arrow"))
    assert task.pairs[0].pieces == (("first", "left"), ("joint", " and right"), ("arrow", " =>"))
    assert task.pairs[0].row == 1


def test_spans_may_be_left_out(tmp_path: Path) -> None:
    bare = {key: value for key, value in LINE.items() if key != "spans"}
    assert read_task(jsonl(tmp_path, bare)).schema is None
    assert message(jsonl(tmp_path, LINE, bare | {"clean": "x"})).startswith(
        "row 2: 'spans' is missing; every pair has the spans"
    )


def test_a_part_of_a_file(tmp_path: Path) -> None:
    write_task(library.get("ioi", n=20), tmp_path / "ioi.jsonl")
    part = read_task(tmp_path / "ioi.jsonl", n=6)
    assert (part.n, part.discovery.n) == (6, 3)
    assert message(tmp_path / "ioi.jsonl", n=21) == "the task 'ioi' was asked for n=21 pairs; it has 20"


def test_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_task("ioi", n=5, seed=2) == library.get("ioi", n=5, seed=2)
    assert read_task("ioi").n == 200
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path, LINE, name="ioi")
    assert read_task("ioi", n=3).name == "ioi"  # the library's
    assert "neither a .jsonl nor a .csv file" in message(Path("ioi"))
    assert message(Path("nosuch.jsonl")).startswith(
        "there is neither a task nor a file 'nosuch.jsonl'; tasks are agreement,"
    )
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder; give the task file in it" in message(Path("folder.csv"))


# --- slips in JSON Lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "the file holds no pair; write one JSON object a line"),
        ([HEADER], "the file holds no pair"),
        (["{"], "row 1: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (["[" * 100_000], "row 1: nested too deeply for a pair"),
        ([HEADER, '{"clean": ' + "9" * 5000 + "}"], "row 2: not JSON (Exceeds the limit"),
        (["[]"], "row 1: this is a list; a pair is one JSON object on one line"),
        (['{"clean": "a", "clean": "b"}'], "row 1: 'clean' is given twice; keep one of them"),
        ([{**LINE, "anwers": []}], "row 1: unknown field 'anwers'; a pair has clean, counterfactual, answers, foils"),
        ([LINE, HEADER], "row 2: unknown field 'task'"),
        (
            [{k: v for k, v in LINE.items() if k != "foils"}],
            "row 1: 'foils' is missing; a pair needs clean, counterfactual",
        ),
        ([LINE | {"clean": 3}], "row 1: 'clean' must be text, not a number"),
        ([LINE | {"answers": " left"}], "row 1: 'answers' must be a list of texts, such as [\" Mary\"], not text"),
        ([LINE | {"answers": []}], "row 1: 'answers' is empty"),
        ([LINE | {"foils": [None]}], "row 1: 'foils' must be a list of texts"),
        ([LINE | {"counterfactual": LINE["clean"]}], "row 1: 'counterfactual' is the same prompt as 'clean'"),
        ([LINE | {"clean": "\ud800"}], "row 1: 'spans': the text of the span 'first'"),
        ([LINE | {"foils": ["\ud800"]}], "row 1: 'foils' holds half of a surrogate pair"),
        ([LINE | {"spans": "left"}], "row 1: 'spans' must be a list of [name, text], such as [[\"word\""),
        ([LINE | {"spans": [["a", "left"], ["a", " and right =>"]]}], "the schema 'echo' has two spans named 'a'"),
        ([HEADER, LINE | {"spans": LINE["spans"][:2]}], "row 2: 'spans': the span 'arrow' is missing"),  # type: ignore[index]
        (
            [LINE | {"spans": [["a", "left"], ["b", " and wrong"]]}],
            "row 1: 'spans': the text of the span 'b', ' and wrong', does not",
        ),
        ([LINE | {"spans": [["a", "left and right => and on"]]}], "row 1: 'spans': the text of the span 'a'"),
        ([LINE | {"split": "train"}], "row 1: 'split' is 'train'; it is one of discovery, held_out"),
        ([LINE | {"split": ["a"]}], "row 1: 'split' is ['a']; it is one of discovery, held_out"),
        ([LINE, LINE], "row 2: both prompts repeat row 1"),
        (
            [HEADER | {"metric": "loss"}, LINE],
            "row 1: the header's 'metric' is 'loss'; it is one of logit_diff, prob_diff",
        ),
        ([HEADER | {"metric": ["loss"]}, LINE], "row 1: the header's 'metric' is ['loss']"),
        ([HEADER | {"sign": 2}, LINE], "the task 'echo' has 'sign' 2; it is 1 or -1"),
        ([HEADER | {"sign": True}, LINE], "row 1: the header's 'sign' is a truth value; it must be a number"),
        ([HEADER | {"task": " "}, LINE], "row 1: the header's 'task' is empty"),
        ([HEADER | {"task": 3}, LINE], "row 1: the header's 'task' is a number; it must be text"),
        (
            [HEADER | {"colour": 3}, LINE],
            "row 1: the header has the unknown field 'colour'; its fields are task, description",
        ),
        ([HEADER | {"discovery_share": 2}, LINE], "'discovery_share' 2.0; it lies between 0 and 1"),
        ([HEADER | {"schema": {"spans": []}}, LINE], "the schema 'schema' has no span"),
    ],
)
def test_a_slip_in_a_file(lines: list[object], sentence: str, tmp_path: Path) -> None:
    found = message(jsonl(tmp_path, *lines))
    assert found.startswith(sentence) or (not sentence.startswith("row") and sentence in found), found


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "echo.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\xfe\n")
    assert message(path) == "row 2: the byte 0xff is not UTF-8; save the file as UTF-8"


# --- slips in a CSV -----------------------------------------------------------------------------------------------------

COLUMNS = "prompt,first,joint,arrow,length,correct_token,wrong_token,counterfactual\n"
ROW = "left and right =>,1,2,4,5, left, up,up and right =>\n"


def test_a_csv_by_hand(tmp_path: Path) -> None:
    for bos in (False, True):  # index 0 is a BOS, whether the tokenizer writes one or not
        task = read_task(csv(tmp_path, COLUMNS + ROW), model=Reader(bos=bos))
        assert task.pairs[0].pieces == (("first", "left"), ("joint", " and right"), ("arrow", " =>"))
        assert (task.pairs[0].answers, task.pairs[0].foils) == ((" left",), (" up",))


def test_a_csv_as_published(tmp_path: Path) -> None:
    """Two files, an index column, bookkeeping columns on both sides, rows that are no pairs."""
    columns = ",prompt,prompt_id,first,joint,arrow,length,wrong_token,correct_token,S1_token,label,split,top_answer\n"
    rows = [("left", "circuit"), ("right", "eval"), ("up", "ablation")]
    tail = "7,1,2,4,5, up"
    text = columns + "".join(f"{i},{w} and down =>,{tail}, {w},x,x,{side},y\n" for i, (w, side) in enumerate(rows))
    other = columns + "".join(f"{i},to and down =>,{tail}, {w},x,x,{side},y\n" for i, (w, side) in enumerate(rows))
    path, second = csv(tmp_path, text), csv(tmp_path, other, "counter.csv")
    with pytest.raises(TaskError, match="put both on one side"):  # one counterfactual for all: no honest split
        read_task(path, model=Reader(), counterfactual=second)
    csv(tmp_path, other.replace("1,to and", "1,in and"), "counter.csv")
    task = read_task(path, model=Reader(), counterfactual=second)
    assert [(pair.clean, pair.counterfactual, pair.split, pair.row) for pair in task.pairs] == [
        ("left and down =>", "to and down =>", "discovery", 2),
        ("right and down =>", "in and down =>", "held_out", 3),
    ]
    assert task.schema.spans == ("first", "joint", "arrow")  # type: ignore[union-attr]
    assert task.source == "file echo, 1 rows marked ablation left out"
    assert "add it, or name the second published file" in message(path, model=Reader())
    csv(tmp_path, columns, "counter.csv")
    assert "the file of counterfactuals has 0 rows and this one 3" in message(
        path, model=Reader(), counterfactual=second
    )
    csv(tmp_path, "a\n1\n2\n3\n", "counter.csv")
    assert "the file of counterfactuals has no column 'prompt'" in message(path, model=Reader(), counterfactual=second)
    assert "no file" in message(path, model=Reader(), counterfactual=tmp_path / "nosuch.csv")


def test_several_answers_in_a_cell(tmp_path: Path) -> None:
    row = '"left and right =>",1,2,4,5,"["" left"", "" to""]","[up",up and right =>\n'
    pair = read_task(csv(tmp_path, COLUMNS + row), model=Reader()).pairs[0]
    assert (pair.answers, pair.foils) == ((" left", " to"), ("[up",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "row 1: there is no column 'prompt'; a CSV has prompt, one column a span, length; it has none"),
        (COLUMNS, "the file holds no row under its header"),
        (COLUMNS.replace("length", "len"), "row 1: there is no column 'length'"),
        (COLUMNS.replace("wrong_token", "wrong"), "row 1: there is no column 'wrong_token'; add it"),
        (
            COLUMNS.replace("counterfactual", "cf"),
            "row 1: there is no column 'counterfactual'; add it, or name the second",
        ),
        (COLUMNS.replace("joint", "first"), "row 1: two columns are called 'first'; names must be distinct"),
        ("prompt,length,correct_token,wrong_token\n", "row 1: there is no span column between 'prompt' and 'length'"),
        (COLUMNS.replace("first", "bos") + ROW, "the schema 'echo' has a span named 'bos'"),
        (
            COLUMNS + ROW.replace(",2,", ",,"),
            "row 2: 'joint' is empty; a span's column holds the index of its first token",
        ),
        (COLUMNS + ROW.replace(",2,", ",two,"), "row 2: 'joint' is 'two'; a span's column holds"),
        (COLUMNS + ROW.replace(",2,", ",2.0,"), "row 2: 'joint' is '2.0'"),
        (COLUMNS + ROW.replace(",2,", f",{'9' * 5000},"), "row 2: 'joint' is '99999"),
        (COLUMNS + ROW.replace(",1,2,", ",0,2,"), "row 2: 'first' begins at 0; the first span begins at 1"),
        (COLUMNS + ROW.replace(",2,", ",-2,"), "row 2: 'first' begins at 1, after the span that follows it (-2)"),
        (COLUMNS + ROW.replace(",2,4", ",4,2"), "row 2: 'joint' begins at 4, after the span that follows it (2)"),
        (COLUMNS + ROW.replace(",2,4", ",2,9"), "row 2: 'arrow' begins at 9, past the end of the prompt (5 tokens"),
        (COLUMNS + ROW.replace(",2,4", ",2,2"), "row 2: 'joint' is empty: it begins at 2 and so does what follows"),
        (
            COLUMNS + ROW.replace(",2,4", ",2,3"),
            "row 2: the last span, 'arrow', is ' right =>', which is 2 tokens here",
        ),
        (
            COLUMNS + ROW.replace(",5,", ",6,"),
            "row 2: 'length' is 6, but the prompt has 5 tokens in reader, a BOS counted",
        ),
        (COLUMNS + ROW.replace(" left,", ","), "row 2: 'answers' is empty"),
        (
            COLUMNS + "left, right =>,1,2,4,5,a,b,c\n",
            "row 2: 9 cells under 8 columns; put text with commas in double quotes",
        ),
        (COLUMNS + '"left', "row 2: not CSV (unexpected end of data)"),
        (
            COLUMNS.replace("\n", ",split\n") + ROW.replace("\n", ",mine\n"),
            "row 2: 'split' is 'mine'; it is one of discovery",
        ),
        (
            COLUMNS.replace("\n", ",split\n") + ROW.replace("\n", ",ablation\n"),
            "the file holds no pair (1 rows are marked",
        ),
        (
            COLUMNS.replace("\n", ",metric\n") + ROW.replace("\n", ",loss\n"),
            "row 2: 'metric' is 'loss'; it is logit_diff or",
        ),
        (COLUMNS + ROW + ROW, "row 3: both prompts repeat row 2"),
    ],
)
def test_a_slip_in_a_csv(text: str, sentence: str, tmp_path: Path) -> None:
    found = message(csv(tmp_path, text), model=Reader())
    assert found.startswith(sentence), found


def test_a_span_inside_a_character(tmp_path: Path) -> None:
    text = COLUMNS + "日 and right =>,1,2,6,7, left, up,up and right =>\n"
    assert "a span begins inside a character that is several tokens" in message(csv(tmp_path, text), model=Reader())


def test_a_csv_takes_a_model(tmp_path: Path) -> None:
    assert "reading it takes a model; give one (--model" in message(csv(tmp_path, COLUMNS + ROW))
    task = read_task(jsonl(tmp_path, LINE))
    with pytest.raises(TaskError, match="writing it takes a model"):
        write_task(task, tmp_path / "x.csv")
    assert "goes with a CSV only" in message(tmp_path / "echo.jsonl", counterfactual="x.csv")


def test_what_a_csv_cannot_hold(tmp_path: Path) -> None:
    bare = {key: value for key, value in LINE.items() if key != "spans"}
    with pytest.raises(TaskError, match="the task 'echo' has no spans, which a CSV is made of"):
        write_task(read_task(jsonl(tmp_path, bare)), tmp_path / "x.csv", model=Reader())
    named = LINE | {"spans": [["index", "left"], ["joint", " and right"], ["arrow", " =>"]]}
    with pytest.raises(TaskError, match="the span 'index' is called like another column"):
        write_task(read_task(jsonl(tmp_path, named)), tmp_path / "x.csv", model=Reader())
    cut = LINE | {"spans": [["a", "le"], ["b", "ft and right"], ["c", " =>"]]}
    with pytest.raises(TaskError, match="pair 1: 'spans': the token 'left' holds text of the spans 'a' and 'b'"):
        write_task(read_task(jsonl(tmp_path, cut)), tmp_path / "x.csv", model=Reader())
    assert not (tmp_path / "x.csv").exists()


# --- writing ------------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = read_task(jsonl(tmp_path, LINE))
    path = jsonl(tmp_path, "old", name="out.jsonl")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_task(task, path)
    assert path.read_text() == "old\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["echo.jsonl", "out.jsonl"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    task = read_task(jsonl(tmp_path, LINE))
    with pytest.raises(TaskError, match="there is no folder .* to write x.jsonl into; make it first"):
        write_task(task, tmp_path / "nosuch" / "x.jsonl")
    with pytest.raises(TaskError, match="ends neither in .jsonl nor in .csv"):
        write_task(task, tmp_path / "x.txt")
    (tmp_path / "y.jsonl").mkdir()
    with pytest.raises(TaskError, match="is a folder; give the name of a file"):
        write_task(task, tmp_path / "y.jsonl")


def test_a_written_file_is_like_any_other(tmp_path: Path) -> None:
    write_task(library.get("ioi", n=2), tmp_path / "x.jsonl")
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.jsonl").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- strangers' bytes ---------------------------------------------------------------------------------------------------

SEEDS = [json.dumps(HEADER) + "\n" + json.dumps(LINE) + "\n", COLUMNS + ROW]
PIECES = [
    '"',
    ",",
    "\n",
    "\r",
    "[",
    "{}",
    "null",
    "\x00",
    "é",
    "1",
    "-1",
    "4",
    "spans",
    "split",
    "prompt",
    " ",
    "\\ud800",
    "\ufeff",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with a few cuts, copies and insertions; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 12))
        text = text[:start] + draw(st.sampled_from(["", text[start:stop] * 2, *PIECES])) + text[stop:]
    return text.encode("utf-8", "surrogatepass")


@given(damaged(), st.sampled_from(["x.jsonl", "x.csv"]), st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_a_task_or_a_sentence(tmp_path: Path, data: bytes, name: str, bos: bool) -> None:
    (tmp_path / name).write_bytes(data)
    reader = Reader(bos=bos)
    try:
        task = read_task(tmp_path / name, model=reader)
    except CasebackError as error:
        assert str(error).startswith(str(tmp_path / name))
        return
    write_task(task, tmp_path / "again.jsonl")
    assert read_task(tmp_path / "again.jsonl").pairs == task.pairs
    try:
        task.encode(reader)
    except CasebackError as error:
        assert str(error).startswith("row ")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    [*HEADER, *LINE, "split", "metric", "sign", "seed", "source", "discovery_share", "allow_empty"]
)


@given(st.lists(st.tuples(st.integers(0, 1), fields, values), min_size=1, max_size=3))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_value_in_any_field(tmp_path: Path, changes: list[tuple[int, str, object]]) -> None:
    lines = [dict(HEADER), dict(LINE)]
    for place, field, value in changes:
        lines[place][field] = value  # type: ignore[assignment]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    try:
        read_task(path)
    except CasebackError as error:
        assert str(error).startswith(str(path))
