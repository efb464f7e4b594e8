"""Scoring beside other tools, on the same prompts and weights, by turns in one run.

Each peer lives in a virtual environment of its own under build/peers, made here at the first run and never a
dependency. Its worker (`bench.workers`) scores all pairs whenever it is told to; between two of its turns caseback
scores the same pairs in this process. Both use one thread. What caseback does is the larger job each time: every
residual edge of nine spans and every crossing edge, where the peers score residual edges with positions summed.
Summed over spans (and a KV head's queries) the numbers must be the same, and the result says how far apart they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import cases
from bench.clock import ROOT, Ratio, ratio, write
from caseback.circuits.graph import Scores
from caseback.circuits.score import score
from caseback.model import Model
from caseback.tasks import PairBatch
from caseback.tasks.metrics import metric_of

__all__ = ["PEERS", "Peer", "PeerFailed", "Worker", "environment", "measure"]

ENVIRONMENTS = ROOT / "build" / "peers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool to compare with."""

    name: str
    worker: str
    """Module of `bench.workers`."""
    requirements: tuple[str, ...]
    """What pip installs, all at once."""
    jobs: Mapping[str, str]
    """Job of the worker → what it is."""
    target: float
    """How many times faster caseback is to be, per pair."""
    case: Callable[[Path], Case]
    """Makes what both sides score; may leave files for the worker in the folder."""


@dataclass(frozen=True)
class Case:
    """The same pairs for both sides, each of which takes them in batches of its own."""

    about: str
    model: Model
    pairs: PairBatch
    spec: dict[str, Any]
    """The same for the worker, as plain data."""


def _smollm2_ioi(folder: Path) -> Case:
    from caseback.model.default import default_folder

    model = cases.default_model()
    task = cases.ioi_task(model, 32)
    pairs = task.encode(model)
    spec = {
        "folder": str(default_folder()),
        "clean": [pair.clean for pair in task.pairs],
        "counterfactual": [pair.counterfactual for pair in task.pairs],
        "labels": torch.cat([pairs.answers, pairs.foils], dim=1).tolist(),
    }
    return Case("SmolLM2-135M-Instruct, 32 IOI pairs", model, pairs, spec)


def _gpt2_shape(folder: Path) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config())
    hf.save_pretrained(folder)
    model = cases.in_memory(hf)
    pairs = cases.random_pairs(model, 8, tokens=20)
    spec = {
        "folder": str(folder),
        "clean": pairs.clean.ids.tolist(),
        "counterfactual": pairs.counterfactual.ids.tolist(),
        "answers": pairs.answers[:, 0].tolist(),
        "foils": pairs.foils[:, 0].tolist(),
    }
    return Case("GPT-2 shape (12 layers, d 768, random weights), 8 pairs of 20 random tokens", model, pairs, spec)


# torch first: these versions of the peers take any, and this is the one caseback is measured with.
TORCH = "torch==2.13.0"
PEERS = (
    Peer(
        name="circuitkit",
        worker="circuitkit_eap",
        requirements=(TORCH, "circuitkit==0.2.0"),
        jobs={
            "edges": "EAP of all edges, positions summed (backends.eap.attribute)",
            "nodes": "EAP of all nodes, what its discover() runs (backends.eap.attribute_node)",
        },
        target=10,
        case=_smollm2_ioi,
    ),
    Peer(
        name="auto-circuit",
        worker="auto_circuit_eap",
        # It imports attrs without declaring it, and modules that TransformerLens 3 moved; TransformerLens 2 needs numpy 1,
        # which newer pyarrow refuses at import.
        requirements=(TORCH, "auto-circuit==1.0.1", "attrs", "transformer-lens==2.18.0", "pyarrow==21.0.0"),
        jobs={"edges": "EAP of all edges, positions summed (mask_gradient_prune_scores, mask 0)"},
        target=5,
        case=_gpt2_shape,
    ),
)


def measure(rounds: int = 5) -> None:
    """Make the environments, measure, write bench/results/peers.json. A peer that does not run is reported with its error."""
    torch.set_num_threads(1)
    found = {}
    for peer in PEERS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                python = environment(peer)
                found[peer.name] = _compare(peer, python, Path(folder), rounds)
            except (PeerFailed, subprocess.CalledProcessError) as error:
                found[peer.name] = {"requirements": peer.requirements, "error": str(error)}
        _report(peer.name, found[peer.name])
    write("peers", {"peers": found})


