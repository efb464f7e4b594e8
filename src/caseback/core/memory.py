"""How much memory there is to take, for what must be refused or cut before it is begun."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TOO_MUCH", "free_bytes", "ran_out", "total_bytes"]

TOO_MUCH = "this takes more memory than there is; ask for less at a time: fewer pairs or sequences, shorter prompts, a smaller model"


def free_bytes() -> int:
    """Memory this process may still take, in bytes: what the machine has left, or its control group if that is less."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no group, or one without a limit ("max")
        return free
    return min(free, max(0, limit - used))


def ran_out(error: BaseException) -> bool:
    """Whether memory was refused: by Python, or by torch on the CPU or a GPU."""
    torchs = (
        type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and torchs)


def total_bytes() -> int:
    """Memory of the machine in bytes, or what its control group may take if that is less: the same at every call."""
    whole = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no group, or one without a limit ("max")
        return whole
