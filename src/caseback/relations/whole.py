"""Whole objects: an answer is one of the relation's objects, read from all its tokens.

Many names begin with a piece that others share or that says little: " T" of " Tashkent". Here the object is written behind
the question, and z is the mean of the final stream over the places that predict its tokens (Chanin et al. 2024, arXiv
2311.08968, who aggregate an object so). One stream then stands for all of an object's tokens, in no order:

    model:     argmax_o  mean_t log p(t | prompt, the tokens of o before t)
    operator:  argmax_o  mean_t p(t | z)              t: the tokens of o, p: the model's own end of z = β W s + b

Both are means, so that an object of many tokens has the chance one of few has. The operator's is of probabilities and not
of their logarithms: a later token follows from the ones before it and hardly from the subject, so that one stream often
has next to no probability for it, and a mean of logarithms then leaves no name of several tokens a chance.

Cost: the model's answers take a row for every object of several tokens, at every sample, of as many tokens less one; the
prompt is cached, and what all prompts begin with is run once. The operator's take what a token's do, one row of the unembedding a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, Stages
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.model import Model
from caseback.model.prefix import Prefix
from caseback.model.run import execute
from caseback.relations.observe import Own
from caseback.relations.prompt import Prompt, object_tokens
from caseback.relations.saved import array_of, tensor_of

__all__ = ["Whole"]

CACHED = 4096
"""Tokens, those of the cached prompt among them, that the rows of one batch have at most."""
PROMPTS = 4
"""Asked between two saves."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The relation's objects as answers, numbered by their place."""

    objects: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """Each object's tokens."""

    @staticmethod
    def of(model: Model, objects: Sequence[str], question: str) -> Whole:
        """The distinct objects as they follow a question. Raises RelationError where they cannot be told apart."""
        names = tuple(dict.fromkeys(objects))
        if len(names) < 2:
            raise RelationError("whole objects are told apart from each other, so there are at least two")
        tokens = tuple(object_tokens(model, question, name) for name in names)
        for i, one in enumerate(tokens):
            if (j := tokens.index(one)) < i:
                raise RelationError(
                    f"the objects {names[j]!r} and {names[i]!r} are the same tokens in {model.name}; leave one out"
                )
        return Whole(objects=names, tokens=tokens)

    @property
    def chance(self) -> float:
        return 1 / len(self.objects)

    @property
    def first_tokens(self) -> Whole:
        """The same objects, each read from its first token; of those that share it the earliest is answered."""
        return replace(self, tokens=tuple(one[:1] for one in self.tokens))

    @torch.no_grad()
    def decode(self, model: Model, z: Float[Tensor, "*rows d"], *, rows: int = 256) -> Int[Tensor, "*rows"]:
        """The object whose tokens have the highest mean probability at the end of each stream."""
        flat = z.reshape(-1, z.shape[-1]).to(model.hf.dtype)
        best = [self._means(end(model, part)).argmax(dim=-1) for part in flat.split(rows)]
        return torch.cat(best).view(z.shape[:-1])

    def _means(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row object"]:
        """Mean probability of each object's tokens, up to a factor of the row's own."""
        sizes = torch.tensor([len(one) for one in self.tokens], device=logits.device)
        columns = torch.tensor([token for one in self.tokens for token in one], device=logits.device)
        owner = torch.arange(len(sizes), device=logits.device).repeat_interleave(sizes)
        p = logits[:, columns].double().softmax(dim=-1)
        return p.new_zeros((len(p), len(sizes))).index_add_(1, owner, p) / sizes

    @torch.no_grad()
    def own(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        token: Int[Tensor, "sample"],
        z: Float[Tensor, "sample d"],
        stages: Stages,
        progress: Progress = silent,
    ) -> Own:
        """The model's answers, and the mean stream over the places that predict their tokens; `stages` saves what is known
        after every few prompts. Raises RelationError where an object is cut otherwise behind another prompt."""
        places = {name: i for i, name in enumerate(self.objects)}
        for prompt in prompts:
            if object_tokens(model, prompt.text, prompt.object) != self.tokens[places[prompt.object]]:
                raise RelationError(
                    f"the object {prompt.object!r} has other tokens behind {prompt.text[-60:]!r} than behind the first "
                    "prompt; end the template with a whole word"
                )
        head = cache(lambda: _head(model, prompts))

        def asked(state: Checkpoint | None, i: int) -> Checkpoint:
            answers, streams = [], []
            for place in range(i * PROMPTS, min((i + 1) * PROMPTS, len(prompts))):
                score, mean = self._forced(model, head(), prompts[place], z[place])
                answers.append(score.argmax())
                streams.append(mean[answers[-1]])
                progress("objects", place + 1, len(prompts))
            new = {"answers": array_of(torch.stack(answers)), "streams": array_of(torch.stack(streams))}
            if state:
                new = {name: np.concatenate([state.arrays[name], array]) for name, array in new.items()}
            return Checkpoint(new)

        found = stages.fold("objects", -(-len(prompts) // PROMPTS), asked).arrays
        return Own(torch.from_numpy(found["answers"]).to(z.device), tensor_of(found["streams"], z))

    def _forced(
        self, model: Model, head: Prefix, prompt: Prompt, z: Float[Tensor, "d"]
    ) -> tuple[Float[Tensor, "object"], Float[Tensor, "object d"]]:
        """(mean log-probability of each object written behind the prompt, mean stream over the places that predict it)."""
        log_p = end(model, z[None]).float().log_softmax(dim=-1)[0]
        sums = log_p[[one[0] for one in self.tokens]]
        streams = z.repeat(len(self.tokens), 1)
        sizes = torch.tensor([len(one) for one in self.tokens], device=z.device)
        several = sorted({len(one) for one in self.tokens} - {1})
        prefix = _longer(model, head, prompt.ids) if several else head
        for size in several:
            here = [i for i, one in enumerate(self.tokens) if len(one) == size]
            tokens = torch.tensor([self.tokens[i] for i in here], device=z.device)
            for part in torch.arange(len(here)).split(max(1, CACHED // (len(prompt.ids) + size))):
                found = _behind(model, prefix, tokens[part, :-1])
                told = torch.stack([end(model, one).float().log_softmax(dim=-1) for one in found.unbind(dim=1)], dim=1)
                rows = torch.tensor(here, device=z.device)[part]
                sums[rows] += told.gather(2, tokens[part, 1:, None])[..., 0].sum(dim=1)
                streams[rows] += found.sum(dim=1)
        return sums / sizes, streams / sizes[:, None]

    def first(self, answer: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        """The first token of each object."""
        return torch.tensor([one[0] for one in self.tokens], device=answer.device)[answer]

    def texts(self, model: Model, answer: Int[Tensor, "sample"]) -> list[str]:
        """The objects."""
        return [self.objects[int(i)] for i in answer]

    def right(
        self, model: Model, answer: Int[Tensor, "sample"], prompts: Sequence[Prompt]
    ) -> Bool[np.ndarray, "sample"]:
        """Whether each answer is the sample's object."""
        texts = self.texts(model, answer)
        return np.array([text == prompt.object for text, prompt in zip(texts, prompts, strict=True)])


def _head(model: Model, prompts: Sequence[Prompt]) -> Prefix:
    """What all prompts begin with, run once."""
    first, least = prompts[0].ids, min(len(prompt.ids) for prompt in prompts)
    same = torch.stack([prompt.ids[:least] == first[:least] for prompt in prompts]).all(dim=0)
    return Prefix.of(model, first, min(int(same.cumprod(dim=0).sum()), least - 1))


def _longer(model: Model, head: Prefix, ids: Int[Tensor, "pos"]) -> Prefix:
    """A whole prompt as a prefix, made from what it begins with; where the head has no cache, neither has it."""
    ids = ids.to(model.device)
    if head.cache is None:
        return Prefix(ids, 0, None)
    given = replace(head, ids=ids).past(1)
    with model.lock:
        output = model.hf(input_ids=ids[None, head.length :], use_cache=True, return_dict=True, **given)
    return Prefix(ids, len(ids), output.past_key_values)


def _behind(model: Model, prefix: Prefix, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d"]:
    """The final stream at tokens written behind a prompt."""
    whole = torch.cat([prefix.ids.expand(len(tokens), -1), tokens], dim=1)
    rest = whole[:, prefix.length :]
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    given = replace(prefix, ids=whole[0]).past(len(tokens))
    batch = Batch(rest, torch.ones_like(rest, dtype=torch.bool))
    execute(model, batch, {("resid_final", None): keep}, stop=model.n_layers, given=given)
    return kept[0][:, -tokens.shape[1] :]
