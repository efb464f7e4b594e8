"""Tasks as files, and the one door through which every command takes "a task": a name in the library, or a file.

Our own format is JSON Lines, one pair a line, after an optional header line that is known by its field "task":

    {"task": "echo", "metric": "logit_diff", "schema": {"name": "echo", "spans": ["word", "arrow"]}}
    {"clean": "left =>", "counterfactual": "right =>", "answers": [" left"], "foils": [" right"],
     "spans": [["word", "left"], ["arrow", " =>"]], "split": "discovery"}

(a pair stands on one line). `spans` are [name, text] in order; the texts, one after another, are `clean`. White space
between two of them may be left out and then belongs to the later one. `spans` and `split` may be missing, from all
pairs together. An empty span is taken for a slip unless the header says `"allow_empty": true`. The other format, the
published PEAP CSV, is in `peap.py`.

Reading checks all that can be seen without a model and names the file, the row and the field. Writing is atomic.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from caseback.core.errors import CasebackError, TaskError
from caseback.tasks import library, peap
from caseback.tasks.encode import LanguageModel, MetricName
from caseback.tasks.pair import Pair, Split
from caseback.tasks.schema import Schema, Span, apply_pieces, encodable, kind_of
from caseback.tasks.task import Task

__all__ = ["CSV", "JSONL", "is_file", "look", "look_at_pairs", "needs_model", "read_task", "write_task", "write_text"]

JSONL = (".jsonl", ".ndjson", ".json")
CSV = (".csv",)
_PAIR_FIELDS = ("clean", "counterfactual", "answers", "foils", "spans", "split")
_HEADER_FIELDS = (
    "task",
    "description",
    "schema",
    "metric",
    "sign",
    "source",
    "seed",
    "discovery_share",
    "allow_empty",
)


def is_file(task: str | os.PathLike[str]) -> bool:
    """Whether this names a file and not a task of the library."""
    return not (isinstance(task, str) and task in library.names())


def look(task: str | os.PathLike[str]) -> None:
    """Raise TaskError where a task is neither in the library nor a file that could be one; nothing is read."""
    path = Path(task)
    if not is_file(task):
        return
    if not path.exists():
        raise TaskError(
            f"there is neither a task nor a file {str(path)!r}; tasks are {', '.join(library.names())}, "
            "and a file ends in .jsonl or .csv"
        )
    if path.is_dir():
        raise TaskError(f"{path} is a folder; give the task file in it")
    if path.suffix.lower() not in (*JSONL, *CSV):
        raise TaskError(f"{path} is neither a .jsonl nor a .csv file; rename it to what it holds")


def look_at_pairs(task: str | os.PathLike[str], n: int | None, *, least: int = 2) -> None:
    """Raise TaskError for a task that is not there (`look`), or fewer pairs than can be compared."""
    look(task)
    if n is not None and n < least:
        raise TaskError(f"{least} pairs or more are looked at, not {n}")


def needs_model(path: str | os.PathLike[str]) -> bool:
    """Whether reading or writing this file takes a tokenizer: the CSV counts tokens."""
    return Path(path).suffix.lower() in CSV


def read_task(
    task: str | os.PathLike[str],
    *,
    model: LanguageModel | None = None,
    n: int | None = None,
    seed: int = 0,
    counterfactual: str | os.PathLike[str] | None = None,
    allow_empty: bool = False,
) -> Task:
    """The task a user means; raises TaskError or SchemaError with the file, the row, the field and the way out.

    Args:
        task: a name in the library, or a .jsonl or .csv file. A file that is called like a task is reached as "./ioi".
        model: whose tokens a CSV counts, and which the library's prompts shall fit.
        n: pairs to generate (200 when None), or to take from the file (all when None), the split kept in proportion.
        seed: of the generator; a file has none.
        counterfactual: the second published CSV, which holds the counterfactual prompts row by row.
        allow_empty: accept empty spans in a file that does not declare them.
    """
    if not is_file(task):
        return library.get(str(task), n=200 if n is None else n, seed=seed, model=model)
    look(task)
    path = Path(task)
    suffix = path.suffix.lower()
    with _named(path):
        if suffix in CSV:
            if model is None:
                raise TaskError(
                    "a CSV counts tokens, so reading it takes a model; give one (--model on the command line)"
                )
            other = None
            if counterfactual is not None:
                with _named(Path(counterfactual)):
                    other = _text(Path(counterfactual))
            found = peap.parse(_text(path), model, name=path.stem, counterfactual=other, allow_empty=allow_empty)
        elif counterfactual is not None:
            raise TaskError(
                "a second file of counterfactuals goes with a CSV only; here they are the field 'counterfactual'"
            )
        else:
            found = _parse(_text(path), name=path.stem, allow_empty=allow_empty)
        return found if n is None else found.take(n)


def write_task(task: Task, path: str | os.PathLike[str], *, model: LanguageModel | None = None) -> None:
    """Write the task as .jsonl or .csv, whole or not at all; a CSV takes the model whose tokens it counts."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*JSONL, *CSV):
        raise TaskError(f"{path} ends neither in .jsonl nor in .csv, so the format is not known; choose one of them")
    if not path.parent.is_dir():
        raise TaskError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    if path.is_dir():
        raise TaskError(f"{path} is a folder; give the name of a file")
    if suffix in CSV and model is None:
        raise TaskError("a CSV counts tokens, so writing it takes a model; give one (--model on the command line)")
    text = peap.render(task, model) if suffix in CSV and model is not None else _render(task)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; raises OSError of that file, not of the temporary one beside it."""
    try:
        _write_text(path, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_text(path: Path, text: str) -> None:
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())  # mkstemp makes it private; a task file is like any other
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


# --- JSON Lines ----------------------------------------------------------------------------------------------------------------------


def _parse(text: str, *, name: str, allow_empty: bool) -> Task:
    header: Mapping[str, Any] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        data = _object(line, row)
        if not rows and not header and "task" in data:
            header = _header(data, row)
        else:
            rows.append((row, data))
    if not rows:
        raise TaskError(
            "the file holds no pair; write one JSON object a line with the fields clean, counterfactual, answers, foils"
        )
    allow_empty = allow_empty or header.get("allow_empty", False)
    schema = Schema.from_dict(header["schema"]) if header.get("schema") is not None else None
    if schema is None:
        schema = next(
            (_schema_of(data["spans"], name, row) for row, data in rows if data.get("spans") is not None), None
        )
    fields = {
        field: header[field]
        for field in _HEADER_FIELDS[1:]
        if field in header and field not in ("schema", "allow_empty")
    }
    pairs = tuple(_pair(data, row, schema, allow_empty=allow_empty) for row, data in rows)
    return Task(**{"name": header.get("task", name), "source": f"file {name}", **fields}, pairs=pairs, schema=schema)


def _object(line: str, row: int) -> dict[str, Any]:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        for key in keys:
            if keys.count(key) > 1:
                raise TaskError(f"row {row}: {key!r} is given twice; keep one of them")
        return dict(items)

    try:
        data = json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise TaskError(
            f"row {row}: not JSON ({error.msg} at column {error.colno}); a pair is one JSON object on one line"
        ) from None
    except (RecursionError, TaskError) as error:
        raise error if isinstance(error, TaskError) else TaskError(f"row {row}: nested too deeply for a pair") from None
    except ValueError as error:  # a number of thousands of digits
        raise TaskError(f"row {row}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise TaskError(f"row {row}: this is {kind_of(data)}; a pair is one JSON object on one line")
    return data


def _header(data: dict[str, Any], row: int) -> dict[str, Any]:
    kinds: dict[str, tuple[type, ...]] = {
        "task": (str,),
        "description": (str,),
        "source": (str,),
        "sign": (int,),
        "seed": (int, type(None)),
        "discovery_share": (float, int),
        "allow_empty": (bool,),
    }
    for field, value in data.items():
        if field not in _HEADER_FIELDS:
            raise TaskError(
                f"row {row}: the header has the unknown field {field!r}; its fields are {', '.join(_HEADER_FIELDS)}"
            )
        if field in kinds and (
            not isinstance(value, kinds[field]) or (isinstance(value, bool) and bool not in kinds[field])
        ):
            raise TaskError(
                f"row {row}: the header's {field!r} is {kind_of(value)}; it must be {kind_of(kinds[field][0]())}"
            )
        if isinstance(value, str) and not encodable(value):
            raise TaskError(f"row {row}: {field!r} holds half of a surrogate pair, which is no character; remove it")
    if not data["task"].strip():
        raise TaskError(f"row {row}: the header's 'task' is empty; give the task a name")
    if data.get("metric", "logit_diff") not in get_args(MetricName):
        raise TaskError(
            f"row {row}: the header's 'metric' is {data['metric']!r}; it is one of {', '.join(get_args(MetricName))}"
        )
    return {field: float(value) if field == "discovery_share" else value for field, value in data.items()}


def _schema_of(spans: Any, name: str, row: int) -> Schema:
    """The schema that a pair's own spans imply, for files without one in a header."""
    if isinstance(spans, list) and all(isinstance(item, list) and item and isinstance(item[0], str) for item in spans):
        return Schema(name=name, spans=tuple(item[0] for item in spans))
    if isinstance(spans, dict):
        return Schema(name=name, spans=tuple(spans))
    raise TaskError(
        f'row {row}: \'spans\' must be a list of [name, text], such as [["word", "left"], ["arrow", " =>"]], '
        f"not {kind_of(spans)}"
    )


