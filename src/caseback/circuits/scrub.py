"""Causal scrubbing: does a hypothesis say all that matters? (Chan et al. 2022, "Causal scrubbing", Redwood Research)

Whatever the hypothesis allows to be exchanged is exchanged, all at once, and the answer should not suffer. With reference
prompts x and a node n that reads some of its input,

    x'  ~ prompts | every feature of n agrees with x        the node is computed on x' in place of x
    x'' ~ prompts                                           what n reads of no importance comes from x''
    input p of n: its own value, scrubbed in turn with x' as its reference, in x'' in place of p's direct contribution

and recursively, with draws of its own for every path from the output (the tree the hypothesis unrolls to). A node that
reads whatever it reads has its value on x'. Then

    recovered = (M(scrubbed) − M(random)) / (M(model) − M(random))

with M the metric, or minus the loss, on the answers of x, means before the division; random: the whole output comes from
another prompt, which is resample ablation of everything. The trivial hypothesis gives 1, the empty one 0.

Values are exchanged place by place, so the two prompts need not be of one length. A prompt is exchanged for another that agrees,
drawn evenly; for itself only where no other does, which is counted. Cost: a forward for every prompt, and for every
draw, node and layer of its inputs the work of one block.

Invariant: with every writer a node that agrees on the prompt, the output is the model's, whatever x'' (tests/circuits/
test_scrub.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.circuits.hypothesis import PROMPT, Channel, Hypothesis, Input, Node
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.evidence import Interval, ratio_interval
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.model import Model
from caseback.model.run import Start, execute, positions
from caseback.model.sites import Site
from caseback.model.taps import Key, Tap
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import loss, metric_of

__all__ = ["Scrubbed", "scrub"]

ROWS = 64
"""Prompts run at a time."""
Put = Callable[[slice, Tensor], Tensor]
"""From some rows and their value at a site to the value the model goes on with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scrubbed:
    """What is left of the answer under a hypothesis, per reference prompt; means over draws."""

    metric: Float[np.ndarray, "example"]
    loss: Float[np.ndarray, "example"]
    """−log of the answers' probability, in nats."""
    model: Float[np.ndarray, "2 example"]
    """Metric and loss of the prompts as they are."""
    random: Float[np.ndarray, "2 example"]
    """Metric and loss where the whole output comes from another prompt."""
    alone: Mapping[str, float]
    """Node → share of its draws in which no other prompt agreed, so nothing was exchanged."""

    @property
    def recovered(self) -> Interval:
        """Of the metric; the interval draws reference prompts."""
        return ratio_interval(self.metric - self.random[0], self.model[0] - self.random[0])

    @property
    def loss_recovered(self) -> Interval:
        """Of the loss."""
        return ratio_interval(self.random[1] - self.loss, self.random[1] - self.model[1])


def scrub(
    model: Model,
    pairs: PairBatch,
    hypotheses: Sequence[Hypothesis],
    *,
    draws: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Scrubbed]:
    """Scrub each hypothesis on the clean prompts, which are both references and what is drawn from.

    Raises CircuitError for a hypothesis the model or the prompts cannot carry out, or fewer than two prompts.
    """
    if draws < 1 or pairs.n < 2:
        raise CircuitError(f"causal scrubbing takes 2 prompts or more and a draw, got {pairs.n} and {draws}")
    for hypothesis in hypotheses:
        hypothesis.bind(model)
        hypothesis.require_features(pairs.clean.spans)
    pairs = pairs.to(model.device)
    metric = metric_of(pairs.metric)
    pool = _Pool.of(model, pairs.clean, hypotheses)

    def measured(logits: Tensor) -> np.ndarray:
        return np.stack([m(logits, pairs).double().cpu().numpy() for m in (metric, loss)])

    own = measured(pool.logits)
    found = []
    for number, hypothesis in enumerate(hypotheses):
        tree = _Tree(model, pool, hypothesis)
        totals = np.zeros((2, 2, pairs.n))
        for draw in range(draws):
            rng = np.random.default_rng([seed, draw])
            prompts = np.arange(pairs.n)
            other = tree.draw((), prompts, rng)
            totals[0] += measured(pool.logits[other])
            totals[1] += measured(tree.output(prompts, other, rng))
            progress("scrub", number * draws + draw + 1, len(hypotheses) * draws)
        random, scrubbed = totals / draws
        alone = {name: some / of for name, (some, of) in tree.alone.items()}
        found.append(Scrubbed(metric=scrubbed[0], loss=scrubbed[1], model=own, random=random, alone=alone))
    return found


