"""The CSV that PEAP's authors publish (Haklay et al. 2025, arXiv 2502.04577; github.com/technion-cs-nlp/PEAP): spans as
token counts.

    prompt,prefix,IO,and,S1,S1+1,action1,S2,action2,to,length,correct_token,wrong_token
    "When Mary and John went to the store, John gave a drink to",1,2,3,4,5,6,10,11,14,15, Mary, John

Every column between `prompt` and `length` is a span and holds the index of its first token; `length` closes the last
one. Indices count a BOS that is not written in the prompt, so the first span begins at 1, whatever the tokenizer does.
A span that begins where the next one does is empty.

Required besides: `correct_token` and `wrong_token` (one text, or a JSON list of texts), and the counterfactual prompts,
which the authors keep in a second file of the same rows and which may also stand in a column `counterfactual`.
Optional: `split` (discovery or circuit, held_out or eval; rows marked ablation are no pairs and are left out), `metric`
and `sign`. Bookkeeping columns of the published files are passed over by name before `length`, and every other column
is after it.

`render` writes all that in one file with `length` last, so `parse(render(task)) == task` but for its description and
its source.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from caseback.core.errors import CasebackError, SchemaError, TaskError
from caseback.tasks.encode import LanguageModel, MetricName
from caseback.tasks.pair import Pair, Split
from caseback.tasks.schema import Schema, Span, token_ranges
from caseback.tasks.task import Task

__all__ = ["parse", "render"]

_MEANT = ("counterfactual", "correct_token", "wrong_token", "split", "metric", "sign")
_PASSED_OVER = ("", "Unnamed: 0", "index", "id", "prompt_id", "pair_id", "correct_proffesion_idx")
_SPLITS: dict[str, Split | None] = {
    "discovery": "discovery",
    "circuit": "discovery",
    "held_out": "held_out",
    "eval": "held_out",
    "ablation": None,
}


class _Table(NamedTuple):
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def parse(text: str, model: LanguageModel, *, name: str, counterfactual: str | None, allow_empty: bool) -> Task:
    """The task in a CSV's text, its token counts read with the model's tokenizer."""
    table = _table(text)
    spans = _span_columns(table.columns)
    schema = Schema(name=name, spans=tuple(spans))
    others = _others(table, counterfactual)
    pairs, left_out = [], 0
    for (row, cells), other in zip(table.rows, others, strict=True):
        if "split" in table.columns and cells["split"] not in _SPLITS:
            raise TaskError(f"row {row}: 'split' is {cells['split']!r}; it is one of {', '.join(_SPLITS)}")
        if cells.get("split") == "ablation":
            left_out += 1
            continue
        try:
            laid = _lay(cells, spans, model, allow_empty=allow_empty)
        except CasebackError as error:
            raise TaskError(f"row {row}: {error}") from None
        pairs.append(
            Pair(
                clean=cells["prompt"],
                counterfactual=other,
                answers=_texts(cells["correct_token"]),
                foils=_texts(cells["wrong_token"]),
                spans=laid,
                split=_SPLITS[cells["split"]] if "split" in table.columns else None,
                row=row,
            )
        )
    if not pairs:
        raise TaskError(
            f"the file holds no pair ({left_out} rows are marked ablation)"
            if left_out
            else "the file holds no row under its header"
        )
    source = f"file {name}" + (f", {left_out} rows marked ablation left out" if left_out else "")
    metric: Any = _one(table, "metric", get_args(MetricName)) or "logit_diff"
    return Task(
        name=name,
        pairs=tuple(pairs),
        schema=schema,
        metric=metric,
        sign=int(_one(table, "sign", ("1", "-1")) or 1),
        source=source,
    )


def render(task: Task, model: LanguageModel) -> str:
    """The task as CSV text, its spans counted in this model's tokens."""
    if task.schema is None:
        raise TaskError(
            f"the task {task.name!r} has no spans, which a CSV is made of; write .jsonl, or give it a schema first"
        )
    for span in task.schema.spans:
        if span in ("prompt", "length", *_MEANT, *_PASSED_OVER):
            raise TaskError(
                f"the span {span!r} is called like another column of a CSV; write .jsonl, or rename the span"
            )
    meta = {
        name: value
        for name, value, default in (("metric", task.metric, "logit_diff"), ("sign", task.sign, 1))
        if value != default
    }
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        ["prompt", "counterfactual", "correct_token", "wrong_token", "split", *meta, *task.schema.spans, "length"]
    )
    rows = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # a lone carriage return must be quoted
    for place, pair in enumerate(task.pairs):
        try:
            ranges = token_ranges(pair.clean, _offsets(model, pair.clean), pair.spans)
        except SchemaError as error:
            raise TaskError(f"pair {place + 1}: 'spans': {error}") from None
        firsts = [start + 1 for start, _ in ranges]
        cells = [pair.clean, pair.counterfactual, _cell(pair.answers), _cell(pair.foils), pair.split]
        rows.writerow([*cells, *meta.values(), *firsts, ranges[-1][1] + 1])
    return out.getvalue()


