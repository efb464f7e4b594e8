"""A relation as a linear map: LRE(s) = β W s + b, at every layer.

W = mean J and b = mean(z − J s) over a few training samples, each asked with the others as its few-shot examples
(Hernandez et al. 2024, arXiv 2308.09124, Eq. 4). Decoding is the model's own final norm and unembedding of LRE(s).

A sketch knows W along a few directions of z only, W ≈ Q Qᵀ W (`caseback.relations.sketch`), and takes b = mean(z − Q Qᵀ J s)
to go with it. Then what it says is z̄ + Q Qᵀ (LRE(s) − z̄), z̄ the mean of z: the exact operator, its departure from the
mean answer projected onto Q, at every β. The exact b could be had (J s is one more direction a layer), but would leave
−(I − Q Qᵀ) mean(J s) in every answer, with no W s to make up for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.model.end import end
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.relations.jacobian import expand
from caseback.relations.prompt import answered, ask
from caseback.relations.relation import Sample
from caseback.relations.saved import array_of, tensor_of
from caseback.relations.sketch import check_sketch, error_of, find_basis, probes

__all__ = ["Operators", "Svd", "decode", "fit", "invert", "spectrum_svd", "spectrum_twin", "svd", "through"]

Svd = tuple[Float[Tensor, "d r"], Float[Tensor, "r"], Float[Tensor, "r d"]]


@dataclass(frozen=True, kw_only=True)
class Operators:
    """One relation's operator at every layer."""

    template: str
    samples: tuple[Sample, ...]
    """What it was estimated on, and the few-shot examples of what it is applied to."""
    shots: bool
    """Whether prompts hold the samples as examples."""
    W: Float[Tensor, "layer k d"]
    """The map, k = d; of a sketch Qᵀ times it."""
    b: Float[Tensor, "layer d"]
    s: Float[Tensor, "sample layer d"]
    """The subjects' states at estimation."""
    z: Float[Tensor, "sample d"]
    basis: Float[Tensor, "d k"] | None = None
    """Q of a sketch; one for all layers."""
    error: Float[Tensor, "layer"] | None = None
    """Of a sketch: the share of W it misses, |(I − Q Qᵀ) W|_F / |W|_F, estimated."""
    _svd: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        return self.W.shape[0]

    @property
    def rank(self) -> int:
        """The largest rank a map can have."""
        return self.W.shape[1]

    @property
    def examples(self) -> tuple[Sample, ...]:
        """What a test prompt is preceded by."""
        return self.samples if self.shots else ()

    def matrix(self, layer: int) -> Float[Tensor, "d d"]:
        """W_ℓ; a sketch's is multiplied out."""
        return self.W[layer] if self.basis is None else self.basis @ self.W[layer]

    def svd(self, layer: int) -> Svd:
        """W_ℓ = U diag(S) Vᵀ, computed once; of a sketch by its factors, r = k."""
        if layer not in self._svd:
            U, S, V = svd(self.W[layer])
            self._svd[layer] = (U if self.basis is None else self.basis.float() @ U, S, V)
        return self._svd[layer]

    def linear(self, layer: int, s: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """W_ℓ s."""
        along = s @ self.W[layer].T
        return along if self.basis is None else along @ self.basis.T

    def apply(
        self, layer: int, s: Float[Tensor, "*rows d"], *, beta: float = 1.0, rank: int | None = None
    ) -> Float[Tensor, "*rows d"]:
        """β W_ℓ s + b_ℓ, W cut to its `rank` largest singular values if asked."""
        if not 0 <= layer < self.n_layers:
            raise RelationError(f"there is no operator at layer {layer}; there are 0 to {self.n_layers - 1}")
        Ws = self.linear(layer, s) if rank is None else through(self.svd(layer), s, rank=rank)
        return beta * Ws + self.b[layer]

    def invert(
        self, layer: int, delta: Float[Tensor, "*rows d"], *, ranks: Sequence[int]
    ) -> Float[Tensor, "rank *rows d"]:
        """W†_ρ δ = V_ρ S_ρ⁻¹ U_ρᵀ δ for every rank ρ, from one decomposition."""
        return invert(self.svd(layer), delta, ranks=ranks)


def svd(W: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k r"], Float[Tensor, "r"], Float[Tensor, "r d"]]:
    """W = U diag(S) V, V with the right singular vectors as rows; in float32."""
    U, S, V = torch.linalg.svd(W.float(), full_matrices=False)
    return U, S, V


def through(parts: Svd, s: Float[Tensor, "*rows d"], *, rank: int | None = None) -> Float[Tensor, "*rows d"]:
    """U diag(S) V s, of the `rank` largest singular values if asked."""
    U, S, V = parts
    return (((s.float() @ V[:rank].T) * S[:rank]) @ U[:, :rank].T).to(s.dtype)


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
    sketch: int | Float[Tensor, "d k"] | None = None,
    seed: int = 0,
    rows: int | None = None,
    stages: Stages | None = None,
    stage: str = "operator",
    progress: Progress = silent,
) -> Operators:
    """Estimate a relation's operators from training samples; with `shots` each is asked after the others as examples. With
    `whole` its object is written behind it, and z is the mean over the places that predict the object's tokens.

    `sketch`: along how many directions of z only, fewer than d, or along which (orthonormal columns); `seed` draws them, and
    the probes of what they miss. `stages` saves what is known after each sample, under the name `stage`. Raises
    RelationError without a sample or for another number of directions.

    Cost: one forward and one backward of d rows a sample, for all layers (`caseback.relations.jacobian`); a sketch's is in
    `caseback.relations.sketch`.
    """
    if not samples:
        raise RelationError("an operator needs at least one training sample")
    if isinstance(sketch, int):
        check_sketch(model, sketch)
    n = len(samples)
    others = [[one for j, one in enumerate(samples) if j != i] if shots else [] for i in range(n)]
    asked = [ask(model, template, *pair) for pair in zip(samples, others, strict=True)]
    prompts = [answered(model, prompt) for prompt in asked] if whole else asked
    stages = stages or InMemory(progress)
    like = torch.empty(0, device=model.device, dtype=model.hf.dtype)
    zero = torch.zeros(())
    prefix = cache(lambda i: Prefix.of(model, prompts[i].ids, prompts[i].at))

    def found_basis(k: int) -> Checkpoint:
        prefixes = [prefix(i) for i in range(n)]
        basis = find_basis(model, prompts, k, seed=seed, prefixes=prefixes, rows=rows)
        return Checkpoint({"basis": array_of(basis)})

    basis = None if isinstance(sketch, int) else sketch
    if isinstance(sketch, int):
        basis = tensor_of(stages.stage(f"{stage}-basis", lambda: found_basis(sketch)).arrays["basis"], like)
    along = None if basis is None else torch.cat([basis.T, probes(basis, seed=seed)])

    def expanded(state: Checkpoint | None, i: int) -> Checkpoint:
        found = expand(model, prompts[i], along=along, prefix=prefix(i), rows=rows)
        before = {name: tensor_of(array, like) for name, array in state.arrays.items()} if state else {}
        sums = {name: before.get(name, zero) + getattr(found, name) / n for name in ("J", "Js")}
        kept = {name: torch.cat([*([before[name]] if state else []), getattr(found, name)[None]]) for name in "sz"}
        return Checkpoint({name: array_of(value) for name, value in {**sums, **kept}.items()})

    sums = stages.fold(stage, n, expanded).arrays
    J, Js, s, z = (tensor_of(sums[name], like) for name in ("J", "Js", "s", "z"))
    error = None
    if basis is not None:
        k = basis.shape[1]
        error, J, Js = error_of(J[:, :k], J[:, k:]), J[:, :k], Js[:, :k] @ basis.T
    return Operators(
        template=template,
        samples=tuple(samples),
        shots=shots,
        W=J,
        b=z.mean(dim=0) - Js,
        s=s,
        z=z,
        basis=basis,
        error=error,
    )


@torch.no_grad()
def decode(model: Model, z: Float[Tensor, "*rows d"], *, rows: int = 256) -> Int[Tensor, "*rows"]:
    """The likeliest token of each stream, by the model's own end."""
    flat = z.reshape(-1, z.shape[-1]).to(model.hf.dtype)
    best = [end(model, part).argmax(dim=-1) for part in flat.split(rows)]
    return torch.cat(best).view(z.shape[:-1])


def spectrum_twin(W: Float[Tensor, "d d"], *, seed: int) -> Float[Tensor, "d d"]:
    """A random matrix with the singular values of W: what the directions of W, and not its sizes, account for."""
    U, S, V = spectrum_svd(torch.linalg.svdvals(W.float()), len(W), seed=seed)
    return U.to(W) @ (S.to(W)[:, None] * V.to(W))


def spectrum_svd(S: Float[Tensor, "r"], d: int, *, seed: int) -> Svd:
    """The same as its decomposition, which is known before the product; r ≤ d singular values of a d × d matrix."""
    draw = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn((d, len(S)), generator=draw))[0].to(S) for _ in range(2))
    return U, S, V.T
