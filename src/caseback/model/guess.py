"""A family row for a model type that has none, found by running the model once on a few tokens and looking.

Every module's input and output of one forward pass is kept, and each part is recognised by what it does, not by its name: the
blocks are the list of modules as long as the model is deep, attention is what calls the attention interface, its output
projection is the map that makes its output, the writers are the two modules whose outputs add up to what a block adds, and
what is done to the logits is the scalar of the configuration that explains them. A guess is worth nothing until the accounting
identities hold on it: see `caseback.model.check.family_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caseback.core.errors import FamilyError
from caseback.model.attention import AttentionCall, listening
from caseback.model.families import Family
from caseback.model.hooks import module_at

__all__ = ["guess"]

_CLOSE = 1e-4  # relative; a wrong candidate is off by the size of the quantity itself


@dataclass
class _Trace:
    """What one forward pass showed, by module path relative to a root (the root itself is ""), in the order calls ended."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    ins: dict[str, Tensor] = field(default_factory=dict)
    outs: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """z with heads side by side, and v, of a module that calls the attention interface."""

    def inside(self, root: str) -> _Trace:
        """The part at and below a module, its paths relative to it."""

        def cut(of: dict[str, Any]) -> dict[str, Any]:
            return {path[len(root) + 1 :]: value for path, value in of.items() if f"{path}.".startswith(f"{root}.")}

        return _Trace(cut(self.modules), cut(self.ins), cut(self.outs), cut(self.attention))

    @property
    def leaves(self) -> list[str]:
        """Modules that no other called module lies in."""
        return [
            p
            for p in self.outs
            if p in self.ins and not any(o.startswith(f"{p}." if p else "") and o != p for o in self.outs)
        ]

    def makers(self, value: Tensor) -> list[str]:
        """Modules whose output is this value, outermost first."""
        return sorted((p for p, out in self.outs.items() if p and _same(out, value)), key=lambda p: p.count("."))


def _same(left: Tensor, right: Tensor) -> bool:
    if left.numel() != right.numel():
        return False
    scale = right.float().square().mean().sqrt().item()
    return bool((left.float().reshape(-1) - right.float().reshape(-1)).abs().max().item() <= _CLOSE * (scale or 1.0))


def guess(hf: PreTrainedModel) -> Family:
    """A row for this model, marked as guessed; raises FamilyError naming the part that could not be found."""
    config = hf.config.get_text_config()
    n_layers = int(getattr(config, "num_hidden_layers", 0))
    blocks = _blocks(hf, n_layers)
    trace, logits = _trace(hf)
    embed, unembed = _path(hf, hf.get_input_embeddings()), _path(hf, hf.get_output_embeddings())
    if embed is None or unembed is None or unembed not in trace.ins:
        raise _missing(hf, "embedding" if embed is None else "unembedding", "the model names none, or does not call it")
    makers = trace.makers(trace.ins[unembed])
    norms = [p for p in makers if _is_norm(module_at(hf, p)) and not p.startswith(f"{blocks}.")]
    if not norms:
        raise _missing(hf, "final norm", "no norm outside the blocks makes what the unembedding reads")
    rows = [_block(hf, trace.inside(f"{blocks}.{layer}"), layer) for layer in range(n_layers)]
    return Family(
        name=config.model_type,
        embed=embed,
        blocks=blocks,
        final_norm=norms[-1],
        unembed=unembed,
        guessed=True,
        **_common(hf, blocks, rows),
        **_logit_function(hf, trace.outs[unembed], logits, config),
    )


