"""circuitkit's own EAP: its edge scorer (`backends.eap.attribute`) and what its node-level `discover` runs
(`backends.eap.attribute_node`).

The model is what `circuitkit.load_model` makes of the default model's folder, in float32. Graph objects are made
before the clock starts; `templated` keeps it from putting a BOS token before prompts that have none, so that both
sides score the same tokens.
"""

from __future__ import annotations

from typing import Any

import circuitkit
import numpy as np
import torch
from circuitkit.backends.eap.attribute import attribute
from circuitkit.backends.eap.attribute_node import attribute_node
from circuitkit.backends.eap.eap_utils import collate_EAP
from circuitkit.backends.eap.graph import Graph
from torch.utils.data import DataLoader

from bench.workers.loop import Ready, serve, versions

BATCH = 16
"""The batch of its own IOI task (tasks.builtins.ioi_legacy)."""


def prepare(case: dict[str, Any]) -> Ready:
    model = circuitkit.load_model(case["folder"], dtype="float32", device="cpu")
    samples: Any = list(zip(case["clean"], case["counterfactual"], case["labels"], strict=True))
    loader: Any = DataLoader(samples, batch_size=BATCH, collate_fn=collate_EAP)
    loader.pair_padding_side, loader.templated = "right", True
    edges, nodes = Graph.from_model(model), Graph.from_model(model, node_scores=True)
    seen: list[torch.Tensor] = []

    def logit_diff(
        logits: torch.Tensor, clean_logits: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        rows = torch.arange(len(lengths))
        last = logits[rows, lengths - 1]
        value = last[rows, labels[:, 0]] - last[rows, labels[:, 1]]
        seen.append(value.detach())
        return value.sum()

    def edge_scores() -> np.ndarray:
        seen.clear()
        attribute(model, edges, loader, logit_diff, "EAP", quiet=True)
        return edges.scores.numpy()

    def node_scores() -> np.ndarray:
        seen.clear()
        attribute_node(model, nodes, loader, logit_diff, "EAP", quiet=True)
        return nodes.nodes_scores.numpy()

    def metric() -> np.ndarray:
        return torch.cat(seen).numpy()

    return Ready(
        {"edges": edge_scores, "nodes": node_scores, "metric": metric},
        {
            "versions": versions("circuitkit", "transformer-lens", "transformers", "torch"),
            "edge_count": int(edges.real_edge_mask.sum()),
        },
    )


if __name__ == "__main__":
    serve(prepare)
