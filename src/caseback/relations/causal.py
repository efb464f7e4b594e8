"""Does the operator's inverse change the model's mind? Causality, by the low-rank pseudo-inverse edit.

To make subject i answer as subject j does, its state is moved by Δs = W†_ρ (z_j − z_i) (Hernandez et al. 2024, arXiv
2308.09124, Eq. 6); β plays no part. A full inverse fails, because small singular values blow up, so every rank ρ is
tried: all come from one decomposition. Success: the edited model's token is the one it gives for j; of whole objects, the
first of j's, since only a token is asked of the edited model.

Controls: the subject swap (s_j in the place of s_i), the unembedding row of j's token at s_i's length, and the same edit
through a random matrix with W's singular values.

The prompt up to the subject is cached; layers, ranks and controls are rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import execute
from caseback.model.taps import Key, Tap
from caseback.relations.observe import Observed
from caseback.relations.operator import Operators, invert, spectrum_svd
from caseback.relations.prompt import Prompt

__all__ = ["CONTROLS", "RANKS", "Edited", "edit", "edited_tokens", "targets"]

RANKS = (8, 16, 32, 64, 128, 256)
CONTROLS = ("swap", "unembedding", "random")


@dataclass(frozen=True, kw_only=True)
class Edited:
    """Which edits made the model answer as for the target."""

    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    target: Int[np.ndarray, "sample"]
    """Place of each sample's target among the samples; -1 where no other answer exists."""
    lre: Bool[np.ndarray, "layer rank sample"]
    swap: Bool[np.ndarray, "layer sample"]
    unembedding: Bool[np.ndarray, "layer sample"]
    random: Bool[np.ndarray, "layer rank sample"]

    def choose(self, rows: np.ndarray) -> tuple[int, int]:
        """(index of the layer, index of the rank) with the most successes among some samples; of equals the lowest."""
        score = self.lre[:, :, rows].mean(axis=2)
        best = int(score.argmax())
        return best // len(self.ranks), best % len(self.ranks)


def targets(seen: Observed, *, seed: int) -> Int[np.ndarray, "sample"]:
    """For every sample another one with another subject, object and first token of its answer, drawn at random; -1 where
    there is none."""
    draw = np.random.default_rng(seed)
    token = seen.first.cpu().numpy()
    found = []
    for i, prompt in enumerate(seen.prompts):
        other = [
            j
            for j, that in enumerate(seen.prompts)
            if that.subject != prompt.subject and that.object != prompt.object and token[j] != token[i]
        ]
        found.append(int(draw.choice(other)) if other else -1)
    return np.array(found)


@torch.no_grad()
def edited_tokens(
    model: Model, prompt: Prompt, layers: Sequence[int], new: Float[Tensor, "layer row d"]
) -> Int[Tensor, "layer row"]:
    """The model's token when the subject's state entering block `layers[i]` is `new[i, j]`, for all i and j at once."""
    n_layers, rows, _ = new.shape
    prefix = Prefix.of(model, prompt.ids, prompt.at)
    place, n = prompt.at - prefix.length, n_layers * rows

    def put(i: int, value: Tensor) -> Tensor:
        value = value.clone()
        value[i * rows : (i + 1) * rows, place] = new[i].to(value)
        return value

    taps: dict[Key, Tap] = {("resid_pre", layer): partial(put, i) for i, layer in enumerate(layers)}
    logits = execute(model, prefix.batch(n), taps, given=prefix.past(n))
    assert logits is not None
    return logits.argmax(dim=-1).view(n_layers, rows)


@torch.no_grad()
def edit(
    model: Model,
    operators: Operators,
    seen: Observed,
    target: Int[np.ndarray, "sample"],
    *,
    layers: Sequence[int],
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Edited:
    """Make every sample answer as its target, by every layer and rank and by the controls; `stages` saves what is known
    after every sample.

    Cost: layers · (2 ranks + 2) rows of the tokens from the subject on, a sample; one decomposition a layer.
    """
    ranks = [rank for rank in ranks if rank <= operators.rank]
    if not layers or not ranks:
        raise RelationError("a causal edit needs at least one layer and one rank")
    twin = cache(lambda layer: spectrum_svd(operators.svd(layer)[1], model.d_model, seed=seed))
    token = seen.first
    unembedding = model.hf.get_output_embeddings().weight

    def edited(state: Checkpoint | None, i: int) -> Checkpoint:
        shape = (len(layers), 2 * len(ranks) + 2, len(seen))
        right = state.arrays["right"].copy() if state else np.zeros(shape, dtype=bool)
        j = int(target[i])
        if j < 0:
            return Checkpoint({"right": right})
        s, delta = seen.s[i], seen.z[j] - seen.z[i]
        direction = unembedding[token[j]].to(s)
        rows = []
        for layer in layers:
            here = s[layer]
            steered = direction * (here.norm() / direction.norm())
            moved = here + operators.invert(layer, delta, ranks=ranks)
            random = here + invert(twin(layer), delta, ranks=ranks)
            rows.append(torch.cat([moved, random, seen.s[j, layer][None], steered[None]]))
        said = edited_tokens(model, seen.prompts[i], layers, torch.stack(rows))
        right[:, :, i] = (said == token[j]).cpu().numpy()
        return Checkpoint({"right": right})

    right = (stages or InMemory(progress)).fold("causality", len(seen), edited).arrays["right"]
    r = len(ranks)
    return Edited(
        layers=tuple(layers),
        ranks=tuple(ranks),
        target=target,
        lre=right[:, :r],
        random=right[:, r : 2 * r],
        swap=right[:, -2],
        unembedding=right[:, -1],
    )
