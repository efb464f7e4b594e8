"""What caseback keeps on this machine between runs, in one folder that may be deleted at any time.

Here live the converted default model and the hashes of weight files already read. Nothing in it is a record: deleting it costs time only.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from caseback.core.provenance import sha256_file

__all__ = ["file_hash", "folder"]

SETTLED_NS = 2_000_000_000
"""A file changed less than this long ago is not remembered: a second change could leave its size and time as they are."""


def folder() -> Path:
    """The cache folder: CASEBACK_CACHE where it is set, else the platform's own place for caches. It may not exist yet."""
    override = os.environ.get("CASEBACK_CACHE")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("caseback", appauthor=False))


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, remembered by place, size and time of change so that a large one is read only once."""
    real = os.path.realpath(path)
    stat = os.stat(real)
    known = _read()
    if known.get(real, [])[:2] == [stat.st_size, stat.st_mtime_ns]:
        return str(known[real][2])
    value = sha256_file(real)
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        known = {name: entry for name, entry in _read().items() if os.path.exists(name)}
        _write(known | {real: [stat.st_size, stat.st_mtime_ns, value]})
    return value


def _read() -> dict[str, list]:
    try:
        known = json.loads((folder() / "hashes.json").read_text("utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: the hashes are computed again
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 3}


def _write(known: dict[str, list]) -> None:
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder(), suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(file.name, folder() / "hashes.json")
    except OSError:  # a cache that cannot be written costs time at the next load, not this one
        return
