"""Gradients at sites: against autograd on a forward written out, against finite differences, and without a trace on the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caseback.core.errors import SiteError
from caseback.model.edits import Add
from caseback.model.model import Model
from caseback.zoo.tiny import tiny

from .small import ATTENDING, FAMILIES, batch_of, left_behind, model_of


def metric(logits: Tensor) -> Tensor:
    """Smooth, of every row, and not linear."""
    return logits[:, 5] - logits[:, 9] + torch.log_softmax(logits, dim=-1)[:, 7]


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2"])
def test_the_gradient_of_the_embedding_is_autograd_s_of_the_model_itself(name: str) -> None:
    model = model_of(name)
    batch = batch_of(model)
    embed = model.run(batch, read=["resid_pre.0"], stop=0)["resid_pre.0"].requires_grad_()
    logits = model.hf(inputs_embeds=embed, attention_mask=batch.mask.long(), use_cache=False).logits
    value = metric(logits[torch.arange(batch.n), batch.last])
    (expected,) = torch.autograd.grad(value.sum(), embed)
    found = model.grad(batch, metric, at=["resid_pre.0", "resid_pre.0@end"])
    torch.testing.assert_close(found.metric, value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["resid_pre.0"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found["resid_pre.0@end"], expected[torch.arange(batch.n), batch.last], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found.values["resid_pre.0"], embed.detach())


def by_hand(model: Model, hidden: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The last block and the logits of the tiny Llama, written out; the tensors along the way."""
    hf = model.hf
    block, at = hf.model.layers[1], {"resid_pre.1": hidden}
    positions = torch.arange(hidden.shape[1])[None]
    cos, sin = (part[:, None] for part in hf.model.rotary_emb(hidden, positions))

    def turn(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    x = block.input_layernorm(hidden)
    q, k, v = (
        getattr(block.self_attn, f"{name}_proj")(x).unflatten(-1, (-1, 16)).transpose(1, 2) for name in ("q", "k", "v")
    )
    at |= {"q.1": turn(q), "k.1": turn(k), "v.1": v}
    logit = at["q.1"] @ at["k.1"].repeat_interleave(2, dim=1).transpose(-1, -2) / 4
    causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()
    at["pattern.1"] = logit.masked_fill(~causal, -1e9).softmax(dim=-1)
    at["z.1"] = at["pattern.1"] @ at["v.1"].repeat_interleave(2, dim=1)
    mid = hidden + block.self_attn.o_proj(at["z.1"].transpose(1, 2).flatten(2))
    at["resid_mid.1"] = mid
    x = block.post_attention_layernorm(mid)
    at["mlp_hidden.1"] = torch.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)
    at["mlp_out.1"] = block.mlp.down_proj(at["mlp_hidden.1"])
    at["resid_final"] = mid + at["mlp_out.1"]
    logits = hf.lm_head(hf.model.norm(at["resid_final"]))
    return logits[torch.arange(len(hidden)), mask.sum(dim=1) - 1], at


