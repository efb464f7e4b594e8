from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caseback.core.errors import CasebackError
from caseback.evidence import split


def test_halves_of_different_keys():
    first, second = split(range(100), seed=3)
    assert len(first) == len(second) == 50
    assert sorted([*first, *second]) == list(range(100))
    assert [p.tolist() for p in split(range(100), seed=3)] == [first.tolist(), second.tolist()]
    assert split(range(100), seed=4)[0].tolist() != first.tolist()


@given(st.lists(st.integers(0, 20), min_size=12, max_size=80), st.integers(0, 1000))
def test_no_key_in_two_parts(keys, seed):
    try:
        parts = split(keys, shares=(0.5, 0.25, 0.25), seed=seed)
    except CasebackError:
        assert len(set(keys)) < 6 or max(keys.count(k) for k in keys) > len(keys) / 4
        return
    assert sorted(i for p in parts for i in p) == list(range(len(keys)))
    seen = [{keys[i] for i in p} for p in parts]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[2]


def test_shares_are_kept_with_equal_keys_in_pairs():
    parts = split([i // 2 for i in range(200)], shares=(0.7, 0.3), seed=0)
    assert [len(p) for p in parts] == [140, 60]


def test_errors_are_sentences():
    with pytest.raises(CasebackError, match="sum to 1"):
        split("abc", shares=(0.5, 0.6), seed=0)
    with pytest.raises(CasebackError, match="1 different keys cannot fill"):
        split("aaaa", seed=0)
    with pytest.raises(CasebackError, match="0 items"):
        split([], seed=0)
