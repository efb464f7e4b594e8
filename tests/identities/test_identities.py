"""Every family × every identity, on tiny random models; what a row declares is what is measured; a wrong row is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from caseback.core import registry
from caseback.core.errors import CasebackError, FamilyError
from caseback.model.check import IDENTITIES, Identity, Report, check, family_for
from caseback.model.families import FAMILIES, Family, family_of
from caseback.model.model import Model
from caseback.zoo.tiny import TINY, tiny

SKIPS: dict[str, Callable[[Family], bool]] = {
    "values": lambda row: row.attention == "own" or not row.plain_heads,
    "gradient": lambda row: row.attention == "own" or not row.gradients,
    "attention": lambda row: row.attention == "own",
    "left": lambda row: not row.left_padding,
    "circuits": lambda row: not row.circuits,
}
"""Identity → the rows that declare they do not have it."""


@pytest.fixture(scope="module", params=sorted(TINY))
def report(request: pytest.FixtureRequest) -> Report:
    return check(Model(tiny(request.param)))


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_holds_or_the_row_says_why_not(report: Report, name: str) -> None:
    identity = report[name]
    declared_missing = SKIPS.get(name, lambda row: False)(report.family)
    assert bool(identity.skipped) == declared_missing
    assert identity.passed, str(identity)
    assert identity.error is None or identity.error < 1e-5, str(identity)


def test_what_other_rooms_claim_holds(report: Report) -> None:
    for identity in report.identities:
        if identity.name not in IDENTITIES:
            assert identity.passed, str(identity)
            assert bool(identity.skipped) == (not report.family.circuits)


def test_the_report_as_text_names_every_identity(report: Report) -> None:
    text = str(report)
    assert all(identity.name in text for identity in report.identities)
    assert "FAIL" not in text


def test_every_row_has_a_tiny_model() -> None:
    assert {name.partition(":")[0] for name in TINY} == set(FAMILIES)
    assert {tiny(name).config.model_type for name in TINY} == set(FAMILIES)


# --- what is declared missing is missing -----------------------------------------------------------------------------


def _with(name: str, **changes: Any) -> Report:
    hf = tiny(name)
    return check(Model(hf, family=replace(family_of(hf.config), **changes)))


def _rows(declared: Callable[[Family], bool]) -> list[str]:
    return sorted(name for name, row in FAMILIES.items() if declared(row))


@pytest.mark.parametrize("name", _rows(lambda row: not row.plain_heads))
def test_z_is_not_pattern_times_v_where_a_row_says_so(name: str) -> None:
    assert not _with(name, plain_heads=True)["values"].passed


@pytest.mark.parametrize(
    "name", [*_rows(lambda row: not row.gradients and row.attention == "registered"), "gemma4_text:shared"]
)
def test_input_gradients_do_not_add_up_where_a_row_says_so(name: str) -> None:
    assert not _with(name, gradients=True)["gradient"].passed


@pytest.mark.parametrize("name", _rows(lambda row: row.attention == "own"))
def test_a_family_with_its_own_attention_does_not_take_the_registered_one(name: str) -> None:
    with pytest.raises(FamilyError, match="does not take a registered attention"):
        _with(name, attention="registered")


# --- a wrong row is caught -------------------------------------------------------------------------------------------

WRONG = [
    ("llama", "readers", {"parallel": True}),
    ("llama", "readers", {"attn_norm": None}),
    ("llama", "readers", {"mlp_norm": "input_layernorm"}),
    ("llama", "readers", {"down_proj": "mlp.gate_proj"}),
    ("llama", "residual", {"writes": ("self_attn", "input_layernorm")}),
    ("llama", "logits", {"final_norm": "model.layers.1.input_layernorm"}),
    ("llama", "heads", {"o_proj": "q_proj"}),
    ("phi", "readers", {"parallel": False}),
    ("olmo2", "residual", {"writes": ("self_attn", "mlp")}),
    ("gemma2", "residual", {"writes": ("self_attn", "mlp")}),
    ("gemma2", "logits", {"logit_softcap": None}),
    ("granite", "residual", {"write_scale": None}),
    ("granite", "logits", {"logit_divisor": None}),
    ("cohere", "logits", {"logit_multiplier": None}),
    ("gemma4_text", "residual", {"post_scale": None}),
    ("gemma4_text", "residual", {"writes": ("post_attention_layernorm", "post_feedforward_layernorm")}),
    ("gpt_bigcode", "sites", {"kv_heads": 4}),
]


@pytest.mark.parametrize(("name", "identity", "changes"), WRONG, ids=[f"{n}-{next(iter(c))}" for n, _, c in WRONG])
def test_a_wrong_row_fails(name: str, identity: str, changes: dict[str, Any]) -> None:
    try:
        report = _with(name, **changes)
    except CasebackError:
        return
    assert not report[identity].passed, f"{identity} holds although {changes}"


def test_no_hook_and_no_attention_switch_stays_behind() -> None:
    hf = tiny("gemma2")
    implementation = hf.config._attn_implementation
    check(Model(hf))
    assert hf.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in hf.modules())
    assert all(p.grad is None for p in hf.parameters())


def test_the_identities_hold_on_a_model_of_half_precision_at_its_own_round_off() -> None:
    report = check(Model(tiny("llama").to(torch.bfloat16)))
    assert all(report[name].passed for name in IDENTITIES)


def test_what_another_room_cannot_try_fails_with_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Model, *, seed: int) -> list[Identity]:
        raise FamilyError("block 1 has no norm")

    monkeypatch.setattr(registry, "names", lambda kind: ("circuits",))
    monkeypatch.setattr(registry, "get", lambda kind, name: refuse)
    report = check(Model(tiny("llama")))
    assert [identity.name for identity in report.failed] == ["circuits"]
    assert "cannot be tried: block 1 has no norm" in str(report)


def test_a_guessed_row_without_exact_circuits_is_used_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    off = Identity(name="circuit node", equation="", error=1.0, tolerance=1e-4)
    monkeypatch.setattr(registry, "names", lambda kind: ("circuits",))
    monkeypatch.setattr(registry, "get", lambda kind, name: lambda model, *, seed: [off])
    monkeypatch.delitem(FAMILIES, "qwen2")
    row = family_for(tiny("qwen2"))
    assert (row.circuits, row.why_not) == (False, "its row is guessed, and circuit node fails")
