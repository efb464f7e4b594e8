"""The tuned lens: the logit lens after one affine map a layer, trained to say early what the model says late.

Belrose et al. 2023 (arXiv 2303.08112), eq. 5-7. Layers keep their features in somewhat different bases, so a translator

    h → h + A_l h + c_l        trained to minimise    KL(p_final ‖ softmax(end(h + A_l h + c_l)))

stands before the model's own end. With A = 0 and c = 0 the tuned lens *is* the logit lens. Only the translators learn: the
streams are computed once, and the gradient goes through final norm and unembedding to the translated vector, never into a
block (`caseback.reading.translators` says how).

Texts are split in three: tokens of the first train, the second choose between candidates, the third judge and do nothing
else. A trained map can learn the statistics of text as well as a change of basis. So beside its KL stand the logit lens on
the same texts, both lenses on the same texts with their words shuffled, and the best guess that sees no stream at all (the
mean prediction over the training tokens), which a lens has to beat.
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
from jaxtyping import Bool, Float
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.core.provenance import sha256_array, sha256_json
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence import Interval, Resampling, mean_intervals
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading import lens as _lens
from caseback.reading.lens import Lens, Translate, divergence, log_probs, logit_lens, stream_sites, streams
from caseback.reading.translators import Guess, Tokens, can_draw, fit, guess_of, kl_rows, translated

__all__ = ["Judged", "TunedConfig", "TunedLens", "load_tuned", "save_tuned", "train_tuned", "tuned_lens"]

FORMAT = "caseback tuned lens 2"
ROWS = 16
"""Texts run at once."""
JUDGED = 16
"""Tokens of a text that judge at most, drawn once: they cost an unembedding a site and lens."""
CHOOSING = 192
"""Tokens that choose between candidates at most."""
STREAMS = ("resid_pre", "resid_mid", "resid_post")
STARTS = ("regression", "logit lens")


@dataclass(frozen=True, kw_only=True)
class TunedConfig:
    """How translators are trained."""

    start: str = "regression"
    """What is trained from: "regression" of the last block's output on the stream, or the "logit lens" itself."""
    steps: int = 120
    """Steps of Adam, at least 0; the step size falls to 0 over them in a straight line."""
    tokens: int = 512
    """Training tokens a step; all layers see the same."""
    words: int = 2048
    """About how many words of the vocabulary the KL of a step is taken over; all of a smaller vocabulary."""
    rate: float = 0.6
    """First step size; 1 is the way a coordinate still has to go."""
    held: float = 0.125
    """Share of the texts that choose, and of those that judge, in (0, 0.5); at least one text each."""
    seed: int = 0
    """Of the split, all draws and the shuffled texts."""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ReadingError(f"a tuned lens starts from one of: {', '.join(STARTS)}; got {self.start!r}")
        sizes = self.steps >= 0 and self.tokens >= 1 and self.words >= 2
        if not sizes or not 0 < self.rate < float("inf") or not 0 < self.held < 0.5:
            raise ReadingError(
                "a tuned lens takes steps ≥ 0, tokens ≥ 1, words ≥ 2, a finite rate > 0 and 0 < held < 0.5; got "
                f"{asdict(self)}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """KL(final ‖ lens) in nats on texts that neither trained nor chose, mean over the judged tokens of each text."""

    before: Float[np.ndarray, "site text"]
    """The logit lens."""
    after: Float[np.ndarray, "site text"]
    constant: Float[np.ndarray, "text"]
    """The mean prediction over the training tokens in place of any lens."""
    shuffled_before: Float[np.ndarray, "site text"]
    """The logit lens on the same texts with their tokens in random order (the first stays first)."""
    shuffled_after: Float[np.ndarray, "site text"]
    shuffled_constant: Float[np.ndarray, "text"]

    def gain(self, *, how: Resampling | None = None) -> tuple[Interval, ...]:
        """KL before − after, per site, with its interval over texts: what training bought."""
        return mean_intervals(self.before - self.after, how=how or Resampling())

    def over_constant(self, *, how: Resampling | None = None) -> tuple[Interval, ...]:
        """KL of the constant prediction − after, per site, with its interval over texts: what the stream tells."""
        return mean_intervals(self.constant - self.after, how=how or Resampling())


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """Translators of one model, h → h + weight h + bias at each site."""

    sites: tuple[str, ...]
    weight: Float[Tensor, "site d d"]
    bias: Float[Tensor, "site d"]
    kept: tuple[str, ...]
    """What won on the choosing texts, per site: "trained", "ridge 0.1" (a regression), "constant" or
    "logit lens"."""
    model: str
    """Name of the model they belong to."""
    weights_sha256: str
    """Hash of its files, or of its parameters where it came from no file."""
    config: TunedConfig
    judged: Judged

    @property
    def translate(self) -> Mapping[str, Translate]:
        return {site: partial(translated, self.weight[s], self.bias[s]) for s, site in enumerate(self.sites)}


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
    stages: Stages | None = None,
    progress: Progress = silent,
) -> TunedLens:
    """Train translators on the rows of a batch; some of the rows choose, some judge.

    Without `sites`: the embedding and the stream after every block but the last. Needs the streams of all training
    tokens in memory (sites × tokens × d, float32). `stages` keep what is done, every `translators.EVERY` steps of a
    site; streams are not kept but computed again. Raises ReadingError where there are fewer than three different texts,
    or for a site that is no residual stream.
    """
    config, stages = config or TunedConfig(), stages or InMemory(progress)
    batch = batch.to(model.device)
    asked = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(model.n_layers - 1))] if sites is None else sites
    chosen = stream_sites(model, asked)
    if wrong := [site for site in chosen if site.split(".")[0] not in STREAMS]:
        raise ReadingError(f"a tuned lens translates residual streams ({', '.join(STREAMS)}), not {wrong[0]!r}")
    learn, choose, judge = _split(batch, config)
    fitted, guess = _fitted(model, learn, choose, chosen, config, stages, progress)
    weight, bias = (torch.from_numpy(np.stack([one.arrays[name] for one in fitted])) for name in ("weight", "bias"))
    weight, bias = weight.to(model.device), bias.to(model.device)
    judged = _judged(model, judge, chosen, weight, bias, guess, config.seed, stages)
    return TunedLens(
        sites=tuple(chosen),
        weight=weight,
        bias=bias,
        kept=tuple(one.data["kept"] for one in fitted),
        model=model.name,
        weights_sha256=fingerprint(model),
        config=config,
        judged=judged,
    )


# --- training and judging ----------------------------------------------------------------------------------------------


def _fitted(
    model: Model,
    learn: Batch,
    choose: Batch,
    sites: Sequence[str],
    config: TunedConfig,
    stages: Stages,
    progress: Progress,
) -> tuple[list[Checkpoint], Guess]:
    """The translators' checkpoints, and what the model says on the training tokens."""
    held: list[tuple[Tokens, Tokens]] = []

    def tokens() -> tuple[Tokens, Tokens]:
        """Streams of the training and the choosing tokens, computed when the first stage needs them."""
        if not held:
            some = _some(choose, -(-CHOOSING // choose.n), config.seed)
            held.append((_cached(model, learn, sites, learn.mask, progress), _cached(model, choose, sites, some)))
        return held[0]

    def guessed() -> Checkpoint:
        final = tokens()[0].final
        found = guess_of(model, final, lambda done, total: progress("predictions", done, total))
        few = config.words < model.d_vocab and can_draw(model, final[:2])
        return Checkpoint(vars(found), {"few": few})

    told = stages.stage("prior", guessed)
    guess = Guess(**told.arrays)
    words = config.words if told.data["few"] else model.d_vocab
    fitted = []
    for s, site in enumerate(sites):
        progress("layers", s, len(sites))
        fitted.append(
            fit(
                model,
                s,
                tokens,
                guess,
                start=config.start,
                steps=config.steps,
                tokens=config.tokens,
                words=words,
                rate=config.rate,
                seed=config.seed,
                stages=stages,
                name=f"translator-{site}".lower().replace("_", "-"),
            )
        )
    progress("layers", len(sites), len(sites))
    return fitted, guess


def _judged(
    model: Model,
    judge: Batch,
    sites: Sequence[str],
    weight: Float[Tensor, "site d d"],
    bias: Float[Tensor, "site d"],
    guess: Guess,
    seed: int,
    stages: Stages,
) -> Judged:
    """Both lenses and the constant on texts and on their shuffled copies; a fold over parts of the texts."""
    shuffled, some = _shuffled(judge, seed), _some(judge, JUDGED, seed)
    prior = torch.from_numpy(guess.mean).to(model.device).clamp_min(torch.finfo(torch.float32).tiny).log()
    parts = torch.arange(judge.n).split(ROWS)

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        arrays: dict[str, np.ndarray] = {}
        rows = parts[i].tolist()
        for kind, texts in (("", judge), ("shuffled_", shuffled)):
            mask = some[rows]
            found = _cached(model, Batch(texts.ids[rows], texts.mask[rows]), sites, mask)
            owner = torch.arange(len(rows), device=mask.device)[:, None].expand(mask.shape)[mask]
            share = torch.nn.functional.one_hot(owner, len(rows)).double() / mask.sum(dim=1)
            after = torch.stack([translated(weight[s], bias[s], h) for s, h in enumerate(found.values)])
            ys = torch.cat([found.values, after])
            kl = (kl_rows(model, ys, found.final).double() @ share).cpu().numpy()
            arrays[f"{kind}before"], arrays[f"{kind}after"] = kl[: len(sites)], kl[len(sites) :]
            arrays[f"{kind}constant"] = (_from_prior(model, found.final, prior).double() @ share).cpu().numpy()
        if state is not None:
            arrays = {name: np.concatenate([state.arrays[name], new], axis=-1) for name, new in arrays.items()}
        return Checkpoint(arrays)

    return Judged(**stages.fold("judged", len(parts), step).arrays)


@torch.no_grad()
def _from_prior(model: Model, final: Float[Tensor, "token d"], prior: Float[Tensor, "vocab"]) -> Float[Tensor, "token"]:
    size = max(1, _lens.LOGITS // model.d_vocab)
    return torch.cat([divergence(log_probs(model, part), prior[None]) for part in final.split(size)])


def _split(batch: Batch, config: TunedConfig) -> tuple[Batch, Batch, Batch]:
    """Rows that train, choose and judge; equal texts count once, so none is in two of them."""
    texts = {tuple(ids[mask].tolist()): row for row, (ids, mask) in enumerate(zip(batch.ids, batch.mask))}
    if len(texts) < 3:
        raise ReadingError(
            f"a tuned lens needs three different texts, one to learn, one to choose and one to judge; got {len(texts)}"
        )
    rows = np.random.default_rng(config.seed).permutation(list(texts.values())).tolist()
    n = min((len(rows) - 1) // 2, max(1, round(config.held * len(rows))))
    return batch[sorted(rows[2 * n :])], batch[sorted(rows[n : 2 * n])], batch[sorted(rows[:n])]


def _some(batch: Batch, n: int, seed: int) -> Bool[Tensor, "batch pos"]:
    """n real tokens of every text, or all of a shorter one."""
    draw, some = np.random.default_rng(seed), torch.zeros_like(batch.mask)
    for row, mask in enumerate(batch.mask):
        places = mask.nonzero()[:, 0].cpu().numpy()
        some[row, torch.from_numpy(draw.permutation(places)[:n]).to(some.device)] = True
    return some


def _cached(
    model: Model,
    batch: Batch,
    sites: Sequence[str],
    which: Bool[Tensor, "batch pos"],
    progress: Progress = silent,
) -> Tokens:
    """Streams of chosen tokens, text by text."""
    values = torch.empty((len(sites), int(which.sum()), model.d_model), device=model.device)
    final, done = values.new_empty(values.shape[1:]), 0
    for row in range(0, batch.n, ROWS):
        progress("streams", row, batch.n)
        rows = list(range(row, min(row + ROWS, batch.n)))
        part = batch[rows]
        mask = which[rows][:, : part.ids.shape[1]]
        found, last = streams(model, part, sites)
        end = done + int(mask.sum())
        for s, site in enumerate(sites):
            values[s, done:end] = found[site][mask]
        final[done:end] = last[mask]
        done = end
    progress("streams", batch.n, batch.n)
    return Tokens(values, final)


def _shuffled(batch: Batch, seed: int) -> Batch:
    draw, ids = np.random.default_rng(seed), batch.ids.clone()
    for row, mask in enumerate(batch.mask):
        places = mask.nonzero()[1:, 0]
        ids[row, places] = ids[row, places[torch.from_numpy(draw.permutation(len(places))).to(places.device)]]
    return Batch(ids, batch.mask)


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
    """Write a safetensors file: tensors `weight`, `bias` and the judged numbers, and a JSON header. Whole or not at
    all; raises OSError where it cannot be written."""
    from safetensors.numpy import save

    packed = pack(tuned)
    part = Path(f"{os.fspath(path)}.part")
    part.write_bytes(save(dict(packed.arrays), {"caseback": json.dumps({"data": packed.data})}))
    os.replace(part, path)


def pack(tuned: TunedLens) -> Checkpoint:
    """A tuned lens as arrays and JSON; saved as a stage of a run, it is a file `load_tuned` reads."""
    arrays = {"weight": tuned.weight.cpu().numpy(), "bias": tuned.bias.cpu().numpy(), **vars(tuned.judged)}
    header: dict[str, Any] = {
        "format": FORMAT,
        "sites": list(tuned.sites),
        "kept": list(tuned.kept),
        "model": tuned.model,
    }
    header |= {"weights_sha256": tuned.weights_sha256, "config": asdict(tuned.config)}
    return Checkpoint({name: np.ascontiguousarray(value) for name, value in arrays.items()}, header)


def load_tuned(path: str | os.PathLike[str], model: Model) -> TunedLens:
    """Read what `save_tuned` wrote; raises ReadingError for another file or another model's translators, OSError for
    a missing file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {}).get("caseback", "{}"))
            header = head.get("data") if isinstance(head, dict) else None
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ReadingError(f"{os.fspath(path)} is not a whole safetensors file: {error}") from error
    tuned = unpack(Checkpoint(found, header if isinstance(header, dict) else {}), os.fspath(path), model)
    _belongs(tuned, model, f"the translators in {os.fspath(path)}")
    return tuned


def unpack(packed: Checkpoint, name: str, model: Model) -> TunedLens:
    """What `pack` packed, on the model's device; `name` is what an error calls it."""
    header, found = packed.data, packed.arrays
    if str(header.get("format")).startswith("caseback tuned lens") and header["format"] != FORMAT:
        raise ReadingError(f"{name} was written by another version of caseback ({header['format']}); train it anew")
    if header.get("format") != FORMAT:
        raise ReadingError(f"{name} is no tuned lens of ours: its header does not say {FORMAT!r}")
    try:
        tuned = _unpacked(header, found, model)
    except (KeyError, TypeError, ValueError, ReadingError) as error:
        raise ReadingError(
            f"{name} is a tuned lens with a part that is missing or of another kind ({error})"
        ) from error
    shape = (len(tuned.sites), model.d_model, model.d_model)
    if tuned.weight.shape != shape or tuned.bias.shape != shape[:2]:
        raise ReadingError(
            f"{name} has translators of {tuple(tuned.weight.shape)}; {len(tuned.sites)} sites of {model.name} take {shape}"
        )
    return tuned


def _unpacked(header: Mapping[str, Any], found: Mapping[str, np.ndarray], model: Model) -> TunedLens:
    return TunedLens(
        sites=tuple(header["sites"]),
        weight=torch.from_numpy(np.array(found["weight"])).to(model.device),
        bias=torch.from_numpy(np.array(found["bias"])).to(model.device),
        kept=tuple(header["kept"]),
        model=header["model"],
        weights_sha256=header["weights_sha256"],
        config=TunedConfig(**header["config"]),
        judged=Judged(**{name: np.array(found[name]) for name in Judged.__dataclass_fields__}),
    )
