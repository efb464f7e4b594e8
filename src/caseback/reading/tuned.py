"""The tuned lens: the logit lens after one affine map a layer, trained to say early what the model says late.

Belrose et al. 2023 (arXiv 2303.08112), eq. 5-7. Layers keep their features in somewhat different bases, so a translator

    h → h + A_l h + c_l        trained to minimise    KL(p_final ‖ softmax(end(h + A_l h + c_l)))

stands before the model's own end. A and c start at zero, so the untrained tuned lens *is* the logit lens. Only the
translators learn: the streams are computed once, and the gradient goes through final norm and unembedding to the
translated vector, never into a block. What is drawn on are tokens of the training texts; the rest of the texts judge.

A trained map can learn the statistics of text as well as a change of basis. Three numbers stand beside its KL: the logit
lens on the same texts, both lenses on the same texts with their words shuffled, and the best guess that sees no
stream at all (the mean prediction over the training tokens), which a lens has to beat.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.core.provenance import sha256_array, sha256_json
from caseback.evidence import Interval, Resampling, mean_intervals
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import lens as _lens
from caseback.reading.lens import Lens, Translate, divergence, log_probs, logit_lens, stream_sites, streams

__all__ = ["TunedConfig", "TunedLens", "Validation", "load_tuned", "save_tuned", "train_tuned", "tuned_lens"]

FORMAT = "caseback tuned lens 1"
ROWS = 16
"""Texts run at once."""
STREAMS = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True, kw_only=True)
class TunedConfig:
    """How translators are trained."""

    steps: int = 200
    """Steps of Adam, at least 0; the step size falls to 0 over them in a straight line."""
    tokens: int = 64
    """Training tokens a step, drawn with replacement; all layers see the same."""
    rate: float = 3e-2
    """First step size; 1 is the way a coordinate still has to go to the last block."""
    validation: float = 0.25
    """Share of the texts that only judge, in (0, 1); at least one text."""
    seed: int = 0
    """Of the split, the drawn tokens and the shuffled texts."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.tokens < 1 or self.rate <= 0 or not 0 < self.validation < 1:
            raise ReadingError(
                f"a tuned lens takes steps ≥ 0, tokens ≥ 1, rate > 0 and 0 < validation < 1; got {asdict(self)}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """KL(final ‖ lens) in nats on texts that did not train, mean over the tokens of each text."""

    before: Float[np.ndarray, "site text"]
    """The logit lens."""
    after: Float[np.ndarray, "site text"]
    shuffled_before: Float[np.ndarray, "site text"]
    """The logit lens on the same texts with their tokens in random order (the first stays first)."""
    shuffled_after: Float[np.ndarray, "site text"]
    constant: Float[np.ndarray, "text"]
    """The mean prediction over the training tokens in place of any lens."""

    def gain(self, *, how: Resampling | None = None) -> tuple[Interval, ...]:
        """KL before − after, per site, with its interval over texts: what training bought."""
        return mean_intervals(self.before - self.after, how=how or Resampling())


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """Translators of one model, h → h + weight h + bias at each site."""

    sites: tuple[str, ...]
    weight: Float[Tensor, "site d d"]
    bias: Float[Tensor, "site d"]
    model: str
    """Name of the model they belong to."""
    weights_sha256: str
    """Hash of its files, or of its parameters where it came from no file."""
    config: TunedConfig
    validation: Validation

    @property
    def translate(self) -> Mapping[str, Translate]:
        return {site: partial(_translated, self.weight[s], self.bias[s]) for s, site in enumerate(self.sites)}


def tuned_lens(
    model: Model, batch: Batch, tuned: TunedLens, *, top: int = 5, answers: Sequence[int] | None = None
) -> Lens:
    """The lens of `caseback.reading.lens` with trained translators, and the model's last block as it is.

    Raises ReadingError where the translators belong to another model.
    """
    _belongs(tuned, model, "these translators")
    sites = [*tuned.sites, f"resid_post.{model.n_layers - 1}"]
    return logit_lens(
        model, batch, sites=list(dict.fromkeys(sites)), top=top, answers=answers, translate=tuned.translate
    )


def train_tuned(
    model: Model,
    batch: Batch,
    *,
    sites: Sequence[str] | None = None,
    config: TunedConfig | None = None,
    progress: Progress = silent,
) -> TunedLens:
    """Train translators on the rows of a batch, some of which are kept for validation.

    Without `sites`: the embedding and the stream after every block but the last. Needs the streams of all training
    tokens in memory (sites × tokens × d) and steps × tokens × sites unembeddings, forward and backward. Raises
    ReadingError where there are fewer than two different texts, or for a site that is no residual stream.
    """
    config = config or TunedConfig()
    batch = batch.to(model.device)
    asked = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(model.n_layers - 1))] if sites is None else sites
    chosen = stream_sites(model, asked)
    if wrong := [site for site in chosen if site.split(".")[0] not in STREAMS]:
        raise ReadingError(f"a tuned lens translates residual streams ({', '.join(STREAMS)}), not {wrong[0]!r}")
    learn, judge = _split(batch, config)
    values, final = _cached(model, learn, chosen)
    weight, bias = _train(model, values, final, config, progress)
    tuned = {site: partial(_translated, weight[s], bias[s]) for s, site in enumerate(chosen)}
    shuffled = _shuffled(judge, config.seed)
    validation = Validation(
        before=_kl(model, judge, chosen, {}),
        after=_kl(model, judge, chosen, tuned),
        shuffled_before=_kl(model, shuffled, chosen, {}),
        shuffled_after=_kl(model, shuffled, chosen, tuned),
        constant=_constant(model, final, judge),
    )
    return TunedLens(
        sites=tuple(chosen),
        weight=weight,
        bias=bias,
        model=model.name,
        weights_sha256=fingerprint(model),
        config=config,
        validation=validation,
    )


def _translated(weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    h = h.to(weight.dtype)
    return h + h @ weight.T + bias


# --- training ----------------------------------------------------------------------------------------------------------


def _train(
    model: Model,
    values: Float[Tensor, "site token d"],
    final: Float[Tensor, "token d"],
    config: TunedConfig,
    progress: Progress,
) -> tuple[Float[Tensor, "site d d"], Float[Tensor, "site d"]]:
    """Adam on B and b of h + m ⊙ (B x + b), x = (h − μ)/s, which is A = m B/s and c = m b − A μ.

    Streams have coordinates a thousand times larger than others. So the inputs are taken in units of their spread s and
    the outputs in units of the way still to go, m = rms(h_final − h): one step size fits all, a d-th of it
    for B, whose d inputs add up.
    """
    n_sites, n_tokens, d = values.shape
    mean = values.mean(dim=1, keepdim=True)
    spread = (values - mean).square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6 * values.abs().max())
    size = (final - values).square().mean(dim=1, keepdim=True).sqrt()
    turn, shift = values.new_zeros((n_sites, d, d)), values.new_zeros((n_sites, 1, d))
    groups: list[dict[str, Any]] = [{"params": [turn], "lr": config.rate / d}, {"params": [shift]}]
    learner = torch.optim.Adam(groups, lr=config.rate)
    fall = torch.optim.lr_scheduler.LambdaLR(learner, lambda step: 1 - step / max(1, config.steps))
    draw = torch.Generator().manual_seed(config.seed)
    at_once = max(1, _lens.LOGITS // (config.tokens * model.d_vocab))
    for step in range(config.steps):
        progress("tuned lens", step, config.steps)
        part = torch.randint(n_tokens, (config.tokens,), generator=draw).to(values.device)
        turn.grad, shift.grad = torch.empty_like(turn), torch.empty_like(shift)
        with torch.no_grad():
            last = log_probs(model, final[part])
        for begin in range(0, n_sites, at_once):
            some = slice(begin, begin + at_once)
            h = values[some, part]
            x = (h - mean[some]) / spread[some]
            y = (h + size[some] * (x @ turn[some].mT + shift[some])).requires_grad_()
            with torch.enable_grad():
                found = log_probs(model, y.flatten(0, 1))
                loss = divergence(last.repeat(len(h), 1), found).sum() / config.tokens
                [slope] = torch.autograd.grad(loss, [y])
            slope = slope * size[some]
            turn.grad[some], shift.grad[some] = slope.mT @ x, slope.sum(dim=1, keepdim=True)
        learner.step()
        fall.step()
    progress("tuned lens", config.steps, config.steps)
    weight = size.mT * turn / spread
    return weight, (size * shift - mean @ weight.mT)[:, 0]


def _split(batch: Batch, config: TunedConfig) -> tuple[Batch, Batch]:
    """(training, validation) rows; equal texts count once, so none is on both sides."""
    texts = {tuple(ids[mask].tolist()): row for row, (ids, mask) in enumerate(zip(batch.ids, batch.mask))}
    if len(texts) < 2:
        raise ReadingError(f"a tuned lens needs two different texts, one to learn and one to judge; got {len(texts)}")
    rows = np.random.default_rng(config.seed).permutation(list(texts.values())).tolist()
    n = min(len(rows) - 1, max(1, round(config.validation * len(rows))))
    return batch[sorted(rows[n:])], batch[sorted(rows[:n])]


def _chunks(batch: Batch) -> list[Batch]:
    return [batch[list(range(row, min(row + ROWS, batch.n)))] for row in range(0, batch.n, ROWS)]


def _cached(model: Model, batch: Batch, sites: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Streams [site, token, d] and what enters the final norm [token, d] of all real tokens, in float32."""
    values, final = [], []
    for part in _chunks(batch):
        found, last = streams(model, part, sites)
        values.append(torch.stack([found[site][part.mask] for site in sites]).float())
        final.append(last[part.mask].float())
    return torch.cat(values, dim=1), torch.cat(final)


def _shuffled(batch: Batch, seed: int) -> Batch:
    draw, ids = np.random.default_rng(seed), batch.ids.clone()
    for row, mask in enumerate(batch.mask):
        places = mask.nonzero()[1:, 0]
        ids[row, places] = ids[row, places[torch.from_numpy(draw.permutation(len(places))).to(places.device)]]
    return Batch(ids, batch.mask)


def _kl(
    model: Model, batch: Batch, sites: Sequence[str], translate: Mapping[str, Translate]
) -> Float[np.ndarray, "site text"]:
    parts = [logit_lens(model, part, sites=sites, top=1, translate=translate).kl for part in _chunks(batch)]
    return np.concatenate([part.nanmean(dim=-1).double().cpu().numpy() for part in parts], axis=1)


@torch.no_grad()
def _constant(model: Model, final: Float[Tensor, "token d"], judge: Batch) -> Float[np.ndarray, "text"]:
    """KL(final ‖ mean prediction over the training tokens) on every text."""
    size = max(1, _lens.LOGITS // model.d_vocab)
    mean = sum(log_probs(model, part).exp().sum(dim=0) for part in final.split(size)) / len(final)
    assert isinstance(mean, Tensor)
    guess, found = mean.clamp_min(torch.finfo(mean.dtype).tiny).log(), []
    for row in range(judge.n):
        _, last = _cached(model, judge[[row]], ["resid_pre.0"])
        found.append(torch.cat([divergence(log_probs(model, part), guess[None]) for part in last.split(size)]).mean())
    return torch.stack(found).double().cpu().numpy()


# --- files -------------------------------------------------------------------------------------------------------------


def fingerprint(model: Model) -> str:
    """Hash of the model's files; of its parameters where it came from none."""
    if model.source.files:
        return model.source.sha256
    named = model.hf.state_dict().items()
    return sha256_json(
        {
            name: sha256_array(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            for name, value in named
        }
    )


def _belongs(tuned: TunedLens, model: Model, what: str) -> None:
    own = fingerprint(model)
    if own != tuned.weights_sha256:
        raise ReadingError(
            f"{what} were trained on {tuned.model} (weights {tuned.weights_sha256[:12]}) and mean nothing to "
            f"{model.name} (weights {own[:12]}); train new ones on it"
        )


def save_tuned(tuned: TunedLens, path: str | os.PathLike[str]) -> None:
    """Write a safetensors file: tensors `weight`, `bias` and the validation numbers, and a JSON header. Whole or not at
    all; raises OSError where it cannot be written."""
    from safetensors.torch import save

    tensors = {"weight": tuned.weight, "bias": tuned.bias}
    tensors |= {name: torch.from_numpy(value) for name, value in vars(tuned.validation).items()}
    header = {
        "format": FORMAT,
        "sites": list(tuned.sites),
        "model": tuned.model,
        "weights_sha256": tuned.weights_sha256,
        "config": asdict(tuned.config),
    }
    data = save({name: value.contiguous().cpu() for name, value in tensors.items()}, {"caseback": json.dumps(header)})
    part = Path(f"{os.fspath(path)}.part")
    part.write_bytes(data)
    os.replace(part, path)


def load_tuned(path: str | os.PathLike[str], model: Model) -> TunedLens:
    """Read what `save_tuned` wrote; raises ReadingError for another file or another model's translators, OSError for
    a missing file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("caseback", "{}"))
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ReadingError(f"{os.fspath(path)} is not a whole safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ReadingError(f"{os.fspath(path)} is no tuned lens of ours: its header does not say {FORMAT!r}")
    names = set(Validation.__dataclass_fields__)
    tuned = TunedLens(
        sites=tuple(header["sites"]),
        weight=found["weight"].to(model.device),
        bias=found["bias"].to(model.device),
        model=header["model"],
        weights_sha256=header["weights_sha256"],
        config=TunedConfig(**header["config"]),
        validation=Validation(**{name: found[name].numpy() for name in names}),
    )
    _belongs(tuned, model, f"the translators in {os.fspath(path)}")
    return tuned