def test_every_site_of_a_forward_written_out() -> None:
    model = model_of("llama")
    batch = batch_of(model)
    hidden = model.run(batch, read=["resid_pre.1"])["resid_pre.1"].requires_grad_()
    logits, at = by_hand(model, hidden, batch.mask)
    expected = dict(zip(at, torch.autograd.grad(metric(logits).sum(), list(at.values())), strict=True))
    found = model.grad(batch, metric, at=list(at))
    for site, gradient in expected.items():
        heads_second = site.split(".")[0] in ("q", "k", "v", "z")
        gradient = gradient.transpose(1, 2) if heads_second else gradient
        if site == "pattern.1":  # at padding rows both attend to something else
            gradient, found_here = gradient[0], found[site][0]
        else:
            gradient, found_here = gradient[batch.mask], found[site][batch.mask]
        torch.testing.assert_close(found_here, gradient, rtol=1e-3, atol=2e-6, msg=site)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_slopes(name: str) -> None:
    """Central differences along a random direction, at every site but those inside a mixture's choice of experts."""
    model, batch = model_of(name), batch_of(model_of(name), lengths=(6, 4))
    sites = [site for site in model.sites() if site.layer in (1, None)]
    found = model.grad(batch, metric, at=sites)
    draw = torch.Generator().manual_seed(3)
    step = 1e-2
    slopes, expected = [], []
    for site in sites:
        along = torch.randn(found.values[str(site)].shape, generator=draw) * found.values[str(site)].abs().mean()
        if site.name == "pattern":
            along = along.tril()
        up, down = (metric(model.run(batch, edit=[Add(site, sign * step * along)]).logits) for sign in (1, -1))
        slopes.append(float((up - down).sum() / (2 * step)))
        expected.append(float((found[site] * along).sum()))
    scale = max(abs(value) for value in expected)
    for site, slope, value in zip(sites, slopes, expected, strict=True):
        assert slope == pytest.approx(value, abs=0.01 * scale, rel=0.03), str(site)


@pytest.mark.parametrize("name", ATTENDING)
def test_the_stream_s_gradient_is_the_sum_over_what_reads_it(name: str) -> None:
    """dM/d resid_pre = dM/d resid_mid + what comes back from the attention's input (design 3.5), at every token."""
    model, batch = model_of(name), batch_of(model_of(name))
    if model.family.parallel or model.family.attn_norm is None:
        return
    found = model.grad(batch, metric, at=["resid_pre.1", "resid_mid.1", "attn_in.1"])
    norm = model.blocks[1].get_submodule(model.family.attn_norm)
    stream = found.values["resid_pre.1"].clone().requires_grad_()
    (through,) = torch.autograd.grad(norm(stream), stream, found["attn_in.1"])
    torch.testing.assert_close(found["resid_pre.1"], found["resid_mid.1"] + through, rtol=1e-4, atol=1e-5)


def test_heads_and_positions_are_cut_as_in_a_run() -> None:
    model = model_of("llama")
    batch = batch_of(model)
    found = model.grad(batch, metric, at=["z.*", "z.1.2@end", "pattern.0.1@middle", "pattern.0"])
    assert torch.equal(found["z.1.2@end"], found["z.1"][torch.arange(batch.n), batch.last, 2])
    assert torch.equal(found["pattern.0.1@middle"], found["pattern.0"][:, 1, 1:3])
    assert set(found.gradients) == {"z.0", "z.1", "z.1.2@end", "pattern.0.1@middle", "pattern.0"}
    with pytest.raises(SiteError, match="no gradient was taken at 'q.0'; there are: z.0, z.1, z.1.2@end"):
        found["q.0"]


def test_parameters_get_no_gradient_and_the_switches_stay_where_they_were() -> None:
    model = Model(tiny("llama"))
    wanted = [parameter.requires_grad for parameter in model.hf.parameters()]
    expected = model.grad(batch_of(model), metric, at=["q.*", "mlp_in.*"])
    with torch.no_grad():
        found = model.grad(batch_of(model), metric, at=["q.*", "mlp_in.*"])
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    for site in expected.gradients:
        assert torch.equal(found[site], expected[site])
        assert not found[site].requires_grad and not found.values[site].requires_grad
    assert not found.metric.requires_grad
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == wanted
    assert not left_behind(model.hf)


def test_a_metric_that_depends_on_nothing_is_refused() -> None:
    model = model_of("llama")
    batch = batch_of(model)
    with pytest.raises(SiteError, match="the metric does not depend on the logits"):
        model.grad(batch, lambda logits: torch.ones(len(logits)), at=["z.0"])
    with pytest.raises(SiteError, match="the metric does not depend on the logits"):
        model.grad(batch, lambda logits: logits.detach()[:, 0], at=["z.0"])
    assert not left_behind(model.hf)
