"""What heads look at: patterns, what they move, and which heads are of a known kind.

A pattern says where a head looks; a head may look at a token and move nothing from it. So beside A stands

    A_ts |v_s W_O|     how much of the stream's length comes from token s        (Kobayashi et al. 2020, arXiv 2004.10102)

Three kinds of head are found on prompts made for it, a random sequence r of different tokens said twice (Elhage et al.
2021; Olsson et al. 2022, arXiv 2209.11895):

    previous     A[t, t−1]         the token before
    duplicate    A[t, t−n]         the same token, earlier
    induction    A[t, t−n+1]       the token that followed the same token, earlier        (n tokens in r; t in the second r)

A score is the mean attention to that one place, per sequence. Two things stand beside it: the same places where the
second half is the same tokens in another order, so that nothing is the same or follows the same any more; and `chance`,
what a head that looks at every token alike would score. The previous-token score is about places alone and so does not
drop with the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from caseback.core.errors import FamilyError, ReadingError
from caseback.core.progress import Progress, silent
from caseback.evidence import Interval, Resampling, mean_intervals
from caseback.model.attention import AttentionCall
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import execute
from caseback.model.taps import check_supported

__all__ = ["KINDS", "HeadScores", "Patterns", "Repeated", "attention_layers", "find_heads", "patterns", "repeated"]

KINDS = ("previous", "duplicate", "induction")

ROWS = 16
"""Sequences run at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patterns:
    """Attention of every head on a batch. Zero at padding and, in causal models, right of the diagonal."""

    layers: tuple[int, ...]
    """Layers with attention of the registered kind (a hybrid's others have no pattern)."""
    batch: Batch
    pattern: Float[Tensor, "layer batch head query key"]
    """Rows sum to 1, less under a sink."""
    weighted: Float[Tensor, "layer batch head query key"] | None
    """A_ts |v_s W_O|, in units of the stream before any norm behind the output projection; None where a gate or a norm
    lies between the attention and its output projection (`Family.plain_heads`)."""


def patterns(model: Model, batch: Batch, *, layers: Sequence[int] | None = None) -> Patterns:
    """Patterns of the layers asked for (of all); one forward pass.

    Raises FamilyError where the model file does not call the attention interface, ReadingError for a layer that has no
    attention.
    """
    have = attention_layers(model)
    chosen = have if layers is None else tuple(layers)
    if missing := [layer for layer in chosen if layer not in have]:
        raise ReadingError(f"layer {missing[0]} has no attention pattern; the layers {', '.join(map(str, have))} have")
    if not chosen:
        raise ReadingError("no layer was asked for; leave `layers` out to read all of them")
    seen: dict[int, Tensor] = {}
    moved: dict[int, Tensor] = {}
    batch = batch.to(model.device)
    real = (batch.mask[:, :, None] & batch.mask[:, None, :])[:, None]

    def keep(call: AttentionCall, pattern: Tensor) -> None:
        if call.layer in chosen:
            seen[call.layer] = torch.where(real, pattern.float(), 0.0)
            if model.family.plain_heads:
                moved[call.layer] = seen[call.layer] * _moved(model, call)[:, :, None]

    _watch(model, batch, keep)
    return Patterns(
        layers=chosen,
        batch=batch,
        pattern=torch.stack([seen[layer] for layer in chosen]),
        weighted=torch.stack([moved[layer] for layer in chosen]) if moved else None,
    )


def attention_layers(model: Model) -> tuple[int, ...]:
    """The layers that have a pattern. Raises FamilyError for a family without the site, ReadingError for a model without
    such a layer, both with the way out."""
    try:
        check_supported(model, "pattern")
    except FamilyError as error:
        raise FamilyError(f"{error}; `caseback model families` lists those with patterns") from None
    if not (have := model.site_layers["pattern"]):
        raise ReadingError(f"no layer of {model.name} has attention; a lens reads its stream (`caseback lens`)")
    return have


