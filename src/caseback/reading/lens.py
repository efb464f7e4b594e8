"""The logit lens: what the model would say if it stopped here.

A vector of the residual stream, or what attention or an MLP adds to it, is handed to the model's own end: final norm,
unembedding, softcap, logit scale (nostalgebraist 2020). The end is not written anew here: the model file runs with every
block passed over and the vector put in where the first block's output would stand, so at the last block the lens is the
model's output itself, on every family.

    p_l = softmax(end(h_l))          rank, probability, entropy H(p_l), and KL(p_final ‖ p_l), all in nats

A vector is normed by its own size, also a single attention or MLP write, which in the model is normed together with the
rest of the stream; shares that add up to the logits are what direct logit attribution gives. Layers × positions ×
vocabulary never exists at once: the vocabulary product runs on a bounded number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress, silent
from caseback.model.batch import Batch
from caseback.model.end import end, token_ranks
from caseback.model.model import Model
from caseback.model.run import plan_sites
from caseback.model.sites import NAMES, Site

__all__ = ["Lens", "Translate", "divergence", "log_probs", "logit_lens", "stream_sites", "streams"]

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "resid_final")
"""What a lens can read: vectors of the width of the stream, before the final norm; in the order of a block."""

DEFAULT = ("resid_pre.0", "resid_post")
"""The embedding and the stream after every block."""

LOGITS = 1 << 23
"""Logits held at once (32 MB in float32), a few times over."""

Translate = Callable[[Tensor], Tensor]
"""[row, d] → [row, d]: what a tuned lens does before the model's end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """A lens over sites × prompts × positions. At padding, numbers are nan and token ids and ranks -1."""

    sites: tuple[str, ...]
    """From the embedding up, as in "resid_post.3"."""
    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    top_ids: Int[Tensor, "site batch pos top"]
    """Most probable next tokens, best first."""
    top_probs: Float[Tensor, "site batch pos top"]
    entropy: Float[Tensor, "site batch pos"]
    """In nats; at most ln(vocabulary)."""
    kl: Float[Tensor, "site batch pos"]
    """KL(final ‖ lens) in nats: 0 where the lens says what the model says."""
    answers: tuple[int, ...]
    """Chosen tokens; () where none were asked for."""
    answer_probs: Float[Tensor, "site batch pos answer"]
    answer_ranks: Int[Tensor, "site batch pos answer"]
    """Other tokens at least as probable: 0 = the lens says it and nothing else (an even guess ranks last)."""


def logit_lens(
    model: Model,
    batch: Batch,
    *,
    sites: Sequence[str | Site] = DEFAULT,
    top: int = 5,
    answers: Sequence[int] | None = None,
    translate: Mapping[str, Translate] | None = None,
    progress: Progress = silent,
) -> Lens:
    """The lens at every layer and position of each prompt; one forward pass, then sites × positions unembeddings.

    `sites` are names ("resid_post": every layer) or sites ("mlp_out.3"); `answers` are token ids whose rank and
    probability are wanted; `translate` maps sites to what is done to their vectors first (tuned lens). Raises
    ReadingError for a site that is no vector of the stream, a `top` or an answer outside the vocabulary.
    """
    chosen = stream_sites(model, sites)
    if not 1 <= top <= model.d_vocab:
        raise ReadingError(
            f"top {top} tokens were asked for; the vocabulary has {model.d_vocab}, so take 1 to that many"
        )
    wanted = tuple(answers or ())
    if outside := [answer for answer in wanted if not 0 <= answer < model.d_vocab]:
        raise ReadingError(f"token {outside[0]} was asked for; the vocabulary has the ids 0 to {model.d_vocab - 1}")
    batch = batch.to(model.device)
    vectors, final = streams(model, batch, chosen)
    rows = batch.mask.flatten().nonzero()[:, 0]
    shape = (len(chosen), batch.mask.numel())
    probs, ranks = (torch.full((*shape, len(wanted)), fill, device=model.device) for fill in (torch.nan, -1))
    top_ids = torch.full((*shape, top), -1, device=model.device)
    top_probs = torch.full((*shape, top), torch.nan, device=model.device)
    entropy, kl = (torch.full(shape, torch.nan, device=model.device) for _ in range(2))
    columns = torch.tensor(wanted, dtype=torch.long, device=model.device)
    with torch.no_grad():
        for done, part in _parts(rows, model.d_vocab):
            progress("lens", done, len(rows))
            last = log_probs(model, final.flatten(0, 1)[part])
            for s, site in enumerate(chosen):
                x = vectors[site].flatten(0, 1)[part]
                if translate is not None and site in translate:
                    x = translate[site](x)
                found = log_probs(model, x)
                best = found.topk(top, dim=-1)
                top_ids[s, part], top_probs[s, part] = best.indices, best.values.exp()
                entropy[s, part] = torch.special.entr(found.exp()).sum(dim=-1)
                kl[s, part] = divergence(last, found)
                probs[s, part] = found[:, columns].exp()
                ranks[s, part] = token_ranks(found, columns.expand(len(part), -1)).to(ranks)
    progress("lens", len(rows), len(rows))
    size = (len(chosen), *batch.mask.shape)
    return Lens(
        sites=tuple(chosen),
        ids=batch.ids,
        mask=batch.mask,
        top_ids=top_ids.view(*size, top),
        top_probs=top_probs.view(*size, top),
        entropy=entropy.view(size),
        kl=kl.view(size),
        answers=wanted,
        answer_probs=probs.view(*size, len(wanted)),
        answer_ranks=ranks.view(*size, len(wanted)),
    )


def log_probs(model: Model, stream: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
    """`end`, as log-probabilities in float32 or wider."""
    logits = end(model, stream)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def divergence(p: Float[Tensor, "row vocab"], q: Float[Tensor, "#row vocab"]) -> Float[Tensor, "row"]:
    """KL(p ‖ q) of log-probabilities, in nats."""
    return (p.exp() * (p - q)).sum(dim=-1)


def streams(
    model: Model, batch: Batch, sites: Sequence[str]
) -> tuple[Mapping[str, Float[Tensor, "batch pos d"]], Float[Tensor, "batch pos d"]]:
    """The vectors at sites, and what enters the final norm; one forward pass."""
    run = model.run(batch, read=[*sites, "resid_final"], logits="last")
    return {site: run[site] for site in sites}, run["resid_final"]


def _parts(rows: Int[Tensor, "row"], vocab: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, LOGITS // vocab)
    for begin in range(0, len(rows), size):
        yield begin, rows[begin : begin + size]


def stream_sites(model: Model, sites: Sequence[str | Site]) -> list[str]:
    """The sites asked for, from the embedding up."""
    if isinstance(sites, str):
        raise ReadingError(f"sites is a list, as in sites=[{sites!r}]")
    asked = [f"{site}.*" if isinstance(site, str) and site in NAMES and NAMES[site].layered else site for site in sites]
    found = plan_sites(model, asked)
    if not found:
        raise ReadingError(f"a lens needs at least one site, as in 'resid_post'; it reads {', '.join(SITES)}")
    for site in found:
        if site.name not in SITES:
            raise ReadingError(f"a lens cannot read {str(site)!r}: it reads {', '.join(SITES)}")
        if site.position is not None:
            raise ReadingError(f"a lens reads every position, so write {str(site).partition('@')[0]!r} without '@'")
    last = model.n_layers
    found.sort(key=lambda site: (last if site.layer is None else site.layer, SITES.index(site.name)))
    return [str(site) for site in found]
