"""Transformers written by hand: real Hugging Face models in which a few weights carry a known circuit.

The weights start as the family's own small random initialisation, so every edge carries a little; then the rows of the
chosen heads and MLP units are set. A direction of the residual stream is one coordinate with a name. Coordinate 0 holds the
same large number √d at every token, so that norms divide by nearly the same value everywhere and the model is close to
linear along the circuit. Heads write their feature to coordinates nobody else reads, attention stays moderate (a saturated
softmax has no gradient), and every step is needed: no second path gives the answer.

The circuit is then known by construction; the tests check it against brute force, each edge ablated alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caseback.core.provenance import Source
from caseback.model.model import Model
from caseback.tasks.pair import Pair
from caseback.tasks.task import Task

__all__ = ["Hand", "ZooModel", "draw_pairs", "pair_of", "word_tokenizer"]


BACKGROUND = 0.03
"""Standard deviation of the random weights the circuit stands in; from .05 on they lose some pairs of some seeds."""


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A model, a question it answers, and the edges that answer it."""

    name: str
    description: str
    """What the circuit does, step by step."""
    model: Model
    task: Task
    """Pairs with spans; every pair is answered right."""
    truth: frozenset[str]
    """Names of the circuit's edges (`Graph.name`), key and value inputs per KV head."""


class Hand:
    """A model under construction: set single weights by the names of directions."""

    def __init__(self, hf: Any, words: Sequence[str], directions: Sequence[str]):
        self.hf = hf
        self.words = {word: i for i, word in enumerate(words)}
        self.at = {"one": 0, **{name: i + 1 for i, name in enumerate(directions)}}
        """Direction → coordinate of the residual stream."""
        self.one = float(hf.config.hidden_size) ** 0.5
        """Value of the direction "one" at every token, √d."""
        with torch.no_grad():
            self.hf.get_input_embeddings().weight.zero_()
            self.hf.get_input_embeddings().weight[:, 0] = self.one
            self.hf.get_output_embeddings().weight.zero_()

    @staticmethod
    def llama(words: Sequence[str], directions: Sequence[str], *, layers: int, seed: int) -> Hand:
        """Four heads on two KV heads; the rotation is so slow in a head's last coordinate that it compares content alone."""
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=BACKGROUND,
            head_dim=16,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1e9},
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        return Hand(_random(LlamaForCausalLM, config, seed), words, directions)

    @staticmethod
    def gpt2(words: Sequence[str], directions: Sequence[str], *, layers: int, seed: int) -> Hand:
        """Four heads; learned positions, to be set with `position`."""
        config = GPT2Config(
            vocab_size=len(words),
            n_positions=16,
            n_embd=96,
            n_inner=48,
            n_layer=layers,
            n_head=4,
            initializer_range=BACKGROUND,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        hand = Hand(_random(GPT2LMHeadModel, config, seed), words, directions)
        with torch.no_grad():
            hand.hf.transformer.wpe.weight.zero_()
        return hand

    @torch.no_grad()
    def embed(self, word: str, **directions: float) -> None:
        """What a word's embedding holds beside the constant."""
        for name, value in directions.items():
            self.hf.get_input_embeddings().weight[self.words[word], self.at[name]] = value

    @torch.no_grad()
    def position(self, number: int, **directions: float) -> None:
        """What a learned position adds to the embedding (GPT-2)."""
        for name, value in directions.items():
            self.hf.transformer.wpe.weight[number, self.at[name]] = value

    @torch.no_grad()
    def unembed(self, word: str, **directions: float) -> None:
        """What a word's logit reads."""
        for name, value in directions.items():
            self.hf.get_output_embeddings().weight[self.words[word], self.at[name]] = value

    @torch.no_grad()
    def head(
        self,
        layer: int,
        head: int,
        *,
        q: Iterable[tuple[str, int, float]] = (),
        k: Iterable[tuple[str, int, float]] = (),
        v: Iterable[tuple[str, int, float]] = (),
        o: Iterable[tuple[int, str, float]] = (),
    ) -> None:
        """Set a head: q, k, v as (direction read, coordinate of the head, weight), o as (coordinate, direction written, weight).

        Every other weight of the head (and of the KV head it uses) becomes zero.
        """
        views = _views(self.hf, layer, head)
        for name, entries in (("q", q), ("k", k), ("v", v)):
            views[name].zero_()
            for direction, coordinate, weight in entries:
                views[name][coordinate, self.at[direction]] = weight
        views["o"].zero_()
        for coordinate, direction, weight in o:
            views["o"][self.at[direction], coordinate] = weight

    @torch.no_grad()
    def unit(
        self, layer: int, unit: int, *, gate: Mapping[str, float], up: Mapping[str, float], down: Mapping[str, float]
    ) -> None:
        """Set a hidden unit of a gated MLP: down · silu(gate · x) (up · x). "one" serves as a bias."""
        mlp = self.hf.model.layers[layer].mlp
        rows = (mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit], mlp.down_proj.weight[:, unit])
        for row, directions in zip(rows, (gate, up, down), strict=True):
            row.zero_()
            for name, value in directions.items():
                row[self.at[name]] = value

    def done(self, name: str) -> Model:
        """The model with its word tokenizer."""
        return Model(self.hf.eval(), word_tokenizer(list(self.words)), Source(id=f"zoo/{name}"))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, words parted by white space, no special token put in; word 0 pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=words[0], unk_token=words[0])


def pair_of(spans: Mapping[str, str], counterfactual: Mapping[str, str], *, answer: str, foil: str) -> Pair:
    """A pair from the words of each span, at least one; `counterfactual` names the spans that differ."""
    clean, places = "", []
    for name, text in spans.items():
        start = len(clean)
        clean += f" {text}" if clean else text
        places.append((name, start, len(clean)))
    return Pair(
        clean=clean,
        counterfactual=" ".join({**spans, **counterfactual}.values()),
        answers=(" " + answer,),
        foils=(" " + foil,),
        spans=tuple(places),
    )


def draw_pairs(n: int, seed: int, draw: Callable[[random.Random], Pair]) -> tuple[Pair, ...]:
    """n pairs of which no two share a prompt."""
    source, seen = random.Random(seed), set[str]()
    pairs: list[Pair] = []
    while len(pairs) < n:
        pair = draw(source)
        if not {pair.clean, pair.counterfactual} & seen:
            pairs.append(pair)
            seen |= {pair.clean, pair.counterfactual}
    return tuple(pairs)


def _random(kind: Any, config: Any, seed: int) -> Any:
    """A model with its own random initialisation, which leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def _views(hf: Any, layer: int, head: int) -> dict[str, Tensor]:
    """Views of a head's weights: q, k, v [coordinate, d_model], o [d_model, coordinate]."""
    if isinstance(hf, LlamaForCausalLM):
        attention: Any = hf.model.layers[layer].self_attn
        heads, groups = hf.config.num_attention_heads, hf.config.num_key_value_heads or 1
        group = head * groups // heads
        return {
            "q": attention.q_proj.weight.unflatten(0, (heads, -1))[head],
            "k": attention.k_proj.weight.unflatten(0, (groups, -1))[group],
            "v": attention.v_proj.weight.unflatten(0, (groups, -1))[group],
            "o": attention.o_proj.weight.unflatten(1, (heads, -1))[:, head],
        }
    attention = hf.transformer.h[layer].attn
    q, k, v = attention.c_attn.weight.unflatten(1, (3, hf.config.n_head, -1))[:, :, head].unbind(1)
    return {"q": q.T, "k": k.T, "v": v.T, "o": attention.c_proj.weight.unflatten(0, (hf.config.n_head, -1))[head].T}
