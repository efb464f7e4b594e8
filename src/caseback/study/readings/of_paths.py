"""Path patching as a run: through which later heads does one head, or one MLP, matter?

Every receiver (the q, k or v of a later head) gets the sender's other value alone, one at a time. Beside them stand what
the sender does as a whole, its path straight to the logits, and the same grid of a head of the sender's layer drawn at
random: a receiver that the random head reaches as well is no finding about the sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import ratio_intervals
from caseback.model.model import Model
from caseback.model.sites import parse
from caseback.reading.dla import attribute_logits
from caseback.reading.patching import patch_grid
from caseback.reading.paths import Paths, path_patch
from caseback.study.finding import Finding, Looking, cell, heat, sheet
from caseback.study.readings.of_tasks import TaskConfig
from caseback.tasks.encode import PairBatch

__all__ = ["PATHS", "PathsConfig", "paths"]

CHANNELS = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class PathsConfig(TaskConfig):
    """One sender and all its receivers."""

    n: int | None = 16
    sender: str | None = None
    """A head, "z.9.6", or an MLP, "mlp_out.3"; None is refused with those that write the answer."""
    direction: str = "noise"
    """noise: the counterfactual's value into the clean run; denoise: the other way."""
    span: str | None = None
    """The span at whose tokens the sender is replaced; None: all."""
    through_mlps: bool = False
    """Whether MLPs between sender and receiver carry the difference on."""