@dataclass(frozen=True, eq=False)
class _Pool:
    """All prompts, and what of their runs the hypotheses need."""

    batch: Batch
    logits: Float[Tensor, "prompt vocab"]
    streams: Mapping[Key, Float[Tensor, "prompt pos d"]]
    """What enters the blocks, or their MLPs, that are run again."""
    last: Float[Tensor, "prompt d"]
    """What leaves the last block at the last token."""
    written: Mapping[Site, Float[Tensor, "prompt token *rest"]]
    """Values of the nodes' sites, at their tokens."""

    @staticmethod
    def of(model: Model, batch: Batch, hypotheses: Sequence[Hypothesis]) -> _Pool:
        sites = {site for each in hypotheses for site in each.sites}
        keys: set[Key] = {("resid_pre", site.layer) for site in sites if site.name != "resid_pre"}
        keys |= {("resid_mid", site.layer) for site in sites if site.name == "mlp_out" and not model.family.parallel}
        top: Key = ("resid_post", model.n_layers - 1)
        for each in hypotheses:
            _require_apart(each.sites, batch)
        kept: dict[Any, list[Tensor]] = {key: [] for key in (*keys, *sites, "last", "logits")}
        for begin in range(0, batch.n, ROWS):
            rows = slice(begin, begin + ROWS)
            part = Batch(batch.ids[rows], batch.mask[rows], {name: span[rows] for name, span in batch.spans.items()})
            values: dict[Key, Tensor] = {}
            wanted = {*keys, top, *(site.tap for site in sites)}
            logits = execute(model, part, {key: partial(_keep, values, key) for key in wanted})
            assert logits is not None
            kept["logits"].append(logits)
            kept["last"].append(values[top][torch.arange(part.n), part.last])
            for key in keys:
                kept[key].append(values[key])
            for site in sites:
                kept[site].append(_at(values[site.tap], site, part))
        streams = {key: torch.cat(kept[key]) for key in keys}
        written = {site: torch.cat(kept[site]) for site in sites}
        return _Pool(batch, torch.cat(kept["logits"]), streams, torch.cat(kept["last"]), written)

    def at(self, rows: np.ndarray) -> Batch:
        index = torch.as_tensor(rows, device=self.batch.ids.device)
        spans = {name: span[index] for name, span in self.batch.spans.items()}
        return Batch(self.batch.ids[index], self.batch.mask[index], spans)

    def labels(self, features: Sequence[str]) -> Int[np.ndarray, "prompt"]:
        """Equal numbers where prompts agree on all features."""
        columns = [np.zeros(self.batch.n, dtype=np.int64)]
        columns += [np.unique(np.array(self._texts(each)), return_inverse=True)[1] for each in features]
        return np.asarray(np.unique(np.stack(columns), axis=1, return_inverse=True)[1]).reshape(-1)

    def _texts(self, feature: str) -> list[str]:
        """A feature of every prompt, as text."""
        if feature == PROMPT:
            return [str(ids[mask].tolist()) for ids, mask in zip(self.batch.ids, self.batch.mask, strict=True)]
        if feature in self.batch.spans:
            ends = self.batch.spans[feature].tolist()
            return [str(ids[start:end].tolist()) for ids, (start, end) in zip(self.batch.ids, ends, strict=True)]
        left, _, right = feature.partition("=")
        return [str(a == b) for a, b in zip(self._texts(left), self._texts(right), strict=True)]


