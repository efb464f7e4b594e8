"""Tiny random models of every family: real transformers code, two layers, made in milliseconds, no download.

They exist so that identities can be tried where they could fail. Hence every special feature of a family is on (grouped
heads, softcaps, sinks, QK-norm, windows shorter than the prompt, post-norms, scales, partial rotary, biases), the head width
is not d_model / n_heads where the configuration allows it, and norm weights and biases are random: a norm that multiplies by
one, or a bias of zero, would let a wrong table row pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from caseback.core.errors import FamilyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TINY", "tiny"]

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 16}  # 4 heads of 16 in a model of 48
_WINDOWS: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_BIAS = {"attention_bias": True, "mlp_bias": True}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 24}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
_ROUTED |= {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5}
_SCALES = {"embedding_multiplier": 1.5, "logits_scaling": 2.0, "residual_multiplier": 0.6, "attention_multiplier": 0.4}
_PARTIAL = {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LINEAR |= {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
}


TINY: dict[str, dict[str, Any]] = {
    "llama": _WIDE | _BIAS,
    "mistral": _WIDE | {"sliding_window": 4},
    "ministral": _WIDE | _WINDOWS,
    "ministral3": _WIDE,
    "mixtral": _WIDE | _EXPERTS | {"sliding_window": 4},
    "qwen2": _GROUPED | _WINDOWS | {"use_sliding_window": True},
    "qwen2_moe": _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3": _WIDE | _WINDOWS | {"use_sliding_window": True},
    "qwen3_moe": _WIDE | _EXPERTS,
    "gemma": _WIDE,
    "gemma2": _WIDE
    | _WINDOWS
    | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0, "query_pre_attn_scalar": 9},
    "gemma3_text": _WIDE | _WINDOWS | {"final_logit_softcapping": 20.0, "query_pre_attn_scalar": 9},
    "vaultgemma": _WIDE
    | _WINDOWS
    | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0, "query_pre_attn_scalar": 9},
    "gemma4_text": _WIDE
    | _WINDOWS
    | {
        "final_logit_softcapping": 20.0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "per_layer_config": {},
    },
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 48},
    "xglm": {"ffn_dim": 40},
    "biogpt": {},
    "bloom": {},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True},
    "mpt": {"max_seq_len": 64},
    "phi": _GROUPED | _PARTIAL | {"qk_layernorm": True},
    "phi3": _GROUPED | _PARTIAL | {"sliding_window": 4},
    "phimoe": _GROUPED | _EXPERTS | {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.0},
    "stablelm": _GROUPED | _PARTIAL | {"use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": _GROUPED | {"sliding_window": 4},
    "cohere": _GROUPED | {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": _WIDE | _WINDOWS | {"logit_scale": 0.3},
    "olmo": _GROUPED | {"clip_qkv": 2.0},
    "olmo2": _GROUPED,
    "olmo3": _GROUPED | _WINDOWS,
    "olmoe": _GROUPED | _EXPERTS,
    "flex_olmo": _GROUPED | _EXPERTS,
    "granite": _GROUPED | _SCALES | _BIAS,
    "granitemoe": _GROUPED | _SCALES | _EXPERTS,
    "hyperclovax": _WIDE | _SCALES | {"use_post_norm": True},
    "glm": _WIDE | _PARTIAL,
    "glm4": _WIDE | _PARTIAL,
    "glm4_moe": _WIDE | _PARTIAL | _ROUTED | {"use_qk_norm": True},
    "helium": _GROUPED | {"head_dim": 12},  # its output projection is square
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0]},
    "nemotron": _WIDE | _PARTIAL,
    "persimmon": _PARTIAL | {"qk_layernorm": True},
    "gpt_oss": _WIDE | _EXPERTS | _WINDOWS,
    "apertus": _WIDE,
    "arcee": _WIDE,
    "exaone4": _WIDE | _WINDOWS,
    "exaone_moe": _WIDE | _EXPERTS | _WINDOWS | {"num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]},
    "seed_oss": _WIDE,
    "ernie4_5": _WIDE | {"use_bias": True},
    "ernie4_5_moe": _WIDE
    | {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    },
    "hunyuan_v1_dense": _WIDE,
    "hunyuan_v1_moe": _WIDE | {"num_experts": 4, "moe_topk": 2},
    "cwm": _WIDE | _WINDOWS,
    "jais2": _WIDE,
    "internlm3": _WIDE | _BIAS,
    "iquestcoder": _WIDE,
    "minimax_m2": _WIDE | _EXPERTS,
    "dots1": _WIDE | _ROUTED | _WINDOWS,
    "solar_open": _WIDE | _ROUTED,
    "mellum": _WIDE | _EXPERTS | _WINDOWS | {"mlp_layer_types": ["sparse", "sparse"]},
    "llama4_text": _WIDE
    | {
        "num_local_experts": 4,
        "intermediate_size_mlp": 40,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 4,
    },
    "deepseek_v2": _LATENT | _ROUTED | {"topk_method": "greedy"},
    "deepseek_v3": _LATENT | _ROUTED,
    "afmoe": _WIDE | _EXPERTS | _WINDOWS | {"num_dense_layers": 1, "num_shared_experts": 1},
    "bitnet": _GROUPED,
    "qwen3_5_text": _WIDE | _LINEAR,
    "qwen3_5_moe_text": _WIDE | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_next": _WIDE | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 24},
    "olmo_hybrid": _GROUPED | _LINEAR,
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    # the options that change a family's row
    "gpt_neox:sequential": {"use_parallel_residual": False},
    "stablelm:parallel": _GROUPED | _PARTIAL | {"use_parallel_residual": True},
    "gpt_bigcode:heads": {"multi_query": False},
    "falcon:7b": {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
    "falcon:rw": {
        "multi_query": False,
        "parallel_attn": False,
        "new_decoder_architecture": False,
        "alibi": True,
        "bias": True,
    },
    "falcon:11b": {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    "gemma4_text:plain": _WIDE | _WINDOWS | {"hidden_size_per_layer_input": 0, "per_layer_config": {}},
    "gemma4_text:shared": _WIDE
    | {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 4,
    }
    | {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 1,
        "per_layer_config": {},
    },
    "gemma4_text:experts": _WIDE
    | _WINDOWS
    | {"hidden_size_per_layer_input": 0, "per_layer_config": {}}
    | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "hyperclovax:plain": _WIDE | _SCALES | {"use_post_norm": False},
}
"""What `tiny` makes: a model type, or "type:variant" where an option changes the family's row, and its configuration."""


def tiny(name: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny random causal LM of a model type (or a variant such as "gpt_neox:sequential"), float32, in eval mode.

    >>> tiny("gemma2").config.num_hidden_layers
    2
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name not in TINY:
        raise FamilyError(f"there is no tiny model {name!r}; there are: {', '.join(sorted(TINY))}")
    model_type = name.partition(":")[0]
    if model_type not in CONFIG_MAPPING:
        raise FamilyError(f"transformers {transformers.__version__} has no model type {model_type!r}; a newer one may")
    config = CONFIG_MAPPING[model_type](**_COMMON | TINY[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomise(model)
    return model.eval()


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Make every term of an identity matter: activations of order one, uneven attention, no norm or bias without effect."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) in embeddings:
            parameter.normal_()
        elif parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        else:
            parameter.normal_(std=1.2 / math.sqrt(parameter.shape[-1]))
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # Gemma 4 keeps a learnt number in a buffer
            buffer.uniform_(0.7, 0.9)
