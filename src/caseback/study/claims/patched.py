"""What putting a component from one run of a pair into the other does to the answer.

    sufficiency   denoise: the clean values into the counterfactual run       (M(patched) − M(counterfactual)) / gap
    necessity     noise: the counterfactual values into the clean run         (M(clean) − M(patched)) / gap

gap = M(clean) − M(counterfactual), means over pairs before the division; so both are shares of the answer, 0 for a component
that does nothing and 1 for all there is. A circuit is denoised when everything outside it carries the counterfactual's
values, and noised when it itself does. Several places are patched together, and what lies before the first of them is not
computed again.

Invariant: every place patched at once is the other run, exactly (tests/study/test_claims.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.circuits.evaluate import measure
from caseback.circuits.graph import Circuit
from caseback.circuits.hypothesis import Hypothesis
from caseback.circuits.scrub import scrub
from caseback.core.errors import StudyError
from caseback.core.progress import Progress, silent
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import Start, execute
from caseback.model.sites import Site
from caseback.model.taps import Key, Tap
from caseback.reading.heads import patterns
from caseback.reading.rows import Patches, Rows
from caseback.study.claims.component import Place, Target, where
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of

__all__ = ["Looks", "Way", "both_runs", "looks", "patched"]

Way = Literal["denoise", "noise", "mean", "scrub"]
"""scrub: a hypothesis, on the clean prompts; mean: the mean of the counterfactual values, over pairs and the place's
tokens, into the clean run."""
ROWS = 8
"""Pairs run at a time."""
EXCHANGES = 4
"""Draws for every prompt of a hypothesis that is scrubbed."""
AT_ONCE = 64
"""Prompts run at a time where several patches of a layer stand side by side."""


def both_runs(model: Model, pairs: PairBatch) -> Float[np.ndarray, "run example"]:
    """The metric of the clean and of the counterfactual run."""
    found = []
    for chunk in pairs.to(model.device).chunk(ROWS):
        metric = metric_of(pairs.metric)
        both = [metric(model.logits(batch), chunk) for batch in (chunk.clean, chunk.counterfactual)]
        found.append(torch.stack(both).double().cpu().numpy())
    return np.concatenate(found, axis=1)


def patched(
    model: Model, pairs: PairBatch, targets: Sequence[Target], way: Way, *, progress: Progress = silent
) -> Float[np.ndarray, "target example"]:
    """The metric under each target's patch. Raises SiteError for a span the pairs do not have, CircuitError for a circuit
    of other spans."""
    hypotheses = [target for target in targets if isinstance(target, Hypothesis)]
    if hypotheses:
        scrubbed = scrub(model, pairs, hypotheses, draws=EXCHANGES, progress=progress)
        return np.stack([each.metric for each in scrubbed])
    circuits = [target for target in targets if isinstance(target, Circuit)]
    if circuits:
        if way == "mean" or len(circuits) < len(targets):
            raise StudyError("circuits are denoised and noised, and by themselves")
        return measure(model, pairs, circuits if way == "denoise" else [c.complement for c in circuits]).metric
    places = [target for target in targets if isinstance(target, tuple)]
    pairs = pairs.to(model.device)
    means = _means(model, pairs, {place for target in places for place in target}) if way == "mean" else {}
    alone = [i for i, target in enumerate(places) if way != "mean" and _is_alone(target)]
    joined = [i for i in range(len(places)) if i not in set(alone)]
    found, done = np.empty((len(places), pairs.n)), 0
    order = pairs.clean.lengths.argsort(stable=True).tolist()  # alike in length: their last tokens stand side by side
    for begin in range(0, pairs.n, ROWS):
        rows = order[begin : begin + ROWS]
        chunk = pairs[rows]
        into, other = (chunk.counterfactual, chunk.clean) if way == "denoise" else (chunk.clean, chunk.counterfactual)
        keys: set[Key] = {place.site.tap for target in places for place in target}
        source = _values(model, other, keys) if way != "mean" else {}
        if alone:
            found[np.ix_(alone, rows)] = _alone(model, chunk, into, [places[i][0].site for i in alone], source)
        streams = _values(model, into, {("resid_pre", min(_layer(p.site) for p in places[i])) for i in joined})
        for i in joined:
            start = min(_layer(place.site) for place in places[i])
            taps: dict[Key, Tap] = {}
            for key in dict.fromkeys(place.site.tap for place in places[i]):
                here = [place for place in places[i] if place.site.tap == key]
                given = [means[place] if way == "mean" else _read(place, source[key]) for place in here]
                taps[key] = partial(_put, into, here, given)
            logits = execute(model, into, taps, start=Start(start, streams["resid_pre", start]))
            assert logits is not None
            found[i, rows] = metric_of(pairs.metric)(logits, chunk).double().cpu().numpy()
        done += len(rows)
        progress("patch", done, pairs.n)
    return found


def _alone(
    model: Model, pairs: PairBatch, into: Batch, sites: Sequence[Site], source: Mapping[Key, Tensor]
) -> Float[np.ndarray, "site example"]:
    """Each site patched by itself, those of a layer side by side, from the first token on that any of them changes."""
    engine = Rows.of(model, pairs, into, sorted({_layer(site) for site in sites}), rows=AT_ONCE)
    tokens = [where(site, into) for site in sites]
    found = np.empty((len(sites), pairs.n))
    for key in dict.fromkeys(site.tap for site in sites):
        group = [i for i, site in enumerate(sites) if site.tap == key]
        size = max(1, AT_ONCE // pairs.n)
        for some in (group[k : k + size] for k in range(0, len(group), size)):
            here = torch.stack([tokens[i] for i in some])
            anywhere = here.any(dim=0).any(dim=0)
            first = int(anywhere.long().argmax()) if bool(anywhere.any()) else here.shape[-1] - 1
            numbers = [sites[i].head for i in some]
            heads = None if None in numbers else torch.tensor(numbers, device=here.device)
            found[some] = engine.run(_layer(sites[some[0]]), Patches(key[0], source[key][None], here, heads), first)
    return found


def _is_alone(target: tuple[Place, ...]) -> bool:
    """Whether `Rows` can patch it: one whole site, of one head where it has heads."""
    one = len(target) == 1 and target[0].part is None
    return one and (target[0].site.head is not None or not target[0].site.kind.heads)


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _values(model: Model, batch: Batch, keys: set[Key]) -> Mapping[Key, Tensor]:
    """Whole values of some sites, cloned."""
    values: dict[Key, Tensor] = {}
    taps = {key: partial(_keep, values, key) for key in keys}
    execute(model, batch, taps, logits=None)
    return values


def _keep(values: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    values[key] = value.clone()
    return value


def _read(place: Place, value: Tensor) -> Tensor:
    """What a place takes from a value: all of it, or the numbers of its part."""
    return value if place.part is None else place.part.read(value)


def _put(batch: Batch, places: Sequence[Place], sources: Sequence[Tensor], value: Tensor) -> Tensor:
    """The value with each place's source in it, as `_read` gives it."""
    for place, source in zip(places, sources, strict=True):
        if place.part is None:
            new = source.to(value).expand_as(value)
        else:
            new = value + place.part.write(source.to(value) - place.part.read(value))
        value = torch.where(_mask(place.site, where(place.site, batch), value), new, value)
    return value


