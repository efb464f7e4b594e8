"""A random twin: the control that asks what a number owes to training.

A reading of a model (a lens, a head's score, a relation's faithfulness) may come from the shape of the machine alone: residual
streams carry tokens upwards, softmaxes look at themselves, large vocabularies have near neighbours. The twin has the model's
architecture, configuration, dtype, device and tokenizer, and weights as the family's own code initialises them before any
training. What it scores is what the method scores on nothing.

Invariants: the same seed gives the same weights on every device (they are drawn on the CPU by a generator of their own: the
global one is where it was), the twin shares no weight and no configuration with its model, and its source never equals the
model's, so that runs on the two have different specs.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from caseback.core.errors import LoadError
from caseback.core.provenance import Source, sha256_json
from caseback.model.model import Model

__all__ = ["random_twin"]


def random_twin(model: Model, *, seed: int = 0) -> Model:
    """The untrained twin of a model, frozen and in eval mode; it takes as much memory as the model, which it does not copy.

    Args:
        seed: of the weights, 0 … 2⁶³ - 1.

    Raises LoadError when the seed is out of range and for packed (quantised) weights, which have no initialisation.

    >>> import caseback as cb
    >>> from caseback.model.twin import random_twin
    >>> random_twin(cb.load()).name
    'random twin of SmolLM2-135M-Instruct, seed 0'
    """
    if not 0 <= seed < 2**63:
        raise LoadError(f"the seed of a random twin is a whole number from 0 to 2^63 - 1; got {seed}")
    if getattr(model.hf.config, "quantization_config", None) is not None:
        raise LoadError(
            f"{model.name} has packed weights, which have no random twin; load a version that is not quantised"
        )
    kind: Any = type(model.hf)
    config = copy.deepcopy(model.hf.config)  # attention is switched through it while hooks are on
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        hf = kind._from_config(config, dtype=model.hf.dtype, attn_implementation=config._attn_implementation)
    for made, trained in zip(hf.parameters(), model.hf.parameters(), strict=True):
        made.requires_grad_(False)
        made.data = made.data.to(trained)  # some families keep a part in float32
    hf = hf.to(model.device)
    source = Source(f"random twin of {model.name}, seed {seed}", None, {"(initialised)": _marker(hf, seed)})
    return Model(hf.eval(), model.tokenizer, source, model.family)


def _marker(hf: Any, seed: int) -> str:
    """SHA-256 of all that the weights are a function of; it stands where a loaded model has the hash of its file."""
    config = json.loads(hf.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # where the trained one lay
    return sha256_json({"class": type(hf).__name__, "config": config, "seed": seed, "torch": torch.__version__})
