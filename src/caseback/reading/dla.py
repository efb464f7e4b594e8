"""Direct logit attribution: the metric as a sum over everything that was added to the last token's stream.

Logits are linear in the stream once the final norm is held at the scale it has: logit_t = s (W_U[t] · norm(x) + b[t]),
norm(x) = w ⊙ c(x) r + β with r = 1/√(mean c(x)² + ε) frozen at its actual value. A difference of logits is then one
direction g of the stream, M = g · x + const, and x is the embedding plus what every head and MLP added (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits", the direct path; Nanda & Bloom's TransformerLens,
`accumulated_bias` and `stack_head_results`). A norm behind a part (OLMo 2, Gemma 2) is frozen in the same way. The
terms sum to the metric; how nearly is reported, and more than round-off is refused.

A site's own term can be split further over a dictionary's features (`caseback.reading.features`); `cut_at` gives what that
needs.

It is the direct effect alone: what a head does through later heads is not in its term. A soft cap of the logits
(Gemma) is not linear, so there the logits before the cap are attributed, and `softcap` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from caseback.circuits.parts import Norm
from caseback.core.errors import FamilyError, ReadingError
from caseback.core.progress import Progress, silent
from caseback.evidence import mean_intervals
from caseback.evidence.intervals import DEFAULT, Interval, Resampling
from caseback.model.batch import Batch
from caseback.model.hooks import module_at
from caseback.model.model import Model
from caseback.model.run import Run, plan_sites
from caseback.model.sites import parse
from caseback.reading.columns import By, columns_of
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import logit_diff

__all__ = ["CUTS", "Attribution", "Cut", "Of", "attribute_logits", "cut_at"]

Of = Literal["logit_diff", "answers"]
CUTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites whose value is a share of the last token's stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Terms of the metric at the last token, in logits, example by example; they sum to `total`."""

    of: Of
    embed: Float[np.ndarray, "example"]
    """Of the stream entering block 0 (token and position embedding)."""
    heads: Float[np.ndarray, "layer head example"]
    """Of each head's own output, the output projection's bias left out."""
    mlps: Float[np.ndarray, "layer example"]
    """Of each MLP, its biases included."""
    attn_biases: Float[np.ndarray, "layer example"]
    """Of the output projection's bias, and the bias of a norm behind it."""
    final_bias: Float[np.ndarray, "example"]
    """Of the final norm's and the unembedding's biases."""
    sources: Float[np.ndarray, "layer head column example"] | None
    """Each head's term, split over the positions its values come from; None where the family has no pattern."""
    columns: tuple[str, ...]
    neurons_of: int | None
    """The layer whose neurons are given."""
    neurons: Float[np.ndarray, "neuron example"] | None
    """Terms of that layer's MLP neurons; with `neuron_bias` they sum to its MLP's term."""
    neuron_bias: Float[np.ndarray, "example"] | None
    total: Float[np.ndarray, "example"]
    """What the terms sum to: the metric, before a soft cap of the logits."""
    metric: Float[np.ndarray, "example"]
    """The metric of the model's own logits; equal to `total` unless there is a soft cap."""
    softcap: float | None
    error: float
    """Largest difference between the sum of the terms and `total`, in logits."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows of `terms`."""
        layers, heads = self.heads.shape[:2]
        of_heads = [f"a{layer}.h{head}" for layer in range(layers) for head in range(heads)]
        biases = [f"a{layer}.bias" for layer in range(layers)]
        return ("embed", *of_heads, *(f"m{layer}" for layer in range(layers)), *biases, "final.bias")

    @property
    def terms(self) -> Float[np.ndarray, "term example"]:
        """All terms as rows: embed, heads, MLPs, attention biases, final bias."""
        rows = self.heads.reshape(-1, self.heads.shape[-1])
        return np.concatenate([self.embed[None], rows, self.mlps, self.attn_biases, self.final_bias[None]])

    def intervals(self, *, how: Resampling = DEFAULT) -> dict[str, Interval]:
        """Every term's mean over examples with its bootstrap interval, in logits."""
        return dict(zip(self.names, mean_intervals(self.terms, how=how), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """One site's share of the metric at the last token: total = g · x + outside, example by example."""

    site: str
    x: Float[Tensor, "example d"]
    """The site's value at the last token."""
    g: Float[Tensor, "example d"]
    """The metric's direction in the stream, in logits a unit; the norms' scales held at their values."""
    outside: Float[np.ndarray, "example"]
    """Terms of all that is not at the site: of a part's output the other parts, of a stream what is added after it."""
    total: Float[np.ndarray, "example"]
    softcap: float | None


def attribute_logits(
    model: Model,
    pairs: PairBatch,
    *,
    of: Of | None = None,
    neurons: int | None = None,
    columns: By | None = None,
    rows: int = 16,
    progress: Progress = silent,
) -> Attribution:
    """Split the logit difference (`of="answers"`: the answers' mean logit) of the clean prompts over the model's parts.

    `neurons` names a layer whose MLP is split further; `columns` are the positions the heads' terms are split over;
    `rows` prompts are run at a time. Raises FamilyError for a family whose heads' outputs do not simply add up,
    ReadingError for a metric that is not linear in logits, for a layer there is not, and where the terms do not sum
    to the metric.
    """
    chosen = _linear(pairs, of)
    if neurons is not None and neurons not in model.site_layers["mlp_hidden"]:
        raise ReadingError(
            f"the MLP of layer {neurons} has no single row of neurons; layers that have: "
            f"{', '.join(map(str, model.site_layers['mlp_hidden'])) or 'none'}"
        )
    _require(model)
    names = columns_of(pairs.clean, columns).names
    tensors = _terms(model, pairs, chosen, neurons=neurons, by=columns, rows=rows, progress=progress)
    found = {key: value.double().cpu().numpy() for key, value in tensors.items()}
    attribution = Attribution(
        of=chosen,
        columns=names,
        neurons_of=neurons,
        softcap=_softcap(model),
        error=float(np.abs(found["sum"] - found["total"]).max()),
        sources=found.get("sources"),
        neurons=found.get("neurons"),
        neuron_bias=found.get("neuron_bias"),
        **{name: found[name] for name in ("embed", "heads", "mlps", "attn_biases", "final_bias", "total", "metric")},
    )
    _check(model, attribution)
    return attribution


def cut_at(
    model: Model,
    pairs: PairBatch,
    site: str,
    *,
    of: Of | None = None,
    rows: int = 16,
    progress: Progress = silent,
) -> Cut:
    """What one site of the stream's width (`CUTS`, as "mlp_out.5") has to do with the metric, directly.

    Cost: one forward. Raises as `attribute_logits` does, SiteError for a site the model does not have, ReadingError for one
    that is no share of the stream.
    """
    chosen = _linear(pairs, of)
    asked, any_layer, _ = parse(site)
    if asked.name not in CUTS or any_layer or asked.layer is None or asked.position is not None:
        raise ReadingError(
            f"{site!r} is no share of the stream; give one of {', '.join(CUTS)} with its layer: mlp_out.5"
        )
    plan_sites(model, [asked])
    _require(model)
    found = _terms(model, pairs, chosen, at=site, rows=rows, progress=progress)
    layer, attention = asked.layer, found["heads"].sum(dim=1) + found["attn_biases"]
    parts = torch.stack([attention, found["mlps"]], dim=1)  # [layer, attention or MLP, example]
    outside = torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device)
    if asked.name in ("attn_out", "mlp_out"):
        outside[layer, CUTS.index(asked.name) - CUTS.index("attn_out")] = False
        rest = found["embed"] + found["final_bias"]
    else:
        outside[:layer] = False
        outside[layer, : CUTS.index(asked.name)] = False  # resid_pre: neither, resid_mid: attention, resid_post: both
        rest = found["final_bias"]
    rest = rest + parts[outside].sum(dim=0)
    x, g = found["x"].T, found["g"].T
    apart = float((_dot(g, x) + rest - found["total"]).abs().max())
    _bear(model, apart, float((parts.abs().sum(dim=(0, 1)) + found["embed"].abs()).max()))
    return Cut(
        site=site,
        x=x,
        g=g,
        outside=rest.double().cpu().numpy(),
        total=found["total"].double().cpu().numpy(),
        softcap=_softcap(model),
    )


def _linear(pairs: PairBatch, of: Of | None) -> Of:
    """What is attributed, a sum of logits."""
    if of is None and pairs.metric != "logit_diff":
        raise ReadingError(
            f"the metric {pairs.metric!r} is not linear in logits, so it is no sum over parts; pass of='logit_diff' or "
            "of='answers' to attribute these pairs' logits"
        )
    if of not in (None, "logit_diff", "answers"):
        raise ReadingError(f"there is no linear metric {of!r}; there are: logit_diff, answers")
    return of or "logit_diff"


def _softcap(model: Model) -> float | None:
    return _config(model, model.family.logit_softcap, 0.0) or None


def _terms(
    model: Model,
    pairs: PairBatch,
    of: Of,
    *,
    neurons: int | None = None,
    by: By | None = None,
    at: str | None = None,
    rows: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """All terms, the example axis last, `rows` prompts run at a time."""
    pairs = pairs.to(model.device)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, pairs.n, rows):
        parts.append(_split(model, pairs[start : start + rows], of, neurons, by, at))
        progress("attribute", min(start + rows, pairs.n), pairs.n)
    return {key: torch.cat([part[key] for part in parts], dim=-1) for key in parts[0]}


def _check(model: Model, found: Attribution) -> None:
    scale = float(np.abs(found.terms).sum(axis=0).max())
    worst = found.error
    if found.neurons is not None and found.neuron_bias is not None and found.neurons_of is not None:
        apart = found.neurons.sum(axis=0) + found.neuron_bias - found.mlps[found.neurons_of]
        worst = max(worst, float(np.abs(apart).max()))
    _bear(model, worst, scale)


def _bear(model: Model, worst: float, scale: float) -> None:
    """Refuse terms that miss their sum by more than round-off."""
    half = next(model.hf.parameters()).dtype in (torch.float16, torch.bfloat16)
    if worst > (5e-2 if half else 1e-3) * max(scale, 1.0):
        raise ReadingError(
            f"the terms of {model.name} differ from its metric by {worst:.2g} logits, more than round-off: the row of "
            f"{model.family.name} does not describe all that is added to its stream (`caseback model check` says what)"
        )


def _require(model: Model) -> None:
    family = model.family
    headless = [layer for layer in range(model.n_layers) if model.o_proj(layer) is None]
    if headless or family.post_scale or len(family.writes) != 2:
        raise FamilyError(
            f"logits of {family.name} cannot be split over heads: "
            f"{family.why_not or 'its blocks are not attention plus MLP'}; read its attn_out and mlp_out with a lens"
        )


def _config(model: Model, name: str | None, default: float) -> float:
    return float(getattr(model.config, name) or default) if name else default


def pull(module: nn.Module, g: Float[Tensor, "n out"], width: int) -> tuple[Tensor, Tensor]:
    """(Wᵀg [n, in], b·g [n]) of a module y = W x + b, whatever it calls its weight and however it lays it out."""
    like = next(module.parameters())
    with torch.enable_grad():
        x = torch.zeros((len(g), width), dtype=like.dtype, device=g.device, requires_grad=True)
        y = (module(x[:, None])[:, 0].to(g.dtype) * g).sum(dim=-1)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    return gradient.to(g.dtype), y.detach()


def _norm(model: Model, module: nn.Module, what: str) -> Norm:
    found = Norm.of(module, model.d_model)
    if found is None:
        raise FamilyError(f"{what} of {model.family.name} is not an RMS or layer norm, so its scale cannot be frozen")
    return found


@torch.no_grad()
def _split(
    model: Model, pairs: PairBatch, of: Of, neurons: int | None, by: By | None, at: str | None
) -> dict[str, Tensor]:
    """All terms of some pairs, the example axis last; with `at` that site's value x and the direction g."""
    batch, family, layers = pairs.clean, model.family, range(model.n_layers)
    inside = at is None and family.attention == "registered" and family.plain_heads
    reads = ["resid_pre.0@end", "resid_final@end", "final_norm_out@end", "z.*@end", "mlp_out.*@end"]
    reads += ["pattern.*@end", "v.*"] if inside else []
    reads += [f"mlp_hidden.{neurons}@end"] if neurons is not None else []
    reads += [f"{at}@end"] if at is not None else []
    run = model.run(batch, read=reads)
    assert run.logits is not None
    scale = _config(model, family.logit_multiplier, 1.0) / _config(model, family.logit_divisor, 1.0)

    chosen = _weights(pairs, of, model.d_vocab, run.logits)
    u, b = pull(model.module(family.unembed), chosen * scale, model.d_model)
    final = _norm(model, model.module(family.final_norm), "the final norm")
    g = final.fold(u) * final.scale(run["resid_final@end"].float())
    out: dict[str, Tensor] = {
        "embed": _dot(g, run["resid_pre.0@end"]),
        "mlps": torch.stack([_dot(g, run[f"mlp_out.{layer}@end"]) for layer in layers]),
        "final_bias": u @ final.bias.float() + b,
        "total": _dot(u, run["final_norm_out@end"]) + b,
        "metric": (run.logits.float() * chosen).sum(dim=-1) if of == "answers" else logit_diff(run.logits, pairs),
    }
    heads, biases, sources = [], [], []
    for layer in layers:
        o_proj = model.o_proj(layer)
        assert o_proj is not None
        z = run[f"z.{layer}@end"]
        at_heads, bias = _behind(model, layer, 0, o_proj, z.flatten(1), g)
        at_heads = at_heads.unflatten(1, z.shape[1:])
        heads.append((z.float() * at_heads).sum(dim=-1).T)
        biases.append(bias)
        if inside:
            sources.append(_by_source(run, layer, at_heads, batch, by))
    out |= {"heads": torch.stack(heads), "attn_biases": torch.stack(biases)}
    if inside:
        out["sources"] = torch.stack(sources)
    if neurons is not None:
        hidden = run[f"mlp_hidden.{neurons}@end"]
        down = module_at(model.blocks[neurons], family.down_proj or "")
        assert down is not None
        at_neurons, out["neuron_bias"] = _behind(model, neurons, 1, down, hidden, g)
        out["neurons"] = (hidden.float() * at_neurons).T
    if at is not None:
        out |= {"x": run[f"{at}@end"].float().T, "g": g.T}
    out["sum"] = (
        out["embed"]
        + out["heads"].sum(dim=(0, 1))
        + out["mlps"].sum(dim=0)
        + out["attn_biases"].sum(dim=0)
        + out["final_bias"]
    )
    return out


def _dot(g: Float[Tensor, "example d"], value: Tensor) -> Float[Tensor, "example"]:
    return (g * value.float()).sum(dim=-1)


def _weights(pairs: PairBatch, of: Of, vocab: int, like: Tensor) -> Float[Tensor, "example vocab"]:
    """c with metric = Σ_t c_t logit_t."""
    chosen = torch.zeros((pairs.n, like.shape[-1]), device=like.device)
    signed = [(pairs.answers, 1.0)] + ([(pairs.foils, -1.0)] if of == "logit_diff" else [])
    for ids, sign in signed:
        real = ids >= 0
        chosen.scatter_add_(1, ids.clamp(min=0), sign * real / real.sum(dim=1, keepdim=True))
    return chosen


def _behind(
    model: Model, layer: int, which: int, linear: nn.Module, x: Float[Tensor, "example in"], g: Tensor
) -> tuple[Float[Tensor, "example in"], Float[Tensor, "example"]]:
    """The direction g seen from the input of a block's last linear map (0: attention's, 1: the MLP's), and g · biases,
    with the norm between it and the stream, if any, at its actual scale."""
    family, block = model.family, model.blocks[layer]
    writer = module_at(block, family.writes[which])
    part = model.attention(layer) if which == 0 else module_at(block, family.mlp)
    g, bias = g * model.write_scale, g.new_zeros(len(g))
    if writer is not part and writer is not linear:
        assert writer is not None
        post = _norm(model, writer, f"{family.writes[which]} of block {layer}")
        raw = linear(x[:, None])[:, 0]
        g, bias = post.fold(g) * post.scale(raw.float()), g @ post.bias.float()
    at_input, constant = pull(linear, g, x.shape[1])
    return at_input, bias + constant


def _by_source(
    run: Run, layer: int, at_heads: Float[Tensor, "example head value_dim"], batch: Batch, by: By | None
) -> Float[Tensor, "head column example"]:
    """z = Σ_s pattern[s] v[s], so a head's term is a sum over source positions s."""
    pattern, v = run[f"pattern.{layer}@end"].float(), run[f"v.{layer}"].float()
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
    term = pattern * torch.einsum("bshd,bhd->bhs", v, at_heads)
    return torch.einsum("bhs,cbs->hcb", term, columns_of(batch, by).where.float())
