"""Edits: what to do with the value at a site, as data.

Each edit names a site and says how the value there changes. An edit is plain frozen data (tensors included), so a plan
can be printed, batched as rows of a sweep and sent elsewhere; only `Call` holds a function. The value an edit sees has
the site's own shape, cut to its head and position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import SiteError
from caseback.model.sites import Site

__all__ = ["Ablate", "Add", "Call", "Edit", "Patch", "Project", "Scale", "Set"]


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change of the value at `site`."""

    site: str | Site

    @abstractmethod
    def new(self, value: Tensor) -> Tensor:
        """The value after the edit; same shape."""


def _fit(value: Tensor, given: Tensor | float, site: str | Site) -> Tensor:
    given = torch.as_tensor(given).to(value)
    try:
        return given.expand_as(value) if given.shape != value.shape else given
    except RuntimeError:
        raise SiteError(
            f"an edit at {str(site)!r} gives a value of shape {tuple(given.shape)} where the site has "
            f"{tuple(value.shape)}"
        ) from None


@dataclass(frozen=True, eq=False)
class Set(Edit):
    """Put a value in place of what is there."""

    value: Tensor | float

    def new(self, value: Tensor) -> Tensor:
        return _fit(value, self.value, self.site)


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Add a value, such as a steering vector."""

    value: Tensor | float

    def new(self, value: Tensor) -> Tensor:
        return value + _fit(value, self.value, self.site)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply by a factor."""

    factor: float

    def new(self, value: Tensor) -> Tensor:
        return value * self.factor


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """Put in what the same site held in another run: its tensor, cut to the same head and position (see `Run.patch`)."""

    source: Tensor

    def new(self, value: Tensor) -> Tensor:
        if self.source.shape != value.shape:
            raise SiteError(
                f"a patch at {str(self.site)!r} has shape {tuple(self.source.shape)} where the site has "
                f"{tuple(value.shape)}: the two runs differ in rows or length"
            )
        return self.source.to(value)


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Take a part away: set it to zero, to the mean of a reference over its rows, or to the reference itself (the
    counterfactual)."""

    how: Literal["zero", "mean", "counterfactual"]
    reference: Tensor | None = None
    """Values of the same site in reference runs; needed unless `how` is "zero"."""

    def __post_init__(self) -> None:
        if self.how not in ("zero", "mean", "counterfactual"):
            raise SiteError(
                f"{str(self.site)!r} cannot be ablated by {self.how!r}; there are: zero, mean, counterfactual"
            )

    def new(self, value: Tensor) -> Tensor:
        if self.how == "zero":
            return torch.zeros_like(value)
        if self.reference is None:
            raise SiteError(
                f"ablating {str(self.site)!r} by {self.how!r} needs `reference`: the values of that site in the "
                "reference runs"
            )
        given = self.reference.mean(dim=0, keepdim=True) if self.how == "mean" else self.reference
        return _fit(value, given, self.site)


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """Remove a subspace (or keep nothing but it)."""

    directions: Float[Tensor, "n d"]
    """Spanning vectors, not necessarily orthonormal."""
    keep: bool = False

    def new(self, value: Tensor) -> Tensor:
        if self.directions.shape[-1] != value.shape[-1]:
            raise SiteError(
                f"a projection at {str(self.site)!r} has directions of {self.directions.shape[-1]} dimensions where "
                f"the site has {value.shape[-1]}"
            )
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        directions = self.directions.to(wide)
        rank = int(torch.linalg.matrix_rank(directions))  # a QR would make up directions where some depend on others
        basis = torch.linalg.svd(directions, full_matrices=False).Vh[:rank]
        inside = ((wide @ basis.T) @ basis).to(value)
        return inside if self.keep else value - inside


@dataclass(frozen=True, eq=False)
class Call(Edit):
    """Any function of the value."""

    function: Callable[[Tensor], Tensor]

    def new(self, value: Tensor) -> Tensor:
        result = self.function(value)
        if not isinstance(result, Tensor) or result.shape != value.shape:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise SiteError(
                f"the function of the edit at {str(self.site)!r} returned {got} where a tensor of shape "
                f"{tuple(value.shape)} was expected"
            )
        return result
