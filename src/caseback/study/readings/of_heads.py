"""What kinds of heads a model has: what they attend to on random repeated text, and whether they copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from caseback.core.errors import FamilyError, ReadingError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import mean_intervals
from caseback.model.model import Model
from caseback.reading.heads import KINDS, attention_layers, find_heads, repeated
from caseback.reading.weights import copying_scores
from caseback.study.finding import Finding, Looking, LookingConfig, cell, heat, sheet

__all__ = ["HEADS", "HeadsConfig", "copied", "head_of", "heads", "named", "place_of"]


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(LookingConfig):
    """Which sequences heads are watched on."""

    sequences: int = 16
    """Random sequences said twice."""
    length: int = 24
    """Tokens of each, all different."""

    @property
    def label(self) -> str:
        return "heads"


def heads(config: HeadsConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Scores of every head, each beside the same sequences with their second half in another order."""

    attention_layers(model)  # a family that has none says so before sequences are drawn

    def watched() -> Checkpoint:
        found = find_heads(
            model, repeated(model, n=config.sequences, length=config.length, seed=config.seed), progress=progress
        )
        arrays = {"scores": found.scores, "control": found.control, "chance": found.chance}
        arrays["layers"] = np.array(found.layers)
        try:
            copying = copying_scores(model, seed=config.seed)
        except FamilyError as error:  # patterns need less of a family than weights do
            return Checkpoint(arrays, {"no_copying": str(error)})
        return Checkpoint(arrays | {"copying": copying.score, "copying_control": copying.control})

    kept = stages.stage("scores", watched)
    saved = kept.arrays
    layers, n_heads = saved["layers"].tolist(), saved["scores"].shape[2]
    axes = (("head", [str(h) for h in range(n_heads)]), ("layer", [str(layer) for layer in layers]))
    maps, rows, said = [], [], []
    table: dict[str, Any] = {"layers": layers}
    for kind, scores, control, chance in zip(
        KINDS, saved["scores"], saved["control"], saved["chance"].tolist(), strict=True
    ):
        mean = scores.mean(axis=-1)
        maps.append({"name": kind, **heat(*axes, mean, format="percent")})
        table[kind], table[f"{kind}_control"] = mean.tolist(), control.mean(axis=-1).tolist()
        order = np.argsort(-mean.ravel(), kind="stable")[:5]
        flat, other = scores.reshape(-1, scores.shape[-1]), control.reshape(-1, control.shape[-1])
        for i, own, beside in zip(order, mean_intervals(flat[order]), mean_intervals(other[order]), strict=True):
            name = named((layers[int(i) // n_heads], int(i) % n_heads))
            rows.append([kind, name, cell(own), cell(beside), chance])
        best = rows[-len(order)]
        said.append(f"{best[1]} ({kind}, {best[2][0]:.0%}; control {best[3][0]:.0%})")
    sections: list[dict[str, Any]] = [
        {
            "title": "Attention to the place that makes a kind",
            "text": f"Mean attention on {config.sequences} random sequences of {config.length} tokens, said twice: to the "
            "token before, to the same token's earlier place, and to the one after it (induction).",
            "heats": maps,
            "table": sheet("text kind, text head, percent attention, percent control, percent chance", rows),
        },
    ]
    notes = [
        "Control: the same sequences with the second half in another order, so nothing can be predicted by repetition; to a "
        "previous-token head that makes no difference, and it should not.",
        "Chance: what a head that looks at every token alike scores.",
        "A score says where a head looks on random text, not what it is used for in a prompt.",
    ]
    if "copying" in saved:
        table |= {"copying": saved["copying"].tolist(), "copying_control": saved["copying_control"].tolist()}
        sections.append(copied(saved["copying"], saved["copying_control"]))
    else:
        notes.append(f"Copying is not measured: {kept.data['no_copying']}.")
    return Finding(
        claim=f"The strongest heads are {'; '.join(said)}.",
        table=table,
        sections=sections,
        notes=notes,
        measured=config.sequences,
    )


def copied(score: Float[np.ndarray, "layer head"], control: Float[np.ndarray, "layer head"]) -> dict[str, Any]:
    """The section on copying."""
    layers, heads = score.shape
    order = np.argsort(-score.ravel(), kind="stable")[:10]
    rows = [[named(divmod(int(i), heads)), float(score.ravel()[i]), float(control.ravel()[i])] for i in order]
    axes = (("head", [str(h) for h in range(heads)]), ("layer", [str(layer) for layer in range(layers)]))
    return {
        "title": "Copying",
        "text": "Σ Re λ / Σ |λ| over the eigenvalues of W_E W_V W_O W_U: 1 raises the token it reads, −1 lowers it. "
        "The control has the head's own matrices with the vocabulary shuffled.",
        "heat": heat(*axes, score, format="signed", scale="diverging"),
        "table": sheet("text head, signed copying, signed control", rows),
    }


def named(place: tuple[int, int]) -> str:
    """A head or a neuron of a layer as a command takes it."""
    return f"{place[0]}.{place[1]}"


def place_of(text: str, what: str, example: str) -> tuple[int, int]:
    """(layer, number) of a name like "18.6"; raises ReadingError for another."""
    layer, dot, number = text.strip().partition(".")
    if not (dot and all(part.isascii() and part.isdigit() for part in (layer, number))):
        raise ReadingError(f"a {what} is named LAYER.{what.upper()}, as in {example}; got {text!r}")
    return int(layer), int(number)


def head_of(text: str, model: Model) -> tuple[int, int]:
    """(layer, head) of a name like "18.6"; raises ReadingError for one that the model has not."""
    layer, head = place_of(text, "head", "18.6")
    if layer >= model.n_layers or head >= model.n_heads:
        raise ReadingError(
            f"there is no head {text}; {model.name} has the layers 0 to {model.n_layers - 1}, each of the heads 0 to "
            f"{model.n_heads - 1}"
        )
    return layer, head


HEADS = Looking("heads", HeadsConfig, "Heads by kind", heads)
