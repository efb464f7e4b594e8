"""Ways to read an object of several tokens from one stream, of an operator estimated on whole objects and one on first tokens.

Faithfulness is held out (`bench.sketch.held_out`) and told apart by the number of tokens of the model's answer. No time is
measured, so `rounds` plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import cases
from bench.clock import write
from bench.sketch import held_out
from caseback.model.end import end
from caseback.model.model import Model
from caseback.relations.faithful import answers
from caseback.relations.library import get
from caseback.relations.observe import draw, observe
from caseback.relations.operator import fit
from caseback.relations.prompt import ask
from caseback.relations.whole import Whole

__all__ = ["measure"]

RELATION = "country capital city"


@dataclass(frozen=True, kw_only=True)
class Logarithms(Whole):
    """Objects read by the mean log-probability of their tokens."""

    @torch.no_grad()
    def decode(self, model: Model, z: Tensor, *, rows: int = 256) -> Tensor:
        found = []
        for part in z.reshape(-1, z.shape[-1]).split(rows):
            log_p = end(model, part).log_softmax(dim=-1)
            means = [log_p[:, list(tokens)].mean(dim=-1) for tokens in self.tokens]
            found.append(torch.stack(means, dim=-1).argmax(dim=-1))
        return torch.cat(found).view(z.shape[:-1])


def measure(rounds: int = 1) -> None:
    """Measure and write bench/results/whole.json."""
    torch.set_num_threads(1)
    model, relation = cases.default_model(), get(RELATION)
    template = relation.prompt_templates[0]
    training, rest = draw(relation.samples, 5, seed=0)
    train = [relation.samples[i] for i in training]
    objects = [sample.object for sample in relation.samples]
    whole = Whole.of(model, objects, ask(model, template, train[0]).text)
    seen = observe(model, [relation.samples[i] for i in rest], template, train, reading=whole)
    seen = seen[np.flatnonzero(seen.known)]
    sizes = np.array([len(whole.tokens[int(answer)]) for answer in seen.token])
    readings = {
        "mean log-probability": Logarithms(objects=whole.objects, tokens=whole.tokens),
        "mean probability": whole,
        "first token": whole.first_tokens,
    }
    found: dict[str, Any] = {"model": model.name, "relation": RELATION, "known": len(seen), "operators": {}}
    found["of_tokens"] = np.bincount(sizes).tolist()
    for name, long in (("whole", True), ("first", False)):
        operators = fit(model, train, template, whole=long)
        for how, reading in readings.items():
            strict = held_out(answers(model, operators, replace(seen, reading=reading)))
            right = np.bincount(sizes[strict], minlength=sizes.max() + 1).tolist()
            found["operators"][f"{name}, {how}"] = {"strict": float(strict.mean()), "right_of_tokens": right}
            print(f"  {name} object, {how}: {strict.mean():.2f} of {len(strict)}, by tokens {right}", flush=True)
    write("whole", found)
