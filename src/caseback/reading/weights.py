"""Weights without inputs: heads' OV and QK circuits, what heads and neurons read and write in words, copying, composition.

A framework for transformer circuits (Elhage et al. 2021), with the norms' gains put into the weights. For one head, with
n the normed stream (a row) at a token:

    W_OV = W_V W_O      [d, d]     what is written where the head looks:   n W_OV
    W_QK = W_Q W_Kᵀ     [d, d]     how much query t looks at key s:        n_t W_QK n_sᵀ        (at distance 0 under rotary
                                                                           embedding; before any QK-norm and scaling)

Both have rank d_head, so they stay two factors (`Factored`): norms, traces, eigenvalues and singular vectors are
computed on d_head × d_head matrices and are exact. Biases are left out, and so is the scale of a norm behind the output
projection, which differs from token to token: directions and ratios do not depend on it.

    copying      Σ Re λ / Σ |λ|,  λ the eigenvalues of W_E W_OV W_U: 1 = every token raises itself, 0 = no relation;
                 W_U without its mean over tokens, which no probability sees (a part that all embeddings share would
                 else give one large eigenvalue of either sign)
    composition  ‖W_a W_b‖ / (‖W_a‖ ‖W_b‖):  W_b reads through q, k or v what W_a writes

For two heads of any spectra, one of them turned at random, the square of the composition is 1/d in the mean: √(1/d) is
what is to be expected of heads that have nothing to do with each other.

Neurons are read out alike (Dar et al. 2023, arXiv 2209.02535): a column of the MLP's last map is what one writes, a row of
its first what it reads. Any direction has a best token, so beside each stands what random directions of the same length
reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from caseback.circuits.parts import Layer, Norm, layers_of
from caseback.core.errors import FamilyError, ReadingError
from caseback.model.hooks import module_at
from caseback.model.model import Model

__all__ = [
    "Composition",
    "Copying",
    "Factored",
    "NeuronWords",
    "ReadOut",
    "Svd",
    "Words",
    "composition",
    "copying_scores",
    "neuron_words",
    "ov_circuits",
    "qk_circuits",
    "random_values",
    "singular_words",
]

Channel = Literal["q", "k", "v"]
CHANNELS: tuple[Channel, ...] = ("q", "k", "v")
DRAWS = 200
"""Random directions a read-out is compared with."""
FLOATS = 1 << 25
"""Numbers held at once for a product over heads or vocabulary (128 MB in float32)."""


@dataclass(frozen=True, eq=False)
class Svd:
    """Singular values in falling order and their directions."""

    u: Float[Tensor, "*head n rank"]
    s: Float[Tensor, "*head rank"]
    vt: Float[Tensor, "*head rank m"]


@dataclass(frozen=True, eq=False)
class Factored:
    """The matrix left @ right, kept as its factors; any number of leading axes."""

    left: Float[Tensor, "*head n r"]
    right: Float[Tensor, "*head r m"]

    def __getitem__(self, index: Any) -> Factored:
        """Chosen along the leading axes."""
        return Factored(self.left[index], self.right[index])

    @property
    def mT(self) -> Factored:  # noqa: N802 - torch's name
        return Factored(self.right.mT, self.left.mT)

    def dense(self) -> Float[Tensor, "*head n m"]:
        return self.left @ self.right

    def norm(self) -> Float[Tensor, "*head"]:
        """Frobenius norm."""
        return torch.linalg.matrix_norm(_small(self.left) @ self.right)

    def trace(self) -> Float[Tensor, "*head"]:
        """Sum of the diagonal; the matrix must be square."""
        return (self.left * self.right.mT).sum(dim=(-2, -1))

    def eigenvalues(self) -> Complex[Tensor, "*head r"]:
        """Those of right @ left: the matrix has these and zeros. It must be square."""
        return torch.linalg.eigvals(self.right @ self.left)

    def svd(self) -> Svd:
        """left = Q_l T_l and rightᵀ = Q_r T_r, so the singular vectors are those of T_l T_rᵀ, turned."""
        (ql, tl), (qr, tr) = torch.linalg.qr(self.left), torch.linalg.qr(self.right.mT)
        u, s, vt = torch.linalg.svd(tl @ tr.mT)
        return Svd(ql @ u, s, vt @ qr.mT)


def _small(left: Float[Tensor, "*head n r"]) -> Float[Tensor, "*head r r"]:
    """T of left = Q T: as long as `left` in whatever stands to the right of it."""
    return torch.linalg.qr(left, mode="r").R


# --- circuits of heads -------------------------------------------------------------------------------------------------


def ov_circuits(model: Model) -> Factored:
    """W_OV of every head, [layer, head, d, d]: from the normed stream it reads to what it adds.

    Exact on families with circuits; raises FamilyError, with the reason, on others.
    """
    layers = layers_of(model)
    left = [_heads(_folded(layer, layer.w_v), model).mT for layer in layers]
    right = [_written(layer, model) for layer in layers]
    return Factored(torch.stack(left), torch.stack(right))


def qk_circuits(model: Model) -> Factored:
    """W_QK of every head, [layer, head, d, d]: rows are the query's stream, columns the key's, both normed. Raises
    FamilyError like `ov_circuits`."""
    layers = layers_of(model)
    left = [_folded(layer, layer.w_q).mT for layer in layers]
    right = [_heads(_folded(layer, layer.w_k), model) for layer in layers]
    return Factored(torch.stack(left), torch.stack(right))


def _heads(weight: Float[Tensor, "kv_head r d"], model: Model) -> Float[Tensor, "head r d"]:
    """KV heads, each as often as query heads share it."""
    return weight.repeat_interleave(model.n_heads // model.n_kv_heads, dim=0)


def _folded(layer: Layer, weight: Float[Tensor, "any_head r d"]) -> Float[Tensor, "any_head r d"]:
    weight = weight.float()
    return weight if layer.attn_norm is None else layer.attn_norm.fold(weight)


def _written(layer: Layer, model: Model) -> Float[Tensor, "head r d"]:
    w_o = layer.w_o.float()
    if layer.post_norm is not None:
        w_o = w_o - w_o.mean(dim=-1, keepdim=True) if layer.post_norm.centred else w_o
        w_o = w_o * layer.post_norm.weight
    return w_o * model.write_scale


# --- words -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadOut:
    """Directions of the stream as tokens. A score is the dot product with a token's row, less its mean over all tokens
    (which no probability sees)."""

    tokens: Int[Tensor, "direction 2 top"]
    """Of the direction (0) and of its negative (1), best first."""
    scores: Float[Tensor, "direction 2 top"]
    length: Float[np.ndarray, "direction"]
    peak: Float[np.ndarray, "direction"]
    """The largest score in size, for a direction of length 1."""
    kurtosis: Float[np.ndarray, "direction"]
    """Of the scores over tokens: 3 where they lie like a normal distribution, more where few tokens stand out."""
    random_peak: Float[np.ndarray, "draw"]
    """Peaks of random directions."""
    random_kurtosis: Float[np.ndarray, "draw"]

    @property
    def ratio(self) -> Float[np.ndarray, "direction"]:
        """Peak over the mean peak of random directions: 1 is what any direction has."""
        ratio: np.ndarray = self.peak / self.random_peak.mean()
        return ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Singular directions of one head's circuit as tokens. A direction and its negative belong together: what end 0
    reads leads to what end 0 writes (OV), or looks at end 0 (QK); the same of end 1."""

    layer: int
    head: int
    circuit: str
    """ov or qk."""
    values: Float[Tensor, "direction"]
    """Singular values, largest first."""
    share: Float[Tensor, "direction"]
    """Part of the squared norm, σ² / Σσ²."""
    read: ReadOut
    """Tokens whose normed embedding lies most along the direction read (OV), or the query's (QK)."""
    written: ReadOut
    """Tokens whose logit the direction written raises most, through the final norm's gain (OV); tokens whose normed
    embedding lies most along the key's direction (QK)."""


