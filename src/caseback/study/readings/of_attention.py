"""Where the heads of a model look in a prompt, and what they take from there.

Attention says where a head looks. Much of it goes to the first token, from which next to nothing is taken (an attention
sink), so every share stands twice: of the attention A_ts, and of what is taken, A_ts |v_s W_O| (Kobayashi et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint, Stages
from caseback.model.hooks import module_at
from caseback.model.model import Model
from caseback.reading.heads import patterns
from caseback.study.finding import Finding, Looking, heat, sheet
from caseback.study.readings.of_heads import head_of, named
from caseback.study.readings.of_prompts import PromptConfig, numbered

__all__ = ["ATTENTION", "CELLS", "AttentionConfig", "attention"]

CELLS = 18_000
"""Cells of the page's heat maps; a page holds 20,000."""
STRONGEST = 8
"""Heads shown one by one where none is named."""
MAPS = 4
"""Heads whose whole maps are shown where none is named."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(PromptConfig):
    """One prompt, and the heads whose attention is shown."""

    heads: tuple[str, ...] = ()
    """Heads shown one by one, as LAYER.HEAD; none: those that take most at the last token."""
    layers: tuple[int, ...] = ()
    """Layers of the overview; none: all that have attention."""


def attention(config: AttentionConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Where heads look, by attention and by what is taken."""
    batch, tokens = config.encode(model)
    asked = tuple(dict.fromkeys(head_of(name, model) for name in config.heads))
    if len(tokens) < 2:
        raise ReadingError("the prompt has one token, which can look at nothing but itself; give a longer one")
    if config.layers and (outside := [layer for layer, _ in asked if layer not in config.layers]):
        raise ReadingError(f"a head of layer {outside[0]} was asked for, which is not among the layers asked for")

    def looked() -> Checkpoint:
        found = patterns(model, batch, layers=config.layers or None)
        if missing := [layer for layer, _ in asked if layer not in found.layers]:
            raise ReadingError(
                f"layer {missing[0]} has no attention; layers that have: {', '.join(map(str, found.layers))}"
            )
        _require_room(len(found.layers), model.n_heads)
        stream = model.run(batch, read=[f"resid_pre.{layer}@end" for layer in found.layers])
        lengths = [float(stream[f"resid_pre.{layer}@end"][0].float().norm()) for layer in found.layers]
        kinds = {"raw": found.pattern} | ({"taken": found.weighted} if found.weighted is not None else {})
        arrays = {name: kind[:, 0].cpu().numpy() for name, kind in kinds.items()}
        order = _order(arrays, np.array(lengths))
        chosen = [(found.layers.index(layer), head) for layer, head in asked] or order[:STRONGEST]
        saved = {f"{name}_last": kind[:, :, -1] for name, kind in arrays.items()}
        saved |= {f"{name}_first": _share(kind)[:, :, 1:, 0].mean(axis=-1) for name, kind in arrays.items()}
        saved |= {f"{name}_sunk": _share(kind.sum(axis=1))[:, 1:, 0].mean(axis=-1) for name, kind in arrays.items()}
        saved |= {f"{name}_maps": np.stack([kind[at] for at in chosen]) for name, kind in arrays.items()}
        places = [[found.layers[l], head] for l, head in chosen]
        return Checkpoint(saved | {"stream": np.array(lengths)}, {"layers": list(found.layers), "chosen": places})

    saved = stages.stage("attention", looked)
    seen = _Seen(
        tokens=tokens,
        layers=saved.data["layers"],
        some=bool(config.layers),
        chosen=saved.data["chosen"],
        arrays=saved.arrays,
    )
    sections = [seen.heads(), seen.overview(), seen.sink(), *seen.maps(whole=bool(asked))]
    return Finding(
        claim=seen.claim(), table=seen.table(config.prompt), sections=sections, notes=seen.notes(model), measured=1
    )


def _require_room(layers: int, heads: int) -> None:
    if 4 * layers * heads > CELLS * 3 // 4:
        raise ReadingError(
            f"{layers} layers of {heads} heads are more than a page holds; choose at most "
            f"{CELLS * 3 // 16 // heads} of the layers"
        )


def _share(values: Float[np.ndarray, "*rest key"]) -> Float[np.ndarray, "*rest key"]:
    """Of the sum over the tokens looked at; 0 where nothing is taken."""
    whole = values.sum(axis=-1, keepdims=True)
    shares: np.ndarray = np.divide(values, whole, out=np.zeros_like(values), where=whole > 0)
    return shares


