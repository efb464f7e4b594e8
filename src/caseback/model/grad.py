"""Gradients of a metric at sites.

One forward with a graph from the first block on, one backward. Parameters get no gradients and nothing is accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import SiteError
from caseback.model.attention import Attend
from caseback.model.batch import Batch
from caseback.model.run import cut, execute, plan_sites
from caseback.model.sites import Site
from caseback.model.taps import Key

if TYPE_CHECKING:
    from caseback.model.model import Model

__all__ = ["Captured", "Gradients", "capture", "gradients"]

Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Captured:
    """Whole values of tapped places with their graph, and the metric."""

    values: Mapping[Key, Tensor]
    logits: Float[Tensor, "batch vocab"]

    def gradients(
        self, metric: Float[Tensor, "batch"], keys: Sequence[Key], *, keep_graph: bool = False
    ) -> dict[Key, Tensor]:
        """∂ Σ metric / ∂ value for each key; raises SiteError for a value the metric does not depend on."""
        if not metric.requires_grad:
            raise SiteError("the metric does not depend on the logits, so it has no gradient anywhere")
        found = torch.autograd.grad(
            metric.sum(), [self.values[key] for key in keys], retain_graph=keep_graph, allow_unused=True
        )
        for key, gradient in zip(keys, found, strict=True):
            if gradient is None:
                raise SiteError(f"the metric does not depend on {Site(*key)}, so there is no gradient there")
        return dict(zip(keys, found, strict=True))


def _keep(values: dict[Key, Tensor], key: Key, embed: Tensor | None, value: Tensor) -> Tensor:
    if key == ("resid_pre", 0) and embed is not None:
        value = embed.to(value).detach().requires_grad_()
    if key[0].endswith("_in"):
        # an alias: the same tensor may go elsewhere too (parallel blocks, no norm), and only this reader's part is asked for
        value = value.view_as(value)
    values[key] = value
    # the model file may clamp a projection's output in place (OLMo)
    return value.clone() if key[0].endswith("_raw") else value


def capture(
    model: Model, batch: Batch, keys: Sequence[Key], *, embed: Tensor | None = None, attend: Attend | None = None
) -> Captured:
    """Run with a graph and keep the very tensors at the tapped places. `embed` replaces the stream entering block 0,
    `attend` the attention function."""
    values: dict[Key, Tensor] = {}
    wanted: list[Key] = list(keys)
    if embed is not None and ("resid_pre", 0) not in wanted:
        wanted.append(("resid_pre", 0))
    logits = execute(
        model,
        batch.to(model.device),
        {key: partial(_keep, values, key, embed) for key in wanted},
        grad=True,
        attend=attend,
    )
    assert logits is not None
    return Captured(values, logits)


@dataclass(frozen=True)
class Gradients:
    """Values and gradients at sites: `grads["q.3.1"]`, `grads.values["q.3.1"]`; the metric per example."""

    metric: Float[Tensor, "batch"]
    values: Mapping[str, Tensor] = field(repr=False)
    gradients: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, site: str | Site) -> Tensor:
        try:
            return self.gradients[str(site)]
        except KeyError:
            raise SiteError(f"no gradient was taken at {str(site)!r}; there are: {', '.join(self.gradients)}") from None


def gradients(model: Model, batch: Batch, metric: Metric, *, at: Sequence[str | Site]) -> Gradients:
    """The gradient of `metric(logits [batch, vocab]) → [batch]`, summed over the batch, at every site of `at`."""
    batch = batch.to(model.device)
    sites = plan_sites(model, at)
    keys = list(dict.fromkeys(site.tap for site in sites))
    captured = capture(model, batch, keys)
    with torch.enable_grad():  # also inside a caller's no_grad
        per_example = metric(captured.logits)
        found = captured.gradients(per_example, keys)
    model.cost.backwards += batch.n
    values = {str(site): cut(captured.values[site.tap].detach(), site, batch) for site in sites}
    return Gradients(per_example.detach(), values, {str(site): cut(found[site.tap], site, batch) for site in sites})
