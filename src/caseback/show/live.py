"""The live prompt box: what a loaded model makes of a prompt while it is typed.

One model, loaded when it is first asked for, and one thread that computes: two computations at once would each take
twice as long. An answer comes in parts, the quickest first; a reader who types on makes the parts still to come stale,
and they are dropped between parts and, where a reading tells its progress, in the middle of one. What was computed of
the last few prompts is kept, so that another head or token of the same prompt costs next to nothing.

    model       loaded, in the first answer only
    tokens      the prompt as the model gets it
    next        the model's likeliest next tokens after every token
    attention   where one head looks, and what it takes from there (|A v W_O|); the heads that take most
    inputs      which tokens the next one comes from, by occlusion, gradient × input or integrated gradients
    lens        what every layer would say next after every token

and, where they are asked for, after those:

    twin.attention, twin.inputs, twin.lens      the same of the model's random twin, for the same head and the same next
                token: the control, what a part shows where nothing was learnt
    patch       where this prompt and a second one differ inside the model, layer by layer (`show.grids`)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_args

import torch

from caseback.core.errors import CasebackError, ReadingError
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.load import load
from caseback.model.model import Model
from caseback.model.twin import random_twin
from caseback.reading.heads import Patterns, patterns
from caseback.reading.inputs import Method, attribute_inputs
from caseback.reading.lens import DEFAULT, stream_sites, streams
from caseback.show.grids import DIRECTIONS, SITES, LiveGrid, live_grid
from caseback.study import Study, plain
from caseback.study.readings.of_heads import head_of
from caseback.study.readings.of_prompts import PromptConfig, texts

__all__ = ["ASKED", "LONGEST", "PARTS", "Live", "Look", "known_models", "look_of"]

PARTS = ("tokens", "next", "attention", "inputs", "lens")
ASKED = ("twin.attention", "twin.inputs", "twin.lens", "patch")
"""Parts that come only when they are asked for."""
METHODS = get_args(Method)
LONGEST = 128
"""Tokens at most: every head's pattern is kept."""
ROWS = 128
"""Vectors unembedded at once."""
KEPT = 6
"""Prompts whose readings are kept, of a model and of its twin together; grids."""
TOP, STRONGEST, STEPS = 8, 12, 16
"""Next tokens that are told; heads; points of integrated gradients."""
CLIENTS = 64

Thing = TypeVar("Thing")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is asked of a prompt."""

    text: str
    client: str
    """The page that asks; its next question makes this one stale."""
    parts: tuple[str, ...] = PARTS
    token: int = -1
    """Which token's next one is asked about; -1: the last."""
    head: str | None = None
    """As in "18.6"; None: the one that takes most."""
    method: str = "occlusion"
    model: str | None = None
    other: str = ""
    """The second prompt of a grid."""
    site: str = SITES[0]
    direction: str = "denoise"
    answer: str = ""
    """Words that a grid compares; "": what either prompt makes likeliest."""
    foil: str = ""


def look_of(body: Mapping[str, Any]) -> Look:
    """A question from JSON; ReadingError names the field that does not fit."""
    kinds: dict[str, Any] = {
        "text": str,
        "client": str,
        "token": int,
        "head": str,
        "method": str,
        "model": str,
        "parts": list,
        "other": str,
        "site": str,
        "direction": str,
        "answer": str,
        "foil": str,
    }
    for name, value in body.items():
        if name not in kinds:
            raise ReadingError(f"a prompt is not asked with {name!r}; it is with {', '.join(kinds)}")
        if type(value) is not kinds[name] and not (value is None and name in ("head", "model")):
            raise ReadingError(f"{name} is {value!r:.80}; it is of type {kinds[name].__name__}")
    given = {**body, "parts": tuple(body.get("parts", PARTS))}
    if not {"text", "client"} <= given.keys() or len(given["client"]) > 64:
        raise ReadingError("a prompt comes with its text and a short client")
    if unknown := [part for part in given["parts"] if part not in (*PARTS, *ASKED)]:
        raise ReadingError(f"there is no part {unknown[0]!r:.80}; there are {', '.join((*PARTS, *ASKED))}")
    look = Look(**given)
    if look.method not in METHODS:
        raise ReadingError(f"there is no input attribution {look.method!r}; there are: {', '.join(METHODS)}")
    if look.site not in SITES:
        raise ReadingError(f"there is no live grid of {look.site!r:.80}; there are: {', '.join(SITES)}")
    if look.direction not in DIRECTIONS:
        raise ReadingError(f"there is no direction {look.direction!r:.80}; there are: {', '.join(DIRECTIONS)}")
    return look


def known_models(study: Study) -> list[str | None]:
    """What can be asked: the default model (None), then those the study's runs were made with."""
    found: dict[str | None, None] = {None: None}
    for row in study.runs():
        try:
            name = json.loads(row.asked or "{}").get("model")
        except (ValueError, AttributeError):
            continue
        if isinstance(name, str):
            found[name] = None
    return list(found)


