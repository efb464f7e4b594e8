"""Random components: what a claim's component is compared with, of the same kind, number and place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.hypothesis import Hypothesis, others
from caseback.circuits.select import best_first, largest, shuffled
from caseback.core.errors import StudyError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import plan_sites
from caseback.model.sites import Site
from caseback.study.claims.active import values_at
from caseback.study.claims.component import Component, Place, Target, where
from caseback.study.claims.parts import Feature, Subspace, random_subspaces

__all__ = ["Drawn", "draw"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Random components of the same kind and number."""

    targets: tuple[Target, ...]
    all: bool
    """Whether there are no others."""


def draw(component: Component, model: Model, n: int, batches: Iterable[Batch], *, seed: int) -> Drawn:
    """n random components, fewer where there are fewer: other heads or layers at the same positions, subspaces of as many
    directions at the same site, other features that are active at the same tokens of `batches`, circuits of as many edges from
    shuffled scores, or hypotheses of the same structure in other places. Raises StudyError where there is none.

    Cost: for features one forward a prompt, up to the site; else none.
    """
    rng = np.random.default_rng(seed)
    if isinstance(component.target, Circuit):
        assert component.scores is not None
        circuits = (_shuffled(component.scores, component.target, seed + i) for i in range(n))
        return Drawn(targets=tuple(circuits), all=False)
    if isinstance(component.target, Hypothesis):
        moved = others(component.target, model, n, rng)
        if not moved:
            raise StudyError(
                f"{model.name} has no other place for {component.text}, so there is nothing to compare it with"
            )
        return Drawn(targets=moved, all=len(moved) == component.target.n_elsewhere(model))
    place = component.target[0]
    if isinstance(place.part, Subspace):
        return Drawn(targets=tuple((Place(place.site, p),) for p in random_subspaces(place.part, n, rng)), all=False)
    if isinstance(place.part, Feature):
        pool = _active(place.part, place.site, model, batches)
        if not pool:
            raise StudyError(
                f"no other feature of its dictionary is active where {component.text} is looked at, so there is nothing to "
                "compare it with"
            )
        chosen = pool if len(pool) <= n else [pool[i] for i in rng.permutation(len(pool))[:n]]
        targets = tuple((Place(place.site, Feature(place.part.dictionary, i)),) for i in chosen)
        return Drawn(targets=targets, all=len(pool) <= n)
    return _others(model, component.sites, n, rng)


def _active(feature: Feature, site: Site, model: Model, batches: Iterable[Batch]) -> list[int]:
    """The other features of its dictionary that are active at some of the tokens."""
    active = torch.zeros(feature.dictionary.n_features, dtype=torch.bool, device=model.device)
    for batch in batches:
        x = values_at(model, batch, site)[where(site, batch)]
        active |= (feature.dictionary.encode(x) > 0).any(dim=0)
    return [i for i in active.nonzero()[:, 0].tolist() if i != feature.number]


def _shuffled(scores: Scores, circuit: Circuit, seed: int) -> Circuit:
    return largest(best_first(shuffled(scores, seed)), lambda each: float(each.n_edges), float(circuit.n_edges))


def _others(model: Model, sites: tuple[Site, ...], n: int, rng: np.random.Generator) -> Drawn:
    """Other places of the same names and positions, each name's drawn without the component's own."""
    pools = [[s for s in plan_sites(model, [_open(site)]) if s not in sites] for site in sites]
    names = [site.name for site in sites]
    if any(len(pool) < names.count(name) for pool, name in zip(pools, names, strict=True)):
        raise StudyError(f"{model.name} has too few other sites like {'+'.join(map(str, sites))} to compare it with")
    if np.prod([float(len(pool)) for pool in pools]) <= n:
        found = [chosen for chosen in product(*pools) if len(set(chosen)) == len(chosen)]
        unique = {tuple(sorted(chosen, key=str)): chosen for chosen in found}
        return Drawn(targets=tuple(tuple(Place(s) for s in chosen) for chosen in unique.values()), all=True)
    if len(sites) == 1:
        picks = [(pools[0][i],) for i in rng.permutation(len(pools[0]))[:n]]
        return Drawn(targets=tuple(tuple(Place(s) for s in chosen) for chosen in picks), all=False)
    seen: dict[tuple[Site, ...], tuple[Site, ...]] = {}
    for _ in range(20 * n):
        chosen = tuple(pool[int(rng.integers(len(pool)))] for pool in pools)
        if len(set(chosen)) == len(chosen):
            seen.setdefault(tuple(sorted(chosen, key=str)), chosen)
        if len(seen) == n:
            break
    return Drawn(targets=tuple(tuple(Place(s) for s in chosen) for chosen in seen.values()), all=False)


def _open(site: Site) -> str:
    """The pattern of all layers and heads of a site's name, at its position."""
    head = ".*" if site.head is not None else ""
    return f"{site.name}.*{head}" + (f"@{site.position}" if site.position is not None else "")
