"""TransformerLens' GPT-2 with the weights of a folder, unprocessed: what two of the peers measure."""

from __future__ import annotations

from typing import Any

from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

__all__ = ["lens_gpt2"]


def lens_gpt2(folder: str, **options: Any) -> HookedTransformer:
    hf = GPT2LMHeadModel.from_pretrained(folder)
    sizes = hf.config
    cfg = HookedTransformerConfig(
        n_layers=sizes.n_layer,
        d_model=sizes.n_embd,
        n_ctx=sizes.n_positions,
        d_head=sizes.n_embd // sizes.n_head,
        n_heads=sizes.n_head,
        d_mlp=4 * sizes.n_embd,
        d_vocab=sizes.vocab_size,
        act_fn="gelu_new",
        eps=sizes.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
        **options,
    )
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model
