"""The project as a whole: its rooms, its public names, its pins, and the rules its files keep."""

from __future__ import annotations

import ast
import importlib
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import caseback

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "caseback"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = ("core", "evidence", "model", "tasks", "zoo", "circuits", "relations", "reading", "study", "show", "cli")
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]


def imports(path: Path) -> Iterator[str]:
    """Every module of caseback that a file imports, at its top, inside a function or for its types only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "caseback")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "caseback":
                yield from (f"caseback.{alias.name}" for alias in node.names)
            elif (node.module or "").split(".")[0] == "caseback":
                yield str(node.module)


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name])
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    allowed = ROOMS[: ROOMS.index(name.split("/")[0]) + 1]
    below = {module for module in imports(SOURCE / name) if module.split(".")[1] in ROOMS} - {
        module for module in imports(SOURCE / name) if module.split(".")[1] in allowed
    }
    assert not below, f"{name} imports {sorted(below)}, but only from {', '.join(allowed)} it may"


def test_evidence_is_arithmetic() -> None:
    reached = {module for path in (SOURCE / "evidence").glob("*.py") for module in imports(path)}
    assert {module.split(".")[1] for module in reached} <= {"core", "evidence"}


def test_every_room_is_in_the_list() -> None:
    assert {name.split("/")[0] for name in NAMES if "/" in name} <= set(ROOMS)


def test_public_names_agree() -> None:
    """`__all__`, the table of lazy names, what type checkers see, and what really is there."""
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module)
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == caseback._NAMES | dict.fromkeys(caseback._MODULES, "caseback")
    assert sorted(caseback.__all__) == caseback.__all__ == sorted(seen)
    assert all(getattr(caseback, name) is not None for name in caseback.__all__)
    assert set(caseback.__all__) <= set(dir(caseback))


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nosuch'; it has: Ablate, "):
        caseback.nosuch  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_a_module_exports_what_it_has(name: str) -> None:
    module = importlib.import_module(
        ".".join(["caseback", *Path(name).with_suffix("").parts]).removesuffix(".__init__")
    )
    missing = [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_and_says_what_it_is(name: str) -> None:
    text = (SOURCE / name).read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
    assert text.count("\n") < 500, f"{name} has {text.count(chr(10))} lines"
    assert Path(name).stem not in ("utils", "util", "helpers", "helper", "manager", "handler", "misc", "common")


def test_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert {"torch>=2.10", "transformers>=5.10,<6"} <= set(project["dependencies"])
    assert project["version"] == caseback.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_constraints_pin_everything_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins), "exact versions, no places"
    versions = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower(): pin.split("==")[1] for pin in pins}
    assert versions["torch"] == "2.13.0"
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert Version(versions[name]) in requirement.specifier, line


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text("utf-8")


def test_no_test_reaches_the_network() -> None:
    """192.0.2.1 is set aside for documentation; the guard of conftest.py stops the call before anything is sent."""
    with socket.socket() as client, pytest.raises(AssertionError, match="tried to reach"):
        client.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match="tried to look up"):
        socket.getaddrinfo("example.org", 80)
