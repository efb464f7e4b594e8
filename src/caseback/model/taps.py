"""Where each site lies in the running model: from (name, layer) to the hook that visits it.

A tap is a function tensor → tensor, called with the whole value of a site (all heads, all positions) and returning what
the model shall go on with. Hooks are installed only for the sites that are tapped; attention's inner sites go through
the registered attention function, and only then is it switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from caseback.core.errors import FamilyError, SiteError
from caseback.model.attention import Attend, AttentionCall, listening
from caseback.model.hooks import Hooks, module_at
from caseback.model.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from caseback.model.model import Model

__all__ = ["ATTENTION_SITES", "Tap", "site_layers", "tapped"]

Tap = Callable[[Tensor], Tensor]
Key = tuple[str, int | None]

ATTENTION_SITES = ("q", "k", "v", "pattern")


def site_layers(model: Model) -> dict[str, tuple[int, ...]]:
    """Site name → the layers that have it (an empty range of layers for the sites without a layer)."""
    family = model.family
    every = tuple(range(model.n_layers))
    attending = tuple(l for l in every if model.attention(l) is not None)
    with_mlp = tuple(l for l in every if family.mlp and module_at(model.blocks[l], family.mlp) is not None)
    layers: dict[str, tuple[int, ...]] = {
        "resid_pre": every,
        "resid_post": every,
        "resid_final": (),
        "final_norm_out": (),
    }
    layers["attn_out"] = tuple(l for l in every if module_at(model.blocks[l], family.writes[0]) is not None)
    layers["mlp_out"] = tuple(
        l for l in every if len(family.writes) > 1 and module_at(model.blocks[l], family.writes[1]) is not None
    )
    layers["resid_mid"] = () if family.parallel else layers["attn_out"]
    layers["attn_in"] = tuple(
        l for l in attending if family.attn_norm and module_at(model.blocks[l], family.attn_norm) is not None
    )
    layers["mlp_in"] = with_mlp
    layers["mlp_hidden"] = tuple(
        l for l in every if family.down_proj and module_at(model.blocks[l], family.down_proj) is not None
    )
    layers["z"] = tuple(l for l in attending if model.o_proj(l) is not None)
    layers |= {name: attending if family.attention == "registered" else () for name in ATTENTION_SITES}
    return layers


@contextmanager
def tapped(model: Model, taps: Mapping[Key, Tap], attend: Attend | None = None) -> Iterator[None]:
    """The model with these taps in place, or with `attend` as its attention (then no site inside attention may be
    tapped)."""
    with Hooks() as hooks:
        inner = {key: tap for key, tap in taps.items() if key[0] in ATTENTION_SITES}
        assert not (inner and attend), "one listener at a time"
        for key, tap in taps.items():
            if key not in inner:
                _install(model, hooks, key, tap)
        if inner or attend:
            hooks.enter_context(listening(model.hf, attend or (lambda call: _attend(call, inner))))
        yield


def _install(model: Model, hooks: Hooks, key: Key, tap: Tap) -> None:
    name, layer = key
    family, scale = model.family, model.write_scale
    if layer is None:
        final_norm = model.module(family.final_norm)
        {"resid_final": hooks.into, "final_norm_out": hooks.out_of}[name](final_norm, tap)
        return
    block = model.blocks[layer]
    part = partial(_part, Site(name, layer), block)

    if name == "resid_pre":
        hooks.into(block, tap)
    elif name == "resid_post":
        hooks.out_of(block, tap)
    elif name == "attn_in":
        hooks.out_of(part(family.attn_norm), tap)
    elif name == "mlp_in":
        hooks.into(part(family.mlp), tap)
    elif name == "mlp_hidden":
        hooks.into(part(family.down_proj), tap)
    elif name in ("attn_out", "mlp_out"):
        writer = part(family.writes[0 if name == "attn_out" else 1])
        hooks.out_of(writer, tap if scale == 1 else lambda value: _scaled(tap, value, scale))
    elif name == "resid_mid":
        _mid(hooks, block, part(family.writes[0]), tap, scale)
    elif name == "z":
        o_proj = model.o_proj(layer)
        assert o_proj is not None
        hooks.into(o_proj, lambda value: tap(value.unflatten(-1, (model.n_heads, -1))).flatten(-2))
    elif name in ("q_raw", "k_raw", "v_raw"):
        hooks.out_of(model.projections(layer)["qkv".index(name[0])], tap)
    elif name == "qkv_raw":
        hooks.out_of(model.projections(layer)[0], tap)
    else:
        raise SiteError(f"there is no tap for {name!r}")


def _part(site: Site, block: nn.Module, path: str | None) -> nn.Module:
    module = module_at(block, path) if path else None
    if module is None:
        raise SiteError(f"site {site} does not exist in this model: its block has no {path or site.name}")
    return module


def _scaled(tap: Tap, value: Tensor, scale: float) -> Tensor:
    """Visit what is really added (`scale` times the module's output)."""
    added = value * scale
    new = tap(added)
    return value if new is added and not added.requires_grad else new / scale


def _mid(hooks: Hooks, block: nn.Module, writer: nn.Module, tap: Tap, scale: float) -> None:
    """resid_mid = resid_pre + attention's write: an edit of it is an edit of the write, so that the stream itself
    changes."""
    entering: list[Tensor] = []
    hooks.into(block, partial(_remember, entering))
    hooks.out_of(writer, partial(_leave_mid, entering, tap, scale))


def _remember(entering: list[Tensor], value: Tensor) -> Tensor:
    entering[:] = [value]
    return value


def _leave_mid(entering: list[Tensor], tap: Tap, scale: float, value: Tensor) -> Tensor:
    mid = entering[0] + scale * value
    new = tap(mid)
    return value if new is mid and not mid.requires_grad else (new - entering.pop()) / scale


def _attend(call: AttentionCall, taps: Mapping[Key, Tap]) -> tuple[Tensor, Tensor | None]:
    """Attention with q, k, v and the pattern visited; z is recomputed only where the pattern was changed."""

    def visit(name: str, value: Tensor) -> Tensor:
        tap = taps.get((name, call.layer))
        return value if tap is None else tap(value.transpose(1, 2)).transpose(1, 2)

    q, k, v = visit("q", call.q), visit("k", call.k), visit("v", call.v)
    z, pattern = call.eager(q, k, v)
    tap = taps.get(("pattern", call.layer))
    if tap is not None:
        new = tap(pattern)
        if new is not pattern:
            group = pattern.shape[1] // v.shape[1]
            z = (new.to(v.dtype) @ v.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous()
            pattern = new
    return z, pattern


def check_supported(model: Model, name: str) -> None:
    """Raise FamilyError where the family cannot offer a kind of site, with its reason."""
    if name in ATTENTION_SITES and model.family.attention != "registered":
        raise FamilyError(
            f"{model.family.name} has no sites {', '.join(ATTENTION_SITES)}: "
            f"{model.family.why_not or 'its attention does not call the attention interface'}"
        )
