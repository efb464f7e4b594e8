"""What heads and neurons could do, read from the weights alone: tokens read and written, copying, who can feed whom.

Without a head or a neuron: which heads copy, and the strongest compositions. Of one head: its singular directions as tokens
and its partners. Of one neuron, or of all neurons of a layer: the tokens it writes and those it reads. Beside every number
stands what random matrices or directions of the same size have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.core.errors import FamilyError, ReadingError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.model.model import Model
from caseback.reading.weights import (
    CHANNELS,
    ReadOut,
    composition,
    copying_scores,
    neuron_words,
    ov_circuits,
    qk_circuits,
    random_values,
    singular_words,
)
from caseback.study.finding import Finding, Looking, LookingConfig, heat, line, sheet
from caseback.study.readings.of_attention import CELLS
from caseback.study.readings.of_heads import copied, head_of, named, place_of
from caseback.study.readings.of_prompts import texts

__all__ = ["WEIGHTS", "WeightsConfig", "weights"]

CIRCUITS = ("ov", "qk")
INTO = {"q": "queries", "k": "keys", "v": "values"}
PARTNERS = 4
"""Strongest partners shown for each channel."""
SHOWN = 5
"""Tokens shown of an end in a table."""
NEURONS = 20
"""Neurons shown of a layer."""
NOTES = (
    "Weights say what a part could do with a stream that holds such directions, not that any text puts them there, nor that "
    "the model uses it: ask a patch for that.",
    "The gain of the norm in front is put into the weights that read, the final norm's gain into the unembedding. The norms' "
    "own scale differs from token to token and is left out, as are biases: compare scores within one part, not as logits.",
    "Tokens read are tokens of the input embedding; to a later layer the stream holds more than that.",
)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(LookingConfig):
    """Whose weights are read."""

    head: str | None = None
    """LAYER.HEAD; None: all heads."""
    neuron: str | None = None
    """LAYER.NEURON, or LAYER for those of a layer that stand out most."""
    directions: int = 4
    """Singular directions shown of a head."""
    top: int = 6
    """Tokens shown of each end of a direction."""

    @property
    def label(self) -> str:
        if self.neuron is None:
            return "all heads" if self.head is None else f"head {self.head}"
        return f"neuron {self.neuron}" if "." in self.neuron else f"neurons of layer {self.neuron}"


def weights(config: WeightsConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """The read-out that was asked for."""
    if config.head is not None and config.neuron is not None:
        raise ReadingError("a head and a neuron were asked for; ask for one at a time")
    if config.neuron is not None:
        text = config.neuron.strip()
        if text.isascii() and text.isdigit():
            return _layer(config, int(text), model, stages)
        return _neuron(config, place_of(text, "neuron", "18.7"), model, stages)
    try:
        return (
            _all(config, model, stages)
            if config.head is None
            else _head(config, head_of(config.head, model), model, stages)
        )
    except FamilyError as error:
        if model.family.circuits or not model.site_layers["mlp_hidden"]:
            raise
        raise FamilyError(f"{error}; `--neuron LAYER` reads its neurons, which needs less") from None


# --- all heads ---------------------------------------------------------------------------------------------------------


def _all(config: WeightsConfig, model: Model, stages: Stages) -> Finding:
    def found() -> Checkpoint:
        copying, pairs = copying_scores(model, seed=config.seed), composition(model)
        flat = pairs.scores.reshape(3, -1, model.n_layers, model.n_heads)
        known = np.where(np.isnan(flat), -1, flat)
        arrays = {"copying": copying.score, "control": copying.control}
        arrays |= {"most": known.max(axis=1), "writer": known.argmax(axis=1)}
        strongest = []
        for channel, scores in zip(CHANNELS, pairs.scores, strict=True):
            best = pairs.strongest(channel, PARTNERS)
            strongest.append([[*pair, float(scores[pair])] for pair in best])
        square = [
            float(np.sqrt(np.nanmean(scores**2))) if np.isfinite(scores).any() else None for scores in pairs.scores
        ]
        return Checkpoint(arrays, {"expected": pairs.expected, "strongest": strongest, "mean": square})

    saved = stages.stage("weights", found)
    a, expected = saved.arrays, saved.data["expected"]
    layers, heads = a["copying"].shape
    axes = ("head", [str(h) for h in range(heads)]), ("layer", [str(layer) for layer in range(1, layers)])
    rows = [
        [INTO[c], named((wl, wh)), named((rl, rh)), score, expected]
        for c, pairs in zip(CHANNELS, saved.data["strongest"], strict=True)
        for wl, wh, rl, rh, score in pairs
    ]
    sections: list[dict[str, Any]] = [copied(a["copying"], a["control"])]
    if layers > 1:
        maps = []
        for i, c in enumerate(CHANNELS):
            partners = [[named(divmod(int(w), heads)) for w in row] for row in a["writer"][i, 1:]]
            maps.append({"name": f"Into {INTO[c]}", **heat(*axes, a["most"][i, 1:], texts=partners)})
        sections.append(
            {
                "title": "Strongest compositions",
                "text": "How much of what an earlier head writes a later one reads: ‖W_a W_b‖ / (‖W_a‖ ‖W_b‖), at most 1. Control: "
                f"√(1/d) = {expected:.3f}, the root mean square of heads turned at random. These are the largest of many: `--twin` has "
                "those of random weights.",
                "table": sheet("text through, text from head, text to head, number score, number at random", rows),
            }
        )
        if 4 * layers * heads <= CELLS:
            sections.append(
                {
                    "title": "Who feeds whom most",
                    "text": "For every head the earlier head with the largest composition; the colour is the score.",
                    "heats": maps,
                    "detail": True,
                }
            )
    claim = "No head has a copying score: all their eigenvalues are 0"
    if np.isfinite(a["copying"]).any():
        top = divmod(int(np.nanargmax(a["copying"])), heads)
        claim = f"Head {named(top)} has the highest copying score, {a['copying'][top]:.2f} (control {a['control'][top]:+.2f})"
    if rows:
        best = max(rows, key=lambda row: row[3])
        claim += f"; the strongest composition is of {best[1]} into the {best[0]} of {best[2]}, {best[3]:.2f} ({expected:.2f} at random)"
    table = {
        "copying": _plain(a["copying"]),
        "copying_control": _plain(a["control"]),
        "composition_at_random": expected,
        "composition_root_mean_square": dict(zip(CHANNELS, saved.data["mean"], strict=True)),
        "strongest": [dict(zip(("through", "from", "to", "score"), row[:4], strict=True)) for row in rows],
    }
    notes = [*NOTES[:2], "`--head LAYER.HEAD` reads one head out in words, `--neuron LAYER` a layer's neurons."]
    return Finding(claim=f"{claim}.", table=table, sections=sections, notes=notes, measured=layers * heads)


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]


# --- one head ----------------------------------------------------------------------------------------------------------


def _head(config: WeightsConfig, place: tuple[int, int], model: Model, stages: Stages) -> Finding:
    layer, head = place

    def found() -> Checkpoint:
        arrays: dict[str, np.ndarray] = {}
        how: Any = {"rank": config.directions, "top": config.top, "seed": config.seed}
        for circuit, factors in (("ov", ov_circuits(model)[place]), ("qk", qk_circuits(model)[place])):
            words: Any = singular_words(model, layer, head, circuit=circuit, **how)  # type: ignore[arg-type]
            drawn = random_values(factors, seed=config.seed)
            arrays[f"{circuit}_values"] = factors.svd().s.cpu().numpy()
            arrays[f"{circuit}_random"] = np.stack([drawn.mean(0).numpy(), *drawn.aminmax(dim=0)])
            arrays |= _arrays(f"{circuit}_read", words.read) | _arrays(f"{circuit}_written", words.written)
        copying, pairs = copying_scores(model, seed=config.seed), composition(model)
        arrays |= {"copying": copying.score[place], "control": copying.control[place]}
        arrays |= {"from": pairs.scores[:, :, :, layer, head], "to": pairs.scores[:, layer, head]}
        return Checkpoint(arrays, {"expected": pairs.expected})

    saved = stages.stage("weights", found)
    a, expected, name = saved.arrays, saved.data["expected"], named(place)
    copying, control = float(a["copying"]), float(a["control"])
    sections: list[dict[str, Any]] = [
        _directions(model, a, "ov", "What it writes where it looks (OV)", "reads", "writes"),
        _directions(model, a, "qk", "What it looks from and at (QK)", "looks from", "looks at"),
        *(_partners(a[side], side, name, expected) for side in ("from", "to") if np.isfinite(a[side]).any()),
        _spectra(a),
        *(_partner_maps(a[side], side, name, expected) for side in ("from", "to") if np.isfinite(a[side]).any()),
    ]
    values, random = a["ov_values"], a["ov_random"][0]
    ends = [[_times(a, f"ov_{side}", 0, end) for side in ("read", "written")] for end in (0, 1)]
    end = int(sum(ends[1]) > sum(ends[0]))  # which of the two is positive is arbitrary
    apart, (read, written) = ends[end], (_said(model, a, f"ov_{side}", 0, end, 3) for side in ("read", "written"))
    score = "no copying score, as its eigenvalues are all 0"
    if np.isfinite(copying):
        score = f"a copying score of {copying:.2f} (control {control:+.2f})"
    claim = (
        f"Head {name} has {score}. Its strongest direction, "
        f"{values[0] / max(random[0], 1e-12):.1f} times that of a random head, reads {read} ({apart[0]:.1f} times a random "
        f"direction) and writes {written} ({apart[1]:.1f} times)."
    )
    table: dict[str, Any] = {
        "head": name,
        "copying": copying,
        "copying_control": control,
        "composition_at_random": expected,
    }
    for circuit in CIRCUITS:
        table[f"{circuit}_values"] = a[f"{circuit}_values"].tolist()
        table[f"{circuit}_values_random"] = a[f"{circuit}_random"][0].tolist()
        for side in ("read", "written"):
            table |= _plain_words(model, a, f"{circuit}_{side}")
    for side in ("from", "to"):
        table[f"composition_{side}"] = {c: _plain(a[side][i]) for i, c in enumerate(CHANNELS)}
    return Finding(claim=claim, table=table, sections=sections, notes=list(NOTES), measured=1)


def _directions(model: Model, a: Any, circuit: str, title: str, reads: str, writes: str) -> dict[str, Any]:
    sides = [f"{circuit}_{side}" for side in ("read", "written")]
    rows = [
        [f"{i + 1} {'+−'[end]}", *(_said(model, a, side, i, end, SHOWN) for side in sides)]
        + [_times(a, side, i, end) for side in sides]
        + [float(a[f"{circuit}_values"][i]), float(a[f"{circuit}_random"][0, i])]
        for i in range(len(a[f"{sides[0]}_tokens"]))
        for end in (0, 1)
    ]
    return {
        "title": title,
        "text": "The largest singular directions as tokens, both signs. × random: the best token's score over that of random "
        "directions of the same length; near 1 the tokens say nothing, though they look like words. σ: the singular value, at "
        "random: of random matrices of the same shape, rank and norm.",
        "table": sheet(
            f"text direction, text {reads}, text {writes}, number {reads} × random, number {writes} × random, number σ, "
            "number σ at random",
            rows,
        ),
    }


def _spectra(a: Any) -> dict[str, Any]:
    series = []
    for circuit, look in zip(CIRCUITS, ("own", "second"), strict=True):
        values, random = a[f"{circuit}_values"], a[f"{circuit}_random"][0]
        norm = max(float(np.linalg.norm(values)), 1e-12)
        ranks = range(1, len(values) + 1)
        series.append(line(circuit.upper(), look, ranks, values / norm))
        if circuit == "ov":
            series.append(line("at random", "control", ranks, random / norm))
    return {
        "title": "Singular values",
        "text": "Of the head's OV and QK, each over its norm, beside random matrices of the same shape and rank (mean of 20): the "
        "steeper, the fewer directions the head works in.",
        "curve": {"x": "singular direction", "y": "σ / norm", "format": "number", "series": series},
        "detail": True,
    }


def _partners(scores: np.ndarray, side: str, name: str, expected: float) -> dict[str, Any]:
    rows = []
    for i, c in enumerate(CHANNELS):
        order = np.argsort(np.where(np.isnan(scores[i]), np.inf, -scores[i]).ravel(), kind="stable")[:PARTNERS]
        for at in order[np.isfinite(scores[i].ravel()[order])]:
            other = named(divmod(int(at), scores.shape[2]))
            rows.append([INTO[c], other, float(scores[i].ravel()[at]), expected])
    feeds = side == "from"
    return {
        "title": f"Earlier heads it could read ({name})" if feeds else f"Later heads that could read it ({name})",
        "text": f"The largest compositions ‖W_a W_b‖ / (‖W_a‖ ‖W_b‖) through the {'head' if feeds else 'other head'}'s queries, keys "
        "and values. Control: heads turned at random.",
        "table": sheet(
            f"text through its, text {'earlier' if feeds else 'later'} head, number score, number at random", rows
        ),
    }


def _partner_maps(scores: np.ndarray, side: str, name: str, expected: float) -> dict[str, Any]:
    layers = np.flatnonzero(np.isfinite(scores).all(axis=(0, 2))).tolist()
    axes = ("head", [str(h) for h in range(scores.shape[2])]), ("layer", [str(layer) for layer in layers])
    return {
        "title": f"All earlier heads ({name})" if side == "from" else f"All later heads ({name})",
        "text": f"Composition scores; {expected:.3f} at random.",
        "heats": [{"name": f"Through {INTO[c]}", **heat(*axes, scores[i, layers])} for i, c in enumerate(CHANNELS)],
        "detail": True,
    }


# --- neurons -----------------------------------------------------------------------------------------------------------


def _neurons(config: WeightsConfig, layer: int, model: Model, stages: Stages) -> tuple[Any, list[str]]:
    """Arrays of all neurons of a layer, and the names of the maps into them."""

    def found() -> Checkpoint:
        words = neuron_words(model, layer, top=config.top, seed=config.seed)
        arrays = _arrays("written", words.written)
        for i, read in enumerate(words.read.values()):
            arrays |= _arrays(f"read{i}", read)
        return Checkpoint(arrays, {"maps": list(words.read)})

    saved = stages.stage("neurons", found)
    return saved.arrays, saved.data["maps"]


def _layer(config: WeightsConfig, layer: int, model: Model, stages: Stages) -> Finding:
    a, maps = _neurons(config, layer, model, stages)
    ratio = _ratio(a, "written")
    order = np.argsort(-ratio, kind="stable")[:NEURONS]
    rows = []
    for i in order.tolist():
        end = int(a["written_scores"][i, 1, 0] > a["written_scores"][i, 0, 0])
        verb = ("raises", "lowers")[end]
        read = [_said(model, a, f"read{j}", i, 0, 3) for j in range(len(maps))]
        rows.append(
            [
                named((layer, i)),
                f"{verb} {_said(model, a, 'written', i, end, 4)}",
                *read,
                float(ratio[i]),
                float(a["written_kurtosis"][i]),
            ]
        )
    random = a["written_random_peak"] / a["written_random_peak"].mean()
    bound = float(np.quantile(random, 0.95))
    share = float((ratio > bound).mean())
    points = np.linspace(0.005, 0.995, 100)
    kinds = [
        ("written", "writes", "own"),
        *((f"read{j}", f"reads ({m})", ("second", "third")[j % 2]) for j, m in enumerate(maps)),
    ]
    series = [line(name, look, points, np.quantile(_ratio(a, key), points)) for key, name, look in kinds]
    series.append(line("random directions", "control", points, np.quantile(random, points)))
    sections: list[dict[str, Any]] = [
        {
            "title": f"Neurons of layer {layer} whose words stand out most",
            "text": "Tokens a neuron's output weights raise (or lower) most, and those whose embedding its input weights point to. "
            "× random: the best token's score over that of random directions of the same length, 1 at random. Kurtosis: of the "
            f"scores over all tokens, {a['written_random_kurtosis'].mean():.1f} at random; more means that few tokens stand out.",
            "table": sheet(
                "text neuron, text writes, "
                + ", ".join(f"text {m.replace(',', '')} reads" for m in maps)
                + ", number × random, number kurtosis",
                rows,
            ),
        },
        {
            "title": "All neurons beside random directions",
            "text": f"How far the best token stands out, of the least neuron (0) to the most (1); {share:.0%} of the {len(ratio):,} "
            "neurons write above the 95th percentile of random directions (5% at random).",
            "curve": {
                "x": "part of the neurons",
                "y": "stands out",
                "axis": "linear",
                "format": "number",
                "series": series,
            },
            "detail": True,
        },
    ]
    claim = (
        f"In layer {layer}, {share:.0%} of {len(ratio):,} neurons write a token more strongly than 95% of random directions of the "
        f"same length; neuron {rows[0][0]} stands out most: it {rows[0][1]}, {rows[0][-2]:.1f} times a random direction."
    )
    table = {
        "layer": layer,
        "share_above_random": share,
        "stands_out": ratio.tolist(),
        "kurtosis": a["written_kurtosis"].tolist(),
        "kurtosis_at_random": float(a["written_random_kurtosis"].mean()),
        "read_stands_out": {m: _ratio(a, f"read{j}").tolist() for j, m in enumerate(maps)},
        "neurons": order.tolist(),
        "written": [texts(model, a["written_tokens"][i, 0].tolist()) for i in order.tolist()],
        "lowered": [texts(model, a["written_tokens"][i, 1].tolist()) for i in order.tolist()],
    }
    return Finding(claim=claim, table=table, sections=sections, notes=list(NOTES), measured=len(ratio))


def _neuron(config: WeightsConfig, place: tuple[int, int], model: Model, stages: Stages) -> Finding:
    layer, neuron = place
    neuron_words(model, layer, [neuron], top=config.top, seed=config.seed)  # says at once that there is none
    a, maps = _neurons(config, layer, model, stages)
    sides = [("written", ("raises", "lowers"))]
    sides += [(f"read{j}", (f"{m} is raised by", f"{m} is lowered by")) for j, m in enumerate(maps)]
    rows = []
    for key, ends in sides:
        ratios = _ratio(a, key)
        place_in = f"{int((ratios > ratios[neuron]).sum()) + 1:,} of {len(ratios):,}"
        shape = [float(a[f"{key}_kurtosis"][neuron]), float(a[f"{key}_random_kurtosis"].mean())]
        for end, verb in enumerate(ends):
            rows.append([verb, _said(model, a, key, neuron, end), _times(a, key, neuron, end), *shape, place_in])
    name = named(place)
    sections = [
        {
            "title": f"What neuron {name} writes and reads",
            "text": "Tokens whose logit its output weights raise or lower most when it is active above zero, and tokens whose embedding "
            "raises or lowers the maps into it most. × random: the best token's score over that of random directions of the same "
            "length, 1 at random. Place: among the layer's neurons, by the larger of the two.",
            "table": sheet(
                "text what, text tokens, number × random, number kurtosis, number kurtosis at random, text place",
                rows,
            ),
        }
    ]
    ratio = float(_ratio(a, "written")[neuron])
    claim = (
        f"Neuron {name} raises {_said(model, a, 'written', neuron, 0, 4)} and lowers {_said(model, a, 'written', neuron, 1, 4)}; its best "
        f"token stands out {ratio:.1f} times as far as that of a random direction."
    )
    table: dict[str, Any] = {"neuron": name}
    for key, label in [("written", "written"), *((f"read{j}", f"read {m}") for j, m in enumerate(maps))]:
        table[label] = {
            "raised": texts(model, a[f"{key}_tokens"][neuron, 0].tolist()),
            "lowered": texts(model, a[f"{key}_tokens"][neuron, 1].tolist()),
            "scores": a[f"{key}_scores"][neuron].tolist(),
            "stands_out": float(_ratio(a, key)[neuron]),
            "kurtosis": float(a[f"{key}_kurtosis"][neuron]),
            "kurtosis_at_random": float(a[f"{key}_random_kurtosis"].mean()),
        }
    return Finding(claim=claim, table=table, sections=sections, notes=list(NOTES), measured=1)


# --- read-outs ---------------------------------------------------------------------------------------------------------


def _arrays(name: str, found: ReadOut) -> dict[str, np.ndarray]:
    kept = {"tokens": found.tokens.cpu().numpy(), "scores": found.scores.cpu().numpy(), "length": found.length}
    kept |= {"peak": found.peak, "kurtosis": found.kurtosis}
    kept |= {"random_peak": found.random_peak, "random_kurtosis": found.random_kurtosis}
    return {f"{name}_{key}": value for key, value in kept.items()}


def _ratio(a: Any, name: str) -> np.ndarray:
    ratio: np.ndarray = a[f"{name}_peak"] / a[f"{name}_random_peak"].mean()
    return ratio


def _times(a: Any, name: str, i: int, end: int) -> float:
    """The best score of one end over the mean peak of random directions of the same length."""
    return float(a[f"{name}_scores"][i, end, 0] / max(a[f"{name}_random_peak"].mean() * a[f"{name}_length"][i], 1e-12))


def _said(model: Model, a: Any, name: str, i: int, end: int, most: int | None = None) -> str:
    return " ".join(texts(model, a[f"{name}_tokens"][i, end, :most].tolist()))


def _plain_words(model: Model, a: Any, name: str) -> dict[str, Any]:
    tokens = a[f"{name}_tokens"]
    words = [[texts(model, end.tolist()) for end in direction] for direction in tokens]
    return {name: words, f"{name}_scores": a[f"{name}_scores"].tolist(), f"{name}_stands_out": _ratio(a, name).tolist()}


WEIGHTS = Looking("weights", WeightsConfig, "Weights", weights)
