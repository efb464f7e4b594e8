"""The accounting identities: equations that hold on a model exactly when its family's row is right.

A row of the table is a claim about a model file: these modules write, those read, this happens to the logits. Every claim is
an equation between tensors of one forward (or backward) pass, so `check(model)` needs no reference implementation and no
opinion: it runs a few random prompts of different lengths and reports, for each identity, the largest error relative to the
scale of the quantity. What a family cannot have (no attention interface, a gate) is skipped with the reason; a row is right
when nothing fails. Upper rooms add identities of their own through the registry (kind "check").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from caseback.core import registry
from caseback.core.errors import CasebackError, FamilyError
from caseback.model.batch import Batch
from caseback.model.edits import Call, Scale
from caseback.model.families import FAMILIES, Family, family_of
from caseback.model.hooks import Hooks, module_at
from caseback.model.model import Model
from caseback.model.run import execute
from caseback.model.taps import Key

__all__ = ["IDENTITIES", "Identity", "Report", "check", "family_for"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One equation and how nearly it held."""

    name: str
    equation: str
    error: float | None = None
    """Largest difference relative to the scale of the quantity; None where skipped."""
    tolerance: float = 0.0
    skipped: str = ""
    """Why it was not tried; empty when it was."""

    @property
    def passed(self) -> bool:
        return bool(self.skipped) or (self.error is not None and self.error <= self.tolerance)

    def __str__(self) -> str:
        if self.skipped:
            return f"-    {self.name:<12} {self.equation}: skipped, {self.skipped}"
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name:<12} {self.equation}: error {self.error:.1e} (tolerance {self.tolerance:.0e})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All identities of a model."""

    model: str
    family: Family
    identities: tuple[Identity, ...]

    @property
    def passed(self) -> bool:
        return all(identity.passed for identity in self.identities)

    @property
    def failed(self) -> tuple[Identity, ...]:
        return tuple(identity for identity in self.identities if not identity.passed)

    def __getitem__(self, name: str) -> Identity:
        for identity in self.identities:
            if identity.name == name:
                return identity
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.model} ({self.family.name}{', guessed' if self.family.guessed else ''})",
                *map(str, self.identities),
            ]
        )


class _Skip(Exception):  # noqa: N818 - a signal, not an error
    """Raised by an identity the family cannot have; holds the reason."""


def check(model: Model, *, seed: int = 0) -> Report:
    """Try every identity on random prompts of 10, 7 and 9 tokens.

    >>> from caseback.zoo.tiny import tiny
    >>> check(Model(tiny("llama"))).passed
    True
    """
    own = list(_own(model, seed))
    offered = _offered(model, seed) if all(identity.passed for identity in own) else []
    return Report(model=model.name, family=model.family, identities=(*own, *offered))


def _own(model: Model, seed: int) -> Iterator[Identity]:
    batch, tolerance = _prompts(model, seed), _tolerance(model)
    for name, (equation, measure) in IDENTITIES.items():
        try:
            yield Identity(name=name, equation=equation, error=measure(model, batch), tolerance=tolerance)
        except _Skip as skip:
            yield Identity(name=name, equation=equation, skipped=str(skip))


def _offered(model: Model, seed: int) -> Iterator[Identity]:
    """What upper rooms ask of a model whose row is right: functions (model, seed=) → identities."""
    for offer in registry.names("check"):
        if offer == "circuits" and not model.family.circuits:
            yield Identity(name=offer, equation="circuits are exact", skipped=model.family.why_not)
            continue
        try:
            yield from registry.get("check", offer)(model, seed=seed)
        except CasebackError as error:
            yield Identity(name=offer, equation=f"cannot be tried: {error}", error=math.inf)


def family_for(hf: Any) -> Family:
    """The row of a transformers model: from the table, or else guessed and then held to the identities.

    Raises FamilyError when the guess finds no place for a part, or when an identity fails on the guessed row.
    """
    from caseback.model.guess import guess

    config = hf.config.get_text_config()
    if config.model_type in FAMILIES:
        return family_of(config)
    row = guess(hf)
    without = f"model type {config.model_type!r} has no row in the table of families, and a guessed one"
    try:
        model = Model(hf, family=row)
        failed = [identity for identity in _own(model, seed=0) if not identity.passed]
    except CasebackError as error:
        raise FamilyError(f"{without} does not fit: {error}") from error
    if failed:
        names = ", ".join(f"{identity.name} (error {identity.error:.0e})" for identity in failed)
        raise FamilyError(f"{without} fails these identities: {names}; write a row in caseback.model.families")
    failed = [identity for identity in _offered(model, seed=0) if not identity.passed]
    return replace(row, circuits=False, why_not=f"its row is guessed, and {failed[0].name} fails") if failed else row


def _prompts(model: Model, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    low = min(3, model.d_vocab - 1)
    rows = [torch.randint(low, model.d_vocab, (length,), generator=generator).tolist() for length in (10, 7, 9)]
    return Batch.pad(rows).to(model.device)


def _tolerance(model: Model) -> float:
    """Room for round-off where large terms cancel in a deep model; a wrong row is off by a hundred times more.

    A float64 model has no less of it: transformers computes norms and softmax in float32.
    """
    return 1e-4 if model.hf.dtype in (torch.float32, torch.float64) else 0.05


def _error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, each relative to its own size or to the root mean square, whichever is more."""
    if found.shape != wanted.shape:
        shapes = f"{tuple(found.shape)} and {tuple(wanted.shape)}"
        raise FamilyError(f"two sides of an identity have shapes {shapes}: the family's row does not fit")
    wanted = wanted.detach().float()
    scale = wanted.abs().clamp(min=wanted.square().mean().sqrt().item())
    worst = ((found.detach().float() - wanted).abs() / scale).max().item()
    return worst if math.isfinite(worst) else math.inf  # 0 = 0 proves nothing


