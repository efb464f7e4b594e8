"""Site names: the grammar both ways, what a pattern selects, and one sentence for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caseback.core.errors import SiteError
from caseback.model.sites import NAMES, Site, expand, parse

LAYERS = {name: (0, 1, 2) for name, kind in NAMES.items() if kind.layered} | {"resid_mid": (), "z": (1, 2), "q": (0, 2)}
LAYERS |= {"resid_final": (), "final_norm_out": ()}
HEADS = {"query": 4, "kv": 2}


@st.composite
def sites(draw: st.DrawFn) -> tuple[str, int | None, int | None, str | None]:
    name = draw(st.sampled_from(sorted(NAMES)))
    kind = NAMES[name]
    layer = draw(st.integers(0, 99)) if kind.layered else None
    head = draw(st.none() | st.integers(0, 99)) if kind.heads else None
    positions = st.sampled_from(["end", "3", "-1", "subject", "subject[0]", "the 2nd name[-1]", "a.b", "*"])
    return name, layer, head, draw(st.none() | positions)


@given(sites())
def test_what_a_site_prints_is_what_it_is_parsed_from(parts: tuple[str, int | None, int | None, str | None]) -> None:
    site = Site(*parts)
    assert parse(str(site)) == (site, False, False)
    assert parse(f" {site} ") == (site, False, False)
    assert parse(site) == (site, False, False)


def selected(pattern: str | Site) -> list[str]:
    return [str(site) for site in expand(pattern, layers=LAYERS, heads=HEADS)]


def test_a_pattern_selects_layers_and_heads() -> None:
    assert selected("resid_pre.1") == ["resid_pre.1"]
    assert selected("z.*") == ["z.1", "z.2"]
    assert selected("z.*.3@end") == ["z.1.3@end", "z.2.3@end"]
    assert selected("k.0.*") == ["k.0.0", "k.0.1"]
    assert selected("q.*.*@-1")[:5] == ["q.0.0@-1", "q.0.1@-1", "q.0.2@-1", "q.0.3@-1", "q.2.0@-1"]
    assert selected("resid_final@end") == ["resid_final@end"]
    assert selected(Site("pattern", 2, 1)) == ["pattern.2.1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not of the form name.layer"),
        ("z.9.6.1", "site 'z.9.6.1' is not of the form name.layer[.head][@position], as in 'z.9.6@end'"),
        ("z.-1", "is not of the form"),
        ("z.1@", "is not of the form"),
        ("resid.3", "there is no site named 'resid' (asked for 'resid.3'); there are: resid_pre, attn_in"),
        ("z", "site 'z' lacks its layer: write 'z.3', or 'z.*' for every layer"),
        ("resid_final.2", "resid_final has no layers; write 'resid_final'"),
        ("resid_pre.1.2", "resid_pre has no heads; sites with heads are q, k, v, pattern, z"),
        ("resid_mid.0", "this model has no site 'resid_mid' (asked for 'resid_mid.0'); it has: resid_pre"),
        ("resid_pre.3", "site 'resid_pre.3': this model has resid_pre at layers 0 to 2"),
        ("q.1", "site 'q.1': this model has q at layers 0, 2"),
        ("z.1.4", "site 'z.1.4': z has 4 heads, 0 to 3"),
        ("k.1.2", "site 'k.1.2': k has 2 KV heads, 0 to 1"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(SiteError) as error:
        selected(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_a_site_that_has_no_layers_says_so() -> None:
    with pytest.raises(SiteError, match="this model has no site 'final_norm_out'"):
        expand("final_norm_out", layers={}, heads=HEADS)


def test_a_position_is_an_index_the_end_or_a_span() -> None:
    assert Site("z", 1).span is None
    assert Site("z", 1, position="end").span is None
    assert Site("z", 1, position="-12").span is None
    assert Site("z", 1, position="IO").span == ("IO", None)
    assert Site("z", 1, position="IO[-2]").span == ("IO", -2)
    assert Site("z", 1, position="end[0]").span == ("end", 0)


def test_names_in_another_tool() -> None:
    assert Site("resid_pre", 4).transformer_lens == "blocks.4.hook_resid_pre"
    assert Site("pattern", 0, 3, "end").transformer_lens == "blocks.0.attn.hook_pattern"
    assert Site("final_norm_out").transformer_lens == "ln_final.hook_normalized"
    assert Site("z", 3, 1, "end").tap == ("z", 3)
