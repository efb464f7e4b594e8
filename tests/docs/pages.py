"""Carrying out a page of the documents: its code runs in order, its files are written, its outputs are compared.

    ```python                 runs in one namespace a page
    ```console                `$ ` lines run in bash; what stands under them is their output
    ```text                   right after a python block: what it printed
    ```jsonl file=NAME        (any language) a file, written into the page's folder

`...` in an output stands for anything, white space for any other, and a decimal number for those that differ by no more
than one in its last place. `<!-- not run: WHY -->` above a block leaves it out.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Block", "blocks", "carry_out", "pages"]

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"(?P<skip><!-- not run:[^>]*-->\n)?```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PARTS = re.compile(r"(?P<any>\.\.\.)|(?P<number>-?\d+\.\d+)|(?P<space>\s+)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    """Of the page, counted from 1."""
    file: str | None
    skipped: bool
    after: bool
    """Whether nothing but white space parts it from the block before it."""

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, expected output) of a console block; a line that ends in a backslash goes on."""
        found: list[list[str]] = []
        for line in self.text.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append([line[2:], ""])
            elif found and not found[-1][1] and found[-1][0].endswith("\\\n"):
                found[-1][0] += line
            else:
                found[-1][1] += line
        return [(command, output) for command, output in found]


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text("utf-8"), -1
    for found in _FENCE.finditer(text):
        yield Block(
            language=found["language"],
            text=found["text"],
            line=text.count("\n", 0, found.start("language")) + 1,
            file=found["file"],
            skipped=found["skip"] is not None,
            after=end >= 0 and not text[end : found.start()].strip(),
        )
        end = found.end()


def carry_out(page: Path, folder: Path) -> None:
    """Run a page in an empty folder (the current one); raises AssertionError with the line that is wrong."""
    names: dict[str, Any] = {"__name__": page.stem}
    printed: str | None = None
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "text" and printed is not None and block.after:
            _compare(where, block.text, printed)
        printed = None
        if block.file is not None:
            (folder / block.file).write_text(block.text, "utf-8")
        elif block.skipped:
            continue
        elif block.language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            printed = out.getvalue()
        elif block.language == "console":
            for command, expected in block.commands:
                _compare(where, expected, _run(where, command, folder))


def _run(where: str, command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{where}: `{command.strip()}` ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def _compare(where: str, expected: str, found: str) -> None:
    if expected.strip():
        assert _alike(expected.strip(), found.strip()), f"{where}: expected\n{expected}\nfound\n{found}"


def _alike(expected: str, found: str) -> bool:
    pattern, end, numbers = "", 0, []
    for part in _PARTS.finditer(expected):
        pattern += re.escape(expected[end : part.start()])
        if part["number"]:
            numbers.append(part["number"])
        pattern += {"any": ".*?", "number": r"(-?\d+\.\d+)", "space": r"\s+"}[str(part.lastgroup)]
        end = part.end()
    same = re.fullmatch(pattern + re.escape(expected[end:]), found, re.DOTALL)
    return same is not None and all(
        abs(float(one) - float(other)) <= 1.01 * 10 ** -len(one.partition(".")[2])
        for one, other in zip(numbers, same.groups(), strict=True)
    )
