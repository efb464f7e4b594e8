"""Tiny models as files, for the tests of loading."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caseback.core.errors import CasebackError
from caseback.model.load import load_parts

VOCAB = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġhe", "12"]
MERGES = [("h", "e"), ("Ġ", "he"), ("1", "2")]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_config(**more: Any) -> LlamaConfig:
    sizes = SIZES | {"num_key_value_heads": 1, "vocab_size": len(VOCAB), "max_position_embeddings": 64}
    return LlamaConfig(**(sizes | {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False} | more))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(VOCAB)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with a random two-layer model; never changed."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache for one test."""
    monkeypatch.setenv("CASEBACK_CACHE", str(tmp_path / "cache"))


def write_gguf(path: Path, *, pre: str = "smollm", skip: str = "") -> LlamaForCausalLM:
    """A GGUF file as llama.cpp writes them, holding a random tiny model; returns the model."""
    torch.manual_seed(1)
    hf = LlamaForCausalLM(tiny_config(head_dim=8)).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(VOCAB))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCAB)
    writer.add_token_types([3] + [1] * (len(VOCAB) - 1))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in hf.state_dict().items():
        if name == skip:
            continue
        array = value.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns rotary pairs next to each other
            heads = array.shape[0] // 8
            array = array.reshape(heads, 2, 4, 16).swapaxes(1, 2).reshape(array.shape)
        gguf_name = names.get_name(name.removesuffix(".weight"))
        assert gguf_name is not None
        writer.add_tensor(f"{gguf_name}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf


@pytest.fixture
def tiny_gguf() -> Callable[..., LlamaForCausalLM]:
    """Writes a GGUF file with a random tiny model and returns that model."""
    return write_gguf


def _used_or_refused(path: Path) -> None:
    """Loading gives a model or one sentence, and nothing else."""
    sentence = ""
    try:
        load_parts(path)
    except CasebackError as error:
        sentence = str(error)
    assert "\n" not in sentence


@pytest.fixture(scope="session")
def used_or_refused() -> Callable[[Path], None]:
    """Asserts that loading a path gives a model or one sentence."""
    return _used_or_refused