def _table(text: str) -> _Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not columns:
                columns = cells
                continue
            if not cells:
                continue
            if len(cells) != len(columns):
                raise TaskError(
                    f"row {reader.line_num}: {len(cells)} cells under {len(columns)} columns; put text with commas in double quotes"
                )
            rows.append((reader.line_num, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise TaskError(f"row {reader.line_num}: not CSV ({error})") from None
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise TaskError(f"row 1: two columns are called {twice[0]!r}; names must be distinct")
    return _Table(columns, rows)


def _span_columns(columns: Sequence[str]) -> list[str]:
    for needed in ("prompt", "length"):
        if needed not in columns:
            raise TaskError(
                f"row 1: there is no column {needed!r}; a CSV has prompt, one column a span, length; it has {', '.join(columns) or 'none'}"
            )
    for needed in ("correct_token", "wrong_token"):
        if needed not in columns:
            raise TaskError(
                f"row 1: there is no column {needed!r}; add it, with the text that continues the prompt, such as ' Mary'"
            )
    between = columns[columns.index("prompt") + 1 : columns.index("length")]
    spans = [column for column in between if column not in (*_MEANT, *_PASSED_OVER)]
    if not spans:
        raise TaskError(
            "row 1: there is no span column between 'prompt' and 'length'; add one a span, with the index of its first token"
        )
    return spans


def _others(table: _Table, second: str | None) -> list[str]:
    """The counterfactual prompt of each row, from a column or from the second file."""
    if second is None:
        if "counterfactual" not in table.columns:
            raise TaskError(
                "row 1: there is no column 'counterfactual'; add it, "
                "or name the second published file (--counterfactual on the command line)"
            )
        return [cells["counterfactual"] for _, cells in table.rows]
    other = _table(second)
    if "prompt" not in other.columns:
        raise TaskError("the file of counterfactuals has no column 'prompt'; its prompts stand there, row by row")
    if len(other.rows) != len(table.rows):
        raise TaskError(
            f"the file of counterfactuals has {len(other.rows)} rows and this one {len(table.rows)}; they go together row by row"
        )
    return [cells["prompt"] for _, cells in other.rows]


def _lay(cells: dict[str, str], names: Sequence[str], model: LanguageModel, *, allow_empty: bool) -> tuple[Span, ...]:
    """A row's token counts as character ranges."""
    prompt = cells["prompt"]
    offsets = _offsets(model, prompt)
    length = len(offsets) + 1
    indices = [_index(cells[name], name) for name in (*names, "length")]
    if indices[-1] != length:
        raise TaskError(
            f"'length' is {indices[-1]}, but the prompt has {length} tokens in {model.name}, a BOS counted; "
            "give the model whose tokenizer the file was made with"
        )
    if indices[0] != 1:
        raise TaskError(f"{names[0]!r} begins at {indices[0]}; the first span begins at 1, because index 0 is a BOS")
    for name, index, end in zip(names, indices, indices[1:]):
        if index > length:
            raise TaskError(f"{name!r} begins at {index}, past the end of the prompt ({length} tokens, a BOS counted)")
        if end < index:
            raise TaskError(
                f"{name!r} begins at {index}, after the span that follows it ({end}); spans stand in the order of their columns"
            )
        if end == index and not allow_empty:
            raise TaskError(
                f"{name!r} is empty: it begins at {index} and so does what follows; correct it, or allow empty spans (--allow-empty)"
            )
    # a boundary lies where the token before it ends, so that a leading space goes with its word
    bounds = [0 if i == 1 else len(prompt) if i == length else offsets[i - 2][1] for i in indices]
    spans = tuple((name, start, end) for name, start, end in zip(names, bounds, bounds[1:]))
    if token_ranges(prompt, offsets, spans) != [(a - 1, b - 1) for a, b in zip(indices, indices[1:])]:
        raise TaskError(
            "a span begins inside a character that is several tokens; move it to the character's first token"
        )
    return spans


def _offsets(model: LanguageModel, prompt: str) -> list[tuple[int, int]]:
    return model.offsets(prompt)[1 if model.bos else 0 :]


def _index(cell: str, name: str) -> int:
    try:
        return int(cell)
    except ValueError:
        shown = "empty" if not cell.strip() else f"{cell[:20]!r}"
        raise TaskError(
            f"{name!r} is {shown}; a span's column holds the index of its first token, a whole number"
        ) from None


def _texts(cell: str) -> tuple[str, ...]:
    """One text, or several as a JSON list."""
    if cell.startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            return (cell,)
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return tuple(found)
    return (cell,)


def _cell(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 and not texts[0].startswith("[") else json.dumps(list(texts), ensure_ascii=False)


def _one(table: _Table, column: str, allowed: Sequence[str]) -> str | None:
    """The value that a column has in every row; None without the column."""
    values = {cells[column]: row for row, cells in table.rows} if column in table.columns else {}
    for value, row in values.items():
        if value not in allowed or len(values) > 1:
            raise TaskError(f"row {row}: {column!r} is {value!r}; it is {' or '.join(allowed)}, the same in every row")
    return next(iter(values), None)