def singular_words(
    model: Model,
    layer: int,
    head: int,
    *,
    circuit: Literal["ov", "qk"] = "ov",
    rank: int = 4,
    top: int = 8,
    seed: int = 0,
) -> Words:
    """The leading singular directions of a head, read into the vocabulary (Dar et al. 2023, arXiv 2209.02535); `seed` is
    of the random directions beside them.

    Raises ReadingError for a head, a rank or a number of tokens that does not exist, FamilyError like `ov_circuits`.
    """
    if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
        raise ReadingError(
            f"head {head} of layer {layer} was asked for; the model has {model.n_layers} layers of {model.n_heads} heads"
        )
    factors = ov_circuits(model) if circuit == "ov" else qk_circuits(model)
    found = factors[layer, head].svd()
    if not (1 <= rank <= len(found.s) and 1 <= top <= model.d_vocab):
        raise ReadingError(
            f"{rank} directions of {top} tokens were asked for; a head has {len(found.s)}, the vocabulary {model.d_vocab}"
        )
    embedding = _embedding(model, layers_of(model)[layer].attn_norm)
    written = _unembedding(model) if circuit == "ov" else embedding
    return Words(
        layer=layer,
        head=head,
        circuit=circuit,
        values=found.s[:rank],
        share=found.s[:rank].square() / found.s.square().sum(),
        read=_read_out(embedding, found.u[:, :rank].mT, top, seed),
        written=_read_out(written, found.vt[:rank], top, seed),
    )


