"""A model in which a relation is an affine map, known by construction: what linear relation decoding has to find exactly.

    embedding of the subject → value of a1.h0 → (subject to the word after it) → logits

A subject's word holds a code of unit length. Head 0 of layer 1 looks at the word before (its queries and keys are biases
alone, so that only rotary angles decide) and writes M · code, M of a chosen rank; an object's word reads the image of its
subject's code. All else is zero, and the norms' ε is so large that they multiply by a constant.
Hence z = W s + b with W of exactly that rank for every s, at the layers before the head; behind it W = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from caseback.core.errors import RelationError
from caseback.core.provenance import Source
from caseback.model.model import Model
from caseback.zoo.handmade import word_tokenizer

__all__ = ["AffineModel", "affine"]

WIDTH, CODE, HEAD = 64, 24, 32
"""Dimensions of the stream, of a subject's code (and of its image), and of a head."""
CODES, IMAGES = slice(CODE), slice(CODE, 2 * CODE)
"""Coordinates of the stream."""
EPSILON = 1e8
"""Of the norms; the mean square of a stream is below 1 here, so that they are linear to float32's last digit."""
THETA = 1e4
SHARP = 32.0
"""Size of the query and key that look one word back; every other word's share is then 0 in float32."""
OFFSET = 0.05
"""Length of what the last word holds in the images' coordinates; small, so that no object is lost."""


@dataclass(frozen=True, kw_only=True)
class AffineModel:
    """A model, what to ask it, and the map it applies."""

    model: Model
    template: str
    pairs: tuple[tuple[str, str], ...]
    """(subject, object), all known by the model."""
    W: Float[Tensor, "d d"]
    """∂z/∂s at layers 0 and 1."""
    b: Float[Tensor, "d"]
    rank: int


def affine(*, n: int = 40, rank: int = 16, seed: int = 0) -> AffineModel:
    """A Llama of three layers with n subjects, each with an object of its own; `seed` fixes codes and map.

    Raises RelationError where no map of that rank fits, or there are fewer than 2 subjects.

    >>> affine().pairs[0]
    ('subject0', 'object0')
    """
    if not 1 <= rank <= CODE or n < 2:
        raise RelationError(f"the map has rank 1 to {CODE} and there are at least 2 subjects, not {rank} and {n}")
    draw = torch.Generator().manual_seed(seed)
    codes = torch.nn.functional.normalize(torch.randn((n, CODE), generator=draw), dim=1)
    into, out = (torch.linalg.qr(torch.randn((CODE, rank), generator=draw))[0] for _ in range(2))
    out = out * torch.linspace(1.5, 0.75, rank)
    images = codes @ into @ out.T
    offset = torch.nn.functional.normalize(torch.randn(CODE, generator=draw), dim=0) * OFFSET

    pairs = tuple((f"subject{i}", f"object{i}") for i in range(n))
    words = ["[pad]", "the", "friend", "of", "is", *(one for one, _ in pairs), *(other for _, other in pairs)]
    hf = _blank(len(words))
    attention = hf.model.layers[1].self_attn
    with torch.no_grad():
        embedding, unembedding = hf.model.embed_tokens.weight, hf.lm_head.weight
        embedding[5 : 5 + n, CODES] = codes
        embedding[words.index("is"), IMAGES] = offset
        unembedding[5 + n :, IMAGES] = torch.nn.functional.normalize(images, dim=1)
        angle = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)  # what a word further turns each pair of coordinates by
        attention.q_proj.bias[: HEAD // 2] = SHARP
        attention.k_proj.bias[:HEAD] = SHARP * torch.cat([angle.cos(), angle.sin()])  # a step behind
        attention.v_proj.weight[:rank, CODES] = into.T
        attention.o_proj.weight[IMAGES, :rank] = out
    W, b = torch.zeros((WIDTH, WIDTH)), torch.zeros(WIDTH)
    W[IMAGES, CODES] = out @ into.T
    b[IMAGES] = offset
    model = Model(hf, word_tokenizer(words), Source(id="zoo/affine"))
    return AffineModel(model=model, template="the friend of {} is", pairs=pairs, W=W, b=b, rank=rank)


def _blank(vocabulary: int) -> Any:
    """Three layers of zeros between norms that leave a stream as it is."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HEAD,
        attention_bias=True,
        max_position_embeddings=128,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        hf: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_().requires_grad_(False)
        for module in hf.modules():
            if isinstance(module, LlamaRMSNorm):
                module.weight.fill_(EPSILON**0.5)
    return hf.eval()