def _capture(
    model: Model, batch: Batch, keys: Iterable[Key], *, grad: bool = False
) -> tuple[dict[Key, Tensor], Tensor]:
    """Values of whole sites in one run, and all its logits (the last ones with `grad`)."""
    values: dict[Key, Tensor] = {}
    visit = _separate if grad else _copy
    taps = {key: partial(visit, values, key) for key in keys}
    logits = execute(model, batch, taps, logits="last" if grad else "all", grad=grad)
    assert logits is not None
    return values, logits


def _copy(values: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    values[key] = value.clone()
    return value


def _separate(values: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    """Make each place a node of its own: a norm's output that attention and MLP read is one tensor, but two places."""
    values[key] = value.view_as(value)
    return values[key]


def _needs(model: Model, condition: bool, reason: str) -> None:
    if not condition:
        raise _Skip(model.family.why_not or reason)


# --- the identities ------------------------------------------------------------------------------------------------


def _residual(model: Model, batch: Batch) -> float:
    family, layers = model.family, range(model.n_layers)
    extra: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    names = [name for name in ("resid_pre", "attn_out", "mlp_out", "resid_post") if model.site_layers[name]]
    with Hooks() as hooks:
        for layer in layers:
            for path in family.writes[2:]:
                if (module := module_at(model.blocks[layer], path)) is not None:
                    hooks.out_of(module, partial(_keep, extra[layer]))
        values, _ = _capture(model, batch, [(name, layer) for name in names for layer in model.site_layers[name]])
    errors = []
    for layer in layers:
        stream = values["resid_pre", layer]
        writes = [values[name, layer] for name in ("attn_out", "mlp_out") if (name, layer) in values]
        total = (
            stream
            + sum(write.view_as(stream) for write in writes)
            + sum(write * model.write_scale for write in extra[layer])
        )
        if family.post_scale:
            total = total * getattr(model.blocks[layer], family.post_scale)
        errors.append(_error(total, values["resid_post", layer]))
        if layer + 1 < model.n_layers:
            errors.append(_error(values["resid_post", layer], values["resid_pre", layer + 1]))
    return max(errors)


def _keep(where: list[Tensor], value: Tensor) -> Tensor:
    where.append(value.clone())
    return value


def _readers(model: Model, batch: Batch) -> float:
    """Whether what attention and the MLP read is the norm of the stream, and down_proj makes the MLP's output."""
    family, layers = model.family, range(model.n_layers)
    attention: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    writer: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    names = [n for n in ("resid_pre", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out") if model.site_layers[n]]
    with Hooks() as hooks:
        for layer in layers:
            for module, where in (
                (model.attention(layer), attention),
                (module_at(model.blocks[layer], family.writes[1]), writer),
            ):
                if module is not None:
                    hooks.into(module, partial(_keep, where[layer]))
        values, _ = _capture(model, batch, [(name, layer) for name in names for layer in model.site_layers[name]])
    errors = []
    for layer in layers:
        block, stream = model.blocks[layer], values["resid_pre", layer]
        if attention[layer]:
            errors.append(_error(attention[layer][0], _apply(block, family.attn_norm, stream)))
        if ("mlp_in", layer) in values and family.mlp_norm != "":
            read = stream if family.parallel else values["resid_mid", layer]
            errors.append(_error(values["mlp_in", layer], _apply(block, family.mlp_norm, read)))
        if ("mlp_hidden", layer) in values:
            made = _apply(block, family.down_proj, values["mlp_hidden", layer])
            before_norm = writer[layer][0].reshape(made.shape) if writer[layer][0].numel() == made.numel() else made * 0
            added = values["mlp_out", layer] / model.write_scale
            errors.append(min(_error(made, added), _error(made, before_norm)))
    return max(errors)


def _apply(block: nn.Module, path: str | None, value: Tensor) -> Tensor:
    module = module_at(block, path) if path else None
    if module is None:
        return value
    with torch.no_grad():
        return module(value)


def _heads(model: Model, batch: Batch) -> float:
    """A head's part of the output is o_proj(z_h alone) - o_proj(0), and the parts with the bias add up to it."""
    layers = model.site_layers["z"]
    _needs(model, bool(layers), "it has no attention heads")
    out: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with Hooks() as hooks:
        for layer in layers:
            o_proj = model.o_proj(layer)
            assert o_proj is not None
            hooks.out_of(o_proj, partial(_keep, out[layer]))
        values, _ = _capture(model, batch, [("z", layer) for layer in layers])
    errors = []
    for layer in layers:
        z, o_proj = values["z", layer], model.o_proj(layer)
        assert o_proj is not None
        alone = z.unsqueeze(0) * torch.eye(model.n_heads, dtype=z.dtype, device=z.device)[:, None, None, :, None]
        with torch.no_grad():
            nothing = o_proj(torch.zeros_like(z).flatten(-2))
            errors.append(
                _error((o_proj(alone.flatten(-2)) - nothing).sum(dim=0) + nothing, out[layer][0].view_as(nothing))
            )
    return max(errors)


def _values(model: Model, batch: Batch) -> float:
    family, layers = model.family, model.site_layers["pattern"]
    _needs(model, bool(layers), "its model file does not call the attention interface")
    _needs(model, family.plain_heads, "something lies between its attention and its output projection")
    values, _ = _capture(model, batch, [(name, layer) for name in ("pattern", "v", "z") for layer in layers])
    errors = []
    for layer in layers:
        pattern, v, z = (values[name, layer] for name in ("pattern", "v", "z"))
        v = v.repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
        errors.append(_error(torch.einsum("bhts,bshd->bthd", pattern.to(v.dtype), v), z))
    return max(errors)


def _logits(model: Model, batch: Batch) -> float:
    values, logits = _capture(
        model, batch, [("resid_post", model.n_layers - 1), ("resid_final", None), ("final_norm_out", None)]
    )
    family, config = model.family, model.config
    normed = values["final_norm_out", None]
    with torch.no_grad():
        made = model.module(family.unembed)(normed)
        again = model.module(family.final_norm)(values["resid_final", None])
    if family.logit_multiplier:
        made = made * getattr(config, family.logit_multiplier)
    if family.logit_divisor:
        made = made / getattr(config, family.logit_divisor)
    if family.logit_softcap and (cap := getattr(config, family.logit_softcap)):
        made = torch.tanh(made / cap) * cap
    return max(
        _error(made, logits),
        _error(again, normed),
        _error(values["resid_post", model.n_layers - 1], values["resid_final", None]),
    )


def _gradient(model: Model, batch: Batch) -> float:
    """dM/d resid_pre = dM/d attn_out + local VJPs of q, k and v (+ the MLP's, where it reads the same stream)."""
    family, layers = model.family, model.site_layers["q"]
    _needs(model, bool(layers), "its model file does not call the attention interface")
    _needs(model, family.gradients, "q, k and v are not all that reads the stream")
    names = ["resid_pre", "attn_out", "q", "k", "v", *(["mlp_in"] if family.parallel else [])]
    keys: list[Key] = [(name, layer) for layer in layers for name in names]
    values, logits = _capture(model, batch, keys, grad=True)
    # two tokens from the middle: the first ones may be reserved, with equal and untrained rows
    metric = (logits[:, model.d_vocab // 3] - logits[:, model.d_vocab // 2]).sum()
    total = dict(zip(keys, torch.autograd.grad(metric, [values[key] for key in keys], retain_graph=True), strict=True))
    errors = []
    for layer in layers:
        readers: list[Key] = [(name, layer) for name in names[2:]]
        stream = values["resid_pre", layer]
        local = torch.autograd.grad(
            [values[r] for r in readers], stream, [total[r] for r in readers], retain_graph=True
        )[0]
        errors.append(_error(total["attn_out", layer] + local, total["resid_pre", layer]))
    return max(errors)


def _attention(model: Model, batch: Batch) -> float:
    layers = model.site_layers["q"]
    _needs(model, bool(layers), "its model file does not call the attention interface")
    before = model.hf.config._attn_implementation
    default = model.logits(batch)
    registered = execute(model, batch, {("q", layers[0]): lambda value: value})
    assert registered is not None
    try:
        model.hf.set_attn_implementation("eager")
        eager = model.logits(batch)
    finally:
        model.hf.set_attn_implementation(before)
    return max(_error(registered, eager), _error(registered, default))


def _alone(model: Model, batch: Batch) -> Tensor:
    return torch.cat([model.logits(batch[[row]]) for row in range(batch.n)])


def _right(model: Model, batch: Batch) -> float:
    return _error(model.logits(batch), _alone(model, batch))


def _left(model: Model, batch: Batch) -> float:
    _needs(model, model.family.left_padding, "its positions count padding on the left")
    rows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    return _error(model.logits(Batch.pad(rows, side="left").to(model.device)), _alone(model, batch))


def _sites(model: Model, batch: Batch) -> float:
    """Every site is reached (or the run raises) and has its declared axes."""
    run = model.run(batch, read=model.sites())
    wrong = []
    for site in model.sites():
        shape = run[site].shape
        heads = model.heads.get(site.kind.heads)
        expected = (heads,) if site.name == "pattern" else batch.ids.shape[1:] + ((heads,) if heads else ())
        if (
            shape[:1] != batch.ids.shape[:1]
            or tuple(shape[1 : 1 + len(expected)]) != tuple(expected)
            or len(shape) != site.kind.shape.count(" ") + 1
        ):
            wrong.append(f"{site} {tuple(shape)}")
    if wrong:
        raise FamilyError(f"sites of a wrong shape in {model.family.name}: {', '.join(wrong)}")
    return 0.0


def _edits(model: Model, batch: Batch) -> float:
    """Every site times 1 changes nothing; moving any kind of site changes the logits; no hook, no switch stays behind."""
    before, hooks = model.logits(batch), _attached(model)
    unchanged = model.run(batch, edit=[Scale(site, 1.0) for site in model.sites()]).logits
    assert unchanged is not None
    first = {site.name: site for site in reversed(model.sites())}
    deaf = []
    for name, site in first.items():
        moved, still = (model.run(batch, edit=[Call(site, how)]).logits for how in (_moved, torch.clone))
        assert moved is not None and still is not None
        if torch.equal(moved, still):
            deaf.append(name)
    if deaf:
        raise FamilyError(f"edits at {', '.join(deaf)} do not change the output of {model.family.name}")
    if _attached(model) != hooks:
        raise AssertionError("a hook or a switched attention was left behind")
    return _error(unchanged, before)


def _moved(value: Tensor) -> Tensor:
    """Another value of the same size: not a multiple of the old one, which a norm would undo."""
    return value.flip(-1) + 0.5 * value.roll(1, -1)


def _attached(model: Model) -> tuple[Any, ...]:
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + ("forward" in vars(m))
        for m in model.hf.modules()
    )
    return hooks, model.hf.config._attn_implementation


Measure = Callable[[Model, Batch], float]
IDENTITIES: dict[str, tuple[str, Measure]] = {
    "sites": ("every site is reached and has its shape", _sites),
    "residual": ("resid_post = scale · (resid_pre + Σ writes)", _residual),
    "readers": ("attn_in, mlp_in = norm(stream); mlp = down_proj(mlp_hidden)", _readers),
    "heads": ("o_proj(z) = Σ_h W_O^h z_h + b", _heads),
    "values": ("z = pattern · v", _values),
    "logits": ("logits = f(unembed(final_norm(resid_post)))", _logits),
    "gradient": ("∂M/∂resid_pre = ∂M/∂attn_out + Σ VJP(q, k, v)", _gradient),
    "attention": ("registered attention = eager = the model's own", _attention),
    "right": ("a right-padded batch = its rows alone", _right),
    "left": ("a left-padded batch = its rows alone", _left),
    "edits": ("an edit by 1 changes nothing, others do, no hook stays", _edits),
}
