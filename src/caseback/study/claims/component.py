"""What a claim is about, in one notation, and what stands for it in a run.

    z.23.0@to                       a site; @SPAN, @end or @TOKEN where it is not meant at all positions
    z.23.0@to+mlp_out.20@to         several sites together
    circuit:RUN or circuit:RUN:N    the circuit of a circuit run, at most N edges large
    direction:FILE@resid_post.12@to one vector of a safetensors file, at a site

A `Target` is what is put from one run into the other: places (each a site, or one direction at it) or a circuit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.select import best_first, largest, shuffled
from caseback.core.errors import SiteError, StudyError
from caseback.core.provenance import sha256_file
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import plan_sites
from caseback.model.sites import Site, parse
from caseback.study.circuit import circuit_of

if TYPE_CHECKING:
    from caseback.study.store import Study

__all__ = ["Component", "Drawn", "Place", "Target", "read_component", "where"]

Kind = Literal["sites", "circuit", "direction"]
CAN: dict[Kind, tuple[str, ...]] = {
    "sites": ("predict", "effect", "sufficiency", "necessity", "minimality", "specificity", "adversarial"),
    "direction": ("effect", "sufficiency", "necessity", "specificity", "adversarial"),
    "circuit": ("sufficiency", "necessity", "specificity", "adversarial"),
}
"""Kind of component → the tests that can be done with it."""


@dataclass(frozen=True, eq=False)
class Place:
    """What lies at a site, or one direction of it."""

    site: Site
    direction: Float[Tensor, "d"] | None = None
    """Of length 1."""


Target = tuple[Place, ...] | Circuit


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Random components of the same kind and number."""

    targets: tuple[Target, ...]
    all: bool
    """Whether there are no others."""


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
    """Of a direction's file."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return () if isinstance(self.target, Circuit) else tuple(place.site for place in self.target)

    def require(self, tests: tuple[str, ...]) -> None:
        """Raise StudyError for a test that cannot be done with this component."""
        can = self.can
        for test in tests:
            if test not in can:
                why = {
                    "predict": "a prediction of attention is about heads (sites such as z.9.6)",
                    "minimality": "it takes several sites joined by '+'"
                    if self.kind != "circuit"
                    else "the circuit's own run has tried its edges one by one",
                    "effect": "a circuit has no mean to be replaced by",
                }[test]
                raise StudyError(
                    f"the test {test!r} cannot be done with {self.text}: {why}; it can be tested by {', '.join(can)}"
                )

    @property
    def can(self) -> tuple[str, ...]:
        """The tests that can be done with it."""
        left_out = set()
        if len(self.sites) < 2:
            left_out.add("minimality")
        if any(site.name not in ("z", "q", "pattern") or site.head is None for site in self.sites):
            left_out.add("predict")
        return tuple(test for test in CAN[self.kind] if test not in left_out)

    def without(self, part: int) -> Target:
        """The component less one of its places."""
        assert not isinstance(self.target, Circuit)
        return tuple(place for i, place in enumerate(self.target) if i != part)

    def random(self, model: Model, n: int, *, seed: int) -> Drawn:
        """n random components (fewer where there are fewer): other heads or layers at the same positions, other directions
        at the same site, or circuits of as many edges from shuffled scores. Raises StudyError where there is none."""
        rng = np.random.default_rng(seed)
        if isinstance(self.target, Circuit):
            assert self.scores is not None
            return Drawn(targets=tuple(_shuffled(self.scores, self.target, seed + i) for i in range(n)), all=False)
        if self.kind == "direction":
            (place,) = self.target
            assert place.direction is not None
            size = len(place.direction)
            drawn = torch.tensor(rng.normal(size=(n, size)), dtype=torch.float32)
            return Drawn(targets=tuple((Place(place.site, d / d.norm()),) for d in drawn), all=False)
        return _others(model, self.sites, n, rng)


def read_component(text: str, study: Study, model: Model) -> Component:
    """Parse the notation; raises StudyError or SiteError that says what was asked and what there is."""
    text = text.strip()
    if text.startswith("circuit:"):
        return _circuit(text, study, model)
    if text.startswith("direction:"):
        return _direction(text, model)
    if ":" in text:
        raise StudyError(
            f"{text!r} is no component: write sites joined by '+' (z.9.6@to+mlp_out.3), circuit:RUN, circuit:RUN:EDGES or "
            "direction:FILE@SITE; relations are tested by `caseback relation`"
        )
    sites = tuple(_site(part, model) for part in text.split("+"))
    if len(set(sites)) < len(sites):
        raise StudyError(f"{text!r} names a site twice; name each once")
    return Component(text="+".join(map(str, sites)), kind="sites", target=tuple(Place(site) for site in sites))


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


def _site(text: str, model: Model) -> Site:
    site, any_layer, any_head = parse(text)
    if any_layer or any_head:
        raise StudyError(f"{text!r} names many sites at once; a claim is about named ones, joined by '+'")
    if site.layer is None:
        raise StudyError(f"{text!r} has no layers, so there is no other place to compare it with; name a site with one")
    plan_sites(model, [site])
    return site


def _direction(text: str, model: Model) -> Component:
    file, _, rest = text.removeprefix("direction:").partition("@")
    if not file or not rest:
        raise StudyError(
            f"{text!r} is not of the form direction:FILE@SITE, as in direction:truth.safetensors@resid_post.12"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load

    site = _site(rest, model)
    if site.name == "pattern" or (site.kind.heads and site.head is None):
        raise StudyError(f"a direction lies at one vector a token, which {site} is not; name a stream, or a head of z")
    try:
        vectors = load(Path(file).read_bytes())
    except (SafetensorError, OSError) as error:
        raise StudyError(f"{file} cannot be read as a safetensors file ({error})") from error
    if len(vectors) != 1 or next(iter(vectors.values())).dim() != 1:
        raise StudyError(
            f"{file} holds {len(vectors)} arrays ({', '.join(vectors)}); a direction is a file with one vector"
        )
    vector = next(iter(vectors.values())).float()
    if not bool(vector.isfinite().all()) or float(vector.norm()) == 0:
        raise StudyError(f"the vector in {file} is zero or not finite, so it is no direction")
    return Component(
        text=f"direction:{file}@{site}",
        kind="direction",
        target=(Place(site, vector / vector.norm()),),
        sha256=sha256_file(file),
    )


def _circuit(text: str, study: Study, model: Model) -> Component:
    run, _, edges = text.removeprefix("circuit:").partition(":")
    if edges and not (edges.isdigit() and int(edges)):
        raise StudyError(f"{text!r}: a circuit's size is a number of edges, as in circuit:{run}:500")
    record = study.find(run)
    kept = circuit_of(record, int(edges) if edges else None)
    if record.spec.model.get("files") != dict(model.source.files):
        raise StudyError(f"run {record.id} is of {record.spec.model.get('id')}, not of {model.name}")
    return Component(text=f"circuit:{record.id}:{kept.limit}", kind="circuit", target=kept.circuit, scores=kept.scores)


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
