"""TransformerLens' own activation patching: `patching.get_act_patch_resid_pre`, every layer and position.

The metric is the mean logit difference, read at the last token; the clean run that fills its cache is inside the clock,
as ours is. Gradients are off, as in its demonstrations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformer_lens import patching

from bench.workers.lens_gpt2 import lens_gpt2
from bench.workers.loop import Ready, serve, versions


def prepare(case: dict[str, Any]) -> Ready:
    torch.set_grad_enabled(False)
    model = lens_gpt2(case["folder"])
    clean, counterfactual, answers, foils = (
        torch.tensor(case[name]) for name in ("clean", "counterfactual", "answers", "foils")
    )

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, answers[:, None]) - last.gather(1, foils[:, None])).mean()

    def grid() -> np.ndarray:
        _, cache = model.run_with_cache(clean)
        return patching.get_act_patch_resid_pre(model, counterfactual, cache, metric).numpy()

    return Ready({"grid": grid}, {"versions": versions("transformer-lens", "transformers", "torch")})


if __name__ == "__main__":
    serve(prepare)
