"""Ways of reading as runs: of prompts, of a task's pairs, of heads, and of weights alone.

Each is a function of a config and a model that returns a finding (`caseback.study.finding`); the terminal and the page
draw it. `twin` looks at the same model with random weights: what a reading shows there is what it shows of nothing.
"""

from __future__ import annotations

from caseback.study.readings.of_attention import ATTENTION, AttentionConfig
from caseback.study.readings.of_heads import HEADS, HeadsConfig
from caseback.study.readings.of_inputs import INPUT, InputConfig
from caseback.study.readings.of_paths import PATHS, PathsConfig
from caseback.study.readings.of_prompts import ATTRIBUTE, LENS, AttributeConfig, LensConfig
from caseback.study.readings.of_scrub import SCRUB, ScrubConfig
from caseback.study.readings.of_tasks import DLA, PATCH, DlaConfig, PatchConfig
from caseback.study.readings.of_weights import WEIGHTS, WeightsConfig

__all__ = [
    "ATTENTION",
    "ATTRIBUTE",
    "DLA",
    "HEADS",
    "INPUT",
    "LENS",
    "PATCH",
    "PATHS",
    "SCRUB",
    "WEIGHTS",
    "AttentionConfig",
    "AttributeConfig",
    "DlaConfig",
    "HeadsConfig",
    "InputConfig",
    "LensConfig",
    "PatchConfig",
    "PathsConfig",
    "ScrubConfig",
    "WeightsConfig",
]
