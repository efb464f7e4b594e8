"""A patching grid beside TransformerLens' own, on the same prompts and weights, by turns in one run.

The peer runs every patch through the whole model; caseback runs the blocks from the patched one on and the tokens from
the patched one on, and unembeds the last. So the ratio grows with depth, length and vocabulary; the case is GPT-2's shape.
The two grids must be the same, and the result says how far apart they are.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import cases
from bench.clock import ratio, write
from bench.peers import PEERS, Peer, PeerFailed, Worker, environment
from caseback.reading.patching import Grid, patch_grid

__all__ = ["measure"]

PAIRS, TOKENS, TARGET = 4, 12, 3
HOME = next(peer for peer in PEERS if peer.name == "auto-circuit")
"""Whose environment has TransformerLens."""


def measure(rounds: int = 5) -> None:
    """Measure and write bench/results/reading.json. A peer that does not run is reported with its error."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = _compare(Path(folder), rounds)
        except PeerFailed as error:
            found = {"error": str(error)}
    print(f"  {found.get('error') or found['times_faster']} × (target {TARGET})", flush=True)
    write("reading", found)


def _compare(folder: Path, rounds: int) -> dict[str, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config())
    hf.save_pretrained(folder)
    model = cases.in_memory(hf)
    pairs = cases.random_pairs(model, PAIRS, tokens=TOKENS)
    peer = Peer(
        name=HOME.name,
        worker="transformer_lens_patching",
        requirements=HOME.requirements,
        jobs={"grid": "get_act_patch_resid_pre"},
        target=TARGET,
        case=HOME.case,
    )
    worker = Worker(peer, environment(HOME), folder / "worker.log")
    seconds: dict[str, list[float]] = {"grid": [], "caseback": []}
    try:
        facts = worker.ask(
            {
                "folder": str(folder),
                "clean": pairs.clean.ids.tolist(),
                "counterfactual": pairs.counterfactual.ids.tolist(),
                "answers": pairs.answers[:, 0].tolist(),
                "foils": pairs.foils[:, 0].tolist(),
            }
        )
        for number in range(rounds + 1):  # the first warms up, and what it found is compared
            saved = str(folder / "grid.npy") if number == 0 else None
            seconds["grid"].append(worker.ask({"job": "grid", "save": saved})["cpu"])
            began = time.process_time()
            ours = patch_grid(model, pairs, "resid_pre", columns="tokens")
            seconds["caseback"].append(time.process_time() - began)
    finally:
        worker.close()
    for values in seconds.values():
        values.pop(0)
    return {
        "case": f"GPT-2 shape (12 layers, d 768, random weights), {PAIRS} pairs of {TOKENS} random tokens, "
        f"{ours.effect.size} patches",
        "call": "patching.get_act_patch_resid_pre",
        "worker": f"bench/workers/{peer.worker}.py",
        **facts,
        "rounds": rounds,
        "cpu_s": {name: float(np.median(values)) for name, values in seconds.items()},
        "times_faster": ratio(seconds["grid"], seconds["caseback"]),
        "target": TARGET,
        "largest_difference": _apart(ours, np.load(folder / "grid.npy")),
    }


def _apart(ours: Grid, theirs: np.ndarray) -> float:
    """Largest difference of the mean metric under a patch, as a share of the largest change a patch makes."""
    mine = ours.metric[:, 0].mean(axis=-1)
    return float(np.abs(mine - theirs).max() / np.abs(ours.change.mean(axis=-1)).max())
