"""Model: an unmodified Hugging Face causal LM with its tokenizer, its family row and where it came from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from caseback.core.errors import FamilyError, TaskError
from caseback.core.provenance import Source
from caseback.model import grad as _grad
from caseback.model import run as _run
from caseback.model import sweep as _sweep
from caseback.model.batch import Batch
from caseback.model.edits import Edit
from caseback.model.families import Family
from caseback.model.hooks import module_at, refuse_compiled
from caseback.model.run import Logits, Run, Start
from caseback.model.sites import Site
from caseback.model.taps import site_layers

__all__ = ["Cost", "Model", "Source"]


@dataclass
class Cost:
    """Sequences run forward and backward so far."""

    forwards: int = 0
    backwards: int = 0


class Model:
    """A causal language model to look into. Parameters and modules stay as they are; see `run`, `grad`, `sweep`,
    `sites`."""

    def __init__(
        self, hf: PreTrainedModel, tokenizer: Any = None, source: Source | None = None, family: Family | None = None
    ):
        refuse_compiled(hf)
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.source = source or Source(id=f"in memory: {type(hf).__name__}")
        self.config = hf.config.get_text_config()
        if family is None:
            from caseback.model.check import family_for  # which tries a guessed row on a Model

            family = family_for(hf)
        self.family = family
        self.cost = Cost()
        self.lock = threading.RLock()
        """Held while hooks are on."""
        self.blocks: nn.ModuleList = self.module(self.family.blocks)  # type: ignore[assignment]
        self.n_layers = len(self.blocks)
        self.n_heads = int(self._config("num_attention_heads", "n_head", "n_heads", "num_heads"))
        self.n_kv_heads = self.family.kv_heads or int(
            self._config("num_key_value_heads", "num_kv_heads", default=self.n_heads) or self.n_heads
        )
        self.d_model = int(self._config("hidden_size", "n_embd", "d_model"))
        self.d_vocab = int(self.config.vocab_size)
        self.write_scale = float(getattr(self.config, self.family.write_scale)) if self.family.write_scale else 1.0

    def __repr__(self) -> str:
        heads = f"{self.n_heads} heads ({self.n_kv_heads} KV)"
        return f"<Model {self.source.id}: {self.family.name}, {self.n_layers} layers × {heads}, d_model {self.d_model}>"

    def _config(self, *names: str, default: Any = None) -> Any:
        for name in names:
            if getattr(self.config, name, None) is not None:
                return getattr(self.config, name)
        if default is None:
            raise FamilyError(f"the configuration of {self.family.name} names none of {', '.join(names)}")
        return default

    # --- parts ---------------------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.source.id

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def d_head(self) -> int:
        """Dimensions of a head's z (that of its values)."""
        o_proj = next(o for o in (self.o_proj(layer) for layer in range(self.n_layers)) if o is not None)
        weight: Any = o_proj.weight
        return int(weight.shape[0 if _is_conv1d(o_proj) else 1]) // self.n_heads

    def module(self, path: str) -> nn.Module:
        """A module by its dotted path from the causal LM."""
        found = module_at(self.hf, path)
        if found is None:
            raise FamilyError(
                f"{type(self.hf).__name__} has no module {path!r}: the row of family {self.family.name!r} does not "
                "fit it"
            )
        return found

    def attention(self, layer: int) -> nn.Module | None:
        """The attention module of a block, or None where it has none (hybrids)."""
        return module_at(self.blocks[layer], self.family.attn)

    def o_proj(self, layer: int) -> nn.Module | None:
        attention = self.attention(layer)
        return module_at(attention, self.family.o_proj) if attention is not None else None

    def projections(self, layer: int) -> list[nn.Module]:
        """The q, k, v projections of a block, or its one fused projection."""
        attention = self.attention(layer)
        found = [module_at(attention, path) for path in self.family.qkv] if attention is not None else [None]
        if any(module is None for module in found):
            raise FamilyError(f"block {layer} has no projections {', '.join(self.family.qkv)} in its attention")
        return [module for module in found if module is not None]

    @cached_property
    def site_layers(self) -> dict[str, tuple[int, ...]]:
        """Site name → the layers that have it."""
        return site_layers(self)

    @property
    def heads(self) -> dict[str, int]:
        return {"query": self.n_heads, "kv": self.n_kv_heads}

    @cached_property
    def block_output(self) -> tuple[Any, ...] | None:
        """None where a block returns a tensor, else an example of the tuple it returns (families differ)."""
        seen: list[Any] = []
        with self.lock, torch.no_grad():
            handle = self.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
            try:
                self.hf(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=False)
            finally:
                handle.remove()
        return tuple(seen[0]) if isinstance(seen[0], tuple | list) else None

    def sites(self, *patterns: str) -> list[Site]:
        """The sites that patterns select ("z.*", "resid_post.3"); all of them without a pattern."""
        chosen = patterns or tuple(
            f"{name}.*" if layers else name
            for name, layers in self.site_layers.items()
            if layers or name in ("resid_final", "final_norm_out")
        )
        return _run.plan_sites(self, chosen)

    # --- text ----------------------------------------------------------------------------------------------------------------------

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise TaskError(f"{self.name} has no tokenizer, so it cannot read text; give token ids in a Batch")
        return self.tokenizer

    def tokens(self, text: str) -> list[int]:
        """Token ids of raw text, with the BOS the tokenizer itself adds, if any."""
        return list(self._tokenizer()(text)["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character range of each token; (0, 0) for a BOS."""
        return [tuple(pair) for pair in self._tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]]

    @cached_property
    def bos(self) -> bool:
        """Whether the tokenizer puts a BOS before raw text."""
        return self._tokenizer().bos_token_id is not None and self.tokens("a")[:1] == [self._tokenizer().bos_token_id]

    def encode(self, texts: Sequence[str], *, side: str = "right") -> Batch:
        """Raw texts → a padded batch. Padding changes nothing: it is masked and, on the left, positions are counted
        from the first real token."""
        empty = [i for i, text in enumerate(texts) if not self.tokens(text)] if texts else [0]
        if empty:
            which = f"text {empty[0]}" if len(texts) > 1 else "the text"
            raise TaskError(f"{which} has no tokens; give at least one")
        return Batch.pad([self.tokens(text) for text in texts], pad=self._tokenizer().pad_token_id or 0, side=side).to(
            self.device
        )

    def arguments(self, batch: Batch) -> dict[str, Tensor]:
        """What the model's forward is given for a batch."""
        batch = batch.to(self.device)
        given = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        left_padded = not bool(batch.mask[:, 0].all())
        if left_padded and _run.accepts(self, "position_ids"):
            given["position_ids"] = (batch.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return given

    # --- running -------------------------------------------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Float[Tensor, "batch vocab"]:
        """Logits after each row's last token."""
        found = _run.execute(self, batch, {})
        assert found is not None
        return found

    def run(
        self,
        batch: Batch,
        *,
        read: Sequence[str | Site] = (),
        edit: Sequence[Edit | _run.RowEdit] = (),
        logits: Logits = "last",
        stop: int | None = None,
        start: Start | None = None,
    ) -> Run:
        """Run with reads and edits: `model.run(batch, read=["z.9.6@end"], edit=[cb.Scale("mlp_out.3", 0)])`. See
        `caseback.model.run`."""
        return _run.run(self, batch, read=read, edit=edit, logits=logits, stop=stop, start=start)

    def grad(self, batch: Batch, metric: _grad.Metric, *, at: Sequence[str | Site]) -> _grad.Gradients:
        """Gradients of `metric(logits) → [batch]` at sites."""
        return _grad.gradients(self, batch, metric, at=at)

    def sweep(
        self, batch: Batch, plans: Sequence[Sequence[Edit]], *, rows: int = 64
    ) -> Float[Tensor, "plan batch vocab"]:
        """Last-token logits under each plan of edits, as batch rows."""
        return _sweep.sweep(self, batch, plans, rows=rows)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"
