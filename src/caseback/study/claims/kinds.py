"""How components are written, in one notation.

    z.23.0@to                           a site; @SPAN, @end or @TOKEN where it is not meant at all positions
    z.23.0@to+mlp_out.20@to             several sites together
    direction:FILE@resid_post.12@to     one vector of a safetensors file, at a site
    feature:DICTIONARY:7@to             one feature of a dictionary, whose file says the site
    relation:RUN@country[-1]            what the operator of a relation run reads of the stream that enters its block
    relation:RUN:64@country[-1]         along its 64 first directions; as many as read all it reads, if not said
    circuit:RUN or circuit:RUN:N        the circuit of a circuit run, at most N edges large
    hypothesis:FILE                     a hypothesis for causal scrubbing (docs/scrub.md), or the name of one in the library

Another kind is another reader in `READERS`, and its tests in `component.CAN`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from caseback.circuits.hypothesis import hypothesis_file, read_hypothesis
from caseback.core.errors import StudyError
from caseback.core.provenance import sha256_file, sha256_json
from caseback.model.dictionary import dictionary_files, read_dictionary
from caseback.model.model import Model
from caseback.model.run import plan_sites
from caseback.model.sites import Site, parse
from caseback.relations.operator import svd
from caseback.study.circuit import circuit_of
from caseback.study.claims.component import Component, Place
from caseback.study.claims.parts import Feature, Subspace
from caseback.study.judged import read_judged
from caseback.study.relation import RelationConfig

if TYPE_CHECKING:
    from caseback.study.store import Study

__all__ = ["READERS", "read_component"]


def read_component(text: str, study: Study, model: Model) -> Component:
    """The component a text names. Raises StudyError or SiteError, naming what there is."""
    kind, colon, _ = text.partition(":")
    if colon and kind in READERS:
        return READERS[kind](text, study, model)
    if colon:
        raise StudyError(
            f"{text!r} is no component: write sites joined by '+' (z.9.6@to+mlp_out.3), direction:FILE@SITE, "
            "feature:DICTIONARY:NUMBER, relation:RUN@SPAN, circuit:RUN, circuit:RUN:EDGES or hypothesis:FILE"
        )
    sites = tuple(_site(part, model) for part in text.split("+"))
    if len(set(sites)) < len(sites):
        raise StudyError(f"{text!r} names a site twice; name each once")
    return Component(text="+".join(map(str, sites)), kind="sites", target=tuple(Place(site) for site in sites))


def _site(text: str, model: Model) -> Site:
    site, any_layer, any_head = parse(text)
    if any_layer or any_head:
        raise StudyError(f"{text!r} names many sites at once; a claim is about named ones, joined by '+'")
    if site.layer is None:
        raise StudyError(f"{text!r} has no layers, so there is no other place to compare it with; name a site with one")
    plan_sites(model, [site])
    return site


def _direction(text: str, study: Study, model: Model) -> Component:
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
        target=(Place(site, Subspace((vector / vector.norm())[None])),),
        sha256=sha256_file(file),
    )


def _feature(text: str, study: Study, model: Model) -> Component:
    file, _, rest = text.removeprefix("feature:").rpartition(":")
    number, at, position = rest.partition("@")
    if not file or not number.isdecimal() or (at and not position):
        raise StudyError(
            f"{text!r} is not of the form feature:DICTIONARY:NUMBER or feature:DICTIONARY:NUMBER@SPAN, as in feature:layer5:7@to"
        )
    found = read_dictionary(file)
    site = _site(found.site + at + position, model)
    if found.d_model != model.d_model:
        raise StudyError(
            f"the dictionary {file} is of vectors of {found.d_model} entries and {model.name} has {model.d_model}: it belongs "
            "to another model"
        )
    if int(number) >= found.n_features:
        raise StudyError(f"the dictionary {file} has no feature {number}; it has 0 to {found.n_features - 1}")
    return Component(
        text=f"feature:{file}:{int(number)}{at}{position}",
        kind="feature",
        target=(Place(site, Feature(found.to(model.device), int(number))),),
        sha256=sha256_json([sha256_file(each) for each in dictionary_files(file)]),
    )


def _relation(text: str, study: Study, model: Model) -> Component:
    asked, at, position = text.removeprefix("relation:").partition("@")
    run, _, rank = asked.partition(":")
    if not run or not position or (rank and not (rank.isdecimal() and int(rank))):
        raise StudyError(
            f"{text!r} is not of the form relation:RUN@SPAN or relation:RUN:RANK@SPAN, the span being that of the subject in the "
            "prompts, as in relation:latest@country[-1]"
        )
    record = study.find(run)
    if record.spec.method != "relation":
        raise StudyError(f"run {record.id} is of the method {record.spec.method!r}; name a relation run")
    judged = read_judged(study, record.id, record.spec.config(RelationConfig).relation, model)
    W = torch.from_numpy(judged.arrays["W"].copy())
    _, S, V = svd(W)
    real = int((torch.finfo(S.dtype).eps * len(W) * S[0] < S).sum())
    k = min(int(judged.chosen["cut"]), real) if not rank else int(rank)
    if k > real:
        raise StudyError(f"the operator of {record.id} reads {real} directions, so it has no {k} of them")
    site = _site(f"resid_pre.{judged.chosen['layer']:.0f}@{position}", model)
    return Component(
        text=f"relation:{record.id}:{k}@{position}",
        kind="relation",
        target=(Place(site, Subspace(V[:k])),),
        sha256=sha256(W.numpy().tobytes()).hexdigest(),
        run=record.id,
        subjects=tuple(sorted({sample.subject for sample in judged.training})),
    )


def _circuit(text: str, study: Study, model: Model) -> Component:
    run, _, edges = text.removeprefix("circuit:").partition(":")
    if edges and not (edges.isdigit() and int(edges)):
        raise StudyError(f"{text!r}: a circuit's size is a number of edges, as in circuit:{run}:500")
    record = study.find(run)
    kept = circuit_of(record, int(edges) if edges else None)
    if record.spec.model.get("files") != dict(model.source.files):
        raise StudyError(f"run {record.id} is of {record.spec.model.get('id')}, not of {model.name}")
    return Component(
        text=f"circuit:{record.id}:{kept.limit}", kind="circuit", target=kept.circuit, scores=kept.scores, run=record.id
    )


def _hypothesis(text: str, study: Study, model: Model) -> Component:
    file = text.removeprefix("hypothesis:")
    found = read_hypothesis(file)
    if not found.nodes:
        raise StudyError(f"the hypothesis {file} has no nodes, so it says nothing of any part")
    found.bind(model)
    return Component(text=text, kind="hypothesis", target=found, sha256=sha256_file(hypothesis_file(file)))


READERS: dict[str, Callable[[str, Study, Model], Component]] = {
    "direction": _direction,
    "feature": _feature,
    "relation": _relation,
    "circuit": _circuit,
    "hypothesis": _hypothesis,
}
"""What stands before the first colon → how the rest is read."""
