"""What is measured: models and pairs.

`ioi_pairs` is what a user has: the default model on the IOI task. Growth needs any size, and time does not depend on
what weights say, so `llama` and `random_pairs` make models of SmolLM2-135M's widths with random weights, and prompts
of random tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import caseback
from caseback.model import Batch, Model
from caseback.tasks import PairBatch, Task
from caseback.tasks.library.ioi import ioi

__all__ = ["default_model", "edge_flops", "ioi_pairs", "ioi_task", "llama", "random_pairs"]


def default_model() -> Model:
    return caseback.load()


def ioi_task(model: Model, n: int) -> Task:
    """The first n pairs of the IOI task that the model answers right."""
    task = ioi(n=2 * n, seed=0, model=model).check(model).task
    return Task(name=task.name, pairs=task.pairs[:n], schema=task.schema, seed=task.seed)


def ioi_pairs(model: Model, n: int) -> PairBatch:
    return ioi_task(model, n).encode(model)


def llama(layers: int) -> Model:
    """A Llama of SmolLM2-135M's widths with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return in_memory(LlamaForCausalLM(config))


def in_memory(hf: PreTrainedModel) -> Model:
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    return Model(hf)


def random_pairs(model: Model, n: int, *, tokens: int, spans: int = 9, seed: int = 0) -> PairBatch:
    """Pairs of random tokens, a quarter of which differ in the counterfactual; spans of equal length but for the last, one token."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(model.d_vocab, (n, tokens), generator=draw)
    other = torch.randint(model.d_vocab, (n, tokens), generator=draw)
    counterfactual = torch.where(torch.rand((n, tokens), generator=draw) < 0.25, other, clean)
    edges = [*np.linspace(0, tokens - 1, spans).round().astype(int).tolist(), tokens]
    ranges = {f"s{i}": torch.tensor([[edges[i], edges[i + 1]]]).expand(n, 2) for i in range(spans)}
    mask = torch.ones((n, tokens), dtype=torch.bool)
    answers = torch.randint(model.d_vocab, (2, n, 1), generator=draw)
    return PairBatch(
        Batch(clean, mask, ranges), Batch(counterfactual, mask, ranges), answers[0], answers[1], "logit_diff"
    )


def edge_flops(model: Model, pairs: PairBatch) -> float:
    """What the edges' own products cost, however arranged: 2·d a residual edge and token, 6·d_head a pair of tokens in a head."""
    from caseback.circuits.parts import graph_of

    graph = graph_of(model, tuple(pairs.clean.spans))
    lengths = pairs.clean.lengths.double()
    residual = 2 * model.d_model * float(lengths.sum()) * int(graph.residual_allowed.sum())
    crossing = 6 * model.d_head * model.n_layers * model.n_heads * float((lengths * (lengths + 1) / 2).sum())
    return residual + crossing
