"""A hypothesis for causal scrubbing: which parts matter, what each depends on, and who reads whom.

    {"about": "which name is left over is found at the last word",
     "output": ["mover"],
     "nodes": {"mover": {"sites": ["z.23.0@to"], "agree": ["IO"], "inputs": ["pointer<q>", "name<v>"]},
               "pointer": {"sites": ["z.18.4@to"], "agree": ["S1=S2"]}, ...}}

A node says: these sites' values depend on the prompt by these features alone, and by these inputs. A feature is the text
of a span (`IO`), whether two spans read the same (`S1=S2`), or the whole `prompt`. Inputs are other nodes, by all of a
head's ways in or by some (`name<qk>`); a node without "inputs" reads whatever it reads. `"output": "all"` claims nothing
(the trivial hypothesis), `"output": []` that nothing matters (the empty one).

Invariant: a hypothesis that `bind` lets pass can be carried out as it stands: every node is reached from the output,
every input lies before its reader, each site belongs to one node.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from caseback.core.errors import CircuitError
from caseback.model.model import Model
from caseback.model.run import plan_sites
from caseback.model.sites import Site, parse

__all__ = [
    "PROMPT",
    "Channel",
    "Hypothesis",
    "Input",
    "Node",
    "hypothesis_file",
    "others",
    "read_hypothesis",
]

Channel = Literal["q", "k", "v"]
CHANNELS: tuple[Channel, ...] = ("q", "k", "v")
PROMPT = "prompt"
"""The feature on which only the prompt itself agrees."""
VISITS = 2000
"""Nodes of the unrolled tree; more is refused."""


@dataclass(frozen=True)
class Input:
    """A node that is read, and by which of a head's ways in."""

    node: str
    channels: tuple[Channel, ...] = CHANNELS

    def __str__(self) -> str:
        return self.node if self.channels == CHANNELS else f"{self.node}<{''.join(self.channels)}>"


