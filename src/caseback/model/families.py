"""THE table of model families: where each one keeps its parts. Data only, plus `guess()` for an unknown family.

A row says which modules write into the residual stream and what reads it; the accounting identities (`caseback.model.check`) decide whether a row is
right. About five shapes cover the field; most rows are one-line overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from caseback.core.errors import FamilyError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted module names; those of a block are relative to the block, those of the projections to the attention module.

    "a|b" means: whichever of the two modules the block has (hybrids).
    """

    name: str
    """`config.model_type`."""
    embed: str = "model.embed_tokens"
    """Token embedding, from the causal LM."""
    blocks: str = "model.layers"
    """The ModuleList of blocks, from the causal LM."""
    final_norm: str = "model.norm"
    unembed: str = "lm_head"
    attn: str = "self_attn"
    attn_norm: str | None = "input_layernorm"
    """Norm whose output the q, k, v projections read; None where they read the residual stream itself."""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Three projections, or the one fused projection."""
    fused: Literal["", "qkv", "heads", "groups"] = ""
    """Columns of a fused projection: all q, all k, all v | per head q, k, v | per KV group its q heads, its k, its v."""
    o_proj: str = "o_proj"
    """Output projection of the attention (its input is z, all heads side by side)."""
    mlp: str | None = "mlp"
    """Module whose input is what the MLP reads (after the norm)."""
    mlp_norm: str | None = "post_attention_layernorm"
    """Norm whose output the MLP reads (may be the attention's own in parallel blocks); None where it reads the stream itself."""
    down_proj: str | None = "mlp.down_proj"
    """Last linear map of the MLP, relative to the block (its input is the site `mlp_hidden`); None for mixtures of experts."""
    writes: tuple[str, ...] = ("self_attn", "mlp")
    """Modules of a block whose OUTPUT is added to the residual stream: attention's first, then the MLP's, then any other."""
    parallel: bool = False
    """Attention and MLP read the same `resid_pre`."""
    write_scale: str | None = None
    """Config attribute that multiplies every write (Granite's residual_multiplier)."""
    post_scale: str | None = None
    """Block attribute that multiplies the block's output (Gemma 4's layer_scalar)."""
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    """Config attributes of what happens between the unembedding and the logits."""
    attention: Literal["registered", "own", "none"] = "registered"
    """Whether the model file calls transformers' attention interface, so that q, k, v and pattern are sites."""
    circuits: bool = True
    """Whether circuit discovery is exact on this family (the circuit identities hold)."""
    why_not: str = ""
    """Why something is missing, as a sentence for users."""
    guessed: bool = False


LLAMA = Family(name="llama")
GPT2 = Family(
    name="gpt2",
    embed="transformer.wte",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attn="attn",
    attn_norm="ln_1",
    qkv=("c_attn",),
    fused="qkv",
    o_proj="c_proj",
    mlp_norm="ln_2",
    down_proj="mlp.c_proj",
    writes=("attn", "mlp"),
)
FAMILIES: dict[str, Family] = {row.name: row for row in (LLAMA, GPT2, replace(LLAMA, name="mistral"), replace(LLAMA, name="qwen2"))}


def family_of(model_type: str) -> Family:
    """The row of a `config.model_type`; raises FamilyError naming the families there are."""
    if model_type not in FAMILIES:
        raise FamilyError(f"no family row for model type {model_type!r}; there are: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
