"""The table resolves the options of a configuration, and a family without a row is guessed or refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from caseback.core.errors import FamilyError
from caseback.model.check import check, family_for
from caseback.model.families import FAMILIES, Family, family_of
from caseback.model.hooks import module_at
from caseback.model.model import Model
from caseback.zoo.tiny import TINY, tiny

OPTIONS: dict[str, dict[str, object]] = {
    "gpt_neox": {"parallel": True},
    "gpt_neox:sequential": {"parallel": False},
    "stablelm": {"parallel": False, "mlp_norm": "post_attention_layernorm"},
    "stablelm:parallel": {"parallel": True, "mlp_norm": "input_layernorm"},
    "gpt_bigcode": {"fused": "qkv", "kv_heads": 1},
    "gpt_bigcode:heads": {"fused": "heads", "kv_heads": 4},
    "falcon": {"fused": "groups", "parallel": True, "attn_norm": "ln_attn", "mlp_norm": "ln_mlp"},
    "falcon:7b": {"fused": "qkv", "parallel": True, "mlp_norm": "input_layernorm", "kv_heads": 1},
    "falcon:rw": {"fused": "heads", "parallel": False, "mlp_norm": "post_attention_layernorm"},
    "falcon:11b": {"fused": "groups", "parallel": True, "mlp_norm": "input_layernorm", "kv_heads": 2},
    "gemma4_text": {"writes": FAMILIES["gemma4_text"].writes},
    "gemma4_text:plain": {"writes": FAMILIES["gemma4_text"].writes[:2]},
    "gemma4_text:shared": {"gradients": False},
    "hyperclovax": {"writes": ("post_norm1", "post_norm2")},
    "hyperclovax:plain": {"writes": ("self_attn", "mlp")},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_configuration_decide(name: str) -> None:
    row = family_of(tiny(name).config)
    assert {key: getattr(row, key) for key in OPTIONS[name]} == OPTIONS[name]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("opt", "do_layer_norm_before", False),
        ("opt", "word_embed_proj_dim", 32),
        ("bloom", "apply_residual_connection_post_layernorm", True),
    ],
)
def test_an_option_that_breaks_the_stream_is_refused(kind: str, option: str, value: object) -> None:
    with pytest.raises(FamilyError, match=rf"^a {kind} model with {option}={value!r} is not supported: .+$"):
        family_of(CONFIG_MAPPING[kind](**{option: value}))


def test_a_row_gives_a_reason_exactly_when_something_is_missing() -> None:
    for row in FAMILIES.values():
        whole = row.attention == "registered" and row.plain_heads and row.gradients and row.circuits
        assert bool(row.why_not) != whole, row.name
        assert not row.circuits or whole, row.name
        assert not row.why_not.endswith("."), row.name


def test_an_unknown_type_names_the_ones_there_are() -> None:
    with pytest.raises(FamilyError, match=r"no family row for model type 'mamba'; there are: afmoe, .*llama"):
        family_of(CONFIG_MAPPING["mamba"]())


def test_an_unknown_tiny_model_names_the_ones_there_are() -> None:
    with pytest.raises(FamilyError, match="there is no tiny model 'lama'; there are: .*llama"):
        tiny("lama")


def test_a_tiny_model_is_the_same_for_the_same_seed() -> None:
    one, same, other = (tiny("qwen3", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all((one[key] == same[key]).all() for key in one)
    assert any((one[key] != other[key]).any() for key in one)


# --- guessing --------------------------------------------------------------------------------------------------------

REFUSED = {
    "own": "its attention cannot be guessed: .* does not take a registered attention",
    "hybrid": "its attention cannot be guessed: nothing in block 0 calls the attention interface",
    "gemma4": "its writers cannot be guessed: no two modules of block 0 add up",
}


def _refusal(row: Family) -> str | None:
    if row.attention == "own":
        return REFUSED["own"]
    if "not softmax attention" in row.why_not:
        return REFUSED["hybrid"]
    return REFUSED["gemma4"] if row.name == "gemma4_text" else None


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_family_whose_row_is_hidden_is_guessed_or_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny(name)
    row = family_of(hf.config)
    monkeypatch.delitem(FAMILIES, row.name)
    if refusal := _refusal(row):
        with pytest.raises(
            FamilyError, match=f"^model type '{row.name}' has no row in the table of families, and {refusal}"
        ):
            family_for(hf)
        return
    guessed = family_for(hf)  # held to the identities there
    assert guessed.guessed
    for part in ("embed", "blocks", "final_norm", "unembed"):
        assert module_at(hf, getattr(guessed, part)) is module_at(hf, getattr(row, part))
    same = ("attn", "attn_norm", "o_proj", "mlp", "mlp_norm", "writes", "parallel", "write_scale")
    same += ("logit_multiplier", "logit_divisor", "logit_softcap", "plain_heads", "circuits")
    assert {key: getattr(guessed, key) for key in same} == {key: getattr(row, key) for key in same}
    if row.circuits:
        assert (guessed.qkv, guessed.fused) == (row.qkv, row.fused)


def test_a_type_never_seen_is_guessed_and_used() -> None:
    config = CONFIG_MAPPING["ctrl"](vocab_size=64, n_embd=48, n_head=4, n_layer=2, dff=40, n_positions=64)
    model = Model(AutoModelForCausalLM.from_config(config))
    assert model.family.guessed
    assert (model.family.attn, model.family.down_proj) == ("multi_head_attention", "ffn.2")


def test_a_guess_that_fails_an_identity_is_refused_with_the_identity() -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = CONFIG_MAPPING["granite_swa"](
        **sizes, num_key_value_heads=2, layer_types=["full_attention"] * 2, layer_rope_theta=[1e4] * 2
    )
    hf = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        FamilyError,
        match=r"^model type 'granite_swa' has no row .* a guessed one fails these identities: values \(error",
    ):
        Model(hf)


def test_the_language_model_of_a_model_that_also_sees_has_its_own_row() -> None:
    text = CONFIG_MAPPING["gemma4_text"](**tiny("gemma4_text").config.to_dict())
    hf = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gemma4"](text_config=text, vision_config=None))
    model = Model(hf)
    assert model.family.name == "gemma4_text"
    assert module_at(hf, model.family.blocks) is hf.model.language_model.layers
    assert check(model).passed


def test_a_row_whose_module_is_missing_says_so() -> None:
    with pytest.raises(FamilyError, match="has no module 'model.blocks': the row of family 'llama' does not fit it"):
        Model(tiny("llama"), family=replace(FAMILIES["llama"], blocks="model.blocks"))
