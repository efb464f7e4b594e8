"""Parts of what lies at a site that can be put from one run into another by themselves.

    subspace     x + Vᵀ V (x' − x)             rows of V orthonormal: one direction, or those a linear operator reads
    feature      x + (f_i(x') − f_i(x)) d_i     the activation of one feature of a dictionary, along its own direction

Both are numbers read off a vector and a change of the vector for a change of the numbers. For the operator W of a relation
with V its right singular vectors up to rank ρ the first is the edit by its pseudo-inverse, W†_ρ (W x' − W x)
(`caseback.relations.causal`), with what W says of both subjects in the place of what the model says.

Invariant: a subspace of all dimensions is the whole site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caseback.model.dictionary import Dictionary

__all__ = ["Feature", "Part", "Subspace", "random_subspaces"]


class Part(ABC):
    """Some of what a vector holds."""

    @property
    @abstractmethod
    def label(self) -> str | None:
        """Its name in a table; None for one that was drawn."""

    @abstractmethod
    def read(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        """Its numbers."""

    @abstractmethod
    def write(self, change: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """What is added to a vector for a change of the numbers."""


@dataclass(frozen=True, eq=False)
class Subspace(Part):
    """The components along some directions."""

    V: Float[Tensor, "k d"]
    """Orthonormal rows."""

    @property
    def label(self) -> str | None:
        return None

    def read(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        return x @ self.V.to(x).T

    def write(self, change: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        return change @ self.V.to(change)


@dataclass(frozen=True, eq=False)
class Feature(Part):
    """One feature of a dictionary."""

    dictionary: Dictionary
    number: int

    @property
    def label(self) -> str | None:
        return f"feature {self.number}"

    def read(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        i, whole = slice(self.number, self.number + 1), self.dictionary
        if whole.activation == "topk":  # whether it is among the k says the comparison with all others
            return whole.encode(x)[..., i].to(x)
        threshold = None if whole.threshold is None else whole.threshold[i]
        one = replace(whole, W_enc=whole.W_enc[:, i], b_enc=whole.b_enc[i], W_dec=whole.W_dec[i], threshold=threshold)
        return one.encode(x).to(x)

    def write(self, change: Float[Tensor, "*rows 1"]) -> Float[Tensor, "*rows d"]:
        return change * self.dictionary.W_dec[self.number].to(change)


def random_subspaces(like: Subspace, n: int, rng: np.random.Generator) -> list[Subspace]:
    """n subspaces of as many directions, each drawn evenly from all there are."""
    k, d = like.V.shape
    drawn = torch.tensor(rng.normal(size=(n, d, k)), dtype=torch.float32)
    return [Subspace(torch.linalg.qr(each).Q.T) for each in drawn]
