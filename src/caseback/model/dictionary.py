"""Dictionaries of features: a site's value as a sparse sum of learnt directions, read from the files the field publishes.

    f = act(x W_enc + b_enc),    x = f W_dec + b_dec + error

`act` is relu, jumprelu (z where z > threshold) or topk (the k largest, then relu); every row of W_dec is a feature's
direction. Other conventions are folded into these four arrays when a file is read, exactly: an encoder that reads
x − b_dec has b_enc − b_dec W_enc as its bias, and a topk that ranks by the length of the direction has it in W_enc.

Two layouts are read, both a folder of a JSON file and one safetensors file, nothing pickled: SAELens (`cfg.json`,
`sae_weights.safetensors`; architectures standard, topk, jumprelu, as which batch-topk is stored) and EleutherAI's sparsify
(`cfg.json`, `sae.safetensors`; the folder's name, `layers.5` or `layers.5.mlp`, says the site). What cannot be folded
(a scale of each input, gates, transcoders) is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import LoadError
from caseback.model.sites import NAMES
from caseback.model.weights import read_json, refusing

__all__ = ["Activation", "Dictionary", "dictionary_files", "read_dictionary", "rotated", "shuffled"]

Activation = Literal["relu", "jumprelu", "topk"]

CONFIG, SAELENS, SPARSIFY = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites of the stream's width that a dictionary can be of."""
_HOOKS = {NAMES[name].lens.replace("{l}", r"(\d+)").replace(".", r"\."): name for name in SITES}


@dataclass(frozen=True, kw_only=True, eq=False)
class Dictionary:
    """Features of one site. Raises LoadError for a topk or a jumprelu without its number or numbers."""

    site: str
    """A site with its layer, as "mlp_out.5"."""
    W_enc: Float[Tensor, "d feature"]
    b_enc: Float[Tensor, "feature"]
    W_dec: Float[Tensor, "feature d"]
    b_dec: Float[Tensor, "d"]
    activation: Activation = "relu"
    threshold: Float[Tensor, "feature"] | None = None
    """Of jumprelu."""
    k: int | None = None
    """Of topk."""
    model: str = ""
    """The model it was trained on, where its file says so."""

    def __post_init__(self) -> None:
        if self.activation == "topk" and not 1 <= (self.k or 0) <= self.n_features:
            n = self.n_features
            raise LoadError(f"a topk dictionary of {n} features keeps 1 to {n} of them, not {self.k}")
        if self.activation == "jumprelu" and self.threshold is None:
            raise LoadError("a jumprelu dictionary needs a threshold for each feature")

    @property
    def n_features(self) -> int:
        return int(self.W_enc.shape[1])

    @property
    def d_model(self) -> int:
        return int(self.W_enc.shape[0])

    def to(self, device: torch.device | str) -> Dictionary:
        """The same arrays on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def encode(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows feature"]:
        """f, all features, most of them 0."""
        before = x.float() @ self.W_enc + self.b_enc
        if self.activation == "topk":
            assert self.k is not None
            kept, where = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter_(-1, where, kept.relu())
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return torch.where(before > self.threshold, before.relu(), 0.0)
        return before.relu()

    def decode(self, f: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows d"]:
        """x as the features give it."""
        return f @ self.W_dec + self.b_dec


def rotated(dictionary: Dictionary, *, seed: int = 0) -> Dictionary:
    """A control: all directions turned by one random rotation. Lengths and angles between features stay; what each points
    at is chance."""
    draw = torch.randn((dictionary.d_model,) * 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = torch.linalg.qr(draw).Q.to(dictionary.W_dec)
    return replace(dictionary, W_dec=dictionary.W_dec @ turn)


def shuffled(dictionary: Dictionary, *, seed: int = 0) -> Dictionary:
    """A control: each feature is switched on by another one's encoder, drawn at random. What the features read and the
    directions stay; which belongs to which is chance."""
    order = torch.randperm(dictionary.n_features, generator=torch.Generator().manual_seed(seed))
    order = order.to(dictionary.W_enc.device)
    threshold = None if dictionary.threshold is None else dictionary.threshold[order]
    return replace(dictionary, W_enc=dictionary.W_enc[:, order], b_enc=dictionary.b_enc[order], threshold=threshold)


# --- files -------------------------------------------------------------------------------------------------------------


def dictionary_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """(the JSON file, the safetensors file) of a dictionary, given as a folder or as its safetensors file; raises
    LoadError for a folder without them and for another kind of file."""
    place = Path(path)
    if not place.exists():
        raise LoadError(f"there is no dictionary {os.fspath(path)}; give a folder with {CONFIG} and {SAELENS} in it")
    if place.is_dir():
        weights = [place / name for name in (SAELENS, SPARSIFY) if (place / name).is_file()]
        if not weights:
            raise LoadError(f"{place} holds no dictionary: neither {SAELENS} (SAELens) nor {SPARSIFY} (sparsify)")
        place = weights[0]
    if place.suffix != ".safetensors":
        raise LoadError(f"{place} is no safetensors file, and other kinds are not read (a pickle can run code)")
    if not (place.parent / CONFIG).is_file():
        raise LoadError(f"{place} has no {CONFIG} beside it, which says its site and its activation")
    return place.parent / CONFIG, place


def read_dictionary(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary in a folder or behind a safetensors file, in float32.

    Raises LoadError, naming it, for a layout, an architecture, a normalisation or a site that is not read.
    """
    from safetensors import safe_open

    config_file, weights = dictionary_files(path)
    config = read_json(config_file)
    with refusing(f"{weights} is not a whole safetensors file"), safe_open(weights, framework="pt") as file:
        found = {name: file.get_tensor(name).float() for name in file.keys()}
    read = _sparsify if "encoder.weight" in found else _saelens
    return read(config, found, weights)


