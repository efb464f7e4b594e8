"""Fitting the translator of one site: an affine map of the stream from which the model's end says what the model says.

What it costs is the vocabulary. KL(p_final ‖ softmax(end(y))) and its slope in y take 4 V d flops a token and site, the
translator's own product and slope 4 d²: on a model of V = 49,152 words and d = 576 that is 113 to 1.3 million. So

1. the fit **starts from a regression** (Din et al. 2023, arXiv 2303.09435): h_final − h on h, ridge, one d × d
   eigendecomposition a site and no vocabulary at all. The ridge is the one of `RIDGES` with the least KL on the validation
   tokens;
2. the **KL is taken over a sample of words**, drawn anew each step: the commonest and the likeliest of the step's own tokens
   for certain, any other with a chance π, and then with the weight 1/π. p and q are both normed over the sample, so the slope
   is 0 where q = p, whatever was drawn; elsewhere the norming is biased by about one over the size of the sample;
3. **one step size fits all**: the inputs are whitened (a massive activation is one direction among d), the outputs taken in
   units of what the regression leaves over;
4. what is kept is what says the least KL on **validation tokens**: the logit lens, the vector that says the mean
   prediction, the regression, or what was trained from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from caseback.core.stages import Checkpoint, Stages
from caseback.model.hooks import Hooks
from caseback.model.model import Model
from caseback.reading import lens as _lens
from caseback.reading.lens import divergence, log_probs

__all__ = ["Guess", "Tokens", "can_draw", "fit", "guess_of", "kl_rows", "translated"]

RIDGES = (1e-3, 1e-1, 10.0)
"""Ridges tried, in units of a coordinate's variance."""
WHITE = 1e-3
"""Ridge of the whitening."""
TOP = 8
"""Words of a token that are in the sample for certain."""
EVERY = 50
"""Steps between two checkpoints of a site."""
MOMENTUM, SPREAD = 0.9, 0.99
"""Of Adam: what the running mean and the running square keep at a step."""


_Map = tuple[Tensor, Tensor]
"""A and c of h → h + A h + c."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Streams of many texts' tokens in float32."""

    values: Float[Tensor, "site token d"]
    final: Float[Tensor, "token d"]
    """What enters the final norm."""


