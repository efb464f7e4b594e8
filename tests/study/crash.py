"""Kill -9 at every system call that matters, go on, compare. Run as a script: `crash.py FOLDER points|random|clock`.

Children are forked, and killed in the middle of a write (half of the bytes are out), before an fsync, a rename, an
open, a mkdir or a removal. Prints one line of JSON: the number of kills, and the first difference from an uninterrupted run, if any.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toy

from caseback.study import Study

SPEC = toy.spec()


@contextmanager
def killed_at(folder: Path, point: int | None, count: list[int]) -> Iterator[None]:
    """Die at the system call of that number; `count` counts those that matter: writes, fsyncs, and what is done in the
    folder."""
    write, fsync = os.write, os.fsync

    def reached() -> bool:
        count[0] += 1
        return count[0] == point

    def torn(descriptor: int, content: Any) -> int:
        if reached():
            write(descriptor, bytes(content)[: len(content) // 2])
            die()
        return write(descriptor, content)

    def synced(descriptor: int) -> None:
        if reached():
            die()
        fsync(descriptor)

    def audit(event: str, arguments: Any) -> None:
        ours = event in ("os.rename", "os.mkdir", "os.remove") or (event == "open" and str(folder) in str(arguments[0]))
        if ours and watching and reached():
            die()

    watching = [True]
    os.write, os.fsync = torn, synced  # type: ignore[assignment]
    sys.addaudithook(audit)
    try:
        yield
    finally:
        watching.clear()
        os.write, os.fsync = write, fsync


def run(folder: Path, kill_at: int | None, count: list[int]) -> None:
    """One attempt; dies at the system call number `kill_at`."""
    with killed_at(folder, kill_at, count):
        Study(folder).run(SPEC)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], *, after: float | None = None) -> bool:
    """Whether the work ended; False when it was killed, by itself or here, so many seconds after it began."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("an attempt failed instead of being killed")
    return os.WIFEXITED(status)


def contents(folder: Path) -> dict[str, Any]:
    """All that a finished run holds, without times; hidden files would be leftovers and count."""
    (path,) = (folder / "runs").iterdir()
    held: dict[str, Any] = {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    for name, timed in (("spec.json", ("created", "sha256")), ("result.json", ("cost", "sha256"))):
        body = json.loads(held[name])
        held[name] = json.dumps({k: v for k, v in body.items() if k not in timed})
    for name in ("events.jsonl", "lock"):
        del held[name]
    return held


def main(root: Path, how: str) -> None:
    Study(root / "whole").run(SPEC)
    expected = contents(root / "whole")
    kills, difference = 0, None

    def check(folder: Path) -> None:
        nonlocal difference
        got = contents(folder)
        if got != expected:
            difference = f"{folder.name}: {sorted(k for k in got.keys() | expected if got.get(k) != expected.get(k))}"

    def attempt(folder: Path, kill_at: int | None) -> bool:
        return in_child(lambda: run(folder, kill_at, [0]))

    if how == "points":
        for point in range(1, 10_000):
            folder = root / f"at-{point}"
            ended = attempt(folder, point)
            kills += not ended
            if not ended:
                attempt(folder, None)
            check(folder)
            if ended or difference:
                break
    elif how == "random":
        for seed in range(15):
            chance, folder = random.Random(seed), root / f"seed-{seed}"
            while not attempt(folder, chance.randint(1, 60)):
                kills += 1
            check(folder)
    else:
        for seed in range(3):
            chance, folder = random.Random(seed), root / f"clock-{seed}"
            for _ in range(6):
                child = os.fork()
                if child == 0:
                    while True:  # begin anew with --force, so that there is always work to kill
                        Study(folder).run(SPEC, force=True)
                time.sleep(chance.uniform(0.005, 0.06))
                os.kill(child, signal.SIGKILL)
                kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            study = Study(folder)
            for row in study.runs():
                record = study.resume(row.id)
                whole = {p.name: p.read_bytes() for p in (record.path / "arrays").iterdir()}
                if any(whole[name] != expected[name] for name in whole) or record.report is None:
                    difference = row.id
    print(json.dumps({"kills": kills, "difference": difference}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
