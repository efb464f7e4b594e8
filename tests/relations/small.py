"""Tiny models that read words, and relations for them."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from caseback.model.model import Model
from caseback.relations.relation import Properties, Relation, Sample
from caseback.zoo.affine import AffineModel, affine
from caseback.zoo.handmade import word_tokenizer
from caseback.zoo.tiny import tiny

TEMPLATE = "the w4 of {} is"
WORDS = ["[pad]", "the", "of", "is", *(f"w{i}" for i in range(4, 64))]
SAMPLES = tuple(Sample(subject=f"w{10 + i} w{30 + i}", object=f"w{50 + i % 7}") for i in range(16))
"""Subjects of two tokens."""


@cache
def model_of(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """A tiny random model of a family that reads words."""
    return Model(tiny(name).to(dtype), word_tokenizer(WORDS))


@cache
def affine_of(rank: int = 16) -> AffineModel:
    return affine(rank=rank)


def relation_of(zoo: AffineModel) -> Relation:
    """The zoo's relation as data."""
    kind = Properties(relation_type="factual", domain_name="subject", range_name="object", symmetric=False)
    samples = tuple(Sample(subject=one, object=other) for one, other in zoo.pairs)
    ask = (zoo.template,)
    return Relation(name="friend", prompt_templates=ask, prompt_templates_zs=ask, properties=kind, samples=samples)


def byte_tokenizer(merges: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Bytes, and the words in `merges` as one token each ("cat", "Ġcat"), built letter by letter; a BOS comes first."""
    pieces: dict[str, None] = {}
    steps: dict[tuple[str, str], None] = {}
    for word in merges:
        for end in range(2, len(word) + 1):
            pieces[word[:end]] = None
            steps[word[: end - 1], word[end - 1]] = None
    vocabulary = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, list(steps)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def reader(*merges: str) -> Model:
    """A model that is only asked for tokens."""
    return Model(tiny("llama"), byte_tokenizer(merges))
