"""From files on disk to a transformers model, with every way this can go wrong said in one sentence.

Files may come from anywhere, so they are judged before they are used: weights are safetensors (a pickle can run code), nothing may name
code of its own, and a weight file must hold what its configuration describes. transformers fills weights it does not find with random
numbers; here that is an error, found by counting before anything is allocated and again after loading, by name.

Invariant: a model that is returned holds the numbers of its files and nothing else, frozen and in eval mode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from caseback.core.errors import CasebackError, LoadError

if TYPE_CHECKING:
    import torch

__all__ = [
    "TOKENIZER_FILES",
    "build",
    "fast_tokenizer",
    "folder_files",
    "no_bars",
    "read_folder",
    "refusing",
    "weight_files",
]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# The first five hold a vocabulary, the others only say how it is used.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever transformers raises on files it cannot use becomes one LoadError that begins with `what`."""
    try:
        yield
    except CasebackError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise LoadError(f"{what}: {reason[:400]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises LoadError."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def check_folder(folder: Path, *, what: str) -> None:
    """Refuse a folder that is no model, or one that wants code or weights beyond its own files; reads the small files only."""
    if not (folder / CONFIG).is_file():
        found = sorted(folder.glob("*.gguf"))
        if found:
            raise LoadError(f"{what} has no {CONFIG}, but the GGUF file {found[0].name}: load that file itself")
        raise LoadError(f"{what} is not a model folder: it has no {CONFIG}")
    if (folder / "adapter_config.json").is_file():
        raise LoadError(f"{what} holds an adapter (adapter_config.json): merge it into its model and save that")
    config = read_json(folder / CONFIG)
    named = [f"{CONFIG}: auto_map"] if "auto_map" in config else []
    attention = [config.get(key) for key in ("attn_implementation", "_attn_implementation")]
    if any(isinstance(value, str) and "/" in value for value in attention):
        named.append(f"{CONFIG}: attn_implementation")
    if (folder / "tokenizer_config.json").is_file() and "auto_map" in read_json(folder / "tokenizer_config.json"):
        named.append("tokenizer_config.json: auto_map")
    if named:
        raise LoadError(
            f"{what} names code of its own to be run ({', '.join(named)}); caseback runs no code from a model's files: "
            f"use a version of the model that transformers supports itself"
        )
    if not isinstance(config.get("model_type"), str):
        raise LoadError(f"{folder / CONFIG} has no model_type, so there is no telling which architecture this is")


def weight_files(folder: Path, *, what: str) -> list[str]:
    """Names of the safetensors files of a model folder, as its index says where there is one."""
    if (folder / INDEX).is_file():
        table = read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
            raise LoadError(f"{folder / INDEX} has no weight_map from tensor names to file names")
        names = sorted(set(table.values()))
        for name in names:
            # by name only: the hub's own cache is made of links that point elsewhere
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or path.suffix != ".safetensors":
                raise LoadError(
                    f"{folder / INDEX} names the weight file {name!r}, which is not a safetensors file inside its folder"
                )
        return names
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        raise LoadError(
            f"{what} has its weights only as {pickles[0]}, a format that can run code when it is read; "
            f"caseback reads safetensors and GGUF: save the model once with save_pretrained()"
        )
    others = [name for name in files if name.endswith((".safetensors", ".gguf"))]
    raise LoadError(f"{what} has neither {WEIGHTS} nor {INDEX}" + (f"; it has {', '.join(others)}" if others else ""))


def folder_files(folder: Path, *, what: str) -> list[str]:
    """Names of all files of a model folder that loading reads."""
    small = (CONFIG, "generation_config.json", INDEX, *TOKENIZER_FILES)
    return [name for name in small if (folder / name).is_file()] + weight_files(folder, what=what)


def read_folder(folder: Path, *, what: str, dtype: torch.dtype, own: bool = False) -> tuple[Any, Any]:
    """The model and the fast tokenizer (None where there is none) of a folder in the hub's layout; raises LoadError.

    `own` skips the counting for a folder that caseback wrote itself.
    """
    check_folder(folder, what=what)
    sizes = None if own else _sizes(folder, weight_files(folder, what=what))
    hf = build(folder, what=what, dtype=dtype, sizes=sizes)
    return hf, fast_tokenizer(folder, what=what)


def _sizes(folder: Path, names: list[str]) -> dict[str, int]:
    """Tensor name → number of elements, from the files' headers."""
    from math import prod

    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise LoadError(f"{folder / INDEX} names {name}, which is not there")
        with refusing(f"{path} is not a whole safetensors file"), safe_open(path, framework="pt") as file:
            sizes |= {key: prod(file.get_slice(key).get_shape()) for key in file.keys()}
    return sizes


def build(folder: Path, *, what: str, dtype: torch.dtype, sizes: Mapping[str, int] | None, **kwargs: Any) -> Any:
    """transformers' own loader on local files, with the result checked.

    Args:
        sizes: elements of every stored tensor, compared with what the configuration describes; None to skip that.
        kwargs: what transformers needs to read a GGUF file in the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with refusing(f"the configuration of {what} cannot be used"), no_bars():
        gguf = {"gguf_file": kwargs["gguf_file"]} if "gguf_file" in kwargs else {}
        config = AutoConfig.from_pretrained(folder, **local, **gguf)
        _check_causal(config, what=what)
        if sizes is not None:
            _check_sizes(config, sizes, what=what)
    with refusing(f"{what} cannot be loaded"), no_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **local, **kwargs
        )
    hf, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise LoadError(
            f"{what} lacks {len(missing)} of the weights its configuration describes, {missing[0]} among them"
        )
    if info["mismatched_keys"]:
        raise LoadError(
            f"{what} has weights of another shape than its configuration describes: {min(info['mismatched_keys'])}"
        )
    return hf.requires_grad_(False).eval()


def _check_causal(config: Any, *, what: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.model_type
    ours = CAUSAL.get(kind, ())
    names = {ours} if isinstance(ours, str) else set(ours)
    stored = {name for name in (config.architectures or ()) if not name.endswith("Model") or name in names}
    if not names or getattr(config, "is_encoder_decoder", False) or (stored and not stored & names):
        shown = ", ".join(sorted(stored)) or kind
        raise LoadError(
            f"{what} is a {shown}, not a causal language model: caseback reads models that predict the next token"
        )


def _check_sizes(config: Any, sizes: Mapping[str, int], *, what: str) -> None:
    """Refuse files that hold less than the configuration describes, before memory for it is asked for."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not 0 <= layers <= len(sizes):
        raise LoadError(f"{what} says it has {layers} layers, its files hold {len(sizes)} tensors")
    if getattr(config, "quantization_config", None) is not None:
        return  # packed weights have fewer elements than they stand for
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    described, stored = sum(weight.numel() for weight in shape.parameters()), sum(sizes.values())
    if stored < described:
        raise LoadError(
            f"{what} lacks weights: its configuration describes {described:,} numbers, its files hold {stored:,}"
        )


def fast_tokenizer(folder: Path, *, what: str) -> Any:
    """The tokenizer of a folder, or None where it has no vocabulary; raises LoadError for one without character offsets."""
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # tokenizer.json says everything; a class chosen by model type would rebuild parts of it from its own defaults
    kind: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    with refusing(f"the tokenizer of {what} cannot be read"), no_bars():
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise LoadError(
            f"the tokenizer of {what} gives no character offsets: save it as tokenizer.json with save_pretrained()"
        )
    return tokenizer


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws progress bars on stderr; a load has its own way to say where it is."""
    from transformers import modeling_gguf_pytorch_utils as dequantiser
    from transformers.utils import logging

    drawn, bar = logging.is_progress_bar_enabled(), dequantiser.tqdm
    logging.disable_progress_bar()
    dequantiser.tqdm = partial(bar, disable=True)  # it does not ask whether bars are wanted
    try:
        yield
    finally:
        dequantiser.tqdm = bar
        if drawn:
            logging.enable_progress_bar()
