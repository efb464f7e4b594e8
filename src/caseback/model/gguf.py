"""Reading a GGUF file: one file with a quantised model and its tokenizer, turned into an ordinary transformers model.

transformers does the reading. Around it stand the checks it does not make: that the file is whole, that it holds as many weights as its
own metadata describes (missing ones would be filled with random numbers), and that the tokenizer it describes is one that can be rebuilt
exactly. A byte-level vocabulary names its pre-tokenizer, the rule that cuts text before merges apply; a wrong rule gives other tokens
for the same text without any error, so a name that is not known here or to transformers is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from caseback.core.errors import LoadError
from caseback.model.weights import build, fast_tokenizer, refusing

if TYPE_CHECKING:
    import torch

__all__ = ["read_gguf"]

# llama.cpp, src/llama-vocab.cpp (llm_load_vocab): the names whose rule is GPT-2's expression alone, and those that cut out digits first.
GPT2_SPLIT = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais"})
DIGITS_THEN_GPT2_SPLIT = frozenset({"smollm", "starcoder", "refact", "command-r"})


def read_gguf(path: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model (dequantised) and the fast tokenizer of a GGUF file; raises LoadError.

    A tokenizer.json in the same folder is used in place of the tokenizer inside the file.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise LoadError(f"{path} is not a GGUF file: it starts with {magic!r}, a GGUF file starts with b'GGUF'")
    try:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not field.name.startswith("tokenizer.ggml.t")
        }
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    except Exception as error:  # the reader parses unchecked bytes: what a damaged file raises is anyone's guess
        raise LoadError(f"{path} is truncated or damaged ({type(error).__name__}: {error}); fetch it again") from error
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise LoadError(f"{path} does not say its architecture (general.architecture), so it holds no language model")
    beside = path.parent / "tokenizer.json"
    if not beside.is_file():
        _check_pre_tokenizer(path, metadata)

    import transformers

    kwargs: dict[str, Any] = {"gguf_file": path.name}
    dequantise = getattr(transformers, "GgufConfig", None)  # newer transformers would keep the blocks packed
    if dequantise is not None:
        kwargs["quantization_config"] = dequantise(dequantize=True)
    hf = build(path.parent, what=str(path), dtype=dtype, sizes=sizes, **kwargs)
    tokenizer = fast_tokenizer(path.parent, what=str(beside)) if beside.is_file() else _tokenizer(path, metadata)
    return hf, tokenizer


def _check_pre_tokenizer(path: Path, metadata: dict[str, Any]) -> None:
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as rebuilt
    except ImportError:
        rebuilt = {}
    name = metadata.get("tokenizer.ggml.pre")
    known = GPT2_SPLIT | DIGITS_THEN_GPT2_SPLIT | frozenset(rebuilt)
    if name not in known:
        raise LoadError(
            f"{path} has a tokenizer whose pre-tokenizer {name!r} cannot be rebuilt from the file (known: {', '.join(sorted(known))}); "
            f"put the model's own tokenizer.json beside the file"
        )


def _tokenizer(path: Path, metadata: dict[str, Any]) -> Any:
    """The tokenizer inside the file, as transformers rebuilds it, with the pre-tokenizers it does not know put right."""
    from transformers import AutoTokenizer

    with refusing(f"the tokenizer inside {path} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
        if metadata.get("tokenizer.ggml.pre") in DIGITS_THEN_GPT2_SPLIT:
            from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

            cut = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(cut)
    return tokenizer
