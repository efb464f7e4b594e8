"""Norm statistics in half precision: squares of a large stream overflow float16, so they are taken in float32."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from caseback.circuits.parts import Norm


@pytest.mark.parametrize("module", [LlamaRMSNorm(64), torch.nn.LayerNorm(64)], ids=["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_stream_keeps_its_scale(module: torch.nn.Module, dtype: torch.dtype) -> None:
    x = 400 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    exact, half = Norm.of(module.float(), 64), Norm.of(module.to(dtype), 64)
    assert exact is not None and half is not None
    torch.testing.assert_close(half.scale(x.to(dtype)).float(), exact.scale(x), rtol=2e-2, atol=0)
    torch.testing.assert_close(half.unit(x.to(dtype))[0].float(), exact.unit(x)[0], rtol=3e-2, atol=3e-2)