class Stale(Exception):
    """The reader asks something else by now."""


@dataclass
class _Read:
    """What is known of a prompt in a model."""

    model: Model
    batch: Batch
    words: list[str]
    of: _Read | None = None
    """In a twin: the reading of the trained model it stands beside."""
    next: dict[str, Any] | None = None
    lens: dict[str, Any] | None = None
    patterns: Patterns | None = None
    inputs: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)


class Live:
    """Answers prompts, one computation at a time."""

    def __init__(self, study: Study, load: Callable[[str | None], Model] = load) -> None:
        self.study = study
        self._load = load
        self._one = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")
        self._latest: OrderedDict[str, int] = OrderedDict()
        self._count = 0
        self._model: tuple[str | None, Model] | None = None
        self._twin: Model | None = None
        self._kept: OrderedDict[tuple[str, bool], _Read] = OrderedDict()
        self._grids: OrderedDict[tuple[str, ...], LiveGrid] = OrderedDict()

    async def read(self, look: Look) -> AsyncIterator[dict[str, Any]]:
        """The parts as they are computed, each with its milliseconds or, where this model or prompt has no such part, its
        `error`; a part named error or stale ends them."""
        self._count += 1
        ticket = self._count
        self._latest[look.client] = ticket
        self._latest.move_to_end(look.client)
        while len(self._latest) > CLIENTS:
            self._latest.popitem(last=False)

        def check(stage: str = "", done: int = 0, total: int = 0) -> None:
            if self._latest.get(look.client) != ticket:
                raise Stale

        loop = asyncio.get_running_loop()
        try:
            for part in ("model", *look.parts):
                try:
                    steps = self._steps(part, look, check)
                    while (told := await loop.run_in_executor(self._one, partial(next, steps, None))) is not None:
                        yield told
                except CasebackError as error:
                    if part in ("model", "tokens"):
                        raise  # nothing can be read
                    yield {"part": part, "error": str(error), "ms": 0.0}
        except Stale:
            yield {"part": "stale"}
        except CasebackError as error:
            yield {"part": "error", "error": str(error)}
        finally:
            if self._latest.get(look.client) == ticket:
                del self._latest[look.client]  # whoever asked has gone or is answered

    def close(self) -> None:
        """Drop what is still to be computed."""
        self._latest.clear()
        self._one.shutdown(wait=False, cancel_futures=True)

    def _steps(self, part: str, look: Look, check: Any) -> Iterator[dict[str, Any]]:
        """What a part says, in one piece or, of a grid, layer by layer."""
        check()
        began = time.perf_counter()

        def told(found: Mapping[str, Any]) -> dict[str, Any]:
            milliseconds = round(1000 * (time.perf_counter() - began), 1)
            said: dict[str, Any] = plain({"part": part, **found, "ms": milliseconds})
            return said

        model = self._loaded(look.model)
        if part == "model":
            yield told({"name": model.name, "layers": model.n_layers, "heads": model.n_heads})
            return
        read = self._read(model, look.text)
        if part == "patch":
            yield from map(told, self._patch(read, look, check))
            return
        token = look.token if look.token >= 0 else len(read.words) - 1
        if token >= len(read.words):
            raise ReadingError(f"there is no token {token}; the prompt has {len(read.words)}")
        if part.startswith("twin."):
            read = self._read(self._twin_of(model), look.text, of=read)
        kind = part.removeprefix("twin.")
        yield told({"token": token, **getattr(self, f"_{kind}")(read, look, token, check)})

    def _twin_of(self, model: Model) -> Model:
        if self._twin is None:
            self._twin = random_twin(model)
        return self._twin

    def _loaded(self, name: str | None) -> Model:
        if self._model is None or self._model[0] != name:
            if name not in known_models(self.study):
                raise ReadingError(f"{name!r} is not a model of this casebook; start a study with it first")
            self._model = self._twin = None  # before another takes its place in memory
            self._kept.clear()
            self._grids.clear()
            self._model = name, self._load(name)
        return self._model[1]

    def _read(self, model: Model, text: str, *, of: _Read | None = None) -> _Read:
        def made() -> _Read:
            batch, words = PromptConfig(prompt=text).encode(model)
            if len(words) > LONGEST:
                raise ReadingError(
                    f"the prompt has {len(words)} tokens, and this page reads {LONGEST} at most; `caseback lens` reads up to 400"
                )
            return _Read(model, batch.to(model.device), words, of)

        return _kept(self._kept, (text, of is not None), made)

    # --- the parts: functions of what is known of a prompt ------------------------------------------------------------

    def _tokens(self, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        return {"words": read.words, "ids": read.batch.ids[0].tolist()}

    def _next(self, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        if read.next is None:
            logits = read.model.run(read.batch, read=[], logits="all").logits
            assert logits is not None  # they were asked for
            best = wide(logits[0]).log_softmax(dim=-1).topk(min(TOP, read.model.d_vocab), dim=-1)
            says = [texts(read.model, row) for row in best.indices.tolist()]
            read.next = {"says": says, "probability": _rounded(best.values.exp()), "ids": best.indices[:, 0].tolist()}
        return read.next

    def _lens(self, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        if read.lens is None:
            # The likeliest token and no more, so that neither entropies nor sorted vocabularies are paid for.
            sites = stream_sites(read.model, DEFAULT)
            vectors, _ = streams(read.model, read.batch, sites)
            best, probability = [], []
            for rows in torch.cat([vectors[site][0] for site in sites]).split(ROWS):
                check()
                with torch.no_grad():
                    logits = wide(end(read.model, rows))
                top = logits.max(dim=-1)
                best.append(top.indices)
                probability.append((top.values - logits.logsumexp(dim=-1)).exp())
            shape = len(sites), len(read.words)
            read.lens = {
                "sites": sites,
                "says": [texts(read.model, row) for row in torch.cat(best).view(shape).tolist()],
                "probability": _rounded(torch.cat(probability).view(shape)),
            }
        return read.lens

    def _attention(self, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        ranked = _strongest(read.of or read, token)
        found = _patterns(read)
        layer, head = head_of(look.head or str(ranked[0]["head"]), read.model)
        if layer not in found.layers:
            raise ReadingError(
                f"layer {layer} has no attention pattern; choose one of {', '.join(map(str, found.layers))}"
            )
        i = found.layers.index(layer)
        weighted = None if found.weighted is None else _rounded(found.weighted[i, 0, head])
        return {
            "head": f"{layer}.{head}",
            "pattern": _rounded(found.pattern[i, 0, head]),
            "taken": weighted,
            "strongest": ranked,
        }

    def _inputs(self, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        key = token, look.method
        if key not in read.inputs:
            batch = Batch(read.batch.ids[:, : token + 1], read.batch.mask[:, : token + 1])
            answer = self._next(read.of or read, look, token, check)["ids"][token]
            check()

            def metric(logits: torch.Tensor) -> torch.Tensor:
                return logits[:, answer]

            method: Any = look.method
            found = attribute_inputs(read.model, batch, metric, method=method, steps=STEPS, progress=check)
            read.inputs[key] = {
                "method": look.method,
                "answer": texts(read.model, [answer])[0],
                "scores": [float(f"{score:.4g}") for score in found.scores[0]],
                "logit": float(found.metric[0]),
                "baseline": float(found.baseline_metric[0]),
            }
        return read.inputs[key]

    def _patch(self, read: _Read, look: Look, check: Any) -> Iterator[dict[str, Any]]:
        """What the grid is about, then its rows, one at a time; `left` counts those to come."""
        how = {name: getattr(look, name) for name in ("site", "direction", "answer", "foil")}

        def made() -> LiveGrid:
            if not look.other:
                raise ReadingError("a grid is over two prompts; write the second one")
            return live_grid(read.model, read.batch, self._read(read.model, look.other).batch, **how)

        grid = _kept(self._grids, (look.text, look.other, *how.values()), made)
        yield {**grid.says, "left": grid.left, "rows": list(grid.rows.items())}
        while grid.left:
            check()
            layer = grid.compute()
            yield {"left": grid.left, "rows": [(layer, grid.rows[layer])]}


def _kept(shelf: OrderedDict[Any, Thing], key: Any, make: Callable[[], Thing]) -> Thing:
    """What the shelf has under the key, made where it is missing; the latest few stay."""
    if key not in shelf:
        shelf[key] = make()
    shelf.move_to_end(key)
    while len(shelf) > KEPT:
        shelf.popitem(last=False)
    return shelf[key]


def _patterns(read: _Read) -> Patterns:
    if read.patterns is None:
        read.patterns = patterns(read.model, read.batch)
    return read.patterns


def _strongest(read: _Read, token: int) -> list[dict[str, Any]]:
    """The heads that take most from one token, the first token aside, which many look at when they have nothing to do."""
    found = _patterns(read)
    taken = (found.pattern if found.weighted is None else found.weighted)[:, 0]
    most = taken[:, :, token, 1 : token + 1] if token else taken[:, :, token, :1]
    strongest, where = most.max(dim=-1)
    order = strongest.flatten().argsort(descending=True, stable=True)[:STRONGEST].tolist()
    heads = [divmod(place, strongest.shape[1]) for place in order]
    return [
        {"head": f"{found.layers[i]}.{h}", "takes": float(strongest[i, h]), "from": int(where[i, h]) + bool(token)}
        for i, h in heads
    ]


def wide(logits: torch.Tensor) -> torch.Tensor:
    """In float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
