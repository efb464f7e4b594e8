"""Where a direction or a feature is active, and whether that is where it was said to be.

A claim names the tokens beforehand: those of a span of a task's prompts, or those that begin one of some words in texts.
The activation (the component along a direction, a feature's f_i) at every token is then a classifier of these tokens among
all, judged by its AUROC (`caseback.evidence.roc`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from caseback.core.errors import StudyError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import execute
from caseback.model.sites import Site
from caseback.study.claims.parts import Part

__all__ = ["Activity", "Said", "activity", "beginning", "in_span", "values_at"]

ROWS = 8
"""Prompts run at a time."""
TEXTS, LENGTH = 400, 128
"""Texts looked at, and tokens of each, at most."""


@dataclass(frozen=True, eq=False)
class Said:
    """Some prompts, and the tokens at which it was said to be active."""

    batch: Batch
    here: Bool[Tensor, "batch pos"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Activity:
    """Every token of the prompts, one after the other."""

    scores: Float[np.ndarray, "part token"]
    said: Bool[np.ndarray, "token"]
    prompt: Int[np.ndarray, "token"]
    """Number of the prompt it is of."""
    ids: Int[np.ndarray, "token"]


def in_span(batches: Iterable[Batch], span: str) -> list[Said]:
    """The tokens of a span."""
    found = []
    for batch in batches:
        start, end = (edge[:, None] for edge in batch.spans[span].unbind(dim=1))
        places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        found.append(Said(batch, (places >= start) & (places < end)))
    return found


def beginning(model: Model, texts: Sequence[str], words: Sequence[str]) -> list[Said]:
    """The tokens that hold the first character of one of the words, as whole words and as they are written; the first 400
    texts, 128 tokens of each. Raises StudyError where the words are not in them."""
    word = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")
    found = []
    for begin in range(0, min(len(texts), TEXTS), ROWS):
        some = texts[begin : min(begin + ROWS, TEXTS)]
        whole = model.encode(some)
        batch = Batch(whole.ids[:, :LENGTH], whole.mask[:, :LENGTH])
        here = torch.zeros_like(batch.mask)
        for row, text in enumerate(some):
            starts = {match.start() for match in word.finditer(text)}
            for place, (first, last) in enumerate(model.offsets(text)[:LENGTH]):
                here[row, place] = any(first <= start < last for start in starts)
        found.append(Said(batch, here))
    if not any(bool(each.here.any()) for each in found):
        raise StudyError(
            f"the texts do not hold {' or '.join(map(repr, words))} as a word, so nothing can be predicted"
        )
    return found


def activity(model: Model, prompts: Sequence[Said], site: Site, parts: Sequence[Part]) -> Activity:
    """The activation of parts of one number each, at every token of the prompts; the site's own position is left aside.

    Cost: one forward a prompt, up to the site.
    """
    found: list[tuple[Tensor, ...]] = []
    done = 0
    for each in prompts:
        batch = each.batch
        x = values_at(model, batch, site)[batch.mask]
        number = torch.arange(batch.n, device=batch.ids.device)[:, None].expand_as(batch.ids)[batch.mask] + done
        scores = torch.stack([part.read(x)[:, 0].double() for part in parts])
        found.append((scores, each.here[batch.mask], number, batch.ids[batch.mask]))
        done += batch.n
    columns = [torch.cat(column, dim=-1).cpu().numpy() for column in zip(*found, strict=True)]
    return Activity(scores=columns[0], said=columns[1], prompt=columns[2], ids=columns[3])


def values_at(model: Model, batch: Batch, site: Site) -> Float[Tensor, "batch pos d"]:
    """What lies at a site, of its one head where it has heads."""
    assert site.layer is not None
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append((value if site.head is None else value[:, :, site.head]).clone())
        return value

    execute(model, batch, {site.tap: keep}, stop=site.layer + 1)
    return found[0]