def random_values(like: Factored, *, draws: int = 20, seed: int = 0) -> Float[Tensor, "draw rank"]:
    """Singular values of random matrices of a head's shape, rank and norm: products of two factors of independent normal
    numbers. `like` is one head's."""
    draw = torch.Generator().manual_seed(seed)
    (n, r), m = like.left.shape, like.right.shape[1]
    made = Factored(torch.randn(draws, n, r, generator=draw), torch.randn(draws, r, m, generator=draw))
    return made.svd().s * (like.norm().cpu() / made.norm())[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronWords:
    """Neurons of one MLP as tokens, end 0 of a neuron that is active above zero."""

    layer: int
    neurons: tuple[int, ...]
    written: ReadOut
    """Tokens whose logit the neuron raises most (end 0) and lowers most (end 1), through the final norm's gain."""
    read: Mapping[str, ReadOut]
    """Map into the neurons (a gated MLP has two) → tokens whose normed embedding raises its value most, and lowers it."""


def neuron_words(
    model: Model, layer: int, neurons: Sequence[int] | None = None, *, top: int = 8, seed: int = 0
) -> NeuronWords:
    """What neurons of a layer (None: all) write and read, without inputs (Dar et al. 2023, arXiv 2209.02535, for rows and
    columns of the MLP); biases are left out, the norms' gains are put in.

    Raises ReadingError for a layer or a neuron that does not exist, FamilyError where the maps into the neurons or the
    norms around them are of a kind that is not known.
    """
    have, family = model.site_layers["mlp_hidden"], model.family
    if layer not in have:
        raise ReadingError(
            f"the MLP of layer {layer} has no single row of neurons; layers that have: {', '.join(map(str, have)) or 'none'}"
        )
    block = model.blocks[layer]
    down, mlp, writer = (module_at(block, path or "") for path in (family.down_proj, family.mlp, family.writes[1]))
    assert down is not None and mlp is not None and writer is not None
    out = _matrix(down).float().T
    chosen = tuple(range(len(out))) if neurons is None else tuple(neurons)
    if outside := [neuron for neuron in chosen if not 0 <= neuron < len(out)]:
        raise ReadingError(
            f"neuron {outside[0]} of layer {layer} was asked for; it has the neurons 0 to {len(out) - 1}"
        )
    if not (chosen and 1 <= top <= model.d_vocab):
        raise ReadingError(f"{len(chosen)} neurons of {top} tokens were asked for; at least one of each is needed")
    if writer is not mlp and writer is not down:
        out = _norm(model, writer, "the norm behind the MLP").fold(out)
    before = family.mlp_norm
    norm = None if before is None else _norm(model, module_at(block, before), "the norm before the MLP")
    embedding, rows = _embedding(model, norm), list(chosen)
    reads = {name: w.float() if norm is None else norm.fold(w.float()) for name, w in _into(model, mlp, down, len(out))}
    return NeuronWords(
        layer=layer,
        neurons=chosen,
        written=_read_out(_unembedding(model), out[rows] * model.write_scale, top, seed),
        read={name: _read_out(embedding, weight[rows], top, seed) for name, weight in reads.items()},
    )


def _into(model: Model, mlp: nn.Module, down: nn.Module, n: int) -> list[tuple[str, Float[Tensor, "neuron d"]]]:
    """The maps from the stream to the n neurons, by name; two in one module are its halves."""
    found = []
    for name, module in mlp.named_modules():
        if module is down or getattr(module, "weight", None) is None:
            continue
        rows, label = _matrix(module), name or (model.family.mlp or "")
        if rows.shape == (n, model.d_model):
            found.append((label, rows))
        elif rows.shape == (2 * n, model.d_model):
            found += [(f"{label}, {part} half", half) for part, half in zip(("first", "second"), rows.chunk(2))]
    if not found:
        raise FamilyError(
            f"the maps into the neurons of {model.family.name} are not known, so neurons cannot be read out"
        )
    return found


def _matrix(module: Any) -> Float[Tensor, "out in"]:
    weight: Tensor = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _norm(model: Model, module: nn.Module | None, what: str) -> Norm:
    found = None if module is None else Norm.of(module, model.d_model)
    if found is None:
        raise FamilyError(f"{what} of {model.family.name} is not an RMS or layer norm, so words cannot be read")
    return found


def _read_out(
    vocabulary: Float[Tensor, "vocab d"], directions: Float[Tensor, "direction d"], top: int, seed: int
) -> ReadOut:
    vocabulary = vocabulary - vocabulary.mean(dim=0)
    length = torch.linalg.vector_norm(directions, dim=-1)
    draw = torch.randn(DRAWS, vocabulary.shape[1], generator=torch.Generator().manual_seed(seed)).to(vocabulary)
    tokens, scores, peaks, kurtosis = [], [], [], []
    for rows in _rows(len(directions), len(vocabulary)):
        found = directions[rows] @ vocabulary.T
        ends = [found.topk(top, dim=-1), found.topk(top, dim=-1, largest=False)]
        tokens.append(torch.stack([end.indices for end in ends], dim=1))
        scores.append(torch.stack([ends[0].values, -ends[1].values], dim=1))
        peak, shape = _outstanding(found)
        peaks.append(peak)
        kurtosis.append(shape)
    random_peak, random_kurtosis = _outstanding(torch.nn.functional.normalize(draw, dim=-1) @ vocabulary.T)
    tiny = torch.finfo(length.dtype).tiny
    return ReadOut(
        tokens=torch.cat(tokens),
        scores=torch.cat(scores),
        length=_numbers(length),
        peak=_numbers(torch.cat(peaks) / length.clamp_min(tiny)),
        kurtosis=_numbers(torch.cat(kurtosis)),
        random_peak=_numbers(random_peak),
        random_kurtosis=_numbers(random_kurtosis),
    )


def _outstanding(scores: Float[Tensor, "direction vocab"]) -> tuple[Tensor, Tensor]:
    """(largest in size, kurtosis) of each row, of mean 0."""
    square = scores.square()
    return scores.abs().amax(dim=-1), square.square().mean(dim=-1) / square.mean(dim=-1).square()


def _numbers(value: Tensor) -> np.ndarray:
    return value.double().cpu().numpy()


def _embedding(model: Model, norm: Norm | None) -> Float[Tensor, "vocab d"]:
    """Token embeddings as a head's norm shows them (its gain is in the head's weights)."""
    module: Any = model.module(model.family.embed)
    weight = module.weight.detach()[: model.d_vocab].float()
    return weight if norm is None else norm.unit(weight)[0]


def _unembedding(model: Model) -> Float[Tensor, "vocab d"]:
    """What each logit reads of the normed stream, the final norm's gain put in."""
    norm = _norm(model, model.module(model.family.final_norm), "the final norm")
    module: Any = model.module(model.family.unembed)
    return norm.fold(module.weight.detach()[: model.d_vocab].float())


# --- copying -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Copying:
    """Do heads raise the tokens they look at?"""

    score: Float[np.ndarray, "layer head"]
    """Σ Re λ / Σ |λ| in [-1, 1]: 1 = copying, -1 = the tokens seen are lowered; nan where all λ are 0."""
    control: Float[np.ndarray, "layer head"]
    """The same with the tokens of the unembedding in random order: what a word says, said of another."""
    seed: int


def copying_scores(model: Model, *, seed: int = 0) -> Copying:
    """The eigenvalue score of W_E W_OV W_U for every head; W_E as the first layer's norm shows it.

    The vocabulary × vocabulary matrix has the eigenvalues of W_O (W_Uᵀ W_E) W_V, d_head × d_head, and zeros. Raises
    FamilyError like `ov_circuits`.
    """
    ov = ov_circuits(model)
    embedding, unembedding = _embedding(model, layers_of(model)[0].attn_norm), _unembedding(model)
    unembedding = unembedding - unembedding.mean(dim=0)
    order = np.random.default_rng(seed).permutation(model.d_vocab)
    other = unembedding[torch.from_numpy(order).to(unembedding.device)]

    def score(unembed: Tensor) -> np.ndarray:
        found = torch.linalg.eigvals(ov.right @ (unembed.T @ embedding) @ ov.left)
        return (found.real.sum(dim=-1) / found.abs().sum(dim=-1)).double().cpu().numpy()

    return Copying(score=score(unembedding), control=score(other), seed=seed)


# --- composition -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition:
    """How much of what an earlier head writes a later one reads, through its queries, keys or values."""

    scores: Float[np.ndarray, "3 writer_layer writer_head reader_layer reader_head"]
    """q, k, v; in [0, 1]; nan unless the writer's layer comes before the reader's."""
    expected: float
    """√(1/d): the root mean square for heads of the same spectra, turned at random."""

    @property
    def excess(self) -> Float[np.ndarray, "3 writer_layer writer_head reader_layer reader_head"]:
        """Score − expected."""
        return self.scores - self.expected

    def strongest(self, channel: Channel, n: int = 10) -> list[tuple[int, int, int, int]]:
        """(writer layer, writer head, reader layer, reader head) of the n largest scores of a channel, best first."""
        values = self.scores[CHANNELS.index(channel)]
        order = np.argsort(np.where(np.isnan(values), np.inf, -values), axis=None, kind="stable")
        order = order[: min(n, int(np.isfinite(values).sum()))]
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(*np.unravel_index(order, values.shape))]


