"""Attribution over features: dictionaries whose terms are known, and ones that must explain nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from caseback.circuits.check import random_pairs
from caseback.core.errors import FamilyError, ReadingError, SiteError
from caseback.model.dictionary import Dictionary, rotated, shuffled
from caseback.model.model import Model
from caseback.reading import features as module
from caseback.reading.dla import CUTS, Cut, attribute_logits, cut_at
from caseback.reading.features import attribute_features
from caseback.tasks.metrics import logit_diff
from caseback.zoo.tiny import tiny


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


@cache
def cut_of(name: str, site: str) -> Cut:
    return cut_at(model_of(name), random_pairs(model_of(name)), site, rows=2)


def paired(site: str, directions: torch.Tensor) -> Dictionary:
    """Features ±d of an orthonormal basis: relu of the two reconstructs exactly."""
    both = torch.cat([directions, -directions])
    return Dictionary(
        site=site, W_enc=both.T, b_enc=torch.zeros(len(both)), W_dec=both, b_dec=torch.zeros(both.shape[1])
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2", "gpt_neox", "granite"])
def test_a_cut_and_what_is_outside_it_are_the_metric(name: str) -> None:
    model = model_of(name)
    split = attribute_logits(model, random_pairs(model))
    sites = [site for site in CUTS if model.site_layers[site]]
    for site in (f"{site}.{layer}" for site in sites for layer in (0, model.n_layers - 1)):
        cut = cut_of(name, site)
        own = (cut.g * cut.x).sum(dim=1).numpy()
        np.testing.assert_allclose(own + cut.outside, split.total, atol=1e-4 * max(1, np.abs(split.terms).max()))
        if site.startswith("mlp_out"):
            np.testing.assert_allclose(own, split.mlps[int(site[-1])], atol=1e-4)
    assert cut.softcap == split.softcap
    if cut.softcap is None:
        metric = logit_diff(model.logits(random_pairs(model).clean), random_pairs(model))
        np.testing.assert_allclose(cut.total, metric, atol=1e-4)


def test_coordinates_as_features_are_the_coordinates_terms() -> None:
    cut = cut_of("llama", "mlp_out.1")
    d = cut.x.shape[1]
    found = attribute_features(cut, paired(cut.site, torch.eye(d)), top=2 * d)
    np.testing.assert_allclose(found.error, 0, atol=1e-6)
    np.testing.assert_allclose(found.bias, 0)
    np.testing.assert_allclose(found.rest, 0, atol=1e-6)
    want = (cut.g * cut.x).numpy()
    terms = np.zeros((2 * d, 3))
    terms[found.features] = found.terms
    np.testing.assert_allclose(terms[:d] + terms[d:], want.T, atol=1e-6)
    assert (found.fvu, found.explained().value) == (pytest.approx(0, abs=1e-10), pytest.approx(1, abs=1e-5))
    assert found.l0 == d and found.concentration == 1
    sizes = np.abs(found.terms).mean(axis=1)
    assert (np.diff(sizes) <= 1e-9).all()


def test_few_are_kept_and_the_sum_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of("gpt2", "resid_post.0")
    draw, d = torch.Generator().manual_seed(0), cut.x.shape[1]
    W_enc, W_dec = (torch.randn(shape, generator=draw) for shape in ((d, 300), (300, d)))
    b_enc, b_dec = torch.randn(300, generator=draw), torch.randn(d, generator=draw)
    dictionary = Dictionary(site=cut.site, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, activation="topk", k=7)
    found = attribute_features(cut, dictionary, top=4)
    assert found.terms.shape == (4, 3) and found.l0 <= 7
    sums = found.terms.sum(axis=0) + found.rest + found.bias + found.error
    np.testing.assert_allclose(sums, found.whole, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.bias, (cut.g @ b_dec).numpy(), rtol=1e-5)
    every = dictionary.encode(cut.x) * (cut.g @ W_dec.T)
    assert int(found.features[0]) == int(every.abs().mean(dim=0).argmax())
    monkeypatch.setattr(module, "AT_ONCE", 1)  # one example at a time
    again = attribute_features(cut, dictionary, top=4)
    np.testing.assert_allclose(again.terms, found.terms, rtol=1e-5)
    assert again.features.tolist() == found.features.tolist() and again.fvu == pytest.approx(found.fvu)
    assert [i.value for i in found.intervals()] == pytest.approx(found.terms.mean(axis=1))


def test_an_empty_dictionary_misses_everything() -> None:
    cut = cut_of("llama", "attn_out.0")
    d = cut.x.shape[1]
    zero = torch.zeros
    empty = Dictionary(site=cut.site, W_enc=zero(d, 5), b_enc=zero(5), W_dec=zero(5, d), b_dec=zero(d))
    found = attribute_features(cut, empty)
    np.testing.assert_allclose(found.error, found.whole, atol=1e-6)
    assert found.explained().value == pytest.approx(0, abs=1e-6)
    assert len(found.features) == 0 and found.l0 == 0 and np.isnan(found.concentration) and found.fvu > 0.99


def test_planted_features_in_superposition_are_found_and_the_controls_are_not() -> None:
    """160 sparse features in 128 dimensions: the true dictionary has the true terms; turned or mixed up it misses all."""
    draw = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn((160, 128), generator=draw), dim=1)
    strength = (torch.rand((64, 160), generator=draw) < 0.02) * (1 + torch.rand((64, 160), generator=draw))
    x, g = strength @ directions, torch.randn((64, 128), generator=draw)
    cut = Cut(site="mlp_out.0", x=x, g=g, outside=np.zeros(64), total=(g * x).sum(1).double().numpy(), softcap=None)
    true = Dictionary(
        site="mlp_out.0",
        W_enc=directions.T,
        b_enc=torch.zeros(160),
        W_dec=directions,
        b_dec=torch.zeros(128),
        activation="jumprelu",
        threshold=torch.full((160,), 0.7),
    )
    found, turned, mixed = (attribute_features(cut, one) for one in (true, rotated(true), shuffled(true)))
    want = (strength * (g @ directions.T)).T[found.features].numpy()
    assert np.corrcoef(found.terms.ravel(), want.ravel())[0, 1] > 0.95
    assert found.explained().value > 0.5 and found.l0 == pytest.approx(
        float((strength > 0).sum(1).float().mean()), abs=1.0
    )
    for control in (turned, mixed):
        assert control.explained().value < 0.1 and control.fvu > 1 > found.fvu
        np.testing.assert_allclose(
            control.terms.sum(axis=0) + control.rest + control.bias + control.error, control.whole, atol=1e-4
        )


def test_refusals() -> None:
    model, cut = model_of("llama"), cut_of("llama", "mlp_out.1")
    d = cut.x.shape[1]
    with pytest.raises(ReadingError, match=r"is of mlp_out.0, not of mlp_out.1"):
        attribute_features(cut, paired("mlp_out.0", torch.eye(d)))
    with pytest.raises(ReadingError, match=f"vectors of 5 entries and mlp_out.1 of this model has {d}"):
        attribute_features(cut, paired("mlp_out.1", torch.eye(5)))
    for site in ("z.0", "mlp_out.*", "resid_final", "mlp_out.1@end"):
        with pytest.raises(ReadingError, match="is no share of the stream; give one of resid_pre"):
            cut_at(model, random_pairs(model), site)
    with pytest.raises(SiteError, match="mlp_out.9"):
        cut_at(model, random_pairs(model), "mlp_out.9")
    with pytest.raises(FamilyError):
        cut_at(model_of("lfm2"), random_pairs(model_of("lfm2")), "mlp_out.0")