def environment(peer: Peer) -> Path:
    """The Python of a peer's environment, made if it is not there or was made from other requirements."""
    home = ENVIRONMENTS / peer.name
    stamp, wanted = home / "requirements.txt", "\n".join(peer.requirements) + "\n"
    python = home / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"  making {home.relative_to(ROOT)} (once; 2 GB)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
            check=True,
        )
        stamp.write_text(wanted)
    return python


class PeerFailed(Exception):
    """A worker ended, or its peer raised."""


class Worker:
    """A peer's process; `ask` sends one line and waits for the answer."""

    def __init__(self, peer: Peer, python: Path, log: Path):
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", f"bench.workers.{peer.worker}"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the empty answer below says so, with the reason it left
        answer = self.process.stdout.readline()
        if not answer:
            last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise PeerFailed(f"the worker ended: {''.join(last)}")
        reply = json.loads(answer)
        if "error" in reply:
            raise PeerFailed(reply["error"])
        return reply

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def _compare(peer: Peer, python: Path, folder: Path, rounds: int) -> dict[str, Any]:
    case = peer.case(folder)
    worker = Worker(peer, python, folder / "worker.log")
    try:
        facts = worker.ask(case.spec)
        seconds: dict[str, list[float]] = {name: [] for name in (*peer.jobs, "caseback")}
        for number in range(rounds + 1):  # the first warms up, and what it found is compared
            for job in peer.jobs:
                saved = str(folder / f"{job}.npy") if number == 0 else None
                seconds[job].append(worker.ask({"job": job, "save": saved})["cpu"])
            began = time.process_time()
            ours = score(case.model, case.pairs)
            seconds["caseback"].append(time.process_time() - began)
        worker.ask({"job": "metric", "save": str(folder / "metric.npy")})
    finally:
        worker.close()
    n = case.pairs.n
    first = {name: values.pop(0) / n for name, values in seconds.items()}
    return {
        "case": case.about,
        "requirements": peer.requirements,
        "worker": f"bench/workers/{peer.worker}.py",
        **facts,
        "caseback_edges": ours.graph.n_edges,
        "rounds": rounds,
        "cpu_s_a_pair": {name: float(np.median(values)) / n for name, values in seconds.items()},
        "first_call_cpu_s_a_pair": first,
        "times_faster": {job: ratio(seconds[job], seconds["caseback"]) for job in peer.jobs},
        "jobs": peer.jobs,
        "target": peer.target,
        "agreement": _agreement(case, ours, np.load(folder / "edges.npy"), np.load(folder / "metric.npy")),
    }


def _agreement(case: Case, ours: Scores, theirs: np.ndarray, their_metric: np.ndarray) -> dict[str, float]:
    """How far the peer's edge scores and metric are from ours, as shares of the largest.

    Readers of one KV head are added up; either sign is taken.
    """
    graph = ours.graph
    mine = ours.residual.sum(axis=0).astype(np.float64)
    heads, groups, rep = graph.n_heads, graph.n_groups, graph.n_heads // graph.n_groups
    blocks = theirs[:, :-1].astype(np.float64).reshape(graph.n_writers, graph.n_layers, 3 * heads + 1)
    q, k, v, mlp = np.split(blocks, [heads, 2 * heads, 3 * heads], axis=-1)
    k, v = (part.reshape(*part.shape[:2], groups, rep).sum(axis=-1) for part in (k, v))
    same = np.concatenate(
        [np.concatenate([q, k, v, mlp], axis=-1).reshape(graph.n_writers, -1), theirs[:, -1:]], axis=1
    )
    allowed = graph.residual_allowed
    mine, same = mine[allowed], same[allowed]
    same = same * np.sign(mine @ same)
    metric = metric_of(case.pairs.metric)(case.model.logits(case.pairs.clean), case.pairs).double().numpy()
    return {
        "largest_difference": float(np.abs(mine - same).max() / np.abs(mine).max()),
        "correlation": float(np.corrcoef(mine, same)[0, 1]),
        "metric_difference": float(np.abs(metric - their_metric).max() / np.abs(metric).max()),
    }


def _report(name: str, found: dict[str, Any]) -> None:
    if "error" in found:
        print(f"  {name}: could not be measured: {found['error']}")
        return
    for job, faster in found["times_faster"].items():
        assert isinstance(faster, Ratio)
        per = found["cpu_s_a_pair"]
        print(f"  {name}, {found['jobs'][job]}", flush=True)
        print(
            f"    {per[job]:.2f} CPU-s a pair, caseback {per['caseback']:.3f}: {faster} × (target {found['target']})",
            flush=True,
        )
    apart = found["agreement"]["largest_difference"]
    print(f"    its edge scores differ from ours by at most {apart:.1e} of the largest", flush=True)