def _common(hf: PreTrainedModel, blocks: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the blocks share. They may differ in one thing: experts in some, a dense MLP (with its hidden layer) in others."""
    row = next((row for row in rows if row["down_proj"]), rows[0])
    for layer, other in enumerate(rows):
        dense = other["down_proj"] or module_at(hf, f"{blocks}.{layer}.{row['down_proj']}") is not None
        if other | {"down_proj": None} != row | {"down_proj": None} or (
            dense and other["down_proj"] != row["down_proj"]
        ):
            fields = ", ".join(key for key in row if row[key] != other[key])
            raise _missing(hf, "row", f"its blocks are built differently (block {layer}: {fields})")
    return row


def _missing(hf: PreTrainedModel, part: str, why: str) -> FamilyError:
    kind = hf.config.get_text_config().model_type
    return FamilyError(
        f"model type {kind!r} has no row in the table of families, and its {part} cannot be guessed: {why}"
    )


# --- looking ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _trace(hf: PreTrainedModel) -> tuple[_Trace, Tensor]:
    trace = _Trace(modules=dict(hf.named_modules()))
    names = {module: path for path, module in hf.named_modules()}
    ids = torch.arange(3, 9, device=hf.device)[None] % hf.config.get_text_config().vocab_size

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()), None)
        if given is not None:
            trace.ins[names[module]] = given.clone()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple | list) else output
        if isinstance(value, Tensor):
            trace.outs.pop(names[module], None)
            trace.outs[names[module]] = value.clone()

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor]:
        z, pattern = call.eager(call.q, call.k, call.v)
        trace.attention[names[call.module]] = (z.flatten(-2).clone(), call.v.clone())
        return z, pattern

    handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in hf.modules()]
    handles += [m.register_forward_hook(leave) for m in hf.modules()]
    try:
        with listening(hf, attend):
            logits = hf(input_ids=ids, use_cache=False, return_dict=True).logits
    except FamilyError as error:
        raise _missing(hf, "attention", str(error)) from error
    except Exception as error:  # the forward of a model nobody here has seen may fail in any way
        raise _missing(hf, "parts", f"it does not run on six tokens ({type(error).__name__}: {error})") from error
    finally:
        for handle in handles:
            handle.remove()
    return trace, logits


def _path(hf: PreTrainedModel, module: nn.Module | None) -> str | None:
    return next((path for path, found in hf.named_modules() if found is module and module is not None), None)


def _blocks(hf: PreTrainedModel, n_layers: int) -> str:
    lists = [
        (path, module)
        for path, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise _missing(hf, "list of blocks", f"no ModuleList has {n_layers} entries")
    return min(lists, key=lambda item: item[0].count("."))[0]


# --- one block -------------------------------------------------------------------------------------------------------


def _is_norm(module: nn.Module | None) -> bool:
    """A module of its own, without a matrix."""
    ours = module is not None and type(module) not in (nn.Identity, nn.Dropout) and not list(module.children())
    return ours and module is not None and all(parameter.ndim < 2 for parameter in module.parameters())


def _is_map(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _block(hf: PreTrainedModel, inner: _Trace, layer: int) -> dict[str, Any]:
    attn = next(iter(inner.attention), None)
    if attn is None:
        raise _missing(hf, "attention", f"nothing in block {layer} calls the attention interface of transformers")
    before, after = inner.ins[""], inner.outs[""]
    row = _attention(hf, inner, attn)
    row["attn_norm"] = None
    if not _same(inner.ins[attn], before):
        norms = [p for p in inner.makers(inner.ins[attn]) if p in inner.ins and _same(inner.ins[p], before)]
        if not norms:
            raise _missing(
                hf, "attention norm", f"no module lies between the residual stream and {attn} in block {layer}"
            )
        row["attn_norm"] = norms[0]
    writes, scale = _writes(hf, inner, layer, attn, after - before)
    factor = float(getattr(hf.config.get_text_config(), scale)) if scale else 1.0
    middle = before + factor * inner.outs[writes[0]].reshape(before.shape)
    return row | {"writes": writes, "write_scale": scale} | _mlp(hf, inner, layer, attn, writes, before, middle)


def _attention(hf: PreTrainedModel, inner: _Trace, attn: str) -> dict[str, Any]:
    config, part = hf.config.get_text_config(), inner.inside(attn)
    z, values = inner.attention[attn]
    made = [p for p in part.leaves if _same(part.outs[p], part.outs[""]) and part.ins[p].numel() == z.numel()]
    if not made:
        raise _missing(hf, "output projection", f"no map in {attn} takes z and makes its output")
    row: dict[str, Any] = {"attn": attn, "o_proj": made[0], "plain_heads": _same(part.ins[made[0]], z), "qkv": ()}
    if values.shape[1] != (getattr(config, "num_key_value_heads", None) or config.num_attention_heads):
        row["kv_heads"] = values.shape[1]
    reading = [p for p in part.leaves if p != made[0] and _same(part.ins[p], part.ins[""])]
    if len(reading) == 3:
        is_v = [_same(part.outs[p], values.transpose(1, 2)) for p in reading]
        row["qkv"] = tuple(sorted(reading, key=lambda p: is_v[reading.index(p)]))  # queries come first by custom
    elif len(reading) == 1:
        row |= {"qkv": tuple(reading), "fused": _fused(part.outs[reading[0]], values, z.shape[-1])}
    plain = row["plain_heads"] and (len(reading) == 3 or row.get("fused", "own") != "own")
    row["gradients"] = plain
    return (
        row
        if plain
        else row | {"circuits": False, "why_not": "its row is guessed, and its attention is of no plain kind"}
    )


def _fused(out: Tensor, values: Tensor, z_width: int) -> Literal["qkv", "heads", "groups", "own"]:
    """The layout of a fused projection, told by where the values come from (they are not rotated)."""
    kv, dim = values.shape[1], values.shape[-1]
    heads = z_width // dim
    wanted = values.transpose(1, 2)  # [batch, pos, kv head, dim]
    if out.shape[-1] != (heads + 2 * kv) * dim:
        return "own"
    if _same(out[..., (heads + kv) * dim :], wanted):
        return "qkv"
    per_group = out.unflatten(-1, (kv, heads // kv + 2, dim))
    if _same(per_group[..., -1, :], wanted):
        return "heads" if kv == heads else "groups"
    return "own"


def _writes(
    hf: PreTrainedModel, inner: _Trace, layer: int, attn: str, added: Tensor
) -> tuple[tuple[str, str], str | None]:
    """The two modules whose outputs, times a scalar of the configuration, are what the block adds; attention's first."""
    candidates: list[str] = []  # the outermost of those that make the same
    for path in sorted((p for p in inner.outs if p), key=lambda p: p.count(".")):
        value = inner.outs[path]
        if value.numel() == added.numel() and not any(_same(value, inner.outs[c]) for c in candidates):
            candidates.append(path)
    config, order = hf.config.get_text_config(), list(inner.outs)
    scales = [None, *(name for name, value in vars(config).items() if isinstance(value, float) and value not in (0, 1))]
    for scale, (one, two) in product(scales, combinations(candidates, 2)):
        factor = float(getattr(config, scale)) if scale else 1.0
        if _same((inner.outs[one].reshape(added.shape) + inner.outs[two].reshape(added.shape)) * factor, added):
            first, second = sorted((one, two), key=lambda p: (not p.startswith(attn), order.index(p)))
            return (first, second), scale
    raise _missing(hf, "writers", f"no two modules of block {layer} add up to what it adds to the residual stream")


def _mlp(
    hf: PreTrainedModel, inner: _Trace, layer: int, attn: str, writes: tuple[str, str], before: Tensor, middle: Tensor
) -> dict[str, Any]:
    """The outermost module that reads a norm of the stream, or the stream itself."""
    outside = [p for p in inner.ins if p and p in inner.outs and p != attn and not p.startswith(f"{attn}.")]
    norms = [p for p in outside if _is_norm(inner.modules[p])]
    for parallel, stream in ((False, middle), (True, before)):
        for norm in [*(p for p in norms if _same(inner.ins[p], stream)), None]:
            read = stream if norm is None else inner.outs[norm]
            readers = [p for p in outside if p not in norms and _same(inner.ins[p], read)]
            if readers:
                mlp = min(readers, key=lambda p: p.count("."))
                return {"mlp": mlp, "mlp_norm": norm, "parallel": parallel, "down_proj": _down(inner, writes[1])}
    raise _missing(hf, "MLP", f"no module of block {layer} reads the residual stream after attention")


def _down(inner: _Trace, writer: str) -> str | None:
    """The last map of a dense MLP: it makes what the writer adds, or what the writer (a norm) is given."""
    width = inner.outs[writer].shape[-1]
    maps = [p for p in inner.leaves if _is_map(inner.modules[p]) and inner.outs[p].shape[-1] == width]
    for value in (inner.outs[writer], inner.ins[writer]):
        for path in maps:
            if _same(inner.outs[path], value):
                return path
    return None


def _logit_function(hf: PreTrainedModel, raw: Tensor, logits: Tensor, config: Any) -> dict[str, Any]:
    """Which scalar of the configuration lies between the unembedding and the logits."""
    if _same(raw, logits):
        return {}
    for name, value in vars(config).items():
        if isinstance(value, float) and value != 0:
            for field_name, made in (
                ("logit_multiplier", raw * value),
                ("logit_divisor", raw / value),
                ("logit_softcap", torch.tanh(raw / value) * value),
            ):
                if _same(made, logits):
                    return {field_name: name}
    raise _missing(
        hf, "logit function", "no scalar of the configuration turns the unembedding's output into the logits"
    )
