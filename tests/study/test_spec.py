from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caseback.core.errors import StudyError
from caseback.core.provenance import sha256_json
from caseback.study import Spec, plain


@dataclass(frozen=True, kw_only=True)
class Config:
    n: int = 3
    sizes: tuple[float, ...] = (0.1, 0.5)
    nested: tuple[tuple[str, int], ...] = (("a", 1),)
    note: str | None = None


def test_the_config_comes_back():
    spec = Spec.of("toy", Config(note="x"), task="t")
    assert spec.params == {"n": 3, "sizes": [0.1, 0.5], "nested": [["a", 1]], "note": "x"}
    assert spec.config(Config) == Config(note="x")


def test_a_nested_config_comes_back_as_a_mapping():
    spec = Spec(method="toy", params={"inner": {"sizes": [1, 2]}}, task="t")
    assert spec.config(dict) == {"inner": {"sizes": (1, 2)}}


def test_what_counts_in_the_digest():
    model = {"id": "org/m", "revision": "abc", "files": {"m.safetensors": "00", "tokenizer.json": "11"}}
    one = Spec.of("toy", Config(), task="ioi", model=model, data="d", passed={"n": "3"})
    same = Spec.of("toy", Config(), task="other name", model={**model, "id": "copy/of/m", "revision": None}, data="d")
    assert one.digest == same.digest
    assert len(one.digest) == 64
    others = [
        Spec.of("other", Config(), task="ioi", model=model, data="d"),
        Spec.of("toy", Config(n=4), task="ioi", model=model, data="d"),
        Spec.of("toy", Config(), task="ioi", model={**model, "files": {"m.safetensors": "01"}}, data="d"),
        Spec.of("toy", Config(), task="ioi", model={"id": "org/m", "revision": "abc"}, data="d"),
        Spec.of("toy", Config(), task="ioi", model={"id": "org/m", "revision": "abd"}, data="d"),
        Spec.of("toy", Config(), task="ioi", model=model, data="e"),
    ]
    assert len({spec.digest for spec in [one, *others]}) == 7


def test_the_digest_is_pinned():
    # It names runs on disk: a change of this value makes every study forget what it has done.
    spec = Spec.of("toy", Config(), task="t", model={"id": "m"}, data="d")
    assert spec.digest == "241e13de1602b390c9b3dd8e65ff637c529df3cc75a07bafed8970afa0c50489"


def test_plain_is_json():
    value = {
        "f": float("nan"),
        "i": np.int64(3),
        "x": np.float32(0.5),
        "a": np.array([[1.0, np.inf]]),
        "p": Path("a/b"),
        "c": Config(),
        "b": np.bool_(True),
        7: None,
    }
    got = plain(value)
    assert got["f"] is None
    assert got["a"] == [[1.0, None]]
    assert got["b"] is True
    assert got["7"] is None
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    with pytest.raises(TypeError, match="has no place in a record"):
        plain({"x": object()})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_json_comes_back_with_the_same_hash(value):
    once = plain(value)
    assert sha256_json(json.loads(json.dumps(once))) == sha256_json(once)


def test_parameters_of_another_version_are_refused():
    spec = Spec(method="toy", params={"n": 3, "gone": 1}, task="t")
    with pytest.raises(StudyError, match="do not fit this version of caseback.*gone"):
        spec.config(Config)
