"""Where a number comes from: hashes of what went in, versions of what computed it, the machine it ran on, what it cost in memory.

A record is believed later only if it names its ingredients. Everything here is cheap, reads what is already there and imports neither
torch nor transformers: versions come from the packages' metadata, arrays are hashed through the buffers they already have.

Invariant: equal content gives an equal hash on every machine (JSON is canonical; an array's dtype and shape are part of its hash).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Source",
    "environment",
    "machine",
    "peak_memory_mb",
    "sha256_array",
    "sha256_file",
    "sha256_json",
    "versions",
]

PACKAGES = ("caseback", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Source:
    """What was loaded: enough to load the same thing again and to see that it is the same."""

    id: str
    """Hub id, file or folder as asked for; the default model's name."""
    revision: str | None = None
    """Commit of a hub repository, or the package a bundled model came in; None for local files."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name → SHA-256 of every file that was read."""

    @property
    def sha256(self) -> str:
        """One hash for all files: names and contents, without the place they lay in."""
        return sha256_json(dict(self.files))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal; raises OSError as `open` does."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of plain data written as canonical JSON (sorted keys, no spaces, UTF-8); NaN is refused with ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and values (in C order, little-endian)."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(array.tobytes() if array.size < 2 else array.data.cast("B"))
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Version of Python and of every package a number can depend on; caseback's git revision where it runs from a checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    revision = _git_revision(Path(__file__).parents[3])
    if revision is not None:
        found["revision"] = revision
    return found


def _git_revision(root: Path) -> str | None:
    """Commit of the checkout at `root`, with "+changed" when tracked files differ from it; None where it is none."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, str | int]:
    """The machine as far as a timing depends on it: platform, processor architecture and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {"platform": platform.platform(), "architecture": platform.machine(), "cpus": cores}


def peak_memory_mb() -> float:
    """Most memory this process has held so far (resident set), in MB of 10^6 bytes."""
    if sys.platform == "linux":  # there ru_maxrss begins with the peak of the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # Linux counts KiB, macOS bytes


def environment() -> dict[str, Any]:
    """Versions and machine together: what a record keeps beside its spec."""
    return {"versions": versions(), "machine": machine()}
