"""What lies on disk, and how it gets there: whole or not at all.

A file is written beside its place, synced and renamed, so a reader sees the old one or the new one, never half. It
carries the SHA-256 of its content, so a file that was cut or changed afterwards is known for what it is. JSON is sealed
by a field `sha256`; a checkpoint is one safetensors file whose metadata hold its JSON part, its progress and the hash
over all of it. Nothing is pickled.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caseback.core.errors import StudyError
from caseback.core.provenance import sha256_array, sha256_json
from caseback.core.stages import Checkpoint
from caseback.study.spec import plain

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Newer",
    "NotRead",
    "NotWritten",
    "Saved",
    "cannot_write",
    "discard",
    "lost",
    "read_checkpoint",
    "read_json",
    "write",
    "write_checkpoint",
    "write_json",
]

FORMAT = 1
"""Version of everything a run folder holds; a reader refuses newer ones."""


class NotWritten(StudyError):
    """A file of a study could not be written; nothing of the request is at fault."""


class NotRead(StudyError):
    """A file that the operating system does not let us read: nothing is known of what it holds."""


class Newer(StudyError):
    """A file is from a newer caseback: it is whole, and it is not ours to mend or to replace."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KEY = "caseback"


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read from disk, or as it will read."""

    state: Checkpoint
    done: int
    """Steps of the stage the state holds."""
    steps: int
    sha256: str


def cannot_write(path: Path, error: OSError, *, way_out: str = "") -> NotWritten:
    """Why a file could not be written, and the way out: of one that is not of a study `way_out` says it."""
    if error.errno in _FULL:
        return NotWritten(
            f"the disk is full: {path} could not be written; what was saved before is whole, "
            "free some space and give the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        way_out = way_out or "choose another study folder with --study DIR or CASEBACK_STUDY"
        return NotWritten(f"{path.parent} cannot be written to ({error.strerror}); {way_out}")
    return NotWritten(f"{path} could not be written ({error.strerror or error})")


def write(path: Path, content: bytes) -> None:
    """Put a file in its place whole: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A sealed JSON object: `format` first, `sha256` over all the rest last."""
    body = plain({"format": FORMAT, **content})
    body["sha256"] = sha256_json(body)
    write(path, json.dumps(body, indent=1, allow_nan=False).encode() + b"\n")


def discard(folder: Path) -> None:
    """Delete a run's folder, by a name first that says it is none any more: a kill leaves a run whole or no run."""
    if folder.is_symlink():
        folder.unlink()  # what it leads to lies elsewhere and is not ours
        return
    left = folder if folder.name.startswith(".new-") else folder.with_name(f".new-{folder.name}")
    if left != folder:
        folder.rename(left)
    shutil.rmtree(left)


def lost(error: StudyError) -> StudyError:
    """Of a run or a claim that says no more what it is, the same error with the way out; of one that is whole (`Newer`) or may
    be (`NotRead`), the error as it is."""
    if isinstance(error, Newer | NotRead):
        return error
    return StudyError(f"{error}; `caseback gc --damaged` lists what cannot be read any more, and deletes it with --yes")


def _newer(path: Path, format: int) -> Newer:
    return Newer(
        f"{path} was written by a newer caseback (format {format}, this one reads up to {FORMAT}); upgrade caseback"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A sealed JSON object; StudyError where it is missing, damaged or from a newer caseback."""
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    except OSError as error:
        raise NotRead(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is damaged (it is not JSON: {error})") from error
    if not isinstance(body, dict) or not isinstance(body.get("format"), int):
        raise StudyError(f"{path} is damaged (it does not say its format)")
    if body["format"] > FORMAT:
        raise _newer(path, body["format"])
    seal = body.pop("sha256", None)
    if seal != sha256_json(plain(body)):
        raise StudyError(f"{path} is damaged (its content does not match its SHA-256)")
    del body["format"]
    return body


def write_checkpoint(path: Path, state: Checkpoint, *, done: int, steps: int, owner: str) -> Saved:
    """Save a stage's state; returns it exactly as it will be read. `owner` is the digest of the spec it belongs to."""
    from safetensors.numpy import save

    arrays = {}
    for name, array in sorted(state.arrays.items()):  # safetensors has an order of its own; what is read has this one
        array = np.ascontiguousarray(array).reshape(
            np.shape(array)
        )  # ascontiguousarray turns a scalar into one dimension
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"array {name!r} has dtype {array.dtype}; a checkpoint holds numbers, text goes into its data"
            )
        arrays[name] = array
    data = json.loads(json.dumps(plain(state.data)))
    head = {"format": FORMAT, "owner": owner, "done": done, "steps": steps, "data": data}
    sha256 = _hash(arrays, head)
    # One metadata key: safetensors does not order several, and the same state shall give the same bytes.
    write(path, save(arrays, metadata={_KEY: json.dumps({**head, "sha256": sha256})}))
    return Saved(Checkpoint(arrays, data), done, steps, sha256)


def read_checkpoint(path: Path, *, owner: str) -> Saved:
    """A stage's state; StudyError where the file is damaged, belongs to another spec or is from a newer caseback."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    try:
        (length,) = struct.unpack("<Q", content[:8])
        head = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        if head["format"] > FORMAT:
            raise _newer(path, head["format"])
        loaded = sorted(load(content).items())
        arrays = {name: np.array(array) for name, array in loaded}  # copied: a loaded array is read-only
        sha256 = head.pop("sha256")
        state = Checkpoint(arrays, head["data"])
        saved = Saved(state, int(head["done"]), int(head["steps"]), sha256)
        whole = sha256 == _hash(arrays, head)
    except Newer:
        raise
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StudyError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not whole:
        raise StudyError(f"{path} is damaged (its content does not match its SHA-256)")
    if head["owner"] != owner:
        raise StudyError(f"{path} belongs to another run")
    return saved


def _hash(arrays: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> str:
    return sha256_json({**head, "arrays": {name: sha256_array(array) for name, array in arrays.items()}})
