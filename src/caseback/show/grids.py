"""The live patching grid: where two prompts differ inside the model, one layer after another while one looks.

The first prompt is the clean one, the second the counterfactual; the metric is the logit of the first one's likeliest
next token minus that of the second's, or of two tokens that are chosen. One row is patched at a time, from the last
layer down: a patch costs the blocks above it, so the cheapest rows come first. Before the first token that differs both
runs hold the same values, so a patch there changes nothing: its effect is zero and is not computed.

    effect = (M(patched) - M(start)) / (M(other) - M(start))        as in `caseback.reading.patching`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from caseback.core.errors import ReadingError
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.model.run import Run
from caseback.reading.columns import columns_of
from caseback.reading.patching import Direction
from caseback.reading.rows import Rows
from caseback.relations.prompt import first_token
from caseback.study.readings.of_prompts import texts
from caseback.tasks.encode import PairBatch

__all__ = ["DIRECTIONS", "LONGEST", "SITES", "LiveGrid", "live_grid"]

SITES = ("resid_post", "attn_out", "mlp_out")
DIRECTIONS = get_args(Direction)
LONGEST = 32
"""Tokens at most: a grid of more takes minutes."""
AT_ONCE = 64
"""Patches run at a time."""


@dataclass(eq=False)
class LiveGrid:
    """A grid whose rows are computed when they are asked for."""

    site: str
    layers: tuple[int, ...]
    """In the order they are computed: the last first."""
    says: dict[str, Any]
    """What the grid is about: tokens of the two prompts, the two tokens compared, their metric in each run."""
    rows: dict[int, list[float]] = field(default_factory=dict)
    """Layer → effects of the tokens, as far as computed."""
    _engine: Rows = field(kw_only=True)
    _given: Run = field(kw_only=True)
    _where: Bool[Tensor, "column batch pos"] = field(kw_only=True)
    _gap: float = field(kw_only=True)

    @property
    def left(self) -> int:
        """Rows that are not computed yet."""
        return len(self.layers) - len(self.rows)

    def compute(self) -> int:
        """One more row; returns its layer."""
        layer = next(layer for layer in self.layers if layer not in self.rows)
        metric = self._engine.grid(self.site, layer, self._given[f"{self.site}.{layer}"][None], self._where, None)
        effect = (metric[0, :, 0] - self._engine.start[0]) / self._gap
        same = self._engine.batch.ids.shape[1] - len(effect)
        self.rows[layer] = [0.0] * same + [float(f"{value:.4g}") for value in effect]
        return layer


def live_grid(
    model: Model,
    clean: Batch,
    counterfactual: Batch,
    *,
    site: str = "resid_post",
    direction: str = "denoise",
    answer: str = "",
    foil: str = "",
) -> LiveGrid:
    """A grid over two prompts of one length, with no row yet; three forwards.

    `answer` and `foil` are words whose first tokens are compared, as they stand after a space; "": the likeliest next
    token of the first and the second prompt. Raises ReadingError for prompts of two lengths or of one text, and for
    tokens between which the two runs do not differ; RelationError for a word without a token.
    """
    first, second = (len(batch.ids[0]) for batch in (clean, counterfactual))
    if first != second:
        raise ReadingError(
            f"the first prompt has {first} tokens and the second {second}; a patch puts a token's value in the same "
            "place, so write one of as many tokens: change words for words of one length"
        )
    if first > LONGEST:
        raise ReadingError(
            f"the prompts have {first} tokens; here grids of {LONGEST} are made, by `caseback patch` longer ones"
        )
    differs = (clean.ids != counterfactual.ids)[0]
    if not bool(differs.any()):
        raise ReadingError("the two prompts are the same; change a word of the second")
    ids = [
        first_token(model, word.strip()) if word.strip() else int(model.logits(batch)[0].argmax())
        for word, batch in ((answer, clean), (foil, counterfactual))
    ]
    names = texts(model, ids)
    if ids[0] == ids[1]:
        raise ReadingError(
            f"{names[0]!r} would be compared with itself: it is what is followed in both prompts; choose another "
            "token for one of them"
        )
    compared = [torch.tensor([[i]], device=clean.ids.device) for i in ids]
    pairs = PairBatch(clean, counterfactual, compared[0], compared[1], "logit_diff")
    into, other = (counterfactual, clean) if direction == "denoise" else (clean, counterfactual)
    layers = tuple(model.site_layers[site])
    given = model.run(other, read=[f"{site}.{layer}" for layer in layers])
    assert given.logits is not None  # they were asked for
    engine = Rows.of(model, pairs, into, layers, rows=AT_ONCE)
    start, end = float(engine.start[0]), float(given.logits[0, ids[0]] - given.logits[0, ids[1]])
    if not np.isfinite(end - start) or abs(end - start) < 1e-6:
        raise ReadingError(
            f"{names[0]!r} against {names[1]!r} is the same in both runs ({start:.3g} logits), so there is no effect to "
            "follow; choose other tokens"
        )
    says = {
        "words": [texts(model, batch.ids[0].tolist()) for batch in (clean, counterfactual)],
        "answer": names[0],
        "foil": names[1],
        "start": start,
        "other": end,
        "site": site,
        "direction": direction,
        "layers": layers[::-1],
    }
    return LiveGrid(
        site,
        layers[::-1],
        says,
        _engine=engine,
        _given=given,
        _where=columns_of(into, "tokens").where[int(differs.long().argmax()) :],
        _gap=end - start,
    )
