"""∂z/∂s for every layer from one backward.

s_ℓ is the stream at the subject's last token where it enters block ℓ (ℓ = 0: the embedding), z the stream at the last
token where it enters the final norm (Hernandez et al. 2024, arXiv 2308.09124, §3), or the mean of that stream over the
prompt's ends. One backward from z passes every s_ℓ: so one forward is made, and its graph is gone back through with many
cotangents e_i at a time (torch's batched gradients), each of which gives row i of every J_ℓ. What comes before the
subject is run once and cached; neither final norm nor vocabulary is touched, and weights get no gradients.

Cost: one forward and d backwards of T tokens for all layers at once, T the tokens from the subject's last on. Repeating
the forward as d ordinary rows gives the same and takes twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.memory import total_bytes
from caseback.core.progress import Progress, silent
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import execute
from caseback.model.taps import Key
from caseback.relations.prompt import Prompt

__all__ = ["Expansion", "expand", "rows_at_once"]

MOST = 192
"""Rows at once at most."""


@dataclass(frozen=True)
class Expansion:
    """The first-order expansion of z at one prompt, at every layer."""

    J: Float[Tensor, "layer k d"]
    """∂z/∂s_ℓ; row i is ∂z_i, or of the i-th cotangent where some were given."""
    s: Float[Tensor, "layer d"]
    z: Float[Tensor, "d"]

    @property
    def Js(self) -> Float[Tensor, "layer k"]:
        """J_ℓ s_ℓ: what the map alone says of the state it was taken at."""
        return torch.einsum("lij,lj->li", self.J, self.s)

    @property
    def b(self) -> Float[Tensor, "layer d"]:
        """z − J_ℓ s_ℓ, of a whole Jacobian."""
        return self.z - self.Js


def expand(
    model: Model,
    prompt: Prompt,
    *,
    along: Float[Tensor, "k d"] | None = None,
    prefix: Prefix | None = None,
    rows: int | None = None,
    progress: Progress = silent,
) -> Expansion:
    """Expand z at a prompt: whole, or `along` k cotangents only. `rows` of them at a time, chosen from the machine's memory
    if not said; `prefix` where the prompt's beginning has been run before."""
    prefix = prefix or Prefix.of(model, prompt.ids, prompt.at)
    place, d = prompt.at - prefix.length, model.d_model
    rows = rows or rows_at_once(model, len(prompt.ids), len(prompt.ids) - prefix.length)
    keys: list[Key] = [*(("resid_pre", layer) for layer in range(model.n_layers)), ("resid_final", None)]
    each = torch.eye(d) if along is None else along
    each = each.to(model.device, model.hf.dtype)
    k = len(each)
    J = each.new_empty((model.n_layers, k, d))
    s, z = J.new_empty((model.n_layers, d)), J.new_empty(d)
    kept: dict[Key, Tensor] = {}
    execute(
        model,
        prefix.batch(),
        {key: partial(_keep, kept, key) for key in keys},
        stop=model.n_layers,
        grad=True,
        given=prefix.past(1),
    )
    streams = [kept[key] for key in keys[:-1]]
    end = torch.stack([kept[keys[-1]][0, i] for i in prompt.ends]).mean(dim=0)
    s[:] = torch.stack([stream[0, place].detach() for stream in streams])
    z[:] = end.detach()
    for start in range(0, k, rows):
        found = torch.autograd.grad(end, streams, each[start : start + rows], is_grads_batched=True, retain_graph=True)
        for layer, gradient in enumerate(found):
            J[layer, start : start + rows] = gradient[:, 0, place]
        model.cost.backwards += len(found[0])
        progress("jacobian", min(start + rows, k), k)
    return Expansion(J, s, z)


def _keep(kept: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    kept[key] = value
    return value


def rows_at_once(model: Model, width: int, rest: int) -> int:
    """192, halved until that many rows fit into an eighth of the memory that the weights leave; more are no faster on a
    CPU.

    Another number of rows may be another order of rounding (on a CPU in float32 none was found): so it follows what the
    machine has, not what happens to be free, and a run that is taken up again goes on as it began.
    """
    config = model.config
    hidden = int(getattr(config, "intermediate_size", None) or 4 * model.d_model)
    size = torch.finfo(model.hf.dtype).bits // 8
    tokens = rest * (12 * model.d_model + 4 * hidden)
    cache = 4 * width * model.n_kv_heads * model.d_head
    attention = 3 * model.n_heads * rest * width
    row = size * model.n_layers * (tokens + cache + attention)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())
    room, rows = (_memory(model.device) - weights) // 8, MOST
    while rows > 1 and rows * row > room:
        rows //= 2
    return rows


def _memory(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else total_bytes()
