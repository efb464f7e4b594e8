"""A few directions of z in the place of all d: W ≈ Q Qᵀ W, for models so wide that d backwards are too many.

Every row of a Jacobian is a backward, so d of them are the cost of the exact operator. What W can say lies mostly in far
fewer directions of z. A randomised range finder (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, §4) finds them without
a backward, one basis Q for all layers and samples:

1. In an ordinary forward the subject's state is moved at every layer at once, by ε |s_ℓ| ω_ℓ, ω_ℓ random, of length 1 and
   drawn anew for every layer and row. To first order z moves by ε Σ_ℓ J_ℓ ω_ℓ |s_ℓ|, which lies in the span of all J_ℓ.
   2k such rows are shared out over the samples; Q is the k leading left singular vectors of them all.
2. The rows of Qᵀ as cotangents give Qᵀ J_ℓ exactly, for every layer: k backwards instead of d. The finite difference only
   chose Q, no entry of W is made of it.
3. What Q misses is measured. For g ~ N(0, I) and g′ = (I − Q Qᵀ) g, E |g′ᵀ W|² = |(I − Q Qᵀ) W|²_F; p such cotangents, the
   same ones at every sample (so that they average to g′ᵀ W, the error of the mean), go back with the k.

Cost: 2k/n rows forward and k + p backward a sample, where the exact operator takes d backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import execute
from caseback.model.taps import Key, Tap
from caseback.relations.jacobian import rows_at_once
from caseback.relations.prompt import Prompt

__all__ = ["PROBES", "STEP", "check_sketch", "error_of", "find_basis", "probes"]

STEP = 3e-2
"""ε, as a share of the state's length. Smaller gives no better basis in float32 and a worse one in bfloat16, where z's
rounding shows; at .3 the model is no longer linear."""
PROBES = 8
"""p."""


def check_sketch(model: Model, k: int) -> None:
    """Raises RelationError where k directions are none, or all."""
    if not 1 <= k < model.d_model:
        raise RelationError(
            f"a sketch takes 1 to {model.d_model - 1} of the {model.d_model} directions of {model.name}'s final stream, "
            f"not {k}; without a sketch the operator is exact"
        )


@torch.no_grad()
def find_basis(
    model: Model,
    prompts: Sequence[Prompt],
    k: int,
    *,
    seed: int = 0,
    step: float = STEP,
    prefixes: Sequence[Prefix] | None = None,
    rows: int | None = None,
) -> Float[Tensor, "d k"]:
    """k orthonormal directions of z that hold most of what the subject's states at all layers do to it. Raises
    RelationError where k is not 1 to d."""
    if not 1 <= k <= model.d_model:
        raise RelationError(f"a basis of the final stream has 1 to {model.d_model} directions, not {k}")
    draw = torch.Generator().manual_seed(seed)
    n = -(-2 * k // len(prompts))
    prefixes = prefixes or [Prefix.of(model, prompt.ids, prompt.at) for prompt in prompts]
    moved = [_moved(model, *pair, n, step, draw, rows) for pair in zip(prompts, prefixes, strict=True)]
    U, _, _ = torch.linalg.svd(torch.cat(moved).T.float(), full_matrices=False)
    return U[:, :k].to(model.hf.dtype).contiguous()


def _moved(
    model: Model, prompt: Prompt, prefix: Prefix, n: int, step: float, draw: torch.Generator, rows: int | None
) -> Float[Tensor, "n d"]:
    """How far z moves when the subject's state is moved at every layer, n times, in units of ε."""
    place, found = prompt.at - prefix.length, []
    rows = rows or rows_at_once(model, len(prompt.ids), len(prompt.ids) - prefix.length)
    directions = torch.nn.functional.normalize(torch.randn((model.n_layers, n, model.d_model), generator=draw), dim=-1)
    for some in directions.to(model.device, model.hf.dtype).split(rows, dim=1):
        count = some.shape[1] + 1  # the first row stays where it is
        ends: list[Tensor] = []

        def move(layer: int, value: Tensor, some: Tensor = some) -> Tensor:
            value = value.clone()
            value[1:, place] += step * value[0, place].norm() * some[layer]
            return value

        def keep(value: Tensor, ends: list[Tensor] = ends) -> Tensor:
            ends.append(torch.stack([value[:, i] for i in prompt.ends]).mean(dim=0))
            return value

        taps: dict[Key, Tap] = {("resid_pre", layer): partial(move, layer) for layer in range(model.n_layers)}
        taps["resid_final", None] = keep
        execute(model, prefix.batch(count), taps, stop=model.n_layers, given=prefix.past(count))
        found.append((ends[0][1:] - ends[0][:1]) / step)
    return torch.cat(found)


def probes(basis: Float[Tensor, "d k"], n: int = PROBES, *, seed: int = 0) -> Float[Tensor, "n d"]:
    """Random cotangents with nothing of the basis in them."""
    g = torch.randn((n, len(basis)), generator=torch.Generator().manual_seed(seed)).to(basis.device)
    Q = basis.float()
    return (g - g @ Q @ Q.T).to(basis.dtype)


def error_of(W: Float[Tensor, "layer k d"], rest: Float[Tensor, "layer n d"]) -> Float[Tensor, "layer"]:
    """|(I − Q Qᵀ) W|_F / |W|_F, from Qᵀ W and g′ᵀ W of n probes: 0 where nothing is missed, 1 where all is. The square of
    the upper norm is estimated without bias; with 8 probes and many directions missed it is good to about a tenth. 0 where
    there is no map."""
    missed = rest.float().square().sum(dim=(1, 2)) / rest.shape[1]
    whole = W.float().square().sum(dim=(1, 2)) + missed
    return torch.where(whole > 0, missed / whole, 0).sqrt()
