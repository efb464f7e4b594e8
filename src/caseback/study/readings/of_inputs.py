"""Which words of a prompt the answer comes from: input attribution by several methods side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.model.model import Model
from caseback.reading.inputs import METHODS, attribute_inputs
from caseback.relations.prompt import first_token
from caseback.study.finding import Finding, Looking, heat, sheet
from caseback.study.readings.of_prompts import PromptConfig, numbered, texts

__all__ = ["INPUT", "InputConfig", "input_attribution"]


@dataclass(frozen=True, kw_only=True)
class InputConfig(PromptConfig):
    """Which tokens the answer comes from."""

    answer: str | None = None
    """Word whose first token is explained; None: the model's own next token."""
    foil: str | None = None
    """Word it is compared with; None: the logit alone."""
    methods: tuple[str, ...] = METHODS
    """gradient, integrated, occlusion: those that are compared."""
    steps: int = 64
    """Points of integrated gradients."""


def input_attribution(config: InputConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Every method's score of every token."""
    batch, words = config.encode(model)
    own = int(model.logits(batch)[0].argmax())
    answer = own if config.answer is None else first_token(model, config.answer.strip())
    foil = None if config.foil is None else first_token(model, config.foil.strip())

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, answer] if foil is None else logits[:, answer] - logits[:, foil]

    def found() -> Checkpoint:
        arrays, data = {}, {}
        for name in config.methods:
            method: Any = name
            one = attribute_inputs(model, batch, metric, method=method, steps=config.steps, progress=progress)
            arrays[name] = one.scores[0]
            change = float(one.metric[0] - one.baseline_metric[0])
            error = float(one.completeness_error[0]) if name == "integrated" else None
            data[name] = {"metric": float(one.metric[0]), "change": change, "error": error}
        return Checkpoint(arrays, data)

    saved = stages.stage("scores", found)
    rows = [saved.arrays[name] for name in config.methods]
    said = texts(model, [answer])[0] + ("" if foil is None else f" over {texts(model, [foil])[0]}")
    shares = [row / max(float(np.abs(row).sum()), 1e-12) for row in rows]
    errors = {n: saved.data[n]["error"] for n in config.methods if saved.data[n]["error"] is not None}
    tops = [int(np.abs(share).argmax()) for share in shares]
    points = [
        f"{n} points at {words[i]!r} ({share[i]:+.0%})"
        for n, i, share in zip(config.methods, tops, shares, strict=True)
    ]
    wrong = "".join(
        f" The scores of {name} miss the change they should add up to ({saved.data[name]['change']:+.2f}) by {error:+.2f}."
        for name, error in errors.items()
        if abs(error) > 0.05 * abs(saved.data[name]["change"])
    )
    claim = f"For {said!r}, {', '.join(points)} of all it gives.{wrong}"
    sections = [
        {
            "title": f"Which tokens {said!r} comes from",
            "text": "Each method's scores as shares of the sum of their sizes.",
            "heat": heat(
                ("token", numbered(words)),
                ("method", list(config.methods)),
                shares,
                format="percent",
                scale="diverging",
            ),
            "table": sheet(
                "text token, " + ", ".join(f"signed {name}" for name in config.methods),
                [[word, *(float(row[i]) for row in rows)] for i, word in enumerate(words)],
            ),
        }
    ]
    notes = [
        *(
            f"{name}: its scores miss the metric's change by {error:.3g} (completeness error)."
            for name, error in errors.items()
        ),
        "Where methods disagree, none of them is evidence by itself; `--twin` shows what they say of an untrained model.",
    ]
    table = {
        "prompt": config.prompt,
        "answer": texts(model, [answer])[0],
        "tokens": words,
        "metric": saved.data[config.methods[0]]["metric"],
        "scores": {name: row.tolist() for name, row in zip(config.methods, rows, strict=True)},
        "completeness_error": errors,
    }
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=1)


INPUT = Looking("attribute-input", InputConfig, "Input attribution", input_attribution)
