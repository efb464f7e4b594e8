"""Stand-ins for a model that is only read: real tokenizers made in milliseconds, and predictions that are written down.

A `Reader` has every habit of real tokenizers that a task can trip over: how numbers are cut, whether a BOS comes first, whether a
token's range counts its leading space, names it must split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from caseback.model.batch import Batch
from caseback.tasks.library import agreement, capitals, gender_bias, greater_than, ioi

NUMBERS = {
    "digits": r"\p{N}",  # as SmolLM2: " 17" is three tokens
    "pairs": r" ?\p{N}{2}|\p{N}",  # as GPT-2 mostly: " 17", "45"
    "triples": r"\p{N}{1,3}",  # as Llama 3: " ", "174", "5"
    "whole": r" ?\p{N}+",
}
BROKEN = ("Jonathan", "Christopher", "Zurich")  # names that are never one token


@cache
def tokenizer(numbers: str = "digits", *, bos: bool = False, trimmed: bool = False) -> Tokenizer:
    """A byte-level BPE in which every word of the library is one token, but for BROKEN."""
    made = Tokenizer(models.BPE())
    words = r" ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    cut = pre_tokenizers.Split(Regex(f"{NUMBERS[numbers]}|{words}"), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, level])  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>"] if bos else []
    trainer = trainers.BpeTrainer(
        vocab_size=9000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_corpus(), trainer)
    steps: list[Any] = []
    if trimmed:
        steps.append(processors.ByteLevel(trim_offsets=True))
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]))
    if steps:
        made.post_processor = processors.Sequence(steps)  # type: ignore[assignment]
    return made


@cache
def _corpus() -> list[str]:
    texts = []
    for make in (agreement, capitals, gender_bias, greater_than, ioi):
        for pair in make(300, seed=1).pairs:
            texts += [pair.clean + text for text in (*pair.answers, *pair.foils)] + [pair.counterfactual]
    texts += [f"in {century}{year:02d} to" for century in range(11, 19) for year in range(100)] * 2
    texts += [f"{word} left right up down and in to => =>" for word in ("left", "right", "up", "down", "to", "in")] * 3
    return [text for text in texts if not any(name in text for name in BROKEN)]


class Reader:
    """What a task needs of a model; `predict` says the logits, from the token lists without padding."""

    name = "reader"

    def __init__(
        self,
        numbers: str = "digits",
        *,
        bos: bool = False,
        trimmed: bool = False,
        predict: Callable[[list[int], torch.Tensor], None] = lambda ids, logits: None,
    ):
        self.tokenizer = tokenizer(numbers, bos=bos, trimmed=trimmed)
        self.bos = bos
        self.predict = predict
        self.batches: list[Batch] = []

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self.tokenizer.encode(text).offsets)

    def texts(self, text: str) -> list[str]:
        """The tokens as text, a BOS left out."""
        return [text[start:end] for start, end in self.offsets(text)[1 if self.bos else 0 :]]

    def logits(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        logits = torch.zeros(batch.n, self.tokenizer.get_vocab_size())
        for row in range(batch.n):
            self.predict(batch.ids[row, batch.mask[row]].tolist(), logits[row])
        return logits


def knowing(task: Any, share: float = 1.0, **habits: Any) -> Reader:
    """A reader that answers the first `share` of a task's pairs right and the others wrong, by two logits."""
    reader = Reader(**habits)
    scores: dict[tuple[int, ...], dict[int, float]] = {}
    for i, pair in enumerate(task.pairs):
        ids = reader.tokens(pair.clean)
        side = 1.0 if i < share * task.n else -1.0
        scores[tuple(ids)] = {
            **{token: side for text in pair.answers for token in reader.tokens(pair.clean + text)[len(ids) :]},
            **{token: -side for text in pair.foils for token in reader.tokens(pair.clean + text)[len(ids) :]},
        }

    def predict(ids: list[int], logits: torch.Tensor) -> None:
        for token, score in scores.get(tuple(ids), {}).items():
            logits[token] = score

    reader.predict = predict
    return reader
