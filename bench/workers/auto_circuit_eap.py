"""auto-circuit's edge attribution patching, by its fast way: the gradient of every edge's mask at 0
(`mask_gradient_prune_scores`).

The model is TransformerLens' GPT-2 with the weights of the case's folder, unprocessed. The wrapped model and the
loader are made before the clock starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model

from bench.workers.lens_gpt2 import lens_gpt2
from bench.workers.loop import Ready, serve, versions


def prepare(case: dict[str, Any]) -> Ready:
    plain = lens_gpt2(case["folder"], use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True)
    cfg = plain.cfg
    ids = {name: torch.tensor(case[name]) for name in ("clean", "counterfactual")}
    answers, foils = ([torch.tensor([token]) for token in case[name]] for name in ("answers", "foils"))
    with torch.inference_mode():
        logits = plain(ids["clean"])[:, -1]
    metric = logits.gather(1, torch.stack(answers)) - logits.gather(1, torch.stack(foils))
    model = patchable_model(plain, factorized=True, slice_output="last_seq", separate_qkv=True)
    for (
        parameter
    ) in model.parameters():  # the masks get theirs back inside; without this weights would get gradients too
        parameter.requires_grad_(False)
    loader = PromptDataLoader(
        PromptDataset(ids["clean"], ids["counterfactual"], answers, foils),
        seq_len=None,
        diverge_idx=0,
        batch_size=len(answers),
    )
    order = [
        f"blocks.{layer}.hook_{name}"
        for layer in range(cfg.n_layers)
        for name in ("q_input", "k_input", "v_input", "mlp_in")
    ]
    order.append(f"blocks.{cfg.n_layers - 1}.hook_resid_post")
    n_writers = 1 + cfg.n_layers * (cfg.n_heads + 1)

    def edge_scores() -> np.ndarray:
        found = mask_gradient_prune_scores(
            model, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
        )
        columns = []
        for name in order:
            scores = found[name].reshape(-1, found[name].shape[-1])  # [head or 1, writer]
            columns.append(torch.nn.functional.pad(scores, (0, n_writers - scores.shape[-1])))
        return torch.cat(columns).T.numpy()

    return Ready(
        {"edges": edge_scores, "metric": lambda: metric[:, 0].numpy()},
        {
            "versions": versions("auto-circuit", "transformer-lens", "transformers", "torch"),
            "edge_count": model.n_edges,
        },
    )


if __name__ == "__main__":
    serve(prepare)
