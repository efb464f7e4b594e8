"""GGUF files: the model and tokenizer that are in them, or a sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caseback.core.errors import LoadError
from caseback.core.provenance import sha256_file
from caseback.model.load import load_parts

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_gguf_file_loads(tmp_path: Path, tiny_gguf: Callable[..., Any]) -> None:
    hf = tiny_gguf(tmp_path / "tiny.gguf")
    parts = load_parts(tmp_path / "tiny.gguf")
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.allclose(parts.hf(ids).logits, hf(ids).logits, atol=1e-5)
    assert parts.tokenizer.tokenize("he 12") == ["he", "Ġ", "1", "2"]  # digits apart, though "12" is a merge
    assert dict(parts.source.files) == {"tiny.gguf": sha256_file(tmp_path / "tiny.gguf")}


def test_a_tokenizer_beside_the_gguf_file_is_used(tmp_path: Path, tiny: Path, tiny_gguf: Callable[..., Any]) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", pre="a rule of its own")
    with pytest.raises(LoadError, match="pre-tokenizer 'a rule of its own' cannot be rebuilt.*tokenizer.json beside"):
        load_parts(tmp_path / "tiny.gguf")
    for path in tiny.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    parts = load_parts(tmp_path / "tiny.gguf")
    assert parts.tokenizer.tokenize("he 12") == ["he", "Ġ", "12"]
    assert "tokenizer.json" in parts.source.files


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path: Path, tiny_gguf: Callable[..., Any]) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", skip="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(LoadError, match="lacks weights"):
        load_parts(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("keep", [0, 3, 10, 100, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_gguf_file_is_refused(tmp_path: Path, tiny_gguf: Callable[..., Any], keep: float) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf(path)
    os.truncate(path, int(keep) if keep in (0, 3, 10, 100) else int(path.stat().st_size * keep))
    with pytest.raises(LoadError, match="is not a GGUF file|is truncated or damaged"):
        load_parts(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_gguf_file_is_refused_or_harmless(
    tmp_path: Path, tiny_gguf: Callable[..., Any], used_or_refused: Callable[[Path], None], data: st.DataObject
) -> None:
    path, hurt = tmp_path / "tiny.gguf", tmp_path / "hurt.gguf"
    if not path.exists():
        tiny_gguf(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    hurt.write_bytes(content)
    used_or_refused(hurt)