def composition(model: Model) -> Composition:
    """Composition of all pairs of heads, through q (‖W_OV W_QK‖), k (‖W_OV W_QKᵀ‖) and v (‖W_OV W_OV‖).

    With T of the far factors, ‖P S‖² = Σ_ij (PᵀP)_ij (S Sᵀ)_ij for P [r, d] and S [d, r], so all pairs are one matrix
    product, taken over a few rows i at a time. Raises FamilyError like `ov_circuits`.
    """
    ov, qk = ov_circuits(model), qk_circuits(model)
    shape = (model.n_layers, model.n_heads)
    writers = _unit(_small(ov.left) @ ov.right)
    readers = _unit(torch.stack([(f.left @ _small(f.right.mT).mT).mT for f in (qk, qk.mT, ov)]))
    p, s = writers.flatten(0, 1), readers.flatten(0, 2)
    total = p.new_zeros((len(p), len(s)))
    for rows in _rows(model.d_model, (len(p) + len(s)) * model.d_model):
        total += (p[..., rows].mT @ p).flatten(1) @ (s[..., rows].mT @ s).flatten(1).T
    scores = total.clamp_min(0).sqrt().double().cpu().numpy().reshape(*shape, 3, *shape)
    before = np.arange(model.n_layers)[:, None] < np.arange(model.n_layers)
    scores = np.where(before[:, None, :, None], np.moveaxis(scores, 2, 0), np.nan)
    return Composition(scores=scores, expected=model.d_model**-0.5)


def _unit(value: Float[Tensor, "*head r d"]) -> Float[Tensor, "*head r d"]:
    """Of norm 1; a head of zeros stays zero."""
    norm = torch.linalg.matrix_norm(value, keepdim=True)
    return value / norm.clamp_min(torch.finfo(value.dtype).tiny)


def _rows(n: int, width: int) -> Iterator[slice]:
    size = max(1, FLOATS // width)
    return (slice(begin, begin + size) for begin in range(0, n, size))