def _order(arrays: dict[str, np.ndarray], stream: Float[np.ndarray, "layer"]) -> list[tuple[int, int]]:
    """(row of the layer, head), those first that take most, at the last token, from tokens between the first and the last,
    beside the length of the stream there (by attention alone where what is taken is not known)."""
    between = arrays["taken" if "taken" in arrays else "raw"][:, :, -1, 1:-1].sum(axis=-1)
    size = between / np.maximum(stream, 1e-12)[:, None] if "taken" in arrays else between
    return [divmod(int(i), size.shape[1]) for i in np.argsort(-size.ravel(), kind="stable")]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was looked at, and how it is said."""

    tokens: list[str]
    layers: list[int]
    some: bool
    """Whether layers were asked for."""
    chosen: list[list[int]]
    arrays: Mapping[str, np.ndarray]

    @property
    def kinds(self) -> dict[str, str]:
        """Name of each kind of share, what is taken first where it is known."""
        both = {"taken": "what is taken", "raw": "attention"}
        return {kind: name for kind, name in both.items() if f"{kind}_last" in self.arrays}

    @property
    def best(self) -> str:
        return next(iter(self.kinds))

    @property
    def even(self) -> float:
        """Attention to the first token of a head that looks at every token alike."""
        return float(np.mean([1 / (t + 1) for t in range(1, len(self.tokens))]))

    def name(self, place: list[int]) -> str:
        return named((place[0], place[1]))

    def overview(self) -> dict[str, Any]:
        maps = []
        for kind, name in self.kinds.items():
            shares = _share(self.arrays[f"{kind}_last"])
            tops = shares.argmax(axis=-1)
            said = [[self.tokens[i] for i in row] for row in tops[::-1].tolist()]
            maps.append(
                {"name": f"By {name}", **heat(*self._axes, shares.max(axis=-1)[::-1], format="percent", texts=said)}
            )
        return {
            "title": "Where the last token looks",
            "text": f"For every head, the token that {self.tokens[-1]!r} looks at most and its share: of what is taken "
            "(attention times the length of what the head would write from that token) and of the attention alone.",
            "heats": maps,
            "detail": bool(len(self.layers) > 8),
        }

    @property
    def _axes(self) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
        heads = self.arrays["raw_last"].shape[1]
        return ("head", [str(h) for h in range(heads)]), ("layer", [str(layer) for layer in reversed(self.layers)])

    def sink(self) -> dict[str, Any]:
        maps = [
            {"name": f"Of {name}", **heat(*self._axes, self.arrays[f"{kind}_first"][::-1], format="percent")}
            for kind, name in self.kinds.items()
        ]
        sunk = [self.arrays[f"{kind}_sunk"] for kind in self.kinds]
        rows = [["all", *(float(kind.mean()) for kind in sunk)]]
        rows += [[str(layer), *(float(kind[i]) for kind in sunk)] for i, layer in enumerate(self.layers)]
        return {
            "title": f"How much goes to the first token, {self.tokens[0]!r}",
            "text": f"Mean share over the {len(self.tokens) - 1} tokens after it. A head that looked at every token alike would "
            f"give it {self.even:.0%}. A large share of the attention with a small one of what is taken is a sink: the head looks "
            "there and takes next to nothing. The table has the heads of a layer together: a head that takes little counts little.",
            "heats": maps,
            "table": sheet("text layer, " + ", ".join(f"percent of {name}" for name in self.kinds.values()), rows),
            "detail": True,
        }

    def _at(self, place: list[int], kind: str, array: str) -> Any:
        return self.arrays[f"{kind}_{array}"][self.layers.index(place[0]), place[1]]

    def heads(self) -> dict[str, Any]:
        rows = []
        for place in self.chosen:
            shares = {kind: _share(self._at(place, kind, "last")) for kind in self.kinds}
            top = int(shares[self.best].argmax())
            taken = self._taken(place)
            rows.append(
                [self.name(place), f"{top} {self.tokens[top]}", *(float(shares[kind][top]) for kind in self.kinds)]
                + [float(shares[kind][0]) for kind in self.kinds]
                + ([taken] if taken is not None else [])
            )
        columns = ["text head", "text looks most at"]
        columns += [f"percent {name}" for name in self.kinds.values()]
        columns += [f"percent first token: {name}" for name in self.kinds.values()]
        columns += ["percent taken / stream"] if "taken" in self.kinds else []
        axes = ("token", numbered(self.tokens)), ("head", [self.name(place) for place in self.chosen])
        maps = [
            {
                "name": f"By {name}",
                **heat(*axes, [_share(self._at(p, kind, "last")) for p in self.chosen], format="percent"),
            }
            for kind, name in self.kinds.items()
        ]
        return {
            "title": "The last token, head by head",
            "text": "Shares of each head at the last token."
            + (
                " Taken / stream: the lengths of all it takes there, first token and itself left out, beside the length of the "
                "stream it is added to."
                if "taken" in self.kinds
                else ""
            ),
            "heats": maps,
            "table": sheet(", ".join(columns), rows),
        }

    def _taken(self, place: list[int]) -> float | None:
        if "taken" not in self.kinds:
            return None
        return float(self._at(place, "taken", "last")[1:-1].sum() / self.arrays["stream"][self.layers.index(place[0])])

    def maps(self, *, whole: bool) -> list[dict[str, Any]]:
        """Maps of query × key, as many heads and as many last queries as a page has room for."""
        n, heads = len(self.tokens), self.arrays["raw_last"].shape[1]
        room = CELLS - 2 * len(self.kinds) * len(self.layers) * heads - len(self.kinds) * len(self.chosen) * n
        shown = self.chosen if whole else self.chosen[:MAPS]
        if not whole:
            shown = shown[: max(1, room // (len(self.kinds) * n * n))]
        queries = min(n, room // (len(self.kinds) * len(shown) * n))
        if queries < 1:
            return []
        axes = ("looked at", numbered(self.tokens)), ("looks", numbered(self.tokens)[n - queries :])
        cut = f" Only the last {queries} of the {n} tokens that look fit on the page." if queries < n else ""
        sections = []
        for i, place in enumerate(shown):
            maps = []
            for kind, name in self.kinds.items():
                one = heat(*axes, _share(self.arrays[f"{kind}_maps"][i])[n - queries :], format="percent")
                one["values"] = [
                    row[: n - queries + t + 1] + [None] * (queries - t - 1) for t, row in enumerate(one["values"])
                ]
                maps.append({"name": f"By {name}", **one})
            sections.append(
                {
                    "title": f"Head {self.name(place)}",
                    "text": f"A row is a token that looks, a column a token looked at; rows add up to 100%.{cut}",
                    "heats": maps,
                    "detail": True,
                }
            )
        return sections

    def claim(self) -> str:
        sunk = [float(self.arrays[f"{kind}_sunk"].mean()) for kind in reversed(list(self.kinds))]
        where = "In the layers asked for the first" if self.some else "The first"
        first = f"{where} token gets {sunk[0]:.0%} of the attention"
        if "taken" in self.kinds:
            first += f" and {sunk[1]:.0%} of what heads take"
        shares = _share(self._at(self.chosen[0], self.best, "last"))
        top = int(shares.argmax())
        return (
            f"{first} (looking at every token alike: {self.even:.0%}). At the last token, head {self.name(self.chosen[0])} looks "
            f"most at {self.tokens[top]!r}, {shares[top]:.0%} of {self.kinds[self.best]}."
        )

    def table(self, prompt: str) -> dict[str, Any]:
        """For tools: layers × heads × tokens at the last token, and the maps of the heads that are shown."""
        found: dict[str, Any] = {
            "prompt": prompt,
            "tokens": self.tokens,
            "layers": self.layers,
            "first_even": self.even,
        }
        for kind in ("raw", "taken"):
            known = kind in self.kinds
            for array in ("last", "first"):
                found[f"{kind}_{array}"] = self.arrays[f"{kind}_{array}"].tolist() if known else None
            found[f"{kind}_sunk"] = self.arrays[f"{kind}_sunk"].tolist() if known else None
            maps = self.arrays[f"{kind}_maps"].tolist() if known else [None] * len(self.chosen)
            found[f"{kind}_maps"] = dict(zip(map(self.name, self.chosen), maps, strict=True))
        return found

    def notes(self, model: Model) -> list[str]:
        notes = [
            "What is taken counts lengths: what two tokens give may cancel, and what is taken need not matter to the answer; "
            "`caseback patch` asks that.",
            "Compare with `--twin`, the same model with random weights.",
        ]
        if "taken" not in self.kinds:
            notes[0] = (
                f"What is taken is not known in {model.family.name}: a gate or a norm lies between the attention and its output "
                "projection. The attention alone says where a head looks, not what it takes."
            )
        elif _normed(model):
            notes.append("A norm follows the output projection; what is taken is measured before it.")
        left = len(self.layers) * self.arrays["raw_last"].shape[1] - len(self.chosen)
        notes.append(
            f"Heads shown one by one: {len(self.chosen)}; of the other {left:,} the page has the last token's strongest look and "
            "the share of the first token. `--head LAYER.HEAD` shows another's whole map."
        )
        return notes


def _normed(model: Model) -> bool:
    """Whether a norm stands between the output projection and the stream."""
    layer = model.site_layers["pattern"][0]
    writer = module_at(model.blocks[layer], model.family.writes[0])
    return writer is not model.attention(layer) and writer is not model.o_proj(layer)


ATTENTION = Looking("attention", AttentionConfig, "Attention", attention)