@dataclass(frozen=True, eq=False)
class Guess:
    """What the model says on the training tokens."""

    mean: Float[np.ndarray, "vocab"]
    """The mean prediction: the best guess that sees no stream."""
    tops: Int[np.ndarray, "token top"]
    """The likeliest words after every token."""
    vector: Float[np.ndarray, "d"]
    """The stream from which the end says nearly that: its length is the norm's to choose, so not quite."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """The units of one site, and the regressions in it."""

    mean: Float[Tensor, "d"]
    white: Float[Tensor, "d d"]
    """(h − mean) @ white has unit covariance."""
    ridges: list[_Map]
    """The regression of h_final − h on h, a ridge each."""


def translated(weight: Float[Tensor, "d d"], bias: Float[Tensor, "d"], h: Tensor) -> Tensor:
    """h + A h + c."""
    h = h.to(weight.dtype)
    return h + h @ weight.T + bias


@torch.no_grad()
def kl_rows(model: Model, ys: Float[Tensor, "map row d"], final: Float[Tensor, "row d"]) -> Float[Tensor, "map row"]:
    """KL(end(final) ‖ end(y)) in nats over the whole vocabulary, for each of several vectors a row."""
    found = []
    for part in torch.arange(len(final), device=final.device).split(max(1, _lens.LOGITS // model.d_vocab)):
        last = log_probs(model, final[part])
        found.append(torch.stack([divergence(last, log_probs(model, y[part])) for y in ys]))
    return torch.cat(found, dim=1)


@torch.no_grad()
def guess_of(model: Model, final: Float[Tensor, "token d"], tick: Callable[[int, int], None]) -> Guess:
    """One unembedding a training token."""
    size = max(1, _lens.LOGITS // model.d_vocab)
    total, tops, done = torch.zeros(model.d_vocab, dtype=torch.float64), [], 0
    for part in final.split(size):
        tick(done, len(final))
        p = log_probs(model, part).exp()
        total += p.double().sum(dim=0).cpu()
        tops.append(p.topk(min(TOP, model.d_vocab), dim=-1).indices.cpu())
        done += len(part)
    tick(done, len(final))
    mean = (total / len(final)).float()
    return Guess(mean.numpy(), torch.cat(tops).numpy(), _vector(model, mean, final).cpu().numpy())


def _vector(model: Model, mean: Float[Tensor, "vocab"], final: Float[Tensor, "token d"]) -> Float[Tensor, "d"]:
    """argmin over y of KL(mean ‖ end(y)), by L-BFGS from the mean final stream."""
    size, middle = final.square().mean().sqrt(), final.mean(dim=0)
    y = (middle / size).requires_grad_()
    wanted = mean.to(final).clamp_min(torch.finfo(torch.float32).tiny).log()[None]
    learner = torch.optim.LBFGS([y], max_iter=60, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        with torch.enable_grad():
            found = divergence(wanted, log_probs(model, (y * size)[None])).sum()
            [y.grad] = torch.autograd.grad(found, [y])
        return found.detach()

    learner.step(loss)
    return (y * size).detach() if bool(y.isfinite().all()) else middle


# --- a sample of words -------------------------------------------------------------------------------------------------


def can_draw(model: Model, stream: Float[Tensor, "row d"]) -> bool:
    """Whether the model's end on a few words says what the whole end says of them: tried, not believed."""
    words = torch.arange(0, model.d_vocab, max(2, model.d_vocab // 50), device=stream.device)
    try:
        with torch.no_grad():
            whole = log_probs(model, stream)[:, words].log_softmax(dim=-1)
            with _few(model, words):
                few = log_probs(model, stream)
        return few.shape == whole.shape and torch.allclose(few, whole, rtol=1e-2, atol=1e-2)
    except (AttributeError, TypeError, RuntimeError, IndexError):  # packed weights, or an end of another kind
        return False


@contextmanager
def _few(model: Model, words: Int[Tensor, "word"] | None) -> Iterator[None]:
    """Let the model's end speak of these words alone; softcap and scale are still its own."""
    if words is None:
        yield
        return
    head = model.hf.get_output_embeddings()
    weight = head.weight[words]
    bias = head.bias[words] if getattr(head, "bias", None) is not None else None
    with model.lock, Hooks() as hooks:
        hooks.instead_of(head, lambda x: functional.linear(x, weight, bias))
        yield


def _draw(guess: Guess, part: np.ndarray, n: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """About n words, more where the tokens' own likeliest are many, and −ln of each one's chance."""
    sure = np.zeros(len(guess.mean), dtype=bool)
    sure[np.argpartition(-guess.mean, n // 2)[: n // 2]] = True
    sure[guess.tops[part]] = True
    rest = np.flatnonzero(~sure)
    wanted = max(n // 4, n - int(sure.sum()))
    share = guess.mean[rest] / max(float(guess.mean[rest].sum()), 1e-30)
    chance = np.minimum(1.0, wanted * (share + 1 / max(1, len(rest))) / 2)
    taken = draw.random(len(rest)) < chance
    words = np.concatenate([np.flatnonzero(sure), rest[taken]])
    return words, np.concatenate([np.zeros(int(sure.sum())), -np.log(chance[taken])]).astype(np.float32)


# --- one site ----------------------------------------------------------------------------------------------------------


def fit(
    model: Model,
    site: int,
    held: Callable[[], tuple[Tokens, Tokens]],
    guess: Guess,
    *,
    start: str,
    steps: int,
    tokens: int,
    words: int,
    rate: float,
    seed: int,
    stages: Stages,
    name: str,
) -> Checkpoint:
    """The translator of one site: arrays `weight` and `bias`; data `kept` (which of the candidates) and `kl` (of each, on
    the validation tokens). `held` gives the training and the validation tokens and is asked where they are needed. A fold
    of `stages`, saved every `EVERY` steps."""
    frames: list[_Frame] = []
    chunks = -(-steps // EVERY)

    def told(choose: Tokens, candidates: dict[str, _Map]) -> dict[str, float]:
        ys = torch.stack([translated(*found, choose.values[site]) for found in candidates.values()])
        return dict(zip(candidates, kl_rows(model, ys, choose.final).mean(dim=1).tolist(), strict=True))

    def begun(train: Tokens, choose: Tokens) -> Checkpoint:
        d = train.final.shape[-1]
        candidates: dict[str, _Map] = {"logit lens": (train.final.new_zeros((d, d)), train.final.new_zeros(d))}
        if start == "regression":
            candidates |= {f"ridge {ridge:g}": found for ridge, found in zip(RIDGES, frames[0].ridges)}
            candidates["constant"] = (-torch.eye(d).to(train.final), torch.from_numpy(guess.vector).to(train.final))
        kl = told(choose, candidates)
        kept = min(kl, key=lambda name: kl[name])
        begin = min([name for name in kl if name.startswith("ridge")] or ["logit lens"], key=lambda name: kl[name])
        arrays = dict(zip(("weight", "bias"), candidates[kept]))
        if chunks:
            arrays |= dict(zip(("begin_weight", "begin_bias"), candidates[begin]))
            arrays |= {name: train.final.new_zeros((d + 1, d)) for name in ("turn", "mean", "square")}
        return _checkpoint(arrays, kept=kept, kl=kl)

    def trained(state: Checkpoint, i: int, train: Tokens, choose: Tokens) -> Checkpoint:
        h, final, frame = train.values[site], train.final, frames[0]
        a = {name: torch.from_numpy(np.array(value)).to(final) for name, value in state.arrays.items()}
        base = translated(a["begin_weight"], a["begin_bias"], h)
        size = (final - base).square().mean(dim=0).sqrt()
        x = (h - frame.mean) @ frame.white
        for at in range((i - 1) * EVERY, min(i * EVERY, steps)):
            draw = np.random.default_rng([seed, at])
            part = draw.choice(len(base), size=min(tokens, len(base)), replace=False)
            drawn = _draw(guess, part, words, draw) if words < model.d_vocab else None
            slope = _slope(model, base[part], x[part], final[part], size, a["turn"], drawn)
            a["mean"] = MOMENTUM * a["mean"] + (1 - MOMENTUM) * slope
            a["square"] = SPREAD * a["square"] + (1 - SPREAD) * slope.square()
            way = (a["square"] / (1 - SPREAD ** (at + 1))).sqrt() + 1e-12
            way = a["mean"] / (1 - MOMENTUM ** (at + 1)) / way
            a["turn"] = a["turn"] - rate / len(way) * (1 - at / steps) * way
        if i < chunks:
            return _checkpoint(a, **state.data)
        turn = frame.white @ a["turn"][:-1] * size
        found = (a["begin_weight"] + turn.T, a["begin_bias"] + size * a["turn"][-1] - frame.mean @ turn)
        kl, kept = {**state.data["kl"], **told(choose, {"trained": found})}, state.data["kept"]
        if kl["trained"] < kl[kept]:
            return _checkpoint(dict(zip(("weight", "bias"), found)), kept="trained", kl=kl)
        return _checkpoint({name: a[name] for name in ("weight", "bias")}, kept=kept, kl=kl)

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        train, choose = held()
        if not frames:
            frames.append(_frame(train.values[site], train.final))
        return begun(train, choose) if state is None else trained(state, i, train, choose)

    return stages.fold(name, 1 + chunks, step)


def _checkpoint(arrays: dict[str, Tensor], **data: object) -> Checkpoint:
    return Checkpoint({name: value.cpu().numpy() for name, value in arrays.items()}, data)


def _frame(h: Float[Tensor, "token d"], final: Float[Tensor, "token d"]) -> _Frame:
    """Mean, whitening and ridge regressions, in float64 of coordinates in units of their spread."""
    mean = h.mean(dim=0)
    spread = (h - mean).square().mean(dim=0).sqrt().clamp_min(1e-6 * float(h.abs().max()) + 1e-30)
    x, way = (h - mean) / spread, final - h
    middle = way.mean(dim=0)
    values, turn = torch.linalg.eigh((x.T @ x).double() / len(x))
    values = values.clamp_min(0)
    cross = turn.T @ ((x.T @ (way - middle)).double() / len(x))
    scale = 1 / spread.double()[:, None]
    ridges = []
    for ridge in RIDGES:
        weight = (scale * (turn @ (cross / (values + ridge)[:, None]))).T.float()
        ridges.append((weight, middle - weight @ mean))
    white = scale * (turn * (values + WHITE).rsqrt()) @ turn.T
    return _Frame(mean, white.float(), ridges)


def _slope(
    model: Model,
    base: Float[Tensor, "token d"],
    x: Float[Tensor, "token d"],
    final: Float[Tensor, "token d"],
    size: Float[Tensor, "d"],
    turn: Float[Tensor, "d_and_1 d"],
    drawn: tuple[np.ndarray, np.ndarray] | None,
) -> Float[Tensor, "d_and_1 d"]:
    """Slope in `turn` of the mean KL of base + size ⊙ [x, 1] @ turn, over some words or all."""
    few, weigh = (torch.from_numpy(one).to(base.device) for one in drawn) if drawn else (None, torch.zeros(()))
    weigh = weigh.to(base.device)
    ones = torch.cat([x, x.new_ones((len(x), 1))], dim=1)
    y = base + size * (ones @ turn)
    rows = max(1, _lens.LOGITS // (model.d_vocab if few is None else len(few)))
    slopes = []
    with _few(model, few):
        for part, last in zip(y.split(rows), final.split(rows)):
            with torch.no_grad():
                p = (log_probs(model, last) + weigh).log_softmax(dim=-1)
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                q = (log_probs(model, part) + weigh).log_softmax(dim=-1)
                [slope] = torch.autograd.grad(divergence(p, q).sum() / len(y), [part])
            slopes.append(slope)
    return ones.T @ (torch.cat(slopes) * size)
