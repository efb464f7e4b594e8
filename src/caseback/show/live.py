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
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch

from caseback.core.errors import CasebackError, ReadingError
from caseback.model.batch import Batch
from caseback.model.end import end
from caseback.model.load import load
from caseback.model.model import Model
from caseback.reading.heads import Patterns, patterns
from caseback.reading.inputs import Method, attribute_inputs
from caseback.reading.lens import DEFAULT, stream_sites, streams
from caseback.study import Study, plain
from caseback.study.readings.of_heads import head_of
from caseback.study.readings.of_prompts import PromptConfig, texts

__all__ = ["LONGEST", "PARTS", "Live", "Look", "known_models", "look_of"]

PARTS = ("tokens", "next", "attention", "inputs", "lens")
METHODS = get_args(Method)
LONGEST = 128
"""Tokens at most: every head's pattern is kept."""
ROWS = 128
"""Vectors unembedded at once."""
KEPT = 4
"""Prompts whose readings are kept."""
TOP, STRONGEST, STEPS = 8, 12, 16
"""Next tokens that are told; heads; points of integrated gradients."""
CLIENTS = 64


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
    }
    for name, value in body.items():
        if name not in kinds:
            raise ReadingError(f"a prompt is not asked with {name!r}; it is with {', '.join(kinds)}")
        if type(value) is not kinds[name] and not (value is None and name in ("head", "model")):
            raise ReadingError(f"{name} is {value!r:.80}; it is of type {kinds[name].__name__}")
    given = {**body, "parts": tuple(body.get("parts", PARTS))}
    if not {"text", "client"} <= given.keys() or len(given["client"]) > 64:
        raise ReadingError("a prompt comes with its text and a short client")
    if unknown := [part for part in given["parts"] if part not in PARTS]:
        raise ReadingError(f"there is no part {unknown[0]!r:.80}; there are {', '.join(PARTS)}")
    look = Look(**given)
    if look.method not in METHODS:
        raise ReadingError(f"there is no input attribution {look.method!r}; there are: {', '.join(METHODS)}")
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

    batch: Batch
    words: list[str]
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
        self._kept: OrderedDict[str, _Read] = OrderedDict()

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
                    yield await loop.run_in_executor(self._one, partial(self._timed, part, look, check))
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

    def _timed(self, part: str, look: Look, check: Any) -> dict[str, Any]:
        check()
        began = time.perf_counter()
        model = self._loaded(look.model)
        if part == "model":
            size = {"name": model.name, "layers": model.n_layers, "heads": model.n_heads}
            found: dict[str, Any] = size
        else:
            read = self._read(model, look)
            token = look.token if look.token >= 0 else len(read.words) - 1
            if token >= len(read.words):
                raise ReadingError(f"there is no token {token}; the prompt has {len(read.words)}")
            found = {"token": token, **getattr(self, f"_{part}")(model, read, look, token, check)}
        milliseconds = round(1000 * (time.perf_counter() - began), 1)
        told: dict[str, Any] = plain({"part": part, **found, "ms": milliseconds})
        return told

    def _loaded(self, name: str | None) -> Model:
        if self._model is None or self._model[0] != name:
            if name not in known_models(self.study):
                raise ReadingError(f"{name!r} is not a model of this casebook; start a study with it first")
            self._model = None  # before another takes its place in memory
            self._kept.clear()
            self._model = name, self._load(name)
        return self._model[1]

    def _read(self, model: Model, look: Look) -> _Read:
        if look.text not in self._kept:
            batch, words = PromptConfig(prompt=look.text).encode(model)
            if len(words) > LONGEST:
                raise ReadingError(
                    f"the prompt has {len(words)} tokens; here {LONGEST} are read, by `caseback lens` 400"
                )
            self._kept[look.text] = _Read(batch.to(model.device), words)
        self._kept.move_to_end(look.text)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[look.text]

    # --- the parts: functions of a model and what is known of a prompt ------------------------------------------------

    def _tokens(self, model: Model, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        return {"words": read.words, "ids": read.batch.ids[0].tolist()}

    def _next(self, model: Model, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        if read.next is None:
            logits = model.run(read.batch, read=[], logits="all").logits
            assert logits is not None  # they were asked for
            best = wide(logits[0]).log_softmax(dim=-1).topk(min(TOP, model.d_vocab), dim=-1)
            says = [texts(model, row) for row in best.indices.tolist()]
            read.next = {"says": says, "probability": _rounded(best.values.exp()), "ids": best.indices[:, 0].tolist()}
        return read.next

    def _lens(self, model: Model, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        if read.lens is None:
            # The likeliest token and no more, so that neither entropies nor sorted vocabularies are paid for.
            sites = stream_sites(model, DEFAULT)
            vectors, _ = streams(model, read.batch, sites)
            best, probability = [], []
            for rows in torch.cat([vectors[site][0] for site in sites]).split(ROWS):
                check()
                with torch.no_grad():
                    logits = wide(end(model, rows))
                top = logits.max(dim=-1)
                best.append(top.indices)
                probability.append((top.values - logits.logsumexp(dim=-1)).exp())
            shape = len(sites), len(read.words)
            read.lens = {
                "sites": sites,
                "says": [texts(model, row) for row in torch.cat(best).view(shape).tolist()],
                "probability": _rounded(torch.cat(probability).view(shape)),
            }
        return read.lens

    def _attention(self, model: Model, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        if read.patterns is None:
            read.patterns = patterns(model, read.batch)
        found = read.patterns
        taken = (found.pattern if found.weighted is None else found.weighted)[:, 0]
        # the first token aside, which many heads look at when they have nothing to do
        most = taken[:, :, token, 1 : token + 1] if token else taken[:, :, token, :1]
        strongest, where = most.max(dim=-1)
        order = strongest.flatten().argsort(descending=True, stable=True)[:STRONGEST].tolist()
        heads = [divmod(place, strongest.shape[1]) for place in order]
        ranked = [
            {"head": f"{found.layers[i]}.{h}", "takes": float(strongest[i, h]), "from": int(where[i, h]) + bool(token)}
            for i, h in heads
        ]
        layer, head = head_of(look.head or str(ranked[0]["head"]), model)
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

    def _inputs(self, model: Model, read: _Read, look: Look, token: int, check: Any) -> dict[str, Any]:
        key = token, look.method
        if key not in read.inputs:
            batch = Batch(read.batch.ids[:, : token + 1], read.batch.mask[:, : token + 1])
            answer = self._next(model, read, look, token, check)["ids"][token]
            check()

            def metric(logits: torch.Tensor) -> torch.Tensor:
                return logits[:, answer]

            method: Any = look.method
            found = attribute_inputs(model, batch, metric, method=method, steps=STEPS, progress=check)
            read.inputs[key] = {
                "method": look.method,
                "answer": texts(model, [answer])[0],
                "scores": [float(f"{score:.4g}") for score in found.scores[0]],
                "logit": float(found.metric[0]),
                "baseline": float(found.baseline_metric[0]),
            }
        return read.inputs[key]


def wide(logits: torch.Tensor) -> torch.Tensor:
    """In float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