@dataclass(frozen=True, kw_only=True)
class Node:
    """Some sites, what their values depend on, and through whom."""

    name: str
    sites: tuple[Site, ...]
    agree: tuple[str, ...] = ()
    """Features a prompt must share with another for their values to be exchanged; none: any prompt will do."""
    inputs: tuple[Input, ...] | None = None
    """What of its input matters; None: all of it."""

    @property
    def words(self) -> tuple[str, str, str]:
        """Its sites, what it depends on, what it reads."""
        reads = "whatever it reads" if self.inputs is None else ", ".join(map(str, self.inputs)) or "nothing"
        return " ".join(map(str, self.sites)), ", ".join(self.agree) or "nothing", reads


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """Nodes, and those among them that the output reads."""

    nodes: Mapping[str, Node]
    output: tuple[Input, ...] | None
    """None: the output depends on the whole prompt, by whatever way (the trivial hypothesis)."""
    about: str = ""

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(site for node in self.nodes.values() for site in node.sites)

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(feature for node in self.nodes.values() for feature in node.agree))

    def without(self, name: str) -> Hypothesis:
        """The hypothesis in which nobody reads this node, and what only it reads is gone too."""

        def cut(inputs: tuple[Input, ...] | None) -> tuple[Input, ...] | None:
            return None if inputs is None else tuple(each for each in inputs if each.node != name)

        left = {key: replace(node, inputs=cut(node.inputs)) for key, node in self.nodes.items() if key != name}
        shorter = replace(self, nodes=left, output=cut(self.output))
        return replace(shorter, nodes={key: left[key] for key in left if key in shorter._reached()})

    def agreeing(self, features: tuple[str, ...]) -> Hypothesis:
        """The same parts, all depending on these features instead of their own."""
        return replace(self, nodes={key: replace(node, agree=features) for key, node in self.nodes.items()})

    def elsewhere(self, model: Model, rng: np.random.Generator) -> Hypothesis:
        """The same structure in places drawn evenly: layers in the same order, heads of each; the embedding stays."""
        layers, able = self._layers(model)
        drawn = sorted(int(l) for l in rng.choice(able, size=len(layers), replace=False))
        place = dict(zip(layers, drawn, strict=True))
        heads = {l: rng.permutation(model.n_heads) for l in layers}

        def moved(site: Site) -> Site:
            if site.name == "resid_pre":
                return site
            head = None if site.head is None else int(heads[_layer(site)][site.head])
            return replace(site, layer=place[_layer(site)], head=head)

        nodes = {key: replace(node, sites=tuple(map(moved, node.sites))) for key, node in self.nodes.items()}
        return replace(self, nodes=nodes)

    def n_elsewhere(self, model: Model) -> int | None:
        """How many such places there are, its own left out; None where several heads of a layer are of one node, whose order
        means nothing."""
        layers, able = self._layers(model)
        for node in self.nodes.values():
            if any(len({s.head for s in node.sites if s.layer == l and s.head is not None}) > 1 for l in layers):
                return None
        heads = {l: {s.head for s in self.sites if s.layer == l and s.head is not None} for l in layers}
        return (
            math.comb(len(able), len(layers)) * math.prod(math.perm(model.n_heads, len(h)) for h in heads.values()) - 1
        )

    def _layers(self, model: Model) -> tuple[list[int], list[int]]:
        """Its layers, and those of the model that have all its kinds of sites."""
        own = sorted({_layer(site) for site in self.sites if site.name != "resid_pre"})
        return own, [l for l in range(model.n_layers) if all(l in model.site_layers[s.name] for s in self.sites)]

    def bind(self, model: Model) -> None:
        """Raise CircuitError, SiteError or FamilyError, in one sentence, for what cannot be carried out on this model."""
        owner: dict[Site, str] = {}
        for node in self.nodes.values():
            if not node.sites:
                raise CircuitError(f"node {node.name!r} names no site; give at least one, such as z.9.6@end")
            for site in node.sites:
                _require_writer(model, node.name, site)
                if site in owner:
                    raise CircuitError(f"{site} belongs to {owner[site]!r} and to {node.name!r}; a site is of one node")
                owner[site] = node.name
        for reader, inputs, sites in [
            ("output", self.output, ()),
            *((n.name, n.inputs, n.sites) for n in self.nodes.values()),
        ]:
            for each in inputs or ():
                if each.channels != CHANNELS and (not sites or any(site.name != "z" for site in sites)):
                    raise CircuitError(
                        f"{reader!r} reads {str(each)!r}, but only heads (z.LAYER.HEAD) have q, k and v to be read by"
                    )
                for site in sites:
                    late = [s for s in self.nodes[each.node].sites if not _before(model, s, site)]
                    if late:
                        raise CircuitError(
                            f"{reader!r} ({site}) reads {each.node!r}, but {late[0]} lies behind it or beside it"
                        )

    def require_features(self, spans: Collection[str]) -> None:
        """Raise CircuitError for a feature that prompts with these spans do not have."""
        for feature in self.features:
            left, equals, right = feature.partition("=")
            if feature != PROMPT and feature not in spans and not (equals and left in spans and right in spans):
                raise CircuitError(
                    f"there is no feature {feature!r} to agree on; these prompts have the spans {', '.join(spans) or '(none)'}, "
                    f"SPAN=SPAN for whether two read the same, and {PROMPT!r}"
                )

    def visits(self) -> int:
        """Nodes of the tree that unrolls from the output; raises CircuitError for one that has no end or is above
        `VISITS`."""
        seen: dict[str, int] = {}

        def below(name: str, path: tuple[str, ...]) -> int:
            if name in path:
                raise CircuitError(
                    f"{' reads '.join([*path[path.index(name) :], name])}: inputs must not run in a circle"
                )
            if name not in seen:
                node = self.nodes[name]
                seen[name] = 1 + sum(below(each.node, (*path, name)) for each in node.inputs or ())
            return seen[name]

        total = sum(below(each.node, ()) for each in self.output or ())
        if total > VISITS:
            raise CircuitError(f"unrolled from the output, the hypothesis has {total:,} nodes; {VISITS:,} is the most")
        return total

    def _reached(self) -> set[str]:
        found: set[str] = set()
        open_ = [each.node for each in self.output or ()]
        while open_:
            name = open_.pop()
            if name in self.nodes and name not in found:
                found.add(name)
                open_ += [each.node for each in self.nodes[name].inputs or ()]
        return found

    @staticmethod
    def of(data: Any) -> Hypothesis:
        """From plain data (the module's example); raises CircuitError that names the field."""
        if not isinstance(data, dict) or "output" not in data:
            raise CircuitError('a hypothesis is an object with "output", "nodes" and, if you like, "about"')
        _known(data, ("about", "output", "nodes"), "the hypothesis")
        raw = data.get("nodes", {})
        if not isinstance(raw, dict):
            raise CircuitError('"nodes" is an object: a name for each node, and what it is')
        nodes = {}
        for name, body in raw.items():
            if not isinstance(body, dict):
                raise CircuitError(f'node {name!r} is an object with "sites", "agree" and "inputs"')
            if name == "output" or not name.strip() or "<" in name:
                raise CircuitError(f"{name!r} is no name for a node; take a word, without '<', that is not 'output'")
            _known(body, ("sites", "agree", "inputs"), f"node {name!r}")
            sites = tuple(_site(text, name) for text in _texts(body.get("sites", []), f"the sites of {name!r}"))
            agree = _texts(body.get("agree", []), f'"agree" of {name!r}')
            if agree and body.get("inputs", "all") == []:
                raise CircuitError(
                    f"node {name!r} reads nothing, so all of it comes from any prompt and what it agrees on is not used; leave "
                    '"inputs" out for a node that reads whatever it reads'
                )
            nodes[name] = Node(name=name, sites=sites, agree=agree, inputs=_inputs(body.get("inputs", "all"), name))
        about = data.get("about", "")
        if not isinstance(about, str):
            raise CircuitError('"about" is a sentence')
        found = Hypothesis(nodes=nodes, output=_inputs(data["output"], "output"), about=about)
        found._check_names()
        found.visits()
        return found

    def _check_names(self) -> None:
        readers = {"output": self.output, **{node.name: node.inputs for node in self.nodes.values()}}
        for reader, inputs in readers.items():
            names = [each.node for each in inputs or ()]
            if unknown := [name for name in names if name not in self.nodes]:
                raise CircuitError(
                    f"{reader!r} reads {unknown[0]!r}, which is no node; there are: {', '.join(self.nodes) or 'none'}"
                )
            if len(set(names)) < len(names):
                raise CircuitError(f"{reader!r} names an input twice; name each once, with its ways in, as name<qk>")
        if idle := [name for name in self.nodes if name not in self._reached()]:
            raise CircuitError(f"nothing reads node {idle[0]!r}, so it would not be tested; name it among some inputs")

    def plain(self) -> dict[str, Any]:
        """As data that `of` reads."""

        def said(inputs: tuple[Input, ...] | None) -> Any:
            return "all" if inputs is None else [str(each) for each in inputs]

        nodes = {
            name: {"sites": [str(site) for site in node.sites], "agree": list(node.agree), "inputs": said(node.inputs)}
            for name, node in self.nodes.items()
        }
        return {"about": self.about, "output": said(self.output), "nodes": nodes}


