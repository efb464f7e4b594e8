"""What the model itself says: the subject's state at every layer, the final stream and the token it answers with.

Faithfulness compares an operator with the model, not with the data, so a sample counts only if the model knows it: its
likeliest token, lower-cased and stripped, begins the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import FamilyError, RelationError
from caseback.core.progress import Progress, silent
from caseback.model.model import Model
from caseback.relations.operator import decode
from caseback.relations.prompt import SUBJECT, Prompt, ask, batch_of
from caseback.relations.relation import Sample

__all__ = ["Observed", "begins", "draw", "observe"]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A relation's samples in one model, under one prompt."""

    prompts: tuple[Prompt, ...]
    s: Float[Tensor, "sample layer d"]
    """The stream at the subject's last token, entering each block."""
    z: Float[Tensor, "sample d"]
    """The stream at the last token, entering the final norm."""
    token: Int[Tensor, "sample"]
    """The model's answer."""
    known: Bool[np.ndarray, "sample"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Observed:
        index = [int(i) for i in rows]
        prompts = tuple(self.prompts[i] for i in index)
        where = torch.tensor(index, dtype=torch.long, device=self.s.device)
        return Observed(
            prompts=prompts, s=self.s[where], z=self.z[where], token=self.token[where], known=self.known[index]
        )


def observe(
    model: Model,
    samples: Sequence[Sample],
    template: str,
    examples: Sequence[Sample] = (),
    *,
    tokens: int = 1500,
    progress: Progress = silent,
) -> Observed:
    """Ask the model every sample after the same examples. Raises FamilyError where the model's answer is not the norm and
    unembedding of its final stream, for then no operator can be decoded."""
    if not samples:
        raise RelationError("there are no samples to ask about")
    prompts = [ask(model, template, sample, examples) for sample in samples]
    states, ends, said, lost, scale = [], [], [], [], 0.0
    start = 0
    while start < len(prompts):
        width = len(prompts[start].ids)
        after = start + 1
        while after < len(prompts):
            width = max(width, len(prompts[after].ids))
            if (after + 1 - start) * width > tokens:
                break
            after += 1
        batch = batch_of(model, prompts[start:after])
        reads = [f"resid_pre.{layer}@{SUBJECT}[-1]" for layer in range(model.n_layers)]
        run = model.run(batch, read=[*reads, "resid_final@end"])
        assert run.logits is not None
        states.append(torch.stack([run[site] for site in reads], dim=1))
        ends.append(run["resid_final@end"])
        said.append(run.logits.argmax(dim=-1))
        lost.append(run.logits.amax(dim=-1) - run.logits.gather(1, decode(model, ends[-1])[:, None])[:, 0])
        scale = max(scale, float(run.logits.abs().max()))
        start = after
        progress("observe", start, len(prompts))
    z, token = torch.cat(ends), torch.cat(said)
    # of logits that differ by rounding alone either may win
    if float(torch.cat(lost).max()) > (1e-5 if model.hf.dtype in (torch.float32, torch.float64) else 2e-2) * scale:
        raise FamilyError(
            f"{model.family.name} does more between its final stream and its logits than a norm and an unembedding, so "
            "operators cannot be decoded"
        )
    texts = [model.tokenizer.decode([int(one)]) for one in token]
    known = np.array([begins(text, prompt.object) for text, prompt in zip(texts, prompts, strict=True)])
    return Observed(prompts=tuple(prompts), s=torch.cat(states), z=z, token=token, known=known)


def begins(text: str, object: str) -> bool:
    """Whether a token's text is a non-empty beginning of an object (the published test of a right answer)."""
    said = text.strip().lower()
    return bool(said) and object.lower().startswith(said)


def draw(samples: Sequence[Sample], n: int, *, seed: int) -> tuple[list[int], list[int]]:
    """(training, rest): places of n samples that show as many different objects as possible, and of the others.

    Samples are shuffled, then taken object by object in rounds. A subject that stands in the training samples is in
    none of the rest.
    """
    if not 2 <= n < len(samples):
        raise RelationError(f"an operator is estimated on 2 to {len(samples) - 1} of {len(samples)} samples, not {n}")
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    rounds: dict[str, int] = {}
    turn = []
    for place in order:
        turn.append(rounds.get(samples[place].object, 0))
        rounds[samples[place].object] = turn[-1] + 1
    taken: list[int] = []
    subjects: set[str] = set()
    for _, place in sorted(zip(turn, order, strict=True), key=lambda pair: pair[0]):
        if len(taken) < n and samples[place].subject not in subjects:
            taken.append(place)
            subjects.add(samples[place].subject)
    rest = [place for place in order if samples[place].subject not in subjects]
    return taken, rest