def _moved(model: Model, call: AttentionCall) -> Float[Tensor, "batch head key"]:
    """|v_s W_O| of every head and token, the write scale counted in."""
    o_proj: Any = model.o_proj(call.layer)
    weight = o_proj.weight.detach()
    weight = weight.T if type(o_proj).__name__ == "Conv1D" else weight
    w_o = weight.float().unflatten(1, (model.n_heads, -1)).permute(1, 2, 0)
    v = call.v.float().repeat_interleave(model.n_heads // call.v.shape[1], dim=1)
    return torch.linalg.vector_norm(v @ w_o, dim=-1) * model.write_scale


Keep = Callable[[AttentionCall, Tensor], None]


def _watch(model: Model, batch: Batch, keep: Keep) -> None:
    """One forward pass that shows every attention call and its pattern [batch, head, query, key]."""
    execute(model, batch, {}, logits=None, attend=partial(_look, keep))


def _look(keep: Keep, call: AttentionCall) -> tuple[Tensor, Tensor]:
    z, pattern = call.eager(call.q, call.k, call.v)
    keep(call, pattern)
    return z, pattern


# --- kinds of head -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeated:
    """Random sequences said twice, and the control whose second half is in another order."""

    ids: Int[Tensor, "sequence pos"]
    """[BOS] r r."""
    control: Int[Tensor, "sequence pos"]
    """[BOS] r r′, r′ a random order of r."""
    first: int
    """Where r begins: 1 after a BOS, else 0."""
    length: int
    """Tokens in r, all different."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """How much each head is of each kind, per random sequence."""

    layers: tuple[int, ...]
    scores: Float[np.ndarray, "kind layer head sequence"]
    """Mean attention to the kind's place, in [0, 1]; kinds in the order of KINDS."""
    control: Float[np.ndarray, "kind layer head sequence"]
    """The same places where the second half is in another order."""
    chance: Float[np.ndarray, "kind"]
    """What a head that looks at every token alike scores."""
    sequences: Repeated = field(repr=False)
    seed: int

    def intervals(self, kind: str, *, control: bool = False, how: Resampling | None = None) -> list[list[Interval]]:
        """Mean score with its interval over sequences, [layer][head]."""
        return self._intervals((self.control if control else self.scores)[self._kind(kind)], how)

    def gains(self, kind: str, *, how: Resampling | None = None) -> list[list[Interval]]:
        """Score − control on the same tokens, with its interval, [layer][head]."""
        k = self._kind(kind)
        return self._intervals(self.scores[k] - self.control[k], how)

    def best(self, kind: str, n: int = 5) -> list[tuple[int, int]]:
        """(layer, head) of the n highest mean scores, best first."""
        mean = self.scores[self._kind(kind)].mean(axis=-1)
        order = np.argsort(-mean, axis=None, kind="stable")[:n]
        return [(self.layers[i], int(h)) for i, h in zip(*np.unravel_index(order, mean.shape))]

    def _kind(self, kind: str) -> int:
        if kind not in KINDS:
            raise ReadingError(f"there is no kind of head {kind!r}; there are: {', '.join(KINDS)}")
        return KINDS.index(kind)

    @staticmethod
    def _intervals(values: Float[np.ndarray, "layer head sequence"], how: Resampling | None) -> list[list[Interval]]:
        layers, heads, n = values.shape
        flat = mean_intervals(values.reshape(-1, n), how=how or Resampling())
        return [list(flat[l * heads : (l + 1) * heads]) for l in range(layers)]


def repeated(
    model: Model,
    *,
    n: int = 16,
    length: int = 24,
    pool: Sequence[int] | None = None,
    bos: int | Literal["own"] | None = "own",
    seed: int = 0,
) -> Repeated:
    """n sequences [BOS] r r of random tokens, r without repetition, and their control.

    `pool` are the token ids to draw from (all but the special ones); `bos` the first token, "own": the model's own BOS
    where it has one. Raises ReadingError where the pool or the model's positions are too few.
    """
    if n < 1 or length < 3:
        raise ReadingError(f"needs at least 1 sequence of at least 3 tokens, got {n} of {length}")
    start = _bos(model) if bos == "own" else bos
    tokens = _pool(model, start) if pool is None else list(pool)
    if outside := [token for token in tokens if not 0 <= token < model.d_vocab]:
        raise ReadingError(f"token {outside[0]} is not in the vocabulary, which has the ids 0 to {model.d_vocab - 1}")
    if len(set(tokens)) < length:
        raise ReadingError(f"{length} different tokens were asked for; there are {len(set(tokens))} to draw from")
    width, room = 2 * length + (start is not None), getattr(model.config, "max_position_embeddings", None)
    if room is not None and width > room:
        raise ReadingError(f"a sequence of {width} tokens was asked for; the model has {room} positions")
    draw, choice = np.random.default_rng(seed), np.array(sorted(set(tokens)))
    once = np.stack([draw.choice(choice, size=length, replace=False) for _ in range(n)])
    other = draw.permuted(once, axis=1)
    head = np.full((n, 1 if start is not None else 0), start or 0)
    ids, control = (torch.from_numpy(np.concatenate([head, once, second], axis=1)) for second in (once, other))
    return Repeated(ids=ids, control=control, first=head.shape[1], length=length)


def find_heads(
    model: Model, sequences: Repeated | None = None, *, seed: int = 0, progress: Progress = silent
) -> HeadScores:
    """Previous-token, duplicate-token and induction scores of every head on repeated random sequences (16 of 24 tokens
    drawn with `seed`, where none are given); two forward passes a sequence. Raises FamilyError like `patterns`."""
    layers = attention_layers(model)
    sequences = repeated(model, seed=seed) if sequences is None else sequences
    parts = []
    for number, ids in enumerate((sequences.ids, sequences.control)):
        progress("heads", number, 2)
        batches = [ids[row : row + ROWS] for row in range(0, len(ids), ROWS)]
        parts.append(np.concatenate([_scores(model, layers, part, sequences) for part in batches], axis=-1))
    progress("heads", 2, 2)
    width = sequences.ids.shape[1]
    even = 1 / torch.arange(1, width + 1, dtype=torch.float64)[:, None].expand(width, width)
    return HeadScores(
        layers=layers,
        scores=parts[0],
        control=parts[1],
        chance=_places(even, sequences).numpy(),
        sequences=sequences,
        seed=seed,
    )


def _scores(
    model: Model, layers: tuple[int, ...], ids: Int[Tensor, "row pos"], sequences: Repeated
) -> Float[np.ndarray, "kind layer head row"]:
    found: dict[int, Tensor] = {}

    def keep(call: AttentionCall, pattern: Tensor) -> None:
        found[call.layer] = _places(pattern.double(), sequences).permute(0, 2, 1)

    _watch(model, Batch(ids, torch.ones_like(ids, dtype=torch.bool)), keep)
    return torch.stack([found[layer] for layer in layers], dim=1).cpu().numpy()


def _places(pattern: Float[Tensor, "*rest query key"], sequences: Repeated) -> Float[Tensor, "kind *rest"]:
    """Mean attention to the place of each kind: A[i + k, i] for all i from where the kind begins."""
    first, n = sequences.first, sequences.length
    kinds = ((1, first), (n, first), (n - 1, first + 1))
    return torch.stack([pattern.diagonal(-k, dim1=-2, dim2=-1)[..., i:].mean(dim=-1) for k, i in kinds])


def _bos(model: Model) -> int | None:
    own = getattr(model.tokenizer, "bos_token_id", None)
    return getattr(model.config, "bos_token_id", None) if own is None else own


def _pool(model: Model, start: int | None) -> list[int]:
    """The tokenizer's ids without its special ones."""
    config, size = model.config, model.d_vocab
    special = {start, *(getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))}
    if model.tokenizer is not None:
        size = min(size, len(model.tokenizer))
        special |= set(model.tokenizer.all_special_ids)
    return [token for token in range(size) if token not in special]
