"""What kinds of heads a model has: what they attend to on random repeated text, and whether they copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import mean_intervals
from caseback.model.model import Model
from caseback.reading.heads import KINDS, find_heads, repeated
from caseback.reading.weights import copying_scores
from caseback.study.finding import Finding, Looking, LookingConfig, cell, heat, sheet

__all__ = ["HEADS", "HeadsConfig", "heads"]


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

    def watched() -> Checkpoint:
        found = find_heads(
            model, repeated(model, n=config.sequences, length=config.length, seed=config.seed), progress=progress
        )
        copying = copying_scores(model, seed=config.seed)
        arrays = {"scores": found.scores, "control": found.control, "chance": found.chance}
        layers = np.array(found.layers)
        return Checkpoint({**arrays, "layers": layers, "copying": copying.score, "copying_control": copying.control})

    saved = stages.stage("scores", watched).arrays
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
            name = f"{layers[int(i) // n_heads]}.{int(i) % n_heads}"
            rows.append([kind, name, cell(own), cell(beside), chance])
        best = rows[-len(order)]
        said.append(f"{best[1]} ({kind}, {best[2][0]:.0%}; control {best[3][0]:.0%})")
    copying, at_random = saved["copying"], saved["copying_control"]
    order = np.argsort(-copying.ravel(), kind="stable")[:10]
    copied = [
        [f"{int(i) // n_heads}.{int(i) % n_heads}", float(copying.ravel()[i]), float(at_random.ravel()[i])]
        for i in order
    ]
    table |= {"copying": copying.tolist(), "copying_control": at_random.tolist()}
    every = (axes[0], ("layer", [str(layer) for layer in range(len(copying))]))
    sections: list[dict[str, Any]] = [
        {
            "title": "Attention to the place that makes a kind",
            "text": f"Mean attention on {config.sequences} random sequences of {config.length} tokens, said twice: to the "
            "token before, to the same token's earlier place, and to the one after it (induction).",
            "heats": maps,
            "table": sheet("text kind, text head, percent attention, percent control, percent chance", rows),
        },
        {
            "title": "Copying",
            "text": "Σ Re λ / Σ |λ| over the eigenvalues of W_E W_V W_O W_U: 1 raises the token it reads, −1 lowers it. "
            "The control has the head's own matrices with the vocabulary shuffled.",
            "heat": heat(*every, copying, format="signed", scale="diverging"),
            "table": sheet("text head, signed copying, signed control", copied),
        },
    ]
    notes = [
        "Control: the same sequences with the second half in another order, so nothing can be predicted by repetition; to a "
        "previous-token head that makes no difference, and it should not.",
        "Chance: what a head that looks at every token alike scores.",
        "A score says where a head looks on random text, not what it is used for in a prompt.",
    ]
    return Finding(
        claim=f"The strongest heads are {'; '.join(said)}.",
        table=table,
        sections=sections,
        notes=notes,
        measured=config.sequences,
    )


HEADS = Looking("heads", HeadsConfig, "Heads by kind", heads)
