"""A run as one file, to send and to take in.

The file is a zip of the run's folder without its page and its lock. What comes in is somebody else's: only the names a
run has are taken, sizes are bounded before and while reading, every part must carry its seal and belong to the spec
that comes with it, and the page is made anew by our own code, so that no foreign HTML is ever opened. A run appears
whole, under its own id, or not at all.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path

from caseback.core import registry
from caseback.core.errors import CasebackError, StudyError
from caseback.study.files import cannot_write, read_checkpoint, write
from caseback.study.resume import locked
from caseback.study.store import Record, Study

__all__ = ["LARGEST", "export_run", "import_run"]

LARGEST = 4 * 10**9
"""Bytes an imported run may take on disk."""
FILES = 10_000
_NAME = re.compile(r"(spec|environment|result)\.json|events\.jsonl|arrays/[a-z0-9][a-z0-9._-]{0,63}\.safetensors")
_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9-]{1,24}-[a-z0-9-]{1,24}-[0-9a-f]{4}")
_CHUNK = 1 << 20
_BROKEN = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError)


def export_run(record: Record, path: Path, *, force: bool = False) -> Path:
    """Write a finished run to a zip file, whole or not at all; StudyError where it is not finished, damaged, or the
    file cannot be written or (without `force`) is there."""
    if record.problem and record.status == "damaged":
        raise record.problem
    if record.status != "finished":
        raise StudyError(
            f"run {record.id} is {record.status}; only a finished run is sent, and `caseback resume {record.id}` finishes it"
        )
    if path.exists() and not force:
        raise StudyError(f"{path} is there already; name another file, or replace it with --force")
    if damage := record.damage():
        raise StudyError(f"run {record.id} is damaged ({damage[0]}); `caseback resume {record.id}` mends it")
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as out:
                for file in sorted(record.path.rglob("*")):
                    name = file.relative_to(record.path).as_posix()
                    if _NAME.fullmatch(name):
                        out.write(file, f"{record.id}/{name}")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error, way_out="name another file") from error
    return path


def import_run(study: Study, path: Path, *, largest: int = LARGEST) -> Record:
    """Take a run from a file of `export_run` into a study; the run that is there already is returned as it is.

    Raises StudyError for a file that is no run, holds other names, is too large, is damaged, or whose run is there with
    another content.
    """
    try:
        with zipfile.ZipFile(path) as file:
            run = _check(file, path, largest)
            study.make()
            draft = study.path / "runs" / f".new-{run}"
            target = study.path / "runs" / run
            with locked(study.path / "lock", wait=30.0, busy=lambda: f"the study {study.path} is locked"):
                shutil.rmtree(draft, ignore_errors=True)
                try:
                    _unpack(file, draft, run, largest)
                    found = _verified(draft, path)
                    if target.exists():
                        return _there(target, found, path)
                    _draw(study, found, path)
                    draft.rename(target)
                except OSError as error:
                    raise cannot_write(draft, error) from error
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror or error})") from error
    except (*_BROKEN, NotImplementedError, EOFError, RuntimeError) as error:
        raise StudyError(f"{path} is no run: it is not a whole zip file ({error})") from error
    return Record.open(target)


def _check(file: zipfile.ZipFile, path: Path, largest: int) -> str:
    """The id of the run in a file whose names and sizes are a run's."""
    entries = file.infolist()
    if not entries or len(entries) > FILES:
        raise StudyError(f"{path} is no run: it holds {len(entries)} files")
    runs = {entry.filename.split("/", 1)[0] for entry in entries}
    if len(runs) != 1 or not _ID.fullmatch(run := next(iter(runs))):
        raise StudyError(f"{path} is no run: its files do not lie in one folder that is named as a run is")
    for entry in entries:
        if not _NAME.fullmatch(entry.filename[len(run) + 1 :]):
            raise StudyError(f"{path} is no run: a run has no file {entry.filename[:80]!r}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise StudyError(f"{path} is no run: it holds a file twice")
    if (size := sum(entry.file_size for entry in entries)) > largest:
        raise StudyError(
            f"{path} would take {size / 1e9:.1f} GB; a run that is taken in has at most {largest / 1e9:.1f}"
        )
    return run


def _unpack(file: zipfile.ZipFile, draft: Path, run: str, largest: int) -> None:
    """Write the files out; what a header says of a size is not believed."""
    (draft / "arrays").mkdir(parents=True)
    left = largest
    for entry in file.infolist():
        with file.open(entry) as source, open(draft / entry.filename[len(run) + 1 :], "xb") as out:
            while content := source.read(_CHUNK):
                left -= len(content)
                if left < 0:
                    raise StudyError(f"{entry.filename[:80]!r} is larger than its header says; nothing was taken in")
                out.write(content)


def _verified(draft: Path, path: Path) -> Record:
    """The record of an unpacked run whose parts carry their seals and belong together."""
    try:
        found = Record.open(draft)
        if f"{draft.name}"[-4:] != found.spec.digest[:4]:
            raise StudyError("its name does not fit what it asked")
        if not (draft / "result.json").exists():
            raise StudyError("it is not finished")
        if problem := found.problem:
            raise StudyError(str(problem.__cause__ or problem))  # without the way out of a run of one's own
        if found.result["arrays"].keys() - {part.stem for part in draft.glob("arrays/*.safetensors")}:
            raise StudyError("a part it was made from is missing")
        if damage := found.damage():
            raise StudyError(damage[0])
        _ = found.environment
        if all(event.kind == "unreadable" for event in found.events):
            raise StudyError("events.jsonl has no line that can be read")
        numbers = found.table["seconds"], found.table["peak_memory_mb"]
        if not all(isinstance(number, int | float) for number in numbers):
            raise StudyError("what it cost is no number")
        for part in draft.glob("arrays/*.safetensors"):
            read_checkpoint(part, owner=found.spec.digest)
    except (CasebackError, LookupError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is no whole run: {str(error).replace(f'{draft}/', '')}") from error
    return found


def _draw(study: Study, found: Record, path: Path) -> None:
    """The page, by our own code."""
    if found.spec.method not in registry.names("report"):
        return
    try:
        write(found.path / "report.html", study.report(found).encode(errors="replace"))
    except (
        CasebackError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise StudyError(f"{path} holds a run whose page cannot be drawn ({type(error).__name__}: {error})") from error


def _there(target: Path, found: Record, path: Path) -> Record:
    mine = Record.open(target)
    if mine.spec.digest != found.spec.digest or mine.result != found.result:
        raise StudyError(
            f"{path} holds the run {target.name}, and the study has another of that name with another content; "
            "take it into another study folder"
        )
    return mine
