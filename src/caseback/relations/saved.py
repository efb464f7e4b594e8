"""Tensors in checkpoints and back, bit for bit: NumPy has no bfloat16, float32 holds each of its values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["array_of", "tensor_of"]


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as an array that a checkpoint takes."""
    tensor = tensor.detach().cpu()
    found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def tensor_of(array: np.ndarray, like: Tensor) -> Tensor:
    """The tensor behind an array, in kind and place as another."""
    return torch.from_numpy(np.array(array)).to(like.device, like.dtype)