def _pair(data: dict[str, Any], row: int, schema: Schema | None, *, allow_empty: bool) -> Pair:
    for field in data:
        if field not in _PAIR_FIELDS:
            raise TaskError(
                f"row {row}: unknown field {field!r}; a pair has {', '.join(_PAIR_FIELDS)} "
                "(a header is the first line and has 'task')"
            )
    for field in _PAIR_FIELDS[:4]:
        if field not in data:
            raise TaskError(f"row {row}: {field!r} is missing; a pair needs {', '.join(_PAIR_FIELDS[:4])}")
    for field in ("clean", "counterfactual"):
        if not isinstance(data[field], str):
            raise TaskError(f"row {row}: {field!r} must be text, not {kind_of(data[field])}")
    for field in ("answers", "foils"):
        if not isinstance(data[field], list) or not all(isinstance(text, str) for text in data[field]):
            raise TaskError(
                f'row {row}: {field!r} must be a list of texts, such as [" Mary"], not {kind_of(data[field])}'
            )
    split = data.get("split")
    if split is not None and split not in get_args(Split):
        raise TaskError(f"row {row}: 'split' is {split!r}; it is one of {', '.join(get_args(Split))}")
    spans = data.get("spans")
    laid: tuple[Span, ...] = ()
    if schema is not None:
        if spans is None:
            raise TaskError(
                f"row {row}: 'spans' is missing; every pair has the spans {', '.join(schema.spans)}, or none has any"
            )
        try:
            laid = apply_pieces(schema, data["clean"], spans, allow_empty=allow_empty)
        except CasebackError as error:
            raise TaskError(f"row {row}: 'spans': {error}") from None
    answers, foils = tuple(data["answers"]), tuple(data["foils"])
    return Pair(
        clean=data["clean"],
        counterfactual=data["counterfactual"],
        answers=answers,
        foils=foils,
        spans=laid,
        split=split,
        row=row,
    )


def _render(task: Task) -> str:
    header: dict[str, Any] = {"task": task.name}
    header |= {
        "description": task.description,
        "source": task.source,
        "seed": task.seed,
        "metric": task.metric,
        "sign": task.sign,
        "discovery_share": task.discovery_share,
    }
    if task.schema is not None:
        header["schema"] = task.schema.to_dict()
    if any(not text for pair in task.pairs for _, text in pair.pieces):
        header["allow_empty"] = True
    lines: list[Mapping[str, Any]] = [header]
    for pair in task.pairs:
        line: dict[str, Any] = {
            "clean": pair.clean,
            "counterfactual": pair.counterfactual,
            "answers": list(pair.answers),
            "foils": list(pair.foils),
        }
        if pair.spans:
            line["spans"] = [list(piece) for piece in pair.pieces]
        lines.append(line | {"split": pair.split})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


# --- files ---------------------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    if not path.is_file():
        raise TaskError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise TaskError(f"row {row}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors inside name the file."""
    try:
        yield
    except CasebackError as error:
        raise TaskError(f"{path}: {error}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
