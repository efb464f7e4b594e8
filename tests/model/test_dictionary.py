"""Dictionaries: what they compute, what their files say, and files that are not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from caseback.core.errors import LoadError
from caseback.model.dictionary import Dictionary, read_dictionary, rotated, shuffled

D, N = 4, 6


def drawn(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


X = torch.randn((3, D), generator=torch.Generator().manual_seed(9))


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], name: str = "sae_weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


NEW = {"architecture": "standard", "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "tiny"}}
OLD = {"hook_point": "blocks.3.hook_mlp_out", "activation_fn_str": "relu"}


def test_activations() -> None:
    arrays = drawn()
    before = X @ arrays["W_enc"] + arrays["b_enc"]
    relu = Dictionary(site="mlp_out.0", **arrays)
    torch.testing.assert_close(relu.encode(X), before.relu())
    torch.testing.assert_close(relu.decode(relu.encode(X)), before.relu() @ arrays["W_dec"] + arrays["b_dec"])
    threshold = torch.linspace(-1, 1, N)
    jump = Dictionary(site="mlp_out.0", **arrays, activation="jumprelu", threshold=threshold)
    torch.testing.assert_close(jump.encode(X), before.relu() * (before > threshold))
    topk = Dictionary(site="mlp_out.0", **arrays, activation="topk", k=2)
    kept = topk.encode(X)
    assert int((kept != 0).sum(dim=1).max()) <= 2
    torch.testing.assert_close(kept.max(dim=1).values, before.relu().max(dim=1).values)
    assert (relu.n_features, relu.d_model) == (N, D)


def test_saelens_is_read_as_it_computes(tmp_path: Path) -> None:
    arrays = drawn()
    centred = read_dictionary(write(tmp_path / "a", arrays, NEW))
    assert (centred.site, centred.model, centred.activation) == ("resid_post.3", "tiny", "relu")
    torch.testing.assert_close(centred.encode(X), ((X - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]).relu())
    plain = read_dictionary(write(tmp_path / "b", arrays, OLD | {"apply_b_dec_to_input": False}))
    assert plain.site == "mlp_out.3"
    torch.testing.assert_close(plain.encode(X), (X @ arrays["W_enc"] + arrays["b_enc"]).relu())
    file = tmp_path / "b" / "sae_weights.safetensors"
    torch.testing.assert_close(read_dictionary(file).encode(X), plain.encode(X))
    half = {name: value.bfloat16() for name, value in arrays.items()}
    assert read_dictionary(write(tmp_path / "c", half, NEW)).W_enc.dtype == torch.float32


def test_saelens_jumprelu_and_topk(tmp_path: Path) -> None:
    arrays = drawn()
    threshold = torch.full((N,), 0.5)
    jump = read_dictionary(write(tmp_path / "j", arrays | {"threshold": threshold}, NEW | {"architecture": "jumprelu"}))
    before = (X - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]
    torch.testing.assert_close(jump.encode(X), torch.where(before > 0.5, before, 0.0))
    for place, config in (
        ("k", NEW | {"architecture": "topk", "k": 2}),
        ("o", OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}),
    ):
        topk = read_dictionary(write(tmp_path / place, arrays, config))
        assert topk.activation == "topk" and topk.k == 2
    length = arrays["W_dec"].norm(dim=1)
    scaled = read_dictionary(
        write(tmp_path / "r", arrays, NEW | {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True})
    )
    kept, where = (before * length).topk(2)
    f = torch.zeros_like(before).scatter_(1, where, kept.relu())
    torch.testing.assert_close(scaled.encode(X), f)
    torch.testing.assert_close(scaled.decode(f), (f / length) @ arrays["W_dec"] + arrays["b_dec"])


def test_sparsify(tmp_path: Path) -> None:
    arrays = drawn()
    own = {"encoder.weight": arrays["W_enc"].T, "encoder.bias": arrays["b_enc"]}
    own |= {name: arrays[name] for name in ("W_dec", "b_dec")}
    for name, site in (("layers.5", "resid_post.5"), ("layers.5.mlp", "mlp_out.5")):
        found = read_dictionary(write(tmp_path / name, own, {"k": 2, "num_latents": N}, "sae"))
        assert (found.site, found.k) == (site, 2)
        before = (X - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]
        torch.testing.assert_close(found.encode(X).sum(1), before.relu().topk(2).values.sum(1))
    with pytest.raises(LoadError, match=r"the folder of .* says the dictionary's site"):
        read_dictionary(write(tmp_path / "five", own, {"k": 2}, "sae"))
    with pytest.raises(LoadError, match="transcode 'True' of the dictionary .* is not read"):
        read_dictionary(write(tmp_path / "layers.1", own, {"k": 2, "transcode": True}, "sae"))


def test_controls_keep_what_they_should() -> None:
    one = Dictionary(site="mlp_out.0", **drawn(), activation="jumprelu", threshold=torch.linspace(0, 1, N))
    turned = rotated(one)
    torch.testing.assert_close(turned.W_dec @ turned.W_dec.T, one.W_dec @ one.W_dec.T)
    torch.testing.assert_close(turned.encode(X), one.encode(X))
    assert not torch.allclose(turned.W_dec, one.W_dec, atol=0.1)
    other = shuffled(one)
    torch.testing.assert_close(other.encode(X).sort().values, one.encode(X).sort().values)
    assert not torch.allclose(other.encode(X), one.encode(X))
    torch.testing.assert_close(other.W_dec, one.W_dec)
    torch.testing.assert_close(rotated(one, seed=0).W_dec, turned.W_dec)


@pytest.mark.parametrize(
    ("config", "changed", "sentence"),
    [
        (
            {"architecture": "gated"},
            {},
            "architecture 'gated' of the dictionary .* is not read; read is standard, topk",
        ),
        ({"activation_fn": "tanh-relu"}, {}, "activation 'tanh-relu' of the dictionary"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "normalize_activations 'expected_average_only_in'"),
        ({"reshape_activations": "hook_z"}, {}, "reshape_activations 'hook_z'"),
        (
            {"metadata": {"hook_name": "blocks.1.attn.hook_z"}},
            {},
            "is of 'blocks.1.attn.hook_z'; the sites that are read",
        ),
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out", "hook_head_index": 3}}, {}, "hook_head_index '3'"),
        ({"architecture": "jumprelu"}, {}, "has no threshold; it has W_dec, W_enc, b_dec, b_enc"),
        ({"architecture": "topk"}, {}, "keeps k = None features"),
        ({"architecture": "topk", "k": 99}, {}, "keeps 1 to 6 of them, not 99"),
        ({}, {"W_dec": torch.ones(N, D + 1)}, r"W_dec of the dictionary .* has shape \(6, 5\)"),
        ({}, {"b_dec": torch.ones(D + 1)}, r"b_dec of the dictionary .* has shape \(5,\)"),
        ({}, {"W_enc": torch.ones(N)}, r"does not fit its W_enc of shape \(6,\)"),
        ({}, {"scaling_factor": torch.full((N,), 2.0)}, "scales its output by scaling_factor"),
    ],
)
def test_what_is_not_read_is_named(
    tmp_path: Path, config: dict[str, Any], changed: dict[str, Tensor], sentence: str
) -> None:
    with pytest.raises(LoadError, match=sentence):
        read_dictionary(write(tmp_path, drawn() | changed, NEW | config))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no dictionary .*nosuch; give a folder"):
        read_dictionary(tmp_path / "nosuch")
    with pytest.raises(LoadError, match="holds no dictionary"):
        read_dictionary(tmp_path)
    (tmp_path / "sae.pt").write_bytes(b"x")
    with pytest.raises(LoadError, match="is no safetensors file, and other kinds are not read"):
        read_dictionary(tmp_path / "sae.pt")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"has no cfg.json beside it"):
        read_dictionary(tmp_path)
    (tmp_path / "cfg.json").write_text("[")
    with pytest.raises(LoadError, match="cannot be read as JSON"):
        read_dictionary(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(LoadError, match="is not a whole safetensors file"):
        read_dictionary(tmp_path)
