"""The documents say what is there: made parts are up to date, every name appears, every command named exists."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import caseback
from caseback import circuits
from caseback.circuits import DiscoverConfig, ScoreConfig
from caseback.cli.app import COMMANDS
from caseback.core import errors
from caseback.core.registry import names
from caseback.model.sites import NAMES

from ..test_project import ROOMS
from .pages import ROOT, blocks, pages

DOCS = ROOT / "docs"
WRITTEN = {page.name: page.read_text("utf-8") for page in pages()}
EVERYTHING = "\n".join(WRITTEN.values())


@cache
def make() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_up_to_date() -> None:
    assert WRITTEN["cli.md"] == make().cli(), "run: python docs/make.py"


@pytest.mark.parametrize("page", sorted(WRITTEN))
def test_made_blocks_are_up_to_date(page: str) -> None:
    if page not in ("cli.md", "speed.md"):
        assert WRITTEN[page] == make().filled(WRITTEN[page]), "run: python docs/make.py"


def test_the_rooms_are_those_of_the_house() -> None:
    assert tuple(make().ROOMS) == ROOMS


@pytest.mark.parametrize("config", [DiscoverConfig, ScoreConfig])
def test_every_field_of_a_config_is_explained(config: Any) -> None:
    for field in dataclasses.fields(config):
        row = re.search(rf"^\| `{field.name}` \|.*\| (.+) \|$", WRITTEN["circuits.md"], re.MULTILINE)
        assert row, f"docs/circuits.md says nothing of {config.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("site", list(NAMES)),
        ("command", [" ".join(["caseback", *words]) for words, _ in make().commands()]),
        ("task", list(names("task"))),
        ("public name", [name for name in caseback.__all__]),
        ("name of the circuits room", [name for name in circuits.__all__]),
        ("error", errors.__all__),
        ("environment variable", ["CASEBACK_CACHE", "CASEBACK_WHEEL", "CASEBACK_STUDY", "HF_HUB_OFFLINE"]),
    ],
)
def test_every_name_appears(kind: str, wanted: list[str]) -> None:
    missing = [name for name in wanted if not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", _code(EVERYTHING))]
    assert not missing, f"no page says what the {kind} {missing[0]!r} is ({len(missing)} missing: {missing})"


def test_every_environment_variable_of_the_source_appears() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert set(re.findall(r"CASEBACK_[A-Z_]+", source)) <= set(re.findall(r"CASEBACK_[A-Z_]+", EVERYTHING))


def test_every_command_named_exists_with_its_options() -> None:
    known = {" ".join(words): command for words, command in make().commands()}
    for page in pages():
        for words, where in _command_lines(page):
            if not words or words[0].startswith("-"):
                continue
            assert words[0] in COMMANDS, f"{where}: there is no command caseback {words[0]}"
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            if name == "relation" and len(words) > 1:  # `caseback relation NAME` is short for this
                name = "relation judge"
            if name not in known:  # a group by itself
                assert len(words) == 1 or words[1].startswith("-"), f"{where}: there is no command caseback {words[1]}"
                continue
            options = {option for param in known[name].params for option in param.opts if option.startswith("-")}
            used = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
            assert used <= options, f"{where}: caseback {name} has no {sorted(used - options)}"


def test_every_make_target_and_benchmark_named_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", EVERYTHING, re.MULTILINE)) <= set(targets)
    modules = {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert set(re.findall(r"`python -m bench[. ]([a-z]+)", EVERYTHING)) <= modules


def test_every_link_leads_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", WRITTEN[page.name]):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target} does not exist"


def test_every_file_named_exists() -> None:
    for page in pages():
        for name in re.findall(r"`((?:src|tests|docs|bench|examples)/[\w./-]+)`", WRITTEN[page.name]):
            assert (ROOT / name).exists(), f"{page.name}: {name} does not exist"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", WRITTEN["README.md"]))
    assert linked == {page.name for page in pages()} - {"README.md"}


def test_the_picture_is_small() -> None:
    pictures = list((DOCS / "images").glob("*"))
    assert pictures
    assert all(picture.stat().st_size < 400_000 for picture in pictures)


def _code(text: str) -> str:
    """What stands in code: fenced blocks and `inline`."""
    fenced = re.findall(r"```.*?```", text, re.DOTALL)
    inline = re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return "\n".join([*fenced, *inline])


def _command_lines(page: Path) -> list[tuple[list[str], str]]:
    """Every `caseback ...` that a page tells one to type: console lines, and inline code."""
    found = []
    for block in blocks(page):
        if block.language == "console":
            for command, _ in block.commands:
                line = command.replace("\\\n", " ").partition("|")[0]
                if line.startswith("caseback "):
                    found.append((shlex.split(line)[1:], f"{page.name}, line {block.line}"))
    text = re.sub(r"```.*?```", "", WRITTEN[page.name], flags=re.DOTALL)
    for line in re.findall(r"`caseback ([^`]+)`", text):
        found.append((line.split(), page.name))
    return found
