"""Provenance: equal content gives an equal hash, different content another, and nothing heavy is imported for it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caseback.core import cache
from caseback.core.provenance import (
    Source,
    environment,
    peak_memory_mb,
    sha256_array,
    sha256_file,
    sha256_json,
    versions,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_known_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": 1, "a": [None, "é"]}) == hashlib.sha256('{"a":[null,"é"],"b":1}'.encode()).hexdigest()


@given(value=JSON)
def test_json_hashes_do_not_depend_on_order(value: object) -> None:
    assert sha256_json({"a": value, "b": 1}) == sha256_json({"b": 1, "a": value})
    assert sha256_json(json.loads(json.dumps(value))) == sha256_json(value)


def test_nan_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        sha256_json({"x": float("nan")})


def test_an_array_hash_sees_values_shape_and_dtype_but_not_layout() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert sha256_array(array) == sha256_array(np.asfortranarray(array))
    assert sha256_array(array) == sha256_array(array.astype(">f8"))
    others = [
        array.reshape(4, 3),
        array.astype("f4"),
        array + 1,
        array[:2],
        np.array(1.0),
        np.zeros((0, 3)),
    ]
    assert len({sha256_array(other) for other in [array, *others]}) == 7


def test_a_source_hash_is_that_of_its_files() -> None:
    assert Source("a", None, {"x": "1", "y": "2"}).sha256 == Source("b", "main", {"y": "2", "x": "1"}).sha256


def test_versions_name_the_checkout_and_import_nothing() -> None:
    assert {"python", "caseback", "torch", "transformers", "numpy"} <= set(versions())
    assert environment()["machine"]["cpus"] >= 1
    assert peak_memory_mb() > 1
    code = "import sys; from caseback.core.provenance import environment; environment(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_peak_memory_is_not_that_of_the_parent() -> None:
    held = np.ones(25_000_000)  # 200 MB
    code = "from caseback.core.provenance import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < held.nbytes / 1e6 < peak_memory_mb()


@pytest.mark.parametrize("content", [None, b"\xff", b"[]", b'{"x": 1}'])
def test_a_damaged_store_of_hashes_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("CASEBACK_CACHE", str(tmp_path / "cache"))
    cache.folder().mkdir()
    if content is not None:
        (cache.folder() / "hashes.json").write_bytes(content)
    (tmp_path / "file").write_bytes(b"abc")
    assert cache.file_hash(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
