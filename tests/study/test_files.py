"""Whole or not at all, and known for damaged when damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caseback.core.errors import StudyError
from caseback.study import Checkpoint, files
from caseback.study.files import read_checkpoint, read_json, write, write_checkpoint, write_json

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
STATE = Checkpoint({"x": np.arange(12.0).reshape(3, 4), "flag": np.array(True)}, {"seen": [1, 2], "why": "é"})


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        a.data == b.data
        and a.arrays.keys() == b.arrays.keys()
        and all(
            a.arrays[k].dtype == b.arrays[k].dtype and np.array_equal(a.arrays[k], b.arrays[k], equal_nan=True)
            if a.arrays[k].dtype.kind == "f"
            else a.arrays[k].dtype == b.arrays[k].dtype and np.array_equal(a.arrays[k], b.arrays[k])
            for k in a.arrays
        )
    )


@in_one_folder
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        hnp.arrays(
            st.sampled_from(["f2", "f4", "f8", "i8", "i4", "u1", "?"]),
            hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4),
        ),
        max_size=3,
    ),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())),
)
def test_a_checkpoint_reads_as_it_was_returned(tmp_path, arrays, data):
    path = tmp_path / "s.safetensors"
    saved = write_checkpoint(path, Checkpoint(arrays, data), done=1, steps=2, owner="me")
    first = path.read_bytes()
    read = read_checkpoint(path, owner="me")
    assert equal(read.state, saved.state)
    assert equal(read.state, Checkpoint(arrays, data))
    assert (read.done, read.steps, read.sha256) == (1, 2, saved.sha256)
    write_checkpoint(path, read.state, done=1, steps=2, owner="me")
    assert path.read_bytes() == first  # same state, same bytes


def test_arrays_come_back_in_the_order_they_were_returned_in(tmp_path):
    given = Checkpoint({"b": np.zeros(3), "a": np.zeros(2, dtype=np.int8), "c": np.zeros(1)})
    saved = write_checkpoint(tmp_path / "s", given, done=1, steps=1, owner="me")
    assert list(saved.state.arrays) == list(read_checkpoint(tmp_path / "s", owner="me").state.arrays) == ["a", "b", "c"]


def test_views_and_transposes_are_saved_as_they_look(tmp_path):
    x = np.arange(24.0).reshape(2, 3, 4)
    views = Checkpoint({"t": x.T, "s": x[:, ::2], "r": x[::-1]})
    write_checkpoint(tmp_path / "s", views, done=1, steps=1, owner="me")
    assert equal(read_checkpoint(tmp_path / "s", owner="me").state, views)
    read_checkpoint(tmp_path / "s", owner="me").state.arrays["t"][0] = 0  # and what is read may be written to


@in_one_folder
@given(st.data())
def test_any_damage_to_a_checkpoint_is_seen(tmp_path, data):
    path = tmp_path / "s.safetensors"
    saved = write_checkpoint(path, STATE, done=1, steps=1, owner="me")
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        read = read_checkpoint(path, owner="me")
    except StudyError:
        return
    else:
        assert equal(read.state, saved.state)  # white space of the header may change without harm


@in_one_folder
@given(st.binary(max_size=300))
def test_garbage_is_no_checkpoint_and_no_json(tmp_path, content):
    path = tmp_path / "garbage"
    path.write_bytes(content)
    for reader in (lambda: read_checkpoint(path, owner="me"), lambda: read_json(path)):
        with pytest.raises(StudyError):
            reader()


def test_sealed_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1.5, float("nan")], "name": "\ud800 broken \x1b[31m"})
    assert read_json(path) == {"b": [1.5, None], "name": "\ud800 broken \x1b[31m"}
    body = json.loads(path.read_text())
    assert list(body)[0] == "format"
    assert body["format"] == 1
    path.write_text(json.dumps({**body, "b": [2.5, None]}))
    with pytest.raises(StudyError, match="does not match its SHA-256"):
        read_json(path)
    path.write_text(json.dumps({**body, "format": 2}))
    with pytest.raises(StudyError, match="written by a newer caseback .format 2.*upgrade"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(StudyError, match="damaged"):
        read_json(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_another_runs_checkpoint_is_refused(tmp_path):
    write_checkpoint(tmp_path / "s", STATE, done=1, steps=1, owner="me")
    with pytest.raises(StudyError, match="belongs to another run"):
        read_checkpoint(tmp_path / "s", owner="you")


def test_text_arrays_are_refused(tmp_path):
    with pytest.raises(TypeError, match="text goes into its data"):
        write_checkpoint(tmp_path / "s", Checkpoint({"x": np.array(["a"])}), done=1, steps=1, owner="me")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "--study DIR"), (errno.EIO, "could not be written")],
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, number, sentence, call):
    path: Path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, refuse)
        with pytest.raises(StudyError, match=sentence):
            write(path, b"new")
    assert read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]
