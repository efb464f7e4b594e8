"""A model that knows two facts of every subject, linearly, and believes what it was told last.

A subject's word holds three parts: one of four objects of the first relation (coordinates 0–7), one of three of the
second (8–15), and noise of its own (16–23). The word after it takes the first two over; the question's last word says
which kind of object is asked for. An object that stands in the prompt is copied with three times the weight, so that
the model repeats falsehoods.
"""

from __future__ import annotations

import torch

from caseback.model.model import Model
from caseback.relations.relation import Properties, Relation, Sample
from caseback.zoo.affine import CODE, CODES, HEAD, IMAGES, SHARP, WIDTH, affine

FIRST, SECOND = "the friend of {} is", "of {} friend"
N, KINDS = 24, (4, 3)
ASKED, OBJECT = (50, 51), 52
"""Coordinates: which relation is asked for, and that a word is an object."""


def facts(*, seed: int = 0) -> Model:
    """The model; objects 0–3 answer FIRST, objects 10–12 answer SECOND."""
    model = affine(n=N).model
    draw = torch.Generator().manual_seed(seed)
    words = model.tokenizer.convert_tokens_to_ids
    attention = model.hf.model.layers[1].self_attn
    with torch.no_grad():
        embedding, unembedding = model.hf.model.embed_tokens.weight.zero_(), model.hf.lm_head.weight.zero_()
        attention.v_proj.weight.zero_()[:16, :16] = torch.eye(16)
        attention.o_proj.weight.zero_()[CODE : CODE + 16, :16] = torch.eye(16)
        # the second head finds objects by a coordinate so slow that distance does not matter
        attention.q_proj.bias[HEAD + 15] = SHARP
        attention.k_proj.weight[HEAD + 15, OBJECT] = SHARP
        attention.v_proj.weight[HEAD : HEAD + CODE, IMAGES] = torch.eye(CODE)
        attention.o_proj.weight[IMAGES, HEAD : HEAD + CODE] = torch.eye(CODE)
        for i in range(N):
            own = torch.randn(8, generator=draw)
            code = torch.zeros(CODE)
            code[i % 4], code[8 + answer(i)], code[16:] = 1, 1, own / own.norm()
            embedding[words(f"subject{i}"), CODES] = code
        for relation, (start, gate) in enumerate(((0, "is"), (10, "friend"))):
            embedding[words(gate), ASKED[relation]] = 1
            for k in range(KINDS[relation]):
                word = words(f"object{start + k}")
                unembedding[word, CODE + 8 * relation + k], unembedding[word, ASKED[relation]] = 1, 5
                embedding[word, CODE + 8 * relation + k], embedding[word, OBJECT] = 3, 1
    return model


def answer(i: int) -> int:
    """The second relation's object of subject i."""
    return i // 4 % 3


def samples(second: bool = False) -> tuple[Sample, ...]:
    return tuple(Sample(subject=f"subject{i}", object=f"object{10 + answer(i) if second else i % 4}") for i in range(N))


def relation(second: bool = False) -> Relation:
    kind = Properties(relation_type="factual", domain_name="subject", range_name="object", symmetric=False)
    ask = (SECOND if second else FIRST,)
    name = "second" if second else "first"
    return Relation(name=name, prompt_templates=ask, prompt_templates_zs=ask, properties=kind, samples=samples(second))


def operator(model: Model, *, both: bool = False, second: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(W, b) that take a subject's state to one relation's part of the final stream, or to both parts."""
    W, b = torch.zeros((WIDTH, WIDTH)), torch.zeros(WIDTH)
    parts = range(16) if both else range(8, 16) if second else range(8)
    for k in parts:
        W[CODE + k, k] = 1
    b[ASKED[int(second)]] = 1
    return W, b