def _mask(site: Site, tokens: Bool[Tensor, "batch pos"], value: Tensor) -> Bool[Tensor, "*shape"]:
    """Where a tapped value is of the site."""
    if site.name == "pattern":  # [batch, head, query, key]
        mask = tokens[:, None, :, None]
        heads = torch.arange(value.shape[1], device=value.device)[:, None, None]
    else:  # [batch, pos, (head,) d]
        mask = tokens.view(*tokens.shape, *[1] * (value.dim() - 2))
        heads = torch.arange(value.shape[2], device=value.device)[:, None]
    return mask if site.head is None else mask & (heads == site.head)


def _means(model: Model, pairs: PairBatch, places: set[Place]) -> Mapping[Place, Tensor]:
    """The mean of the counterfactual values over all pairs and the place's tokens: [1, 1, *rest]."""
    if odd := [place.site for place in places if place.site.name == "pattern"]:
        raise StudyError(f"{odd[0]} has no mean over prompts: its tokens see different numbers of tokens")
    keys: set[Key] = {(place.site.name, place.site.layer) for place in places}
    totals: dict[Place, Tensor] = {}
    counts: dict[Place, float] = {}
    for chunk in pairs.chunk(ROWS):
        values = _values(model, chunk.counterfactual, keys)
        for place in places:
            tokens = where(place.site, chunk.counterfactual)
            total = _read(place, values[place.site.name, place.site.layer])[tokens].float().sum(dim=0)
            totals[place] = totals.get(place, torch.zeros_like(total)) + total
            counts[place] = counts.get(place, 0.0) + float(tokens.sum())
    return {place: (total / max(counts[place], 1.0))[None, None] for place, total in totals.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """From one span, which heads take most from another."""

    layers: tuple[int, ...]
    most: Bool[np.ndarray, "layer head example"]
    """Whether the token that most is taken from lies in the span."""
    taken: bool
    """By A_ts |v_s W_O|; False: by attention alone, where what is taken is not known."""


def looks(model: Model, pairs: PairBatch, source: str, target: str) -> Looks:
    """Whether each head takes most, from the last token of span `source`, from a token of span `target`; clean prompts.

    Raises StudyError for a span the prompts do not have, FamilyError or ReadingError for a model without patterns.
    """
    found: list[np.ndarray] = []
    layers: tuple[int, ...] = ()
    taken = False
    for chunk in pairs.to(model.device).chunk(ROWS):
        batch = chunk.clean
        if missing := [name for name in (source, target) if name not in batch.spans]:
            raise StudyError(
                f"these prompts have no span {missing[0]!r}; they have: {', '.join(batch.spans) or 'none'}"
            )
        seen = patterns(model, batch)
        layers, taken = seen.layers, seen.weighted is not None
        weight = seen.pattern if seen.weighted is None else seen.weighted
        last = batch.spans[source][:, 1] - 1
        row = weight[:, torch.arange(chunk.n, device=last.device), :, last]  # [batch, layer, head, key]
        best = row.argmax(dim=-1)
        start, end = (edge[:, None, None] for edge in batch.spans[target].unbind(dim=1))
        found.append(((best >= start) & (best < end)).permute(1, 2, 0).cpu().numpy())
    return Looks(layers=layers, most=np.concatenate(found, axis=-1), taken=taken)
