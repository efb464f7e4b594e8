"""The Jacobians of all layers at once, against one layer's by `torch.autograd.functional.jacobian(vectorize=True)`.

The published code takes one layer at a time by the latter. Here it is given the same cached beginning of the prompt,
runs the two tokens from the subject's last on, starts at the block itself and stops before the final norm: no block
before the layer, no vocabulary, so it is no slower than the published call. The layer is the middle one, whose cost is
about the mean over layers; the sweep over all of them is that time times their number, an estimate.

One example a round: five examples are five times either side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import cases
from bench.clock import ROOT, Ratio, interleaved, ratio, write
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import Start, execute
from caseback.relations.jacobian import Expansion, expand, rows_at_once
from caseback.relations.prompt import Prompt, ask
from caseback.relations.relation import Sample

__all__ = ["measure"]

TEMPLATE = "The capital city of {} is"
PAIRS = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Italy": "Rome"}


def measure(rounds: int = 2) -> None:
    """Measure and write bench/results/relations.json."""
    torch.set_num_threads(1)
    model, prompt = case()
    layer = model.n_layers // 2
    kept: dict[str, Any] = {}

    def all_layers() -> None:
        kept["all"] = expand(model, prompt)

    def one_layer() -> None:
        kept["one"] = vectorized(model, prompt, layer)

    # no uncounted run of each, which would take as long as a round; a forward of the rest has warmed the weights
    model.logits(Prefix.of(model, prompt.ids, prompt.at).batch())
    times = interleaved({"all layers": all_layers, "one layer": one_layer}, rounds=rounds, warm=False)
    expansion: Expansion = kept["all"]
    difference = float((expansion.J[layer] - kept["one"]).abs().max() / kept["one"].abs().max())
    over = ratio(times["all layers"].cpu, times["one layer"].cpu)
    sweep = [model.n_layers * seconds for seconds in times["one layer"].cpu]
    tokens = len(prompt.ids)
    found: dict[str, Any] = {
        "model": model.name,
        "examples": 1,
        "tokens": {"prompt": tokens, "from the subject's last": tokens - prompt.at},
        "layers": model.n_layers,
        "layer": layer,
        "rows_at_once": rows_at_once(model, tokens, tokens - prompt.at),
        "times": times,
        "over_one_layer": over,
        "sweep_over": ratio(sweep, times["all layers"].cpu),
        "largest_difference": difference,
        "peak_mb": {job: alone(job) for job in ("all", "one")},
        "targets": {"over_one_layer": 3, "sweep_over": 10},
    }
    write("relations", found)
    report(found)


def report(found: dict[str, Any]) -> None:
    over, sweep = found["over_one_layer"], found["sweep_over"]
    assert isinstance(over, Ratio) and isinstance(sweep, Ratio)
    print(
        f"  all {found['layers']} layers: {over} × one layer vectorized; a sweep of single layers: {sweep} × all at once"
    )
    peaks = ", ".join(
        f"{job}: {peak['before']:.0f} before, {peak['after']:.0f} MB after" for job, peak in found["peak_mb"].items()
    )
    print(f"  largest difference {found['largest_difference']:.1e}; {peaks}")


def case() -> tuple[Model, Prompt]:
    """The default model and one of five samples asked after the other four."""
    model = cases.default_model()
    samples = [Sample(subject=one, object=other) for one, other in PAIRS.items()]
    return model, ask(model, TEMPLATE, samples[0], samples[1:])


def vectorized(model: Model, prompt: Prompt, layer: int) -> Tensor:
    """∂z/∂s at one layer, [d, d], by torch's own Jacobian."""
    prefix = Prefix.of(model, prompt.ids, prompt.at)
    place, batch = prompt.at - prefix.length, prefix.batch()
    streams: list[Tensor] = []
    execute(model, batch, {("resid_pre", layer): partial(_kept, streams)}, stop=model.n_layers, given=prefix.past(1))
    [stream] = streams

    def z(s: Tensor) -> Tensor:
        ends: list[Tensor] = []
        new = torch.cat([stream[:, :place], s[None, None], stream[:, place + 1 :]], dim=1)
        taps = {("resid_pre", layer): lambda value: new, ("resid_final", None): partial(_kept, ends)}
        start = Start(layer, stream)
        execute(model, batch, taps, start=start, stop=model.n_layers, given=prefix.past(1), grad=True)
        return ends[0][0, -1]

    return torch.autograd.functional.jacobian(z, stream[0, place], vectorize=True)


def _kept(into: list[Tensor], value: Tensor) -> Tensor:
    into.append(value)
    return value


def alone(job: str) -> dict[str, float]:
    """Peak memory (MB) of a process that does one of the two."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.relations", job],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak(job: str) -> dict[str, float]:
    from caseback.core.provenance import peak_memory_mb

    torch.set_num_threads(1)
    model, prompt = case()
    before = peak_memory_mb()
    if job == "all":
        expand(model, prompt)
    else:
        vectorized(model, prompt, model.n_layers // 2)
    return {"before": before, "after": peak_memory_mb()}


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1])))
