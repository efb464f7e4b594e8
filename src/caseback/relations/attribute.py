"""One relation's operator read over a whole prompt, and whether it still reads the truth where the model says otherwise.

The operator (W, b, β) of one layer is applied to the state of every layer and position, and β W s + b is handed to the
model's own end (Hernandez et al. 2024, arXiv 2308.09124, §6). It is a logit lens with a question: not "what comes next"
but "what is the capital of this".

The test of it: a falsehood is put before the question, stated twice (repetition) or to be copied (instruction), so that
the model says the falsehood. If the subject's state still holds the fact, the lens finds it there and the model's answer
does not. The layer that is read is chosen on one half of the samples and scored on the other, both ways; the operator's
random twin is allowed the same, and b alone is what the lens says of no subject in particular. An operator fitted at the
embedding reads embeddings only; to read over layers, take one from the middle of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import RelationError
from caseback.core.progress import Progress, silent
from caseback.evidence.intervals import Interval, proportion_interval
from caseback.model.batch import Batch
from caseback.model.end import end, token_ranks
from caseback.model.model import Model
from caseback.relations.observe import Observed, begins, observe
from caseback.relations.operator import spectrum_twin
from caseback.relations.prompt import first_token
from caseback.relations.relation import Relation, Sample

__all__ = ["AttributeLens", "Distracted", "Kind", "attribute_lens", "check_operator", "distracted"]

LOGITS = 1 << 23
"""Logits held at once (32 MB in float32), a few times over."""
INSTRUCTION = "Write this sentence once more, exactly as it stands:"
LEAST = 4
"""Known samples below which no layer can be chosen on one half and scored on the other."""

Kind = Literal["repetition", "instruction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributeLens:
    """What an operator reads in every state of some prompts. At padding, numbers are nan and token ids and ranks -1."""

    layers: tuple[int, ...]
    """States are those that enter these blocks; 0 is the embedding."""
    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    top_ids: Int[Tensor, "layer batch pos top"]
    """Most probable tokens, best first."""
    top_probs: Float[Tensor, "layer batch pos top"]
    objects: tuple[str, ...]
    """Chosen objects; () where none were asked for."""
    object_ids: tuple[int, ...]
    """The first token of each."""
    object_probs: Float[Tensor, "layer batch pos object"]
    object_ranks: Int[Tensor, "layer batch pos object"]
    """Other tokens at least as probable: 0 = the operator says it."""


@torch.no_grad()
def attribute_lens(
    model: Model,
    W: Float[Tensor, "d d"],
    b: Float[Tensor, "d"],
    prompt: Batch | str | Sequence[str],
    *,
    beta: float,
    layers: Sequence[int] | None = None,
    top: int = 3,
    objects: Sequence[str] | None = None,
    progress: Progress = silent,
) -> AttributeLens:
    """Apply one operator to the state of every layer and position of one prompt or several.

    Cost: one forward, and layers · tokens rows of W and of the unembedding, a bounded number at a time. Raises
    RelationError for an operator of another width, a layer or `top` that does not exist, objects with one first token.
    """
    check_operator(model, W, b)
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    if not chosen or not all(0 <= layer < model.n_layers for layer in chosen):
        raise RelationError(f"the lens reads layers 0 to {model.n_layers - 1}, got {list(chosen)}")
    if not 1 <= top <= model.d_vocab:
        raise RelationError(f"top {top} tokens were asked for; the vocabulary has {model.d_vocab}")
    names = tuple(objects or ())
    wanted = tuple(first_token(model, name) for name in names)
    for i, token in enumerate(wanted):
        if (j := wanted.index(token)) < i:
            raise RelationError(
                f"the objects {names[j]!r} and {names[i]!r} begin with the same token in {model.name}, so the lens cannot "
                "tell them apart; leave one out"
            )
    batch = prompt if isinstance(prompt, Batch) else model.encode([prompt] if isinstance(prompt, str) else prompt)
    batch = batch.to(model.device)
    sites = [f"resid_pre.{layer}" for layer in chosen]
    run = model.run(batch, read=sites, stop=max(chosen) + 1, logits=None)
    states = torch.stack([run[site] for site in sites]).flatten(0, 2)
    rows = batch.mask.expand(len(chosen), -1, -1).flatten().nonzero()[:, 0]
    top_ids = torch.full((len(states), top), -1, device=model.device)
    top_probs = torch.full((len(states), top), torch.nan, device=model.device)
    probs = torch.full((len(states), len(wanted)), torch.nan, device=model.device)
    ranks = torch.full((len(states), len(wanted)), -1, device=model.device)
    columns = torch.tensor(wanted, dtype=torch.long, device=model.device)
    done = 0
    for part in rows.split(max(1, LOGITS // model.d_vocab)):
        found = end(model, _applied(W, b, beta, states[part])).float().softmax(dim=-1)
        best = found.topk(top, dim=-1)
        top_ids[part], top_probs[part] = best.indices, best.values
        probs[part], ranks[part] = found[:, columns], token_ranks(found, columns.expand(len(part), -1))
        done += len(part)
        progress("attribute lens", done, len(rows))
    size = (len(chosen), *batch.mask.shape)
    return AttributeLens(
        layers=chosen,
        ids=batch.ids,
        mask=batch.mask,
        top_ids=top_ids.view(*size, top),
        top_probs=top_probs.view(*size, top),
        objects=names,
        object_ids=wanted,
        object_probs=probs.view(*size, len(wanted)),
        object_ranks=ranks.view(*size, len(wanted)),
    )


# --- the distraction tests ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Distracted:
    """Ranks of the truth and of the falsehood, for known samples asked after a falsehood."""

    kind: Kind
    asked: int
    """Samples that were given; those below are the ones the model knows when nothing distracts it."""
    prompts: tuple[str, ...]
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    falsehoods: tuple[str, ...]
    """The wrong object of each prompt."""
    layer: int
    """The operator's own."""
    ranks: Mapping[str, Int[np.ndarray, "layer sample"]]
    """model, lens, twin, embedding, bias → rank of the token that the model answers undistracted; 0 = first. Lens and
    twin have a row a layer, the others one; embedding is the lens at layer 0, which no prompt can change."""
    false_ranks: Mapping[str, Int[np.ndarray, "layer sample"]]
    """The same for the falsehood's first token."""
    halves: tuple[Int[np.ndarray, "half"], Int[np.ndarray, "other"]]

    @property
    def n(self) -> int:
        return len(self.prompts)

    def by_layer(self, name: str, k: int = 1) -> Float[np.ndarray, "layer"]:
        """Recall@k of the truth at every layer."""
        return (self._of(self.ranks, name) < k).mean(axis=1)

    def recall(self, name: str, k: int = 1, *, falsehood: bool = False) -> Interval:
        """Share of samples with the truth (or the falsehood) among the first k, at the layer that is best for the truth
        on the other half; of equals the lowest. Layer 0 is not among them: the embedding of a word is the same whatever
        stands before it, so that finding the truth there says nothing of the falsehood."""
        truth, told = self._of(self.ranks, name), self._of(self.false_ranks if falsehood else self.ranks, name)
        first, hits = min(1, len(truth) - 1), 0
        for choose, report in (self.halves, self.halves[::-1]):
            layer = first + int((truth[first:, choose] < k).mean(axis=1).argmax())
            hits += int((told[layer, report] < k).sum())
        return proportion_interval(hits, self.n)

    @staticmethod
    def _of(ranks: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in ranks:
            raise RelationError(f"there are no ranks of {name!r}; there are: {', '.join(ranks)}")
        return ranks[name]


@torch.no_grad()
def distracted(
    model: Model,
    relation: Relation,
    W: Float[Tensor, "d d"],
    b: Float[Tensor, "d"],
    beta: float,
    layer: int,
    template: str,
    samples: Sequence[Sample],
    kind: Kind = "repetition",
    *,
    examples: Sequence[Sample] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Distracted:
    """Ask for what the model knows after a falsehood, and read the subject's last token by the operator at every layer.

    The falsehood's object is drawn from the relation's others; it never begins with the token of the truth. `examples`
    come before the falsehood. Samples the model does not know without it are left out. Cost: two forwards a sample and
    2 · layers + 2 rows of the unembedding. Raises RelationError where fewer than 4 are known.
    """
    check_operator(model, W, b)
    if kind not in get_args(Kind):
        raise RelationError(f"a prompt is distracted by {' or '.join(get_args(Kind))}, not by {kind!r}")
    if not 0 <= layer < model.n_layers:
        raise RelationError(f"there is no layer {layer}; there are 0 to {model.n_layers - 1}")
    plain = observe(model, samples, template, examples)
    known = np.flatnonzero(plain.known)
    if len(known) < LEAST:
        raise RelationError(
            f"{model.name} knows {len(known)} of {len(samples)} samples of {relation.name!r} under the template "
            f"{template!r}; at least {LEAST} are needed: try another template or more examples (--shots)"
        )
    draw = np.random.default_rng(seed)
    seen: list[Observed] = []
    lies: list[str] = []
    for number, i in enumerate(known):
        sample = samples[int(i)]
        lies.append(_falsehood(model, relation, sample, int(plain.token[i]), draw))
        seen.append(_ask_after(model, sample, lies[-1], template, examples, kind))
        progress("distraction", number + 1, len(known))
    truth = plain.token[torch.from_numpy(known).to(plain.token.device)]
    told = torch.tensor([first_token(model, lie) for lie in lies], device=truth.device)
    tokens = torch.stack([truth, told], dim=1)
    states = torch.cat([one.s for one in seen]).transpose(0, 1)
    streams = {
        "model": torch.cat([one.z for one in seen])[None],
        "lens": _applied(W, b, beta, states),
        "twin": _applied(spectrum_twin(W, seed=seed), b, beta, states),
        "embedding": _applied(W, b, beta, states[:1]),
        "bias": b.to(states).expand(1, len(seen), -1),
    }
    found = {name: _token_ranks(model, stream, tokens) for name, stream in streams.items()}
    order = draw.permutation(len(known))
    return Distracted(
        kind=kind,
        asked=len(samples),
        prompts=tuple(one.prompts[0].text for one in seen),
        subjects=tuple(samples[int(i)].subject for i in known),
        objects=tuple(samples[int(i)].object for i in known),
        falsehoods=tuple(lies),
        layer=layer,
        ranks={name: both[..., 0] for name, both in found.items()},
        false_ranks={name: both[..., 1] for name, both in found.items()},
        halves=(np.sort(order[::2]), np.sort(order[1::2])),
    )


def _falsehood(model: Model, relation: Relation, sample: Sample, truth: int, draw: np.random.Generator) -> str:
    right = {one.object for one in relation.samples if one.subject == sample.subject} | {sample.object}
    text = model.tokenizer.decode([truth])
    others = sorted({one.object for one in relation.samples} - right)
    wrong = [other for other in others if first_token(model, other) != truth and not begins(text, other)]
    if not wrong:
        raise RelationError(
            f"every object of {relation.name!r} begins as {sample.object!r} does, so none is a falsehood"
        )
    return wrong[int(draw.integers(len(wrong)))]


def _ask_after(
    model: Model, sample: Sample, lie: str, template: str, examples: Sequence[Sample], kind: Kind
) -> Observed:
    """The sample asked after its falsehood; the subject read is the one of the question."""
    if kind == "repetition":
        return observe(model, [sample], template, [*examples, *[Sample(subject=sample.subject, object=lie)] * 2])
    before, after = template.split("{}")
    said = "".join(f"{before}{one.subject}{after} {one.object}\n" for one in examples)
    said += f"{INSTRUCTION} {before}{sample.subject}{after} {lie}\n"
    if "{}" in said:
        raise RelationError(f"the sample {sample.subject!r} holds {{}}, which marks the subject's place in a template")
    return observe(model, [sample], said + template)


# --- rows of the vocabulary --------------------------------------------------------------------------------------------------------------


def check_operator(model: Model, W: Tensor, b: Tensor) -> None:
    """Raises RelationError for an operator that is not of the model's width."""
    d = model.d_model
    if W.shape != (d, d) or b.shape != (d,):
        raise RelationError(
            f"{model.name} has streams of width {d}, but the operator has W of {tuple(W.shape)} and b of {tuple(b.shape)}; "
            "take the operator of one layer, fitted on this model"
        )


def _applied(W: Tensor, b: Tensor, beta: float, s: Tensor) -> Tensor:
    return beta * (s @ W.to(s).T) + b.to(s)


def _token_ranks(
    model: Model, stream: Float[Tensor, "layer sample d"], tokens: Int[Tensor, "sample token"]
) -> Int[np.ndarray, "layer sample token"]:
    size = max(1, LOGITS // model.d_vocab)
    rows = zip(stream.flatten(0, 1).split(size), tokens.repeat(len(stream), 1).split(size), strict=True)
    found = torch.cat([token_ranks(end(model, part), columns) for part, columns in rows])
    return found.view(*stream.shape[:2], -1).cpu().numpy()
