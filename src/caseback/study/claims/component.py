"""What a claim is about, and what stands for it in a run.

A component is bound to a model: its `Target` is what is put from one run into the other, places (each a site, or a part of
what lies there) or a circuit, or a hypothesis that is scrubbed. Its kind says which tests can be done with it. How
components are written is in `caseback.study.claims.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.hypothesis import Hypothesis
from caseback.core.errors import SiteError, StudyError
from caseback.model.batch import Batch
from caseback.model.sites import Site
from caseback.study.claims.parts import Part

__all__ = ["Component", "Place", "Target", "where"]

Kind = Literal["sites", "direction", "feature", "relation", "circuit", "hypothesis"]
CAN: dict[Kind, tuple[str, ...]] = {
    "sites": ("predict", "effect", "sufficiency", "necessity", "minimality", "specificity", "adversarial"),
    "direction": ("predict", "effect", "sufficiency", "necessity", "specificity", "adversarial"),
    "feature": ("predict", "effect", "sufficiency", "necessity", "specificity", "adversarial"),
    "relation": ("effect", "sufficiency", "necessity", "specificity", "adversarial"),
    "circuit": ("sufficiency", "necessity", "specificity", "adversarial"),
    "hypothesis": ("scrub", "minimality", "specificity", "adversarial"),
}
"""Kind of component → the tests that can be done with it."""


@dataclass(frozen=True, eq=False)
class Place:
    """What lies at a site, or a part of it."""

    site: Site
    part: Part | None = None


Target = tuple[Place, ...] | Circuit | Hypothesis


@dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """A component as it was written, bound to a model."""

    text: str
    """With run ids and sizes in full."""
    kind: Kind
    target: Target
    scores: Scores | None = None
    """Of a circuit: what its random twins are shuffled from."""
    sha256: str | None = None
    """Of the files or numbers a direction, a feature, a relation's operator or a hypothesis is made of."""
    run: str | None = None
    """Id of the run a circuit or a relation's operator is of."""
    subjects: tuple[str, ...] = ()
    """Of a relation: those its operator was estimated on. Pairs that name one are left out of the tests."""

    @property
    def sites(self) -> tuple[Site, ...]:
        if isinstance(self.target, Hypothesis):
            return self.target.sites
        return () if isinstance(self.target, Circuit) else tuple(place.site for place in self.target)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what it can be tested without: its sites, a hypothesis' nodes."""
        return tuple(self.target.nodes) if isinstance(self.target, Hypothesis) else tuple(map(str, self.sites))

    @property
    def looks(self) -> bool:
        """Whether it is of heads, which attend to something."""
        heads = all(site.name in ("z", "q", "pattern") and site.head is not None for site in self.sites)
        return self.kind == "sites" and heads

    @property
    def fires(self) -> bool:
        """Whether it has one activation a token."""
        return self.kind in ("direction", "feature")

    @property
    def can(self) -> tuple[str, ...]:
        """The tests that can be done with it."""
        left_out = set()
        if len(self.parts) < 2:
            left_out.add("minimality")
        if not (self.looks or self.fires):
            left_out.add("predict")
        return tuple(test for test in CAN[self.kind] if test not in left_out)

    def require(self, tests: tuple[str, ...]) -> None:
        """Raise StudyError for a test that cannot be done with this component."""
        for test in tests:
            if test not in self.can:
                raise StudyError(f"the test {test!r} cannot be done with {self.text}: {_WHY[test]}; {self._otherwise}")

    def require_prediction(self, *, attends: bool, active: bool) -> None:
        """Raise StudyError for a prediction that is not about such a component."""
        for asked, fits, why in ((attends, self.looks, _LOOKS), (active, self.fires, _FIRES)):
            if asked and not fits:
                raise StudyError(f"{why}, which {self.text} is not; {self._otherwise}")

    @property
    def _otherwise(self) -> str:
        return f"it can be tested by {', '.join(self.can)}"

    def without(self, part: int) -> Target:
        """The component less one of its parts."""
        assert not isinstance(self.target, Circuit)
        if isinstance(self.target, Hypothesis):
            return self.target.without(self.parts[part])
        return tuple(place for i, place in enumerate(self.target) if i != part)


_LOOKS = "a prediction of attention is about heads (sites such as z.9.6)"
_FIRES = "a prediction of activation is about one direction or feature"
_WHY = {
    "predict": f"{_LOOKS}, and {_FIRES}",
    "sufficiency": "a hypothesis is scrubbed, which puts in all it says at once",
    "necessity": "a hypothesis is scrubbed, which puts in all it says at once",
    "scrub": "scrubbing takes a hypothesis (hypothesis:FILE)",
    "minimality": "it takes several sites joined by '+', or several nodes of a hypothesis",
    "effect": "circuits and hypotheses have no mean to be replaced by",
}


def where(site: Site, batch: Batch) -> Bool[Tensor, "batch pos"]:
    """The tokens a site's position names; raises SiteError for a span or token the prompts do not have."""
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    if site.position is None:
        return batch.mask
    if site.span is None:
        index = -1 if site.position == "end" else int(site.position)
        token = batch.last + 1 + index if index < 0 else batch.mask.long().argmax(dim=1) + index
        if bool(((index if index >= 0 else -index - 1) >= batch.lengths).any()):
            raise SiteError(f"site {str(site)!r}: a prompt has only {int(batch.lengths.min())} tokens")
        return places == token[:, None]
    name, inner = site.span
    if name not in batch.spans:
        raise SiteError(
            f"site {str(site)!r}: these prompts have no span {name!r}; they have: {', '.join(batch.spans) or 'none'}"
        )
    start, end = batch.spans[name].unbind(dim=1)
    if inner is not None:
        if bool(((inner if inner >= 0 else -inner - 1) >= end - start).any()):
            raise SiteError(f"site {str(site)!r}: span {name!r} has only {int((end - start).min())} tokens in a prompt")
        start = start + inner if inner >= 0 else end + inner
        end = start + 1
    return (places >= start[:, None]) & (places < end[:, None])
