"""A relation as a linear map: LRE(s) = β W s + b, at every layer.

W = mean J and b = mean(z − J s) over a few training samples, each asked with the others as its few-shot examples
(Hernandez et al. 2024, arXiv 2308.09124, Eq. 4). Decoding is the model's own final norm and unembedding of LRE(s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.model.end import end
from caseback.model.model import Model
from caseback.relations.jacobian import expand
from caseback.relations.prompt import answered, ask
from caseback.relations.relation import Sample

__all__ = ["Operators", "Svd", "decode", "fit", "invert", "spectrum_svd", "spectrum_twin", "svd"]

Svd = tuple[Float[Tensor, "d r"], Float[Tensor, "r"], Float[Tensor, "r d"]]


@dataclass(frozen=True, kw_only=True)
class Operators:
    """One relation's operator at every layer."""

    template: str
    samples: tuple[Sample, ...]
    """What it was estimated on, and the few-shot examples of what it is applied to."""
    shots: bool
    """Whether prompts hold the samples as examples."""
    W: Float[Tensor, "layer d d"]
    b: Float[Tensor, "layer d"]
    s: Float[Tensor, "sample layer d"]
    """The subjects' states at estimation."""
    z: Float[Tensor, "sample d"]
    _svd: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        return self.W.shape[0]

    @property
    def examples(self) -> tuple[Sample, ...]:
        """What a test prompt is preceded by."""
        return self.samples if self.shots else ()

    def svd(self, layer: int) -> Svd:
        """W_ℓ = U diag(S) Vᵀ, computed once."""
        if layer not in self._svd:
            self._svd[layer] = svd(self.W[layer])
        return self._svd[layer]

    def apply(
        self, layer: int, s: Float[Tensor, "*rows d"], *, beta: float = 1.0, rank: int | None = None
    ) -> Float[Tensor, "*rows d"]:
        """β W_ℓ s + b_ℓ, W cut to its `rank` largest singular values if asked."""
        if not 0 <= layer < self.n_layers:
            raise RelationError(f"there is no operator at layer {layer}; there are 0 to {self.n_layers - 1}")
        if rank is None:
            return beta * (s @ self.W[layer].T) + self.b[layer]
        U, S, V = self.svd(layer)
        kept = (s.float() @ V[:rank].T) * S[:rank]
        return (beta * (kept @ U[:, :rank].T)).to(s.dtype) + self.b[layer]

    def invert(
        self, layer: int, delta: Float[Tensor, "*rows d"], *, ranks: Sequence[int]
    ) -> Float[Tensor, "rank *rows d"]:
        """W†_ρ δ = V_ρ S_ρ⁻¹ U_ρᵀ δ for every rank ρ, from one decomposition."""
        return invert(self.svd(layer), delta, ranks=ranks)


def svd(W: Float[Tensor, "d d"]) -> Svd:
    """W = U diag(S) V, V with the right singular vectors as rows; in float32."""
    U, S, V = torch.linalg.svd(W.float(), full_matrices=False)
    return U, S, V


def invert(parts: Svd, delta: Float[Tensor, "*rows d"], *, ranks: Sequence[int]) -> Float[Tensor, "rank *rows d"]:
    """The pseudo-inverse of U diag(S) V at every rank, applied to δ. A singular value below rounding (d ε S₀) counts as 0,
    which has the inverse 0: a map of low rank, or none at all, gives no infinities."""
    U, S, V = parts
    if not all(1 <= rank <= len(S) for rank in ranks):
        raise RelationError(f"ranks lie between 1 and {len(S)}, got {', '.join(map(str, ranks))}")
    real = torch.finfo(S.dtype).eps * U.shape[0] * S[0] < S
    along = torch.where(real, (delta.float() @ U) / torch.where(real, S, 1), 0)
    return torch.stack([along[..., :rank] @ V[:rank] for rank in ranks]).to(delta.dtype)


def fit(
    model: Model,
    samples: Sequence[Sample],
    template: str,
    *,
    shots: bool = True,
    whole: bool = False,
    rows: int | None = None,
    progress: Progress = silent,
) -> Operators:
    """Estimate a relation's operators from training samples; with `shots` each is asked after the others as examples. With
    `whole` its object is written behind it, and z is the mean over the places that predict the object's tokens.

    Cost: one forward and one backward of d rows a sample, for all layers (`caseback.relations.jacobian`).
    """
    if not samples:
        raise RelationError("an operator needs at least one training sample")
    n = len(samples)
    W = b = torch.zeros(())
    states, ends = [], []
    for i, sample in enumerate(samples):
        others = [one for j, one in enumerate(samples) if j != i] if shots else []
        prompt = ask(model, template, sample, others)
        found = expand(model, answered(model, prompt) if whole else prompt, rows=rows)
        W, b = W + found.J / n, b + found.b / n
        states.append(found.s)
        ends.append(found.z)
        progress("operator", i + 1, n)
    return Operators(
        template=template, samples=tuple(samples), shots=shots, W=W, b=b, s=torch.stack(states), z=torch.stack(ends)
    )


@torch.no_grad()
def decode(model: Model, z: Float[Tensor, "*rows d"], *, rows: int = 256) -> Int[Tensor, "*rows"]:
    """The likeliest token of each stream, by the model's own end."""
    flat = z.reshape(-1, z.shape[-1]).to(model.hf.dtype)
    best = [end(model, part).argmax(dim=-1) for part in flat.split(rows)]
    return torch.cat(best).view(z.shape[:-1])


def spectrum_twin(W: Float[Tensor, "d d"], *, seed: int) -> Float[Tensor, "d d"]:
    """A random matrix with the singular values of W: what the directions of W, and not its sizes, account for."""
    U, S, V = spectrum_svd(torch.linalg.svdvals(W.float()), seed=seed)
    return U.to(W) @ (S.to(W)[:, None] * V.to(W))


def spectrum_svd(S: Float[Tensor, "d"], *, seed: int) -> Svd:
    """The same as its decomposition, which is known before the product."""
    draw = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn((len(S), len(S)), generator=draw))[0].to(S) for _ in range(2))
    return U, S, V.T