def _saelens(config: Mapping[str, Any], found: dict[str, Tensor], weights: Path) -> Dictionary:
    """Version 6 keeps what was trained in `metadata`, earlier ones all in one object."""
    meta = {**config, **_object(config, "metadata", weights)}
    architecture = str(config.get("architecture", "standard"))
    function = str(meta.get("activation_fn_str", meta.get("activation_fn", "relu")))
    if architecture == "standard" and function == "topk":  # as versions before 4 called it
        architecture = "topk"
    _choice(weights, "architecture", architecture, ("standard", "topk", "jumprelu"))
    _choice(weights, "activation", function, ("relu", "topk"))
    scale = config.get("normalize_activations") or "none"
    _choice(weights, "normalize_activations", str(scale), ("none",))
    _choice(weights, "reshape_activations", str(config.get("reshape_activations") or "none"), ("none",))
    _choice(weights, "hook_head_index", str(meta.get("hook_head_index")), ("None",))
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in found and not bool((found[name] == 1).all()):
            raise LoadError(f"{weights} scales its output by {name}, which is not read")
    hook = str(meta.get("hook_name", meta.get("hook_point")))
    site = next((f"{name}.{m[1]}" for form, name in _HOOKS.items() if (m := re.fullmatch(form, hook))), None)
    if site is None:
        known = ", ".join(NAMES[name].lens.replace("{l}", "N") for name in SITES)
        raise LoadError(f"the dictionary {weights} is of {hook!r}; the sites that are read are {known}")
    needed = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if architecture == "jumprelu" else [])]
    W_enc, b_enc, W_dec, b_dec, *threshold = _tensors(found, needed, weights)
    k = config.get("k", _object(meta, "activation_fn_kwargs", weights).get("k")) if architecture == "topk" else None
    read = Dictionary(
        site=site,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        activation="relu" if architecture == "standard" else architecture,  # type: ignore[arg-type]
        threshold=threshold[0] if threshold else None,
        k=_whole(k, weights) if architecture == "topk" else None,
        model=str(meta.get("model_name") or ""),
    )
    if config.get("apply_b_dec_to_input", True):
        read = replace(read, b_enc=b_enc - b_dec @ W_enc)
    if architecture == "topk" and config.get("rescale_acts_by_decoder_norm"):
        size = W_dec.norm(dim=-1).clamp_min(torch.finfo(W_dec.dtype).tiny)
        read = replace(read, W_enc=W_enc * size, b_enc=read.b_enc * size, W_dec=W_dec / size[:, None])
    return read


def _object(config: Mapping[str, Any], name: str, weights: Path) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise LoadError(f"{weights.parent / CONFIG} has a {name} that is no object")
    return found


def _sparsify(config: Mapping[str, Any], found: dict[str, Tensor], weights: Path) -> Dictionary:
    _choice(weights, "activation", str(config.get("activation", "topk")), ("topk",))
    for name in ("transcode", "skip_connection"):
        _choice(weights, name, str(bool(config.get(name))), ("False",))
    named = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)(\.mlp)?", weights.parent.resolve().name)
    if named is None:
        raise LoadError(
            f"the folder of {weights} says the dictionary's site in this layout: layers.5 (the stream behind block 5) or "
            "layers.5.mlp (what its MLP adds)"
        )
    W_enc, b_enc, W_dec, b_dec = _tensors(found, ["encoder.weight", "encoder.bias", "W_dec", "b_dec"], weights)
    read = Dictionary(
        site=f"{'mlp_out' if named[2] else 'resid_post'}.{named[1]}",
        W_enc=W_enc.T,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        activation="topk",
        k=_whole(config.get("k"), weights),
    )
    return replace(read, b_enc=b_enc - W_enc @ b_dec)


def _choice(weights: Path, what: str, found: str, read: tuple[str, ...]) -> None:
    if found not in read:
        raise LoadError(f"{what} {found!r} of the dictionary {weights} is not read; read is {', '.join(read)}")


def _tensors(found: Mapping[str, Tensor], needed: list[str], weights: Path) -> list[Tensor]:
    """The encoder's weight and bias, the decoder's, and a threshold where there is one."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise LoadError(f"the dictionary {weights} has no {', '.join(missing)}; it has {', '.join(sorted(found))}")
    values = [found[name] for name in needed]
    encoder = values[0].T if needed[0] == "encoder.weight" else values[0]
    d, n = encoder.shape if encoder.dim() == 2 else (0, 0)
    for name, value, shape in zip(needed[1:], values[1:], ((n,), (n, d), (d,), (n,)), strict=False):
        if tuple(value.shape) != shape or not n:
            raise LoadError(
                f"{name} of the dictionary {weights} has shape {tuple(value.shape)}, which does not fit its {needed[0]} of "
                f"shape {tuple(values[0].shape)}"
            )
    return values


def _whole(k: Any, weights: Path) -> int:
    if not isinstance(k, int) or isinstance(k, bool):
        raise LoadError(f"the topk dictionary {weights} keeps k = {k!r} features, which is no whole number")
    return k
