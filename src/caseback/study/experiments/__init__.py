"""Three experiments on one task and one model, as methods of the casebook.

    positions   what a ranking loses that ignores positions: cancellation and overestimation (PEAP §2, arXiv 2502.04577)
    schemas     how much circuits of every size keep, under spans written by hand, induced, proposed, and without any
    patching    how far scores can be trusted: edges patched exactly, one at a time

They share one frame (`frame.py`). An experiment is a function that looks at the pairs the model answers right and
returns a `Finding`: a claim in one sentence, a flat table for tools, and sections of curves, points and tables for
readers, which the terminal and the page both draw. `Experiment` does the rest - load, read, check, save - so that a run
can be resumed after any of its stages.
"""

from __future__ import annotations

from caseback.study.experiments.frame import Experiment, ExperimentConfig, Finding
from caseback.study.experiments.patching import PATCHING, PatchingConfig
from caseback.study.experiments.positions import POSITIONS, PositionsConfig
from caseback.study.experiments.schemas import SCHEMAS, SchemasConfig

__all__ = [
    "PATCHING",
    "POSITIONS",
    "SCHEMAS",
    "Experiment",
    "ExperimentConfig",
    "Finding",
    "PatchingConfig",
    "PositionsConfig",
    "SchemasConfig",
]
