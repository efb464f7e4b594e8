"""Sites: one name for a place in a model, `name.layer[.head][@position]`.

`resid_pre.4`, `z.9.6`, `pattern.3`, `mlp_out.11@end`, `z.5.3@subject`, `k.2.0@-1`; `*` selects (`z.*`, `z.*.3`,
`resid_post.*@end`). A position is `end` (last real token), a token index, a span's name, or one token of a span
(`subject[0]`, `subject[-1]`). Names follow TransformerLens; heads of `k` and `v` count KV heads.

`attn_out` and `mlp_out` are what is ADDED to the residual stream (after a post-norm and any scale), so `resid_mid =
resid_pre + attn_out` on every family that is not parallel. `q` and `k` are after rotary embedding and QK-norm; `z` is
the weighted value before the output projection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from caseback.core.errors import SiteError

__all__ = ["NAMES", "Site", "parse"]


@dataclass(frozen=True)
class Kind:
    """What a site name means."""

    heads: Literal["", "query", "kv"] = ""
    layered: bool = True
    shape: str = "batch pos d_model"
    lens: str = ""
    """Its name in TransformerLens, `{l}` for the layer."""
    about: str = ""


NAMES: dict[str, Kind] = {
    "resid_pre": Kind(
        lens="blocks.{l}.hook_resid_pre", about="residual stream entering the block (layer 0: the embedding)"
    ),
    "attn_in": Kind(lens="blocks.{l}.ln1.hook_normalized", about="what the q, k, v projections read"),
    "q": Kind(
        "query",
        shape="batch pos head d_key",
        lens="blocks.{l}.attn.hook_rot_q",
        about="queries, after rotary and QK-norm",
    ),
    "k": Kind(
        "kv", shape="batch pos kv_head d_key", lens="blocks.{l}.attn.hook_rot_k", about="keys, after rotary and QK-norm"
    ),
    "v": Kind("kv", shape="batch pos kv_head d_value", lens="blocks.{l}.attn.hook_v", about="values"),
    "pattern": Kind(
        "query",
        shape="batch head query key",
        lens="blocks.{l}.attn.hook_pattern",
        about="attention pattern (rows sum to 1, less under a sink)",
    ),
    "z": Kind(
        "query",
        shape="batch pos head d_value",
        lens="blocks.{l}.attn.hook_z",
        about="pattern-weighted values, before the output projection",
    ),
    "attn_out": Kind(lens="blocks.{l}.hook_attn_out", about="what attention adds to the stream"),
    "resid_mid": Kind(
        lens="blocks.{l}.hook_resid_mid", about="stream between attention and MLP (not in parallel blocks)"
    ),
    "mlp_in": Kind(lens="blocks.{l}.ln2.hook_normalized", about="what the MLP reads"),
    "mlp_hidden": Kind(
        shape="batch pos d_mlp", lens="blocks.{l}.mlp.hook_post", about="MLP neurons after the non-linearity"
    ),
    "mlp_out": Kind(lens="blocks.{l}.hook_mlp_out", about="what the MLP adds to the stream"),
    "resid_post": Kind(lens="blocks.{l}.hook_resid_post", about="residual stream leaving the block"),
    "resid_final": Kind(layered=False, lens="", about="residual stream entering the final norm"),
    "final_norm_out": Kind(layered=False, lens="ln_final.hook_normalized", about="what the unembedding reads"),
}

_SITE = re.compile(r"(?P<name>[a-z_]+)(?:\.(?P<layer>\*|\d+))?(?:\.(?P<head>\*|\d+))?(?:@(?P<position>[^@]+))?")
_INDEXED = re.compile(r"(?P<span>.+)\[(?P<index>-?\d+)\]")


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model; head and position may be left open."""

    name: str
    layer: int | None = None
    head: int | None = None
    position: str | None = None

    def __str__(self) -> str:
        parts = [self.name, *(str(n) for n in (self.layer, self.head) if n is not None)]
        return ".".join(parts) + (f"@{self.position}" if self.position is not None else "")

    @property
    def kind(self) -> Kind:
        return NAMES[self.name]

    @property
    def tap(self) -> tuple[str, int | None]:
        """Where it is read: name and layer."""
        return self.name, self.layer

    @property
    def transformer_lens(self) -> str:
        """The hook name in TransformerLens (without head and position)."""
        return self.kind.lens.format(l=self.layer)

    @property
    def span(self) -> tuple[str, int | None] | None:
        """(span name, token within it or None) where the position is neither an index nor `end`."""
        if self.position is None or self.position == "end" or re.fullmatch(r"-?\d+", self.position):
            return None
        match = _INDEXED.fullmatch(self.position)
        return (match["span"], int(match["index"])) if match else (self.position, None)


def parse(text: str | Site) -> tuple[Site, bool, bool]:
    """A site and whether its layer and head are `*`; raises SiteError with the grammar and the names."""
    if isinstance(text, Site):
        return text, False, False
    match = _SITE.fullmatch(text.strip())
    if match is None:
        raise SiteError(
            f"site {text!r} is not of the form name.layer[.head][@position], as in 'z.9.6@end' or 'resid_post.*'"
        )
    if match["name"] not in NAMES:
        raise SiteError(f"there is no site named {match['name']!r} (asked for {text!r}); there are: {', '.join(NAMES)}")
    kind = NAMES[match["name"]]
    if kind.layered and match["layer"] is None:
        raise SiteError(
            f"site {text!r} lacks its layer: write '{match['name']}.3', or '{match['name']}.*' for every layer"
        )
    if not kind.layered and match["layer"] is not None:
        raise SiteError(f"site {text!r}: {match['name']} has no layers; write '{match['name']}'")
    if not kind.heads and match["head"] is not None:
        raise SiteError(
            f"site {text!r}: {match['name']} has no heads; sites with heads are "
            f"{', '.join(n for n, k in NAMES.items() if k.heads)}"
        )
    number = {key: int(match[key]) if match[key] not in (None, "*") else None for key in ("layer", "head")}
    return (
        Site(match["name"], number["layer"], number["head"], match["position"]),
        match["layer"] == "*",
        match["head"] == "*",
    )


def expand(text: str | Site, *, layers: dict[str, tuple[int, ...]], heads: dict[str, int]) -> list[Site]:
    """All sites a pattern selects, given the layers that have each name and the number of heads of each kind ("query",
    "kv")."""
    site, any_layer, any_head = parse(text)
    have = layers.get(site.name, ())
    if site.kind.layered:
        if not have:
            raise SiteError(
                f"this model has no site {site.name!r} (asked for {str(text)!r}); it has: "
                f"{', '.join(n for n, l in layers.items() if l)}"
            )
        if not any_layer and site.layer not in have:
            raise SiteError(f"site {str(text)!r}: this model has {site.name} at layers {_ranges(have)}")
    elif site.name not in layers:
        raise SiteError(f"this model has no site {site.name!r}")
    n_heads = heads.get(site.kind.heads, 0)
    if site.head is not None and site.head >= n_heads:
        raise SiteError(
            f"site {str(text)!r}: {site.name} has {n_heads} {'KV ' if site.kind.heads == 'kv' else ''}heads, 0 to "
            f"{n_heads - 1}"
        )
    chosen_layers = have if any_layer else (site.layer,)
    chosen_heads = range(n_heads) if any_head else (site.head,)
    return [replace(site, layer=layer, head=head) for layer in chosen_layers for head in chosen_heads]


def _ranges(numbers: tuple[int, ...]) -> str:
    if numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