def hypothesis_file(name: str | Path | None) -> Path:
    """A file, or that of a name in the library; raises CircuitError with the names there are."""
    library = {file.stem: file for file in (Path(__file__).parent / "library").glob("*.json")}
    if name is None or not (str(name) in library or Path(name).is_file()):
        raise CircuitError(
            f"{'say which hypothesis' if name is None else f'there is no hypothesis {str(name)!r}'}: a JSON file "
            f"(docs/scrub.md), or one that comes with caseback: {', '.join(sorted(library))}"
        )
    return Path(name) if Path(name).is_file() else library[str(name)]


def read_hypothesis(name: str | Path | None) -> Hypothesis:
    """From a JSON file, or by its name in the library; raises CircuitError with the file's name for what is wrong in it."""
    path = hypothesis_file(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"{path} is no JSON: {error}") from None
    try:
        return Hypothesis.of(data)
    except CircuitError as error:
        raise CircuitError(f"{path}: {error}") from None


def others(hypothesis: Hypothesis, model: Model, n: int, rng: np.random.Generator) -> tuple[Hypothesis, ...]:
    """n different hypotheses of the same structure in other places; fewer where there are fewer."""

    def places(each: Hypothesis) -> tuple[frozenset[Site], ...]:
        return tuple(frozenset(node.sites) for node in each.nodes.values())

    own = places(hypothesis)
    found: dict[tuple[frozenset[Site], ...], Hypothesis] = {}
    for _ in range(100 * n):
        other = hypothesis.elsewhere(model, rng)
        if len(found) < n and places(other) != own:
            found.setdefault(places(other), other)
    return tuple(found.values())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return dict(pairs)


def _known(data: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    if unknown := [name for name in data if name not in names]:
        raise CircuitError(f"{what} has no field {unknown[0]!r}; it has: {', '.join(names)}")


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise CircuitError(f'{what} is a list of words, such as ["IO"]; got {value!r}')
    return tuple(value)


def _inputs(value: Any, reader: str) -> tuple[Input, ...] | None:
    if value == "all":
        return None
    found = []
    for text in _texts(value, f'the inputs of {reader!r} ("all" for whatever it reads)'):
        name, _, rest = text.partition("<")
        chosen = tuple(c for c in CHANNELS if c in rest) if rest else CHANNELS
        if rest and (not rest.endswith(">") or not chosen or set(rest[:-1]) - set(CHANNELS)):
            raise CircuitError(
                f"{text!r} is no input of {reader!r}; write a node's name, or one with ways in: {name}<qk>"
            )
        found.append(Input(name.strip(), chosen))
    return tuple(found)


def _site(text: str, name: str) -> Site:
    site, any_layer, any_head = parse(text)
    if any_layer or any_head:
        raise CircuitError(f"node {name!r}: {text!r} names many sites at once; name each")
    return site


def _require_writer(model: Model, name: str, site: Site) -> None:
    writes = (site.name == "z" and site.head is not None) or site.name in ("attn_out", "mlp_out")
    if not writes and site.tap != ("resid_pre", 0):
        raise CircuitError(
            f"node {name!r}: {site} is nothing that writes into the stream; nodes are heads (z.9.6@to), attn_out.9@to, "
            "mlp_out.9@to and the embedding (resid_pre.0@to)"
        )
    if site.position is None:
        raise CircuitError(f"node {name!r}: {site} needs a position, as in {site}@end, to be put into another prompt")
    plan_sites(model, [site])


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _before(model: Model, site: Site, reader: Site) -> bool:
    """Whether a site has written before another one reads."""

    def order(each: Site) -> tuple[int, int]:
        return (
            (-1, 0)
            if each.name == "resid_pre"
            else (_layer(each), int(each.name == "mlp_out" and not model.family.parallel))
        )

    return order(site) < order(reader)
