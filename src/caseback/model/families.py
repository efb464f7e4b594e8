"""THE table of model families: where each one keeps its parts. Data only; `caseback.model.guess` tries a family without a row.

A row says which modules write into the residual stream and what reads it; the accounting identities
(`caseback.model.check`) decide whether a row is right, and they run on a tiny random model of every family here. Five shapes
cover the field; most rows are one-line overrides of one of them. Options that live in the configuration and not in the model
type (NeoX's parallel residual, Falcon's three layouts) are resolved by `family_of(config)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from caseback.core.errors import FamilyError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted module names: a block's are relative to the block, the projections' to the attention.

    "a|b" is the first of the two that the model (or this block) has: hybrids, and modules renamed between releases.
    """

    name: str
    """`config.model_type`."""
    embed: str = "model.embed_tokens|model.language_model.embed_tokens"
    """Token embedding, from the causal LM (the second where it is the language model of a model that also sees)."""
    blocks: str = "model.layers|model.language_model.layers"
    """The ModuleList of blocks, from the causal LM."""
    final_norm: str = "model.norm|model.language_model.norm"
    unembed: str = "lm_head"
    attn: str = "self_attn"
    """The attention module; a block without it (a hybrid's linear-attention layer) has no q, k, v, pattern and z."""
    attn_norm: str | None = "input_layernorm"
    """Norm whose output the q, k, v projections read; None where they read the residual stream itself."""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Three projections, or the one fused projection; () where there is no such thing (latent attention)."""
    fused: Literal["", "qkv", "heads", "groups", "own"] = ""
    """Columns of a fused projection: all q, all k, all v | per head q, k, v | per KV group its q heads, k, v | its own."""
    o_proj: str = "o_proj"
    """Output projection of the attention (its input is z, all heads side by side)."""
    mlp: str = "mlp"
    """Module whose (first) input is what the MLP reads, after the norm."""
    mlp_norm: str | None = "post_attention_layernorm"
    """Norm whose output the MLP reads (in parallel blocks perhaps the attention's); None where it reads the stream itself,
    "" where that differs from block to block."""
    down_proj: str | None = "mlp.down_proj"
    """Last linear map of the MLP, from the block (its input is the site `mlp_hidden`); None for mixtures of experts."""
    writes: tuple[str, ...] = ("self_attn", "mlp")
    """Modules of a block whose OUTPUT is added to the stream: attention's first, then the MLP's, then any other."""
    kv_heads: int | None = None
    """Number of KV heads, where the configuration's own number misleads."""
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
    attention: Literal["registered", "own"] = "registered"
    """Whether the model file calls transformers' attention interface, so that q, k, v and pattern are sites."""
    plain_heads: bool = True
    """Whether z is the pattern times the values: no gate, no norm between the attention and its output projection."""
    gradients: bool = True
    """Whether q, k and v are all that reads the attention's input, so that per-head input gradients add up to the whole."""
    circuits: bool = True
    """Whether circuit discovery is exact on this family (the circuit identities hold)."""
    why_not: str = ""
    """Why something is missing, as a sentence for users."""
    left_padding: bool = True
    """Whether padding on the left changes nothing."""
    guessed: bool = False


# --- the shapes ----------------------------------------------------------------------------------------------------

_OWN = "its model file has attention code of its own, so q, k, v and pattern are no sites; z, writers and residuals are"
_HYBRID = "some of its layers are not softmax attention, so q, k, v, pattern and z exist only on the others"
_GATE = "a gate that reads the stream multiplies z, so q, k and v are not all that reads it"
_LATENT = "its keys and values are expanded from one latent vector, so a head has no key or value input of its own"
_RESCALED = "its blocks rescale the whole stream and write into it a third time, which circuits do not account for"
_HEAD_NORM = "a norm over all heads lies before the output projection, so what a head writes depends on the other heads"

LLAMA = Family(name="llama")
MOE = replace(LLAMA, name="mixtral", down_proj=None)
POST_NORM = replace(
    LLAMA,
    name="olmo2",
    attn_norm=None,
    mlp_norm=None,
    writes=("post_attention_layernorm", "post_feedforward_layernorm"),
)
SANDWICH = replace(POST_NORM, name="gemma2", attn_norm="input_layernorm", mlp_norm="pre_feedforward_layernorm")
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
NEOX = Family(
    name="gpt_neox",
    embed="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    unembed="lm_head|embed_out",
    attn="attention",
    qkv=("query_key_value",),
    fused="heads",
    o_proj="dense",
    down_proj="mlp.dense_4h_to_h",
    writes=("attention", "mlp"),
    parallel=True,
)
OPT = Family(
    name="opt",
    embed="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    attn_norm="self_attn_layer_norm",
    o_proj="out_proj",
    mlp="fc1",  # there is no MLP module
    mlp_norm="final_layer_norm",
    down_proj="fc2",
    writes=("self_attn", "fc2"),
)


def _rows(shape: Family, names: str, **changes: Any) -> list[Family]:
    return [replace(shape, name=name, **changes) for name in names.split()]


def _own(shape: Family, names: str, **changes: Any) -> list[Family]:
    return _rows(shape, names, attention="own", gradients=False, circuits=False, why_not=_OWN, **changes)


def _partly(shape: Family, names: str, why_not: str, **changes: Any) -> list[Family]:
    return _rows(shape, names, circuits=False, why_not=why_not, **changes)


_GRANITE: dict[str, Any] = {"write_scale": "residual_multiplier", "logit_divisor": "logits_scaling"}
_CAP: dict[str, Any] = {"logit_softcap": "final_logit_softcapping"}
_GATED: dict[str, Any] = {"plain_heads": False, "gradients": False}
_LINEAR: dict[str, Any] = {**_GATED, "writes": ("self_attn|linear_attn", "mlp")}

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in [
        # norm, attention, add; norm, MLP, add
        *_rows(
            LLAMA, "llama mistral ministral ministral3 qwen2 qwen3 gemma olmo smollm3 helium nemotron arcee glm cwm"
        ),
        *_rows(LLAMA, "seed_oss ernie4_5 hunyuan_v1_dense jais2 internlm3 iquestcoder stablelm"),
        *_rows(LLAMA, "apertus", attn_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
        *_rows(LLAMA, "phi3", qkv=("qkv_proj",), fused="qkv"),
        *_rows(LLAMA, "starcoder2", down_proj="mlp.c_proj"),
        *_rows(LLAMA, "granite", **_GRANITE),
        *_rows(LLAMA, "vaultgemma", mlp_norm="pre_feedforward_layernorm", **_CAP),
        *_rows(
            LLAMA,
            "persimmon",
            final_norm="model.final_layernorm",
            qkv=("query_key_value",),
            fused="heads",
            o_proj="dense",
            down_proj="mlp.dense_4h_to_h",
        ),
        *_partly(LLAMA, "bitnet", _HEAD_NORM, plain_heads=False),
        # mixtures of experts
        *_rows(
            MOE, "mixtral qwen2_moe qwen3_moe olmoe phimoe gpt_oss minimax_m2 glm4_moe ernie4_5_moe exaone_moe dots1"
        ),
        *_rows(MOE, "hunyuan_v1_moe solar_open mellum"),
        *_rows(MOE, "llama4_text", mlp="feed_forward", writes=("self_attn", "feed_forward")),
        *_rows(MOE, "granitemoe", mlp="block_sparse_moe", writes=("self_attn", "block_sparse_moe"), **_GRANITE),
        *_partly(MOE, "deepseek_v2 deepseek_v3", _LATENT, qkv=()),
        # a norm after each part, instead of or besides the one before it
        *_rows(POST_NORM, "olmo2 olmo3 exaone4"),
        *_rows(POST_NORM, "flex_olmo", down_proj=None),
        *_rows(SANDWICH, "gemma2 gemma3_text", **_CAP),
        *_rows(
            SANDWICH,
            "glm4",
            mlp_norm="post_attention_layernorm",
            writes=("post_self_attn_layernorm", "post_mlp_layernorm"),
        ),
        *_rows(
            SANDWICH,
            "hyperclovax",
            mlp_norm="post_attention_layernorm",
            writes=("post_norm1", "post_norm2"),
            write_scale="residual_multiplier",
            logit_multiplier="logits_scaling",
        ),
        *_partly(
            SANDWICH,
            "gemma4_text",
            _RESCALED,
            writes=("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm"),
            post_scale="layer_scalar",
            **_CAP,
        ),
        *_partly(
            SANDWICH,
            "afmoe",
            _GATE,
            mlp_norm="pre_mlp_layernorm",
            down_proj=None,
            writes=("post_attention_layernorm", "post_mlp_layernorm"),
            **_GATED,
        ),
        # attention and MLP side by side
        *_rows(LLAMA, "cohere cohere2", mlp_norm="input_layernorm", parallel=True, logit_multiplier="logit_scale"),
        *_rows(
            LLAMA,
            "phi",
            final_norm="model.final_layernorm",
            o_proj="dense",
            mlp_norm="input_layernorm",
            down_proj="mlp.fc2",
            parallel=True,
        ),
        NEOX,
        # GPT-2 and what grew from it
        *_rows(GPT2, "gpt2 gpt_bigcode"),
        *_own(GPT2, "gpt_neo", attn="attn.attention", qkv=("q_proj", "k_proj", "v_proj"), fused="", o_proj="out_proj"),
        *_own(
            GPT2,
            "gptj",
            qkv=("q_proj", "k_proj", "v_proj"),
            fused="",
            o_proj="out_proj",
            mlp_norm="ln_1",
            down_proj="mlp.fc_out",
            parallel=True,
        ),
        *_own(
            GPT2,
            "codegen",
            qkv=("qkv_proj",),
            fused="own",
            o_proj="out_proj",
            mlp_norm="ln_1",
            down_proj="mlp.fc_out",
            parallel=True,
        ),
        *_own(
            NEOX,
            "bloom falcon",
            embed="transformer.word_embeddings",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn="self_attention",
            writes=("self_attention.dense", "mlp.dense_4h_to_h"),  # Bloom's modules add the residual inside themselves
            parallel=False,
        ),
        *_own(
            GPT2,
            "mpt",
            blocks="transformer.blocks",
            final_norm="transformer.norm_f",
            attn_norm="norm_1",
            qkv=("Wqkv",),
            o_proj="out_proj",
            mlp="ffn",
            mlp_norm="norm_2",
            down_proj="ffn.down_proj",
            writes=("attn", "ffn.down_proj"),
        ),
        OPT,
        *_rows(
            OPT,
            "biogpt",
            embed="biogpt.embed_tokens",
            blocks="biogpt.layers",
            final_norm="biogpt.layer_norm",
            unembed="output_projection",
        ),
        *_own(OPT, "xglm", embed="model.embed_tokens", blocks="model.layers", final_norm="model.layer_norm"),
        # hybrids: a block without `attn` is a linear-attention or convolution layer
        *_partly(LLAMA, "qwen3_5_text", f"{_HYBRID}, and there {_GATE}", **_LINEAR),
        *_partly(MOE, "qwen3_5_moe_text qwen3_next", f"{_HYBRID}, and there {_GATE}", **_LINEAR),
        *_partly(
            POST_NORM,
            "olmo_hybrid",
            _HYBRID,
            attn_norm=None,
            mlp_norm="",
            writes=(
                "linear_attn|post_attention_layernorm",
                "post_feedforward_layernorm|mlp",
            ),  # linear layers are pre-norm
        ),
        *_partly(
            LLAMA,
            "lfm2",
            _HYBRID,
            final_norm="model.embedding_norm",
            attn_norm="operator_norm",
            o_proj="out_proj",
            mlp="feed_forward",
            mlp_norm="ffn_norm",
            down_proj="feed_forward.w2",
            writes=("self_attn|conv", "feed_forward"),
        ),
    ]
}


# --- options that live in the configuration ------------------------------------------------------------------------


def _refuse(config: Any, option: str, why: str) -> FamilyError:
    return FamilyError(f"a {config.model_type} model with {option}={getattr(config, option)!r} is not supported: {why}")


_NORMED_STREAM = "its norms act on the residual stream itself, so nothing is simply added to it"
_BETWEEN_LAYERS = (
    "some layers attend to the keys and values of an earlier one, so q, k and v are not all that reads a stream"
)


def _neox(row: Family, config: Any) -> Family:
    return replace(row, parallel=bool(config.use_parallel_residual))


def _stablelm(row: Family, config: Any) -> Family:
    return replace(row, parallel=True, mlp_norm="input_layernorm") if config.use_parallel_residual else row


def _gpt_bigcode(row: Family, config: Any) -> Family:
    return replace(row, kv_heads=1) if config.multi_query else replace(row, fused="heads", kv_heads=config.n_head)


def _falcon(row: Family, config: Any) -> Family:
    if config.new_decoder_architecture:
        row = replace(row, parallel=True, fused="groups", kv_heads=config.num_kv_heads)
        if config.num_ln_in_parallel_attn in (None, 2):
            return replace(row, attn_norm="ln_attn", mlp_norm="ln_mlp")
        return replace(row, mlp_norm="input_layernorm")
    if config.multi_query:
        row = replace(row, fused="qkv", kv_heads=1)
    else:
        row = replace(row, fused="heads", kv_heads=config.num_attention_heads)
    return replace(row, parallel=True, mlp_norm="input_layernorm") if config.parallel_attn else row


def _opt(row: Family, config: Any) -> Family:
    if not config.do_layer_norm_before:
        raise _refuse(config, "do_layer_norm_before", _NORMED_STREAM)
    if config.word_embed_proj_dim != config.hidden_size:
        raise _refuse(
            config, "word_embed_proj_dim", "its embedding is projected before the first block and after the last"
        )
    return row


def _bloom(row: Family, config: Any) -> Family:
    if config.apply_residual_connection_post_layernorm:
        raise _refuse(config, "apply_residual_connection_post_layernorm", _NORMED_STREAM)
    return row


def _gemma4(row: Family, config: Any) -> Family:
    if not config.hidden_size_per_layer_input:
        row = replace(row, writes=row.writes[:2])
    if config.enable_moe_block:
        row = replace(row, down_proj=None)  # the experts' output is added to the MLP's before the norm
    return replace(row, gradients=False, why_not=_BETWEEN_LAYERS) if config.num_kv_shared_layers else row


def _hyperclovax(row: Family, config: Any) -> Family:
    return row if config.use_post_norm else replace(row, writes=("self_attn", "mlp"))


_OPTIONS: dict[str, Callable[[Family, Any], Family]] = {
    "gpt_neox": _neox,
    "stablelm": _stablelm,
    "gpt_bigcode": _gpt_bigcode,
    "falcon": _falcon,
    "opt": _opt,
    "bloom": _bloom,
    "gemma4_text": _gemma4,
    "hyperclovax": _hyperclovax,
}


def family_of(config: Any) -> Family:
    """The row of a transformers configuration, options applied; raises FamilyError naming the families there are."""
    row = FAMILIES.get(config.model_type)
    if row is None:
        known = ", ".join(sorted(FAMILIES))
        raise FamilyError(f"no family row for model type {config.model_type!r}; there are: {known}")
    return _OPTIONS.get(row.name, lambda row, _: row)(row, config)
