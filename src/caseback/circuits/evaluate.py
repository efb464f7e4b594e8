"""Does the circuit do what the model does? Real ablation of everything outside it, per example, at every size.

    M(C)/M(full)                                          the published ratio, which a small circuit can make negative
    f(C) = (M(C) − M(∅)) / (M(full) − M(∅))               faithfulness, corrected by the empty circuit's baseline

M(C) is the task's metric with every edge outside C carrying its reference value (`circuits.ablate`); ∅ is the reference
run. Beside it stand the share of prompts on which the circuit gives the full model's answer and the KL divergence from
the full model. Values stay per example; intervals and areas are `caseback.evidence`'s.

Cost: two recorded forwards a pair for all circuits together, then one ablated forward a pair and circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float

from caseback.circuits.ablate import Ablator, Mixing
from caseback.circuits.graph import Circuit
from caseback.circuits.parts import layers_of
from caseback.circuits.reference import Mean, Reference
from caseback.circuits.score import batches, encoded
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.evidence import faithfulness_intervals
from caseback.evidence.intervals import Interval
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import kl, metric_of, top1_agree
from caseback.tasks.task import Task

__all__ = ["Measured", "curve_sizes", "measure"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What some circuits do on some pairs, example by example."""

    metric: Float[np.ndarray, "circuit example"]
    agreement: Float[np.ndarray, "circuit example"]
    """1 where the circuit's most likely token is the full model's."""
    kl: Float[np.ndarray, "circuit example"]
    """KL(full model ‖ circuit) of the next token, in nats."""
    full: Float[np.ndarray, "example"]
    """The metric of the whole model on the clean prompts."""
    empty: Float[np.ndarray, "example"]
    """The metric of the empty circuit: the reference run."""

    @property
    def ratio(self) -> Float[np.ndarray, "circuit"]:
        """M(C)/M(full), of means."""
        return self.metric.mean(axis=1) / self.full.mean()

    def faithfulness(self) -> tuple[Interval, ...]:
        """f(C) of every circuit with its bootstrap interval over examples."""
        return faithfulness_intervals(self.metric, self.full, self.empty)

    def rows(self, chosen: slice | Sequence[int]) -> Measured:
        """Some of the circuits, on the same pairs."""
        picked = slice(chosen.start, chosen.stop, chosen.step) if isinstance(chosen, slice) else list(chosen)
        return Measured(
            metric=self.metric[picked],
            agreement=self.agreement[picked],
            kl=self.kl[picked],
            full=self.full,
            empty=self.empty,
        )

    @staticmethod
    def joined(parts: Sequence[Measured]) -> Measured:
        """The same circuits measured on several batches of pairs."""
        return Measured(
            **{f.name: np.concatenate([getattr(part, f.name) for part in parts], axis=-1) for f in fields(Measured)}
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def curve_sizes(n_edges: int, points: int = 12, *, first: int = 50) -> tuple[int, ...]:
    """Sizes of a curve: evenly spaced in the logarithm from `first` edges to half the graph, then the whole graph."""
    if points < 2 or n_edges < 2:
        raise CircuitError(
            f"a curve needs at least 2 points and a graph of at least 2 edges; got {points} points, {n_edges} edges"
        )
    spaced = np.geomspace(min(first, n_edges // 2 or 1), max(n_edges // 2, 1), points - 1).round().astype(int)
    return tuple(dict.fromkeys([*spaced.tolist(), n_edges]))


def measure(
    model: Model,
    pairs: PairBatch | Task,
    circuits: Sequence[Circuit],
    *,
    reference: Reference = "counterfactual",
    mixing: Mixing = "exact",
    mean: Mean | None = None,
    tokens: int = 320,
    progress: Progress = silent,
) -> Measured:
    """Run every circuit on every pair. `tokens` are processed at a time; the reference and the clean run of a batch
    serve all circuits.

    Raises FamilyError where circuits are not exact on the model's family, CircuitError for circuits of another graph or
    a reference without its means.
    """
    if not circuits:
        raise CircuitError("no circuit was given to measure")
    pairs = encoded(model, pairs)
    graph, layers = circuits[0].graph, layers_of(model)
    metric_fn = metric_of(pairs.metric)
    parts, done = [], 0
    for chunk in batches(pairs, tokens):
        ready = Ablator(model, layers, graph, chunk, reference=reference, mixing=mixing, mean=mean)
        values = {name: np.empty((len(circuits), chunk.n)) for name in ("metric", "agreement", "kl")}
        full = ready.full
        for i, circuit in enumerate(circuits):
            logits = ready.logits(circuit)
            values["metric"][i] = metric_fn(logits, ready.pairs).double().cpu().numpy()
            values["agreement"][i] = top1_agree(logits, full).double().cpu().numpy()
            values["kl"][i] = kl(logits, full).double().cpu().numpy()
            done += chunk.n
            progress("evaluate", done, pairs.n * len(circuits))
        ends = {"full": metric_fn(full, ready.pairs), "empty": metric_fn(ready.empty(), ready.pairs)}
        parts.append(Measured(**values, **{name: value.double().cpu().numpy() for name, value in ends.items()}))
        del ready
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Measured.joined(parts)