def paths(config: PathsConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """The grid of receivers, the sender's whole effect, and both for a head drawn at random."""
    task = config.read(model)
    pairs = task.encode(model).to(model.device)
    if config.sender is None:
        raise ReadingError(_which(model, pairs))
    sender = config.sender
    control = _control(model, sender, seed=config.seed)

    def measured(one: str) -> Checkpoint:
        how: Any = {"span": config.span, "direction": config.direction, "through_mlps": config.through_mlps}
        found = path_patch(model, pairs, one, **how, progress=progress)
        arrays = {channel: grid.change[:, :, 0] for channel, grid in found.grids.items()}
        arrays |= {"logits": found.logits - found.start, "gap": found.other - found.start}
        arrays["whole"] = _whole(model, pairs, found, config)
        return Checkpoint(arrays, {"layers": found.grids["q"].layers, "sender": found.sender})

    saved = stages.stage("sender", lambda: measured(sender))
    own, layers, name = saved.arrays, saved.data["layers"], saved.data["sender"]
    if float(own["gap"].mean()) == 0:
        raise ReadingError("the two runs of these pairs have the same metric on average, so no effect can be stated")
    beside = stages.stage("control", lambda: measured(control)).arrays
    effects, others = _effects(own), _effects(beside)
    receivers = [(channel, *place) for channel in CHANNELS for place in np.ndindex(*effects[channel].shape)]
    flat = np.array([effects[c][i, h] for c, i, h in receivers])
    order = np.argsort(-np.abs(flat), kind="stable")[:12]
    picked = [receivers[int(i)] for i in order]
    changes = [own[c][i, h] for c, i, h in picked]
    totals = {"whole effect": "whole", "straight to the logits": "logits"}
    ends = ratio_intervals(np.stack([*(own[key] for key in totals.values()), *changes]), own["gap"])
    ends_beside = ratio_intervals(np.stack([beside[key] for key in totals.values()]), beside["gap"])
    rows: list[list[Any]] = [
        [f"{c}.{layers[i]}.{h}", cell(found), float(others[c][i, h])]
        for (c, i, h), found in zip(picked, ends[2:], strict=True)
    ]
    summed = [sum(float(effects[c].sum()) for c in CHANNELS), sum(float(others[c].sum()) for c in CHANNELS)]
    wholes = [ends[0], ends_beside[0]]
    share = [s / w.value if abs(w.value) > 1e-3 else None for s, w in zip(summed, wholes, strict=True)]
    sums: list[list[Any]] = [[what, cell(a), cell(b)] for what, a, b in zip(totals, ends[:2], ends_beside, strict=True)]
    sums.append(["single receivers, summed", *summed])
    whole, straight = ends[0], ends[1]
    through = "no head comes after it"
    if rows:
        peak = max((float(v) for c in CHANNELS for v in others[c].ravel()), key=abs)
        sums.append(["largest single receiver", rows[0][1], peak])
        through = (
            f"{summed[0]:.1%} summed over single heads, most into {rows[0][0]} ({rows[0][1][0]:.1%}; from {control}, at "
            f"random, {peak:.1%} at most)"
        )
    verb = {"noise": "loses", "denoise": "gets back"}[config.direction]
    claim = (
        f"With the other run's {name} the model {verb} {whole.value:.1%} of the answer ({whole.low:.1%} to {whole.high:.1%}): "
        f"{straight.value:.1%} straight to the logits; {through}."
    )
    sections: list[dict[str, Any]] = [
        {
            "title": f"What reads {name}",
            "text": "Change of the answer when this receiver alone reads the sender's value from the other run, everything "
            "else as it is. 0: the run as it is; 100 %: the other run."
            + (" MLPs between the two carry the difference on." if config.through_mlps else ""),
            **_maps(effects, layers),
            "table": sheet(f"text receiver, percent effect, percent {control}", rows),
        },
        {
            "title": "The whole and its parts",
            "text": f"Whole effect: the sender replaced, everything after it free to follow. {control} is a head of the same "
            "layer, drawn at random. Single paths need not add up: what heads do together is in the whole alone"
            + ("." if config.through_mlps else ", and so is what goes through an MLP."),
            "table": sheet(f"text what, percent {name}, percent {control}", sums),
        },
    ]
    if not layers:
        del sections[0]
    table = {
        "sender": name,
        "control": control,
        "direction": config.direction,
        "span": config.span,
        "through_mlps": config.through_mlps,
        "layers": layers,
        **{channel: effects[channel].tolist() for channel in CHANNELS},
        **{f"{channel}_control": others[channel].tolist() for channel in CHANNELS},
        "whole": [whole.value, whole.low, whole.high],
        "whole_control": wholes[1].value,
        "logits": straight.value,
        "summed": summed[0],
        "summed_control": summed[1],
        "share_of_whole": share[0],
        "n": pairs.n,
    }
    at = "all tokens" if config.span is None else f"the tokens of {config.span!r}"
    notes = [
        f"{pairs.n} pairs" + (" of a random twin, none dropped." if config.twin else " that the model answers right."),
        f"The sender is replaced at {at}. k and v are KV heads, which several query heads may share.",
        f"The largest of {len(receivers):,} receivers are shown with bootstrap intervals at 95 %, not corrected for that.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=pairs.n)


def _which(model: Model, pairs: PairBatch) -> str:
    """What to ask for: the model's heads, and those that write the answer."""
    heads = attribute_logits(model, pairs, of="logit_diff").heads.mean(axis=-1)
    best = np.argsort(-np.abs(heads), axis=None, kind="stable")[:3]
    shown = [f"z.{int(i) // heads.shape[1]}.{int(i) % heads.shape[1]} ({heads.flat[i]:+.2f})" for i in best]
    return (
        f"say which head or MLP sends: --sender z.LAYER.HEAD (layers 0 to {model.n_layers - 1}, heads 0 to "
        f"{model.n_heads - 1}) or mlp_out.LAYER; the heads that write most of the answer directly, in logits, are "
        f"{', '.join(shown)}"
    )


def _control(model: Model, sender: str, *, seed: int) -> str:
    """Another head of the sender's layer, drawn at random; raises ReadingError where there is no other."""
    site = parse(sender)[0]
    layer = site.layer or 0
    heads = [f"z.{layer}.{head}" for head in range(model.n_heads) if (site.name, head) != ("z", site.head)]
    if not heads:
        raise ReadingError(f"layer {layer} of {model.name} has one head, so there is no other to compare {sender} with")
    return str(np.random.default_rng(seed).choice(heads))


def _whole(model: Model, pairs: PairBatch, found: Paths, config: PathsConfig) -> np.ndarray:
    """Change of the metric with the sender replaced and everything after it free to follow."""
    site = parse(found.sender)[0]
    assert site.layer is not None
    how: Any = {"direction": config.direction, "columns": "all" if config.span is None else "spans"}
    grid = patch_grid(model, pairs, site.name, layers=[site.layer], **how)
    column = 0 if config.span is None else grid.columns.index(config.span)
    return np.asarray(grid.change[0, site.head or 0, column])


def _effects(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Channel → [layer, head]."""
    return {channel: arrays[channel].mean(axis=-1) / float(arrays["gap"].mean()) for channel in CHANNELS}


def _maps(effects: Mapping[str, np.ndarray], layers: list[int]) -> dict[str, Any]:
    """A map a channel, on one scale."""
    if not layers:
        return {}
    rows = ("layer", [str(layer) for layer in layers])
    heads = {channel: "KV head" if effects[channel].shape != effects["q"].shape else "head" for channel in CHANNELS}
    maps = [
        {
            "name": {"q": "into queries", "k": "into keys", "v": "into values"}[channel],
            **heat(
                (heads[channel], [str(head) for head in range(effects[channel].shape[1])]),
                rows,
                effects[channel],
                format="percent",
                scale="diverging",
            ),
        }
        for channel in CHANNELS
    ]
    return {"heats": maps}


PATHS = Looking("paths", PathsConfig, "Path patching", paths)
