"""What the model itself says: the subject's state at every layer, the final stream and its answer.

What an answer is, a reading says: any token of the vocabulary (`FirstToken`), or one of the relation's objects with all
its tokens (`caseback.relations.whole`). Answers are numbers, token ids or places among the objects.

Faithfulness compares an operator with the model, not with the data, so a sample counts only if the model knows it: its
likeliest token, lower-cased and stripped, begins the object, or the object it finds likeliest is the sample's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import FamilyError, RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.model.model import Model
from caseback.relations.operator import decode
from caseback.relations.prompt import SUBJECT, Prompt, ask, batch_of
from caseback.relations.relation import Sample
from caseback.relations.saved import array_of, tensor_of

__all__ = ["FIRST_TOKEN", "FirstToken", "Observed", "Own", "Reading", "begins", "draw", "observe"]


class Own(NamedTuple):
    """What the model answers by itself."""

    answer: Int[Tensor, "sample"]
    z: Float[Tensor, "sample d"]
    """The stream the answer is read from."""


@runtime_checkable
class Reading(Protocol):
    """What an answer is, and how a final stream gives one."""

    @property
    def chance(self) -> float | None:
        """Share of right guesses where there is a list of answers to guess from."""

    def decode(self, model: Model, z: Float[Tensor, "*rows d"]) -> Int[Tensor, "*rows"]:
        """The answer each stream gives."""

    def own(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        token: Int[Tensor, "sample"],
        z: Float[Tensor, "sample d"],
        stages: Stages,
        progress: Progress = silent,
    ) -> Own:
        """The model's answers, given its likeliest token and the final stream at the end of each prompt."""

    def first(self, answer: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        """The first token of each answer."""

    def texts(self, model: Model, answer: Int[Tensor, "sample"]) -> list[str]:
        """Each answer as text."""

    def right(
        self, model: Model, answer: Int[Tensor, "sample"], prompts: Sequence[Prompt]
    ) -> Bool[np.ndarray, "sample"]:
        """Whether each answer is what the data says."""


@dataclass(frozen=True)
class FirstToken:
    """An answer is one token, any of the vocabulary; right if it begins the object."""

    @property
    def chance(self) -> None:
        return None

    def decode(self, model: Model, z: Float[Tensor, "*rows d"]) -> Int[Tensor, "*rows"]:
        return decode(model, z)

    def own(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        token: Int[Tensor, "sample"],
        z: Float[Tensor, "sample d"],
        stages: Stages,
        progress: Progress = silent,
    ) -> Own:
        return Own(token, z)

    def first(self, answer: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        return answer

    def texts(self, model: Model, answer: Int[Tensor, "sample"]) -> list[str]:
        return [model.tokenizer.decode([int(one)]) for one in answer]

    def right(
        self, model: Model, answer: Int[Tensor, "sample"], prompts: Sequence[Prompt]
    ) -> Bool[np.ndarray, "sample"]:
        texts = self.texts(model, answer)
        return np.array([begins(text, prompt.object) for text, prompt in zip(texts, prompts, strict=True)])


FIRST_TOKEN = FirstToken()


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A relation's samples in one model, under one prompt."""

    prompts: tuple[Prompt, ...]
    s: Float[Tensor, "sample layer d"]
    """The stream at the subject's last token, entering each block."""
    z: Float[Tensor, "sample d"]
    """The stream that the answer is read from, entering the final norm: at the prompt's last token, or the mean over the
    places that predict the answer's tokens."""
    token: Int[Tensor, "sample"]
    """The model's answer: a token id, or whatever `reading` numbers."""
    known: Bool[np.ndarray, "sample"]
    reading: Reading = FIRST_TOKEN

    @property
    def first(self) -> Int[Tensor, "sample"]:
        """The first token of the model's answer."""
        return self.reading.first(self.token)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Observed:
        index = [int(i) for i in rows]
        prompts = tuple(self.prompts[i] for i in index)
        where = torch.tensor(index, dtype=torch.long, device=self.s.device)
        return replace(
            self, prompts=prompts, s=self.s[where], z=self.z[where], token=self.token[where], known=self.known[index]
        )


def observe(
    model: Model,
    samples: Sequence[Sample],
    template: str,
    examples: Sequence[Sample] = (),
    *,
    reading: Reading = FIRST_TOKEN,
    tokens: int = 1500,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Observed:
    """Ask the model every sample after the same examples, `tokens` tokens at a time, each time a stage.

    Raises FamilyError where the model's answer is not the norm and unembedding of its final stream, for then no operator
    can be decoded.
    """
    if not samples:
        raise RelationError("there are no samples to ask about")
    prompts = [ask(model, template, sample, examples) for sample in samples]
    stages = stages or InMemory()
    like = torch.empty(0, device=model.device, dtype=model.hf.dtype)
    reads = [f"resid_pre.{layer}@{SUBJECT}[-1]" for layer in range(model.n_layers)]

    def asked(some: Sequence[Prompt]) -> Checkpoint:
        run = model.run(batch_of(model, some), read=[*reads, "resid_final@end"])
        assert run.logits is not None
        s, z = torch.stack([run[site] for site in reads], dim=1), run["resid_final@end"]
        lost = run.logits.amax(dim=-1) - run.logits.gather(1, decode(model, z)[:, None])[:, 0]
        found = {"s": s, "z": z, "token": run.logits.argmax(dim=-1), "lost": lost, "scale": run.logits.abs().max()}
        return Checkpoint({name: array_of(value) for name, value in found.items()})

    parts, start = [], 0
    while start < len(prompts):
        width = len(prompts[start].ids)
        after = start + 1
        while after < len(prompts):
            width = max(width, len(prompts[after].ids))
            if (after + 1 - start) * width > tokens:
                break
            after += 1
        part = stages.stage(f"observe-{start}", lambda: asked(prompts[start:after]))  # noqa: B023 - called at once
        parts.append({name: tensor_of(array, like) for name, array in part.arrays.items() if name != "token"})
        parts[-1]["token"] = torch.from_numpy(part.arrays["token"]).to(model.device)
        start = after
        progress("observe", start, len(prompts))
    states, z, token, lost = (torch.cat([part[name] for part in parts]) for name in ("s", "z", "token", "lost"))
    scale = max(float(part["scale"]) for part in parts)
    # of logits that differ by rounding alone either may win
    if float(lost.max()) > (1e-5 if model.hf.dtype in (torch.float32, torch.float64) else 2e-2) * scale:
        raise FamilyError(
            f"{model.family.name} does more between its final stream and its logits than a norm and an unembedding, so "
            "operators cannot be decoded"
        )
    own = reading.own(model, prompts, token, z, stages, progress)
    return Observed(
        prompts=tuple(prompts),
        s=states,
        z=own.z,
        token=own.answer,
        known=reading.right(model, own.answer, prompts),
        reading=reading,
    )


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
        raise RelationError(
            f"{n} training samples were asked for of {len(samples)}; at least 2 are needed, and others to test on: give the "
            "relation more samples, or take fewer (--train)"
        )
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
