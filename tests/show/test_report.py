"""One file that needs nothing else, in which hostile text stays text."""

from __future__ import annotations

import errno
import json
import os
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from caseback.core import registry
from caseback.core.errors import CasebackError
from caseback.show import circuit, report

from .synthetic import hostile, payload


class Page(HTMLParser):
    """The tags of a page, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def payload(self) -> Any:
        at = [attrs.get("id") for tag, attrs in self.tags if tag == "script"].index("payload")
        return json.loads(self.scripts[at])

    def meta(self, name: str) -> str:
        found = [attrs["content"] for tag, attrs in self.tags if attrs.get("http-equiv") == name]
        return " ".join(str(found[0]).split())


def static() -> dict[str, str]:
    root = resources.files("caseback.show") / "static"
    found = [*root.iterdir(), *(root / "views").iterdir()]
    return {file.name: file.read_text(encoding="utf-8") for file in found if file.is_file()}


def test_a_full_report_stays_under_five_megabytes() -> None:
    made = payload(20_000)
    assert len(made["edges"]["score"]) == 20_000
    assert len(report.page(made).encode()) < 1_500_000
    assert len(report.fragment(made).encode()) < 1_500_000


def test_the_payload_reads_back_from_the_page() -> None:
    made = payload(300)
    assert Page(report.page(made)).payload == made


@pytest.mark.parametrize("text", hostile())
def test_hostile_text_reaches_the_page_as_data_only(text: str) -> None:
    made = payload(50, title=text, notes=[text], settings={text: text})
    made["prompts"][0]["tokens"][2] = text
    made["task"]["spans"][2] = text
    quiet, loud = Page(report.page(payload(50))), Page(report.page(made))
    assert [tag for tag, _ in loud.tags] == [tag for tag, _ in quiet.tags]
    assert loud.payload["notes"] == [text]
    assert loud.payload["prompts"][0]["tokens"][2] == text
    title = re.search("<title>(.*?)</title>", report.page(made), re.DOTALL)
    assert title is not None
    assert all(c.isprintable() for c in title[1])


def test_nothing_is_fetched_and_only_our_scripts_run() -> None:
    page = Page(report.page(payload(50)))
    policy = page.meta("Content-Security-Policy")
    nonce = re.search(r"script-src 'nonce-([0-9a-f]{32})'; ", policy)
    assert nonce is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    for tag, attrs in page.tags:
        assert "src" not in attrs
        assert tag != "link" or attrs["href"] == "data:,"
        if tag == "style" or (tag == "script" and attrs["type"] != "application/json"):
            assert attrs["nonce"] == nonce[1]


def test_the_nonce_follows_the_content() -> None:
    page = [report.page(payload(50, title=title)) for title in ("a", "a", "b")]
    assert page[0] == page[1]
    nonces = [set(re.findall(r'nonce="([0-9a-f]+)"', text)) for text in page]
    assert len(nonces[0]) == 1
    assert nonces[0] != nonces[2]


def test_modules_import_one_another_by_bare_names_that_exist() -> None:
    files = static()
    script = Page(report.page(payload(50))).scripts[0]
    known = set(json.loads(script)["imports"])
    assert len(known) == sum(name.endswith(".js") for name in files)
    used = {name for text in files.values() for name in re.findall(r'from "([^"]+)"', text)}
    assert used <= known
    assert "caseback/views/circuit" in known


def test_no_module_turns_strings_into_code_or_reaches_out() -> None:
    for name, text in static().items():
        text = text.replace("http://www.w3.org/2000/svg", "")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "Function(",
            "http:",
            "https:",
            "fetch(",
            "url(",
        ):
            assert word not in text, f"{name} has {word}"


def test_a_fragment_is_the_page_in_a_frame() -> None:
    made = payload(50, title='it\'s <b>"mine"</b> &amp;')
    text = report.fragment(made)
    (frame,) = Page(text).tags
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] == "allow-scripts"
    assert frame[1]["srcdoc"] == report.page(made)


def test_the_registry_offers_what_a_notebook_and_a_record_show() -> None:
    assert registry.get("view", "circuit") is circuit.notebook
    assert registry.get("report", "circuit") is circuit.report


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    made = payload(50)
    assert report.write(made, path) == path
    before = path.read_bytes()
    assert before == report.page(made).encode()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CasebackError, match="disk is full"):
        report.write(payload(60), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_invalid_payload_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CasebackError, match="version"):
        report.write({**payload(50), "version": 7}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
