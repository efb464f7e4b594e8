"""Heads without inputs: OV and QK circuits, what they read and write in words, whether they copy, who feeds whom.

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
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from caseback.circuits.parts import Layer, Norm, layers_of
from caseback.core.errors import FamilyError, ReadingError
from caseback.model.model import Model

__all__ = [
    "Composition",
    "Copying",
    "Factored",
    "Svd",
    "Words",
    "composition",
    "copying_scores",
    "ov_circuits",
    "qk_circuits",
    "singular_words",
]

CHANNELS = ("q", "k", "v")
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
    read: Int[Tensor, "direction 2 top"]
    """Tokens whose normed embedding lies most along the direction read (OV), or the query's (QK), best first."""
    read_scores: Float[Tensor, "direction 2 top"]
    written: Int[Tensor, "direction 2 top"]
    """Tokens whose logit the direction written raises most, through the final norm's gain (OV); tokens whose normed
    embedding lies most along the key's direction (QK)."""
    written_scores: Float[Tensor, "direction 2 top"]


def singular_words(
    model: Model, layer: int, head: int, *, circuit: Literal["ov", "qk"] = "ov", rank: int = 4, top: int = 8
) -> Words:
    """The leading singular directions of a head, read into the vocabulary (Dar et al. 2023, arXiv 2209.02535).

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
    norm = layers_of(model)[layer].attn_norm
    read_from = _embedding(model, norm)
    read = _ends(read_from, found.u[:, :rank].mT, top)
    written = _ends(_unembedding(model) if circuit == "ov" else read_from, found.vt[:rank], top)
    return Words(
        layer=layer,
        head=head,
        circuit=circuit,
        values=found.s[:rank],
        share=found.s[:rank].square() / found.s.square().sum(),
        read=read[1],
        read_scores=read[0],
        written=written[1],
        written_scores=written[0],
    )


def _ends(vocabulary: Float[Tensor, "vocab d"], directions: Float[Tensor, "rank d"], top: int) -> tuple[Tensor, Tensor]:
    """(scores, tokens), each [rank, 2, top], of every direction and its negative."""
    scores = directions @ vocabulary.T
    return tuple(torch.stack([scores, -scores], dim=1).topk(top, dim=-1))  # type: ignore[return-value]


def _embedding(model: Model, norm: Norm | None) -> Float[Tensor, "vocab d"]:
    """Token embeddings as a head's norm shows them (its gain is in the head's weights)."""
    module: Any = model.module(model.family.embed)
    weight = module.weight.detach()[: model.d_vocab].float()
    return weight if norm is None else norm.unit(weight)[0]


def _unembedding(model: Model) -> Float[Tensor, "vocab d"]:
    """What each logit reads of the normed stream, the final norm's gain put in."""
    norm = Norm.of(model.module(model.family.final_norm), model.d_model)
    if norm is None:
        raise FamilyError(f"the final norm of {model.family.name} is not an RMS or layer norm, so words cannot be read")
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

    def strongest(self, channel: Literal["q", "k", "v"], n: int = 10) -> list[tuple[int, int, int, int]]:
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
