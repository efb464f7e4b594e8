"""Does the operator say what the model says? Faithfulness, and the controls it has to beat.

Strict: the operator's answer is the model's. Prefix: it is right by the data, as the published score counts: of tokens, it
begins the object (a token of one letter begins many objects, so both are given); of whole objects, it is the object, which
is the same as strict for samples the model knows. Every control is allowed what the operator is: its best
layer, chosen on the same samples.

- identity: the subject's state itself, decoded (a logit lens)
- translation: s + mean(z − s) over the training samples
- ridge: the linear map from s to z of least squared error on the training samples, with a penalty
- embedding: the operator at layer 0, its own β
- bias: b alone
- random: the operator with W's singular values and random directions, at the operator's layer and β
- majority: the model's most frequent answer
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.model.model import Model
from caseback.relations.observe import Observed
from caseback.relations.operator import Operators, spectrum_svd, through
from caseback.relations.saved import array_of

__all__ = ["BETAS", "Answers", "answers", "ridge"]

BETAS = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answer each way of decoding gives each sample, at every layer."""

    token: Int[np.ndarray, "sample"]
    """The model's."""
    lre: Int[np.ndarray, "layer beta sample"]
    betas: tuple[float, ...]
    controls: dict[str, Int[np.ndarray, "layer sample"]]
    """identity, translation, ridge, bias."""

    @property
    def strict(self) -> Bool[np.ndarray, "layer beta sample"]:
        return self.lre == self.token

    def choose(self, rows: Sequence[int] | np.ndarray) -> tuple[int, int]:
        """(layer, index of β) by the right answers among some samples.

        A cell counts with the neighbouring layers and β: the best of hundreds over a few samples would be the luckiest.
        Of the layers within one standard error of the best, the middle one is taken, with its best β.
        """
        score = np.pad(self.strict[:, :, rows].mean(axis=2), 1, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(score, (3, 3)).mean(axis=(2, 3))
        layers = around.max(axis=1)
        p = float(layers.max())
        near = np.flatnonzero(layers >= p - math.sqrt(p * (1 - p) / len(rows)) - 1e-12)
        layer = int(near[len(near) // 2])
        return layer, int(around[layer].argmax())

    def control(self, name: str, choose: np.ndarray, report: np.ndarray) -> Bool[np.ndarray, "report"]:
        """A control's right answers on `report`, at its best layer on `choose`."""
        right = self.controls[name] == self.token
        layer = int(right[:, choose].mean(axis=1).argmax())
        return right[layer, report]

    def embedding(self, choose: np.ndarray, report: np.ndarray) -> Bool[np.ndarray, "report"]:
        """The operator at the embedding, with its own β."""
        beta = int(self.strict[0][:, choose].mean(axis=1).argmax())
        return self.strict[0, beta, report]

    def majority(self, choose: np.ndarray, report: np.ndarray) -> Bool[np.ndarray, "report"]:
        values, counts = np.unique(self.token[choose], return_counts=True)
        return self.token[report] == values[counts.argmax()]


@torch.no_grad()
def answers(
    model: Model,
    operators: Operators,
    seen: Observed,
    *,
    betas: Sequence[float] = BETAS,
    stages: Stages | None = None,
    stage: str = "answers",
    progress: Progress = silent,
) -> Answers:
    """Decode every sample by the operator of every layer at every β, and by the controls; `stages` saves what is known
    after every layer, under the name `stage`.

    Cost: layers · (β + 4) · samples rows of the unembedding, 2·d·vocabulary flops each.
    """
    decode = partial(seen.reading.decode, model)
    grid = torch.tensor(list(betas), device=seen.s.device, dtype=seen.s.dtype)[:, None, None]

    def decoded(state: Checkpoint | None, layer: int) -> Checkpoint:
        s, known = seen.s[:, layer], operators.s[:, layer]
        maps = {
            "lre": grid * operators.linear(layer, s) + operators.b[layer],
            "identity": s,
            "translation": s + (operators.z - known).mean(dim=0),
            "ridge": ridge(known, operators.z, s),
            "bias": operators.b[layer].expand(1, -1),
        }
        new = {name: decode(value) for name, value in maps.items()}
        new["bias"] = new["bias"].expand(len(seen))
        before = state.arrays if state else {}
        return Checkpoint(
            {
                name: np.concatenate([*([before[name]] if state else []), array_of(said[None])])
                for name, said in new.items()
            }
        )

    found = (stages or InMemory(progress)).fold(stage, operators.n_layers, decoded).arrays
    return Answers(
        token=seen.token.cpu().numpy(),
        lre=found["lre"],
        betas=tuple(betas),
        controls={name: found[name] for name in ("identity", "translation", "ridge", "bias")},
    )


def ridge(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], new: Float[Tensor, "m d"], *, penalty: float = 0.1
) -> Float[Tensor, "m d"]:
    """Ridge regression from x to y, applied to new rows: ȳ + (new − x̄) Xᵀ (X Xᵀ + λ I)⁻¹ Y, X and Y centred, λ = penalty
    times the mean squared length of X's rows."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    X, Y = (x - mean_x).double(), (y - mean_y).double()
    gram = X @ X.T
    gram.diagonal().add_(penalty * gram.diagonal().mean().clamp(min=1e-12))
    return (mean_y + ((new - mean_x).double() @ X.T @ torch.linalg.solve(gram, Y)).to(y)).to(y.dtype)


@torch.no_grad()
def cut_answers(
    model: Model, operators: Operators, seen: Observed, layer: int, beta: float, ranks: Sequence[int]
) -> Int[np.ndarray, "rank sample"]:
    """Answers of the operator cut to each rank."""
    found = [
        seen.reading.decode(model, operators.apply(layer, seen.s[:, layer], beta=beta, rank=rank)) for rank in ranks
    ]
    return torch.stack(found).cpu().numpy()


@torch.no_grad()
def random_answers(
    model: Model, operators: Operators, seen: Observed, layer: int, beta: float, *, seed: int
) -> Int[np.ndarray, "sample"]:
    """Answers of a random operator with W's singular values."""
    twin = spectrum_svd(operators.svd(layer)[1], model.d_model, seed=seed)
    z = beta * through(twin, seen.s[:, layer]) + operators.b[layer]
    return seen.reading.decode(model, z).cpu().numpy()


def prefix(model: Model, answer: Int[np.ndarray, "sample"], seen: Observed) -> Bool[np.ndarray, "sample"]:
    """Whether each answer is right by the data."""
    return seen.reading.right(model, torch.from_numpy(answer), seen.prompts)