@dataclass(eq=False)
class _Tree:
    """One hypothesis, unrolled as it is computed."""

    model: Model
    pool: _Pool
    hypothesis: Hypothesis
    alone: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {node.agree for node in self.hypothesis.nodes.values()}
        self.labels = {features: self.pool.labels(features) for features in {(), *own}}

    def draw(self, features: tuple[str, ...], prompts: Int[np.ndarray, "row"], rng: np.random.Generator) -> np.ndarray:
        """Another prompt that agrees with each, drawn evenly; the same where there is none."""
        labels = self.labels[features]
        order = np.argsort(labels, kind="stable")
        place, size = np.empty_like(order), np.bincount(labels)
        place[order] = np.arange(len(order))
        first = np.concatenate([[0], np.cumsum(size)[:-1]])[labels[prompts]]
        many = size[labels[prompts]]
        step = 1 + (rng.random(len(prompts)) * (many - 1)).astype(np.int64)
        return np.asarray(order[first + (place[prompts] - first + step) % many])

    def output(self, prompts: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Float[Tensor, "row vocab"]:
        """The scrubbed logits, with x'' = `other` for what is of no importance."""
        if self.hypothesis.output is None:
            return self.pool.logits[prompts]
        batch = self.pool.at(other)
        given = {each: self.value(self.hypothesis.nodes[each.node], prompts, rng) for each in self.hypothesis.output}
        for site in (site for values in given.values() for site in values):
            if bool((_tokens(site, batch)[:, -1] != batch.last).any()):
                raise CircuitError(
                    f"the output reads the last token alone, and {site} does not always lie there; use @end"
                )
        rows = torch.arange(len(other), device=batch.ids.device)
        stream = self.pool.last[other] + self._change(given, other, batch)[rows, batch.last]
        with torch.no_grad():
            return torch.cat([end(self.model, part) for part in stream.split(ROWS)])

    def value(self, node: Node, prompts: np.ndarray, rng: np.random.Generator) -> dict[Site, Tensor]:
        """A node's scrubbed values, site by site: [row, token of its span, ...]."""
        drawn = self.draw(node.agree, prompts, rng)
        some = self.alone.setdefault(node.name, [0, 0])
        some[0] += int((drawn == prompts).sum())
        some[1] += len(prompts)
        if node.inputs is None:
            return {site: self.pool.written[site][drawn] for site in node.sites}
        other = self.draw((), drawn, rng)
        batch = self.pool.at(other)
        given = {each: self.value(self.hypothesis.nodes[each.node], drawn, rng) for each in node.inputs}
        found: dict[Site, Tensor] = {}
        for key in dict.fromkeys(site.tap for site in node.sites):
            name, layer = key
            assert layer is not None
            sites = [site for site in node.sites if site.tap == key]
            if name == "resid_pre":
                found |= {site: self.pool.written[site][other] for site in sites}
                continue
            value = self._run(name, layer, given, other, batch)
            found |= {site: _at(value, site, batch) for site in sites}
        return found

    def _run(
        self, name: str, layer: int, given: Mapping[Input, Mapping[Site, Tensor]], other: np.ndarray, batch: Batch
    ) -> Tensor:
        """A writer's value on the prompts `other`, reading the given inputs in place of their own."""
        model = self.model
        puts: dict[Key, Put]
        if name == "mlp_out" and not model.family.parallel:
            stream = self._stream(("resid_mid", layer), given, other, batch)
            puts = {("resid_mid", layer): _instead(stream)}
            return self._block(layer, self.pool.streams["resid_pre", layer][other], batch, name, puts)
        ways: dict[Channel, dict[Input, Mapping[Site, Tensor]]] = {
            c: {each: values for each, values in given.items() if c in each.channels} for c in ("q", "k", "v")
        }
        if len({tuple(each) for each in ways.values()}) == 1:
            return self._block(layer, self._stream(("resid_pre", layer), given, other, batch), batch, name, {})
        puts = {}
        for channel, inputs in ways.items():
            stream = self._stream(("resid_pre", layer), inputs, other, batch)
            puts[channel, layer] = _instead(self._block(layer, stream, batch, channel, {}))
        return self._block(layer, self.pool.streams["resid_pre", layer][other], batch, name, puts)

    def _block(self, layer: int, stream: Tensor, batch: Batch, read: str, puts: Mapping[Key, Put]) -> Tensor:
        """One block from its input on, with some values put in: a site's value."""
        found = []
        for begin in range(0, batch.n, ROWS):
            rows = slice(begin, begin + ROWS)
            part = Batch(batch.ids[rows], batch.mask[rows])
            values: dict[Key, Tensor] = {}
            taps: dict[Key, Tap] = {key: partial(put, rows) for key, put in puts.items()}
            taps[read, layer] = partial(_keep, values, (read, layer))
            execute(self.model, part, taps, start=Start(layer, stream[rows]), stop=layer + 1, logits=None)
            found.append(values[read, layer])
        return torch.cat(found)

    def _stream(
        self, key: Key, given: Mapping[Input, Mapping[Site, Tensor]], other: np.ndarray, batch: Batch
    ) -> Tensor:
        """What enters a block, or its MLP, on `other`, with the given nodes' direct contributions in place of its own."""
        return self.pool.streams[key][other] + self._change(given, other, batch)

    def _change(self, given: Mapping[Input, Mapping[Site, Tensor]], other: np.ndarray, batch: Batch) -> Tensor:
        """By how much the given sites' contributions to the stream differ from those on `other`: [row, pos, d]. Heads of a
        layer write together, as a norm may follow them."""
        model, rows = self.model, torch.arange(batch.n, device=batch.ids.device)[:, None]
        change = self.pool.last.new_zeros((*batch.ids.shape, model.d_model))
        heads: dict[int, dict[Site, Tensor]] = {}
        for site, value in ((site, value) for values in given.values() for site, value in values.items()):
            assert site.layer is not None
            if site.name == "z":
                heads.setdefault(site.layer, {})[site] = value
            else:
                change[rows, _tokens(site, batch)] += value - self.pool.written[site][other]
        for layer, some in heads.items():
            places = {site: _tokens(site, batch) for site in some}

            def put(
                part: slice, z: Tensor, some: Mapping[Site, Tensor] = some, places: Mapping[Site, Tensor] = places
            ) -> Tensor:
                z = z.clone()
                for site, value in some.items():
                    z[torch.arange(len(z), device=z.device)[:, None], places[site][part], site.head] = value[part].to(z)
                return z

            stream = self.pool.streams["resid_pre", layer][other]
            change += self._block(layer, stream, batch, "attn_out", {("z", layer): put})
            change -= self._block(layer, stream, batch, "attn_out", {})
        return change


def _tokens(site: Site, batch: Batch) -> Int[Tensor, "row token"]:
    """The tokens of a site's position."""
    where = positions(site, batch)
    assert where is not None
    return where[0]


def _at(value: Tensor, site: Site, batch: Batch) -> Float[Tensor, "row token *rest"]:
    """A tapped value at a site's tokens, its head chosen."""
    value = value if site.head is None else value[:, :, site.head]
    return value[torch.arange(batch.n, device=value.device)[:, None], _tokens(site, batch)]


def _keep(values: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    values[key] = value.clone()
    return value


def _instead(new: Tensor) -> Put:
    """Put a whole value in place of what is there."""
    return lambda part, value: new[part].to(value)


def _require_apart(sites: Sequence[Site], batch: Batch) -> None:
    """Raise SiteError for a place the prompts do not have, or of which they have differently many tokens, CircuitError
    where two places of one writer are the same token, which would be put in twice."""
    tokens = {site: _tokens(site, batch) for site in sites}
    for one, other in combinations(sites, 2):
        same = (tokens[one][:, :, None] == tokens[other][:, None, :]).any()
        if (one.tap, one.head) == (other.tap, other.head) and bool(same):
            raise CircuitError(f"{one} and {other} are the same token in a prompt; name each place once")
