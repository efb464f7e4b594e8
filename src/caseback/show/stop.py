"""Stopping a run that this server did not begin: from a terminal, a notebook, or the page of an earlier server.

A run says in its events which process took it up, and that process holds the lock of its folder while it computes. A
number of a process alone is no proof, since systems give numbers again. So the process is taken hold of first (a
descriptor that stays that process and no other), then asked for what only it can have, the lock itself, and then it is
sent SIGINT, which is what Ctrl-C sends: the run notes that it was interrupted and can be gone on with.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from caseback.core.errors import StudyError
from caseback.study import Record
from caseback.study.resume import is_locked

__all__ = ["stop"]

PROCESSES = Path("/proc")


def stop(record: Record) -> int:
    """Send what Ctrl-C sends to the process that computes a run; returns its number.

    Raises StudyError where nothing computes it, and where the process is not one of this user on this machine, is this
    one, or has been told not to listen to Ctrl-C.
    """
    run = record.id
    if not is_locked(record.path / "lock"):
        raise StudyError(f"run {run} is not computed now; there is nothing to stop")
    number = _taken_up_by(record)
    if number is None:
        raise StudyError(f"run {run} does not say which process computes it yet; try again in a moment")
    if number == os.getpid():
        raise StudyError(f"run {run} is computed by this server's own process; Ctrl-C in its terminal ends both")
    if sys.platform != "linux":
        raise StudyError(
            f"run {run} was begun elsewhere, and on this system it cannot be made sure that process {number} is still "
            "the one that computes it; stop it where it was begun, with Ctrl-C"
        )
    try:
        process = os.pidfd_open(number)
    except OSError:
        raise _elsewhere(run, number) from None
    try:
        _make_sure(record, number)
        signal.pidfd_send_signal(process, signal.SIGINT)
    except ProcessLookupError:
        raise StudyError(f"run {run} has just ended by itself; there is nothing to stop") from None
    finally:
        os.close(process)
    return number


def _taken_up_by(record: Record) -> int | None:
    """The process of the last session."""
    numbers = [event.data.get("pid") for event in record.events if event.kind in ("started", "resumed")]
    last = numbers[-1] if numbers else None
    return last if isinstance(last, int) and not isinstance(last, bool) and last > 1 else None


def _make_sure(record: Record, number: int) -> None:
    """StudyError unless the process is this user's, holds the run's lock, and listens to Ctrl-C."""
    place = PROCESSES / str(number)
    try:
        owner = place.stat().st_uid
        if owner != os.geteuid():
            raise StudyError(
                f"run {record.id} is held by process {number} of another user of this machine; only they can stop it"
            )
        if not _holds(place, record.path / "lock"):
            raise _elsewhere(record.id, number)
        status = (place / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise _elsewhere(record.id, number) from None
    except PermissionError:
        raise StudyError(
            f"process {number}, which took run {record.id} up, does not let itself be looked at; stop it where it was begun"
        ) from None
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    if int(ignored, 16) >> (signal.SIGINT - 1) & 1:
        raise StudyError(
            f"process {number}, which computes run {record.id}, was begun so that it does not listen to Ctrl-C (in the "
            f"background of a script); end it with `kill {number}`, and go on with the run from this page"
        )


def _holds(place: Path, lock: Path) -> bool:
    """Whether the process has the file open and locked."""
    file = lock.stat()
    for one in (place / "fd").iterdir():
        try:
            seen = one.stat()
            if (seen.st_dev, seen.st_ino) == (file.st_dev, file.st_ino):
                told = (place / "fdinfo" / one.name).read_text()
                if any(line.startswith("lock:") and "FLOCK" in line and "WRITE" in line for line in told.splitlines()):
                    return True
        except FileNotFoundError:
            continue  # closed meanwhile
    return False


def _elsewhere(run: str, number: int) -> StudyError:
    return StudyError(
        f"run {run} was taken up by process {number}, but no such process of this machine holds it: it is computed on "
        "another machine or in a container; stop it there, with Ctrl-C"
    )
