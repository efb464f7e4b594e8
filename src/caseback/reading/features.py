"""Direct logit attribution over a dictionary's features: which of them write the answer?

A site's value at the last token is x = Σ_i f_i d_i + b_dec + error, so its term g · x of the metric (`caseback.reading.dla`)
is, exactly,

    g · x = Σ_i f_i (d_i · g)  +  b_dec · g  +  error · g        [features, bias, what the dictionary misses]

(the attribution of Templeton et al. 2024, "Scaling Monosemanticity", for the direct path, where it is no approximation).
The sum is exact under any dictionary, a meaningless one too: it says nothing for the features. That the error is small
against the whole, and larger under the controls `rotated` and `shuffled`, does. Of many features the largest are kept by
name and the others summed, so memory does not grow with examples times features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.evidence import mean_intervals, ratio_interval
from caseback.evidence.intervals import DEFAULT, Interval, Resampling
from caseback.model.dictionary import Dictionary
from caseback.reading.dla import Cut

__all__ = ["FeatureTerms", "attribute_features"]

AT_ONCE = 2**24
"""Entries of an array [example, feature] made at a time: 64 MB in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTerms:
    """Terms of a site's features in logits, example by example: features + rest + bias + error = g · x."""

    site: str
    features: Int[np.ndarray, "top"]
    """The features with the largest mean |term|, the largest first; those that were never active are left out."""
    terms: Float[np.ndarray, "top example"]
    active: Float[np.ndarray, "top"]
    """Share of the examples in which each is active."""
    rest: Float[np.ndarray, "example"]
    """All other features together."""
    bias: Float[np.ndarray, "example"]
    error: Float[np.ndarray, "example"]
    whole: Float[np.ndarray, "example"]
    """The site's own term, g · x."""
    outside: Float[np.ndarray, "example"]
    """Of everything that is not at the site; with `whole` it sums to the metric."""
    l0: float
    """Active features an example, on average."""
    fvu: float
    """Fraction of variance unexplained at the last token: Σ |x − x̂|² / Σ |x − mean x|². Where the prompts end alike there is
    little variance, and it can be far above 1."""
    concentration: float
    """Share of Σ |term| over all features that the kept ones have; nan where no feature is active."""

    def intervals(self, *, how: Resampling = DEFAULT) -> tuple[Interval, ...]:
        """Mean terms of the kept features, with bootstrap intervals."""
        return mean_intervals(self.terms, how=how)

    def explained(self, *, how: Resampling = DEFAULT) -> Interval:
        """1 − Σ |error term| / Σ |site's term|: 1 where nothing is missed, 0 or less where as much is missed as there is."""
        missed = ratio_interval(np.abs(self.error), np.abs(self.whole), how=how)
        return Interval(
            value=1 - missed.value,
            low=1 - missed.high,
            high=1 - missed.low,
            n=missed.n,
            level=missed.level,
            method=missed.method,
        )


@torch.no_grad()
def attribute_features(cut: Cut, dictionary: Dictionary, *, top: int = 20) -> FeatureTerms:
    """Split a site's term over the features of its dictionary; no forward of the model.

    Raises ReadingError for a dictionary of another site or width.
    """
    if dictionary.site != cut.site:
        raise ReadingError(f"the dictionary is of {dictionary.site}, not of {cut.site}: read that site instead")
    if dictionary.d_model != cut.x.shape[1]:
        raise ReadingError(
            f"the dictionary is of vectors of {dictionary.d_model} entries and {cut.site} of this model has "
            f"{cut.x.shape[1]}: it belongs to another model"
        )
    dictionary = dictionary.to(cut.x.device)
    size = cut.g.new_zeros(dictionary.n_features, dtype=torch.float64)
    total, count, missed, errors, biases = [], 0, 0.0, [], []
    for part in _parts(cut, dictionary):
        size += part.terms.abs().sum(dim=0, dtype=torch.float64)
        count += int((part.f != 0).sum())
        gap = part.x - dictionary.decode(part.f)
        missed += float(gap.double().square().sum())
        errors.append((gap * part.g).sum(dim=1))
        biases.append(part.g @ dictionary.b_dec)
        total.append(part.terms.sum(dim=1))
    kept = size.argsort(descending=True, stable=True)[:top]
    kept = kept[size[kept] > 0]
    some = [(part.terms[:, kept], part.f[:, kept] != 0) for part in _parts(cut, dictionary)]
    terms = torch.cat([terms for terms, _ in some]).T
    spread = float((cut.x - cut.x.mean(dim=0)).double().square().sum())
    weight = float(size.sum())
    return FeatureTerms(
        site=cut.site,
        features=kept.cpu().numpy(),
        terms=_array(terms),
        active=_array(torch.cat([on for _, on in some]).double().mean(dim=0)),
        rest=_array(torch.cat(total) - terms.sum(dim=0)),
        bias=_array(torch.cat(biases)),
        error=_array(torch.cat(errors)),
        whole=_array((cut.g * cut.x).sum(dim=1)),
        outside=cut.outside,
        l0=count / len(cut.x),
        fvu=missed / spread if spread else float("nan"),
        concentration=float(size[kept].sum()) / weight if weight else float("nan"),
    )


class _Part(NamedTuple):
    """Some examples."""

    x: Float[Tensor, "example d"]
    g: Float[Tensor, "example d"]
    f: Float[Tensor, "example feature"]
    terms: Float[Tensor, "example feature"]


def _parts(cut: Cut, dictionary: Dictionary) -> Iterator[_Part]:
    for x, g in zip(*(rows.split(max(1, AT_ONCE // dictionary.n_features)) for rows in (cut.x, cut.g)), strict=True):
        f = dictionary.encode(x)
        yield _Part(x, g, f, f * (g @ dictionary.W_dec.T))


def _array(value: Tensor) -> Float[np.ndarray, "*shape"]:
    return value.double().cpu().numpy()
