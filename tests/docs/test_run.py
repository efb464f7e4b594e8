"""The documents do what they say: every page's code runs, in order, and prints what stands under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import blocks, carry_out, pages

RUN = [page for page in pages() if any(block.language in ("python", "console") for block in blocks(page))]


@pytest.mark.default_model
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    carry_out(page, tmp_path)


def test_little_is_left_out() -> None:
    """A block that is not run says why, and the tutorial's are few."""
    skipped = {page.stem: sum(block.skipped for block in blocks(page)) for page in RUN}
    assert skipped["tutorial"] <= 2
    assert sum(skipped.values()) <= 12
