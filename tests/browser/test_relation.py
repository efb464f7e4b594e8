"""The explorer of a relation in a browser: a real run of a model that knows one relation, in the application and as a file,
thousands of invented samples, hostile words, by keyboard, narrow, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caseback.relations.judge import JudgeConfig
from caseback.relations.relation import write_relation
from caseback.show import casebook, report
from caseback.study import Study
from caseback.study.relation import RELATION, RelationConfig

from ..relations.small import affine_of, relation_of
from ..study.looking import look
from .test_view import HOSTILE, NARROW, SCREENSHOTS, WIDE, App, Open, drawn, open_page, serving, until

pytestmark = pytest.mark.browser
__all__ = ["open_page"]

MANY = 5_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    study = Study(tmp_path_factory.mktemp("casebook"))
    zoo = affine_of()
    for seed in range(2):
        friend = study.path / "friend.json"
        write_relation(relation_of(zoo), friend)
        config = RelationConfig(relation=str(friend), seed=seed, judge=JudgeConfig(pairs=12))
        look(study, RELATION, config, zoo.model)
    with serving(study, Path()) as made:
        yield made


def invented(payload: dict[str, Any], n: int = MANY, *, word: str = "") -> dict[str, Any]:
    """The payload with n samples, every third of which the operator misses."""
    hits = [i % 3 > 0 for i in range(n)]
    held = {name: [values[0]] * n for name, values in payload["samples"]["held"].items()}
    tops = [[[f" {word}object{i}", 0.5], [" other", 0.25], ["", 1e-6]] for i in range(n)]
    samples = {
        "subject": [f"{word}subject {i}" for i in range(n)],
        "object": [f"{word}object {i % 7}" for i in range(n)],
        "model": [f" {word}object{i % 7}" for i in range(n)],
        "operator": [f" {word}object{i % 7}" if hit else " other" for i, hit in enumerate(hits)],
        "hit": hits,
        "held": held,
        "at_layer": [[hit, True, False] for hit in hits],
        "tops": {"model": tops, "operator": tops},
    }
    return {**payload, "samples": samples, "title": f"Relation {word}", "claim": f"A claim {word}"}


@pytest.fixture
def open_file(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Writes a payload's report and opens it from disk; nothing may be said on the console, nothing asked of a server, and
    no text may have become anything else."""
    pages, said = [], []

    def open_(payload: dict[str, Any], where: str = "", *, size: tuple[int, int] = WIDE, **context: Any) -> Any:
        path = report.write(payload, tmp_path / f"{len(pages)}.html")
        page = browser.new_page(
            viewport=dict(zip(("width", "height"), size, strict=True)), reduced_motion="reduce", **context
        )
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto(path.as_uri() + where)
        page.wait_for_selector(".samples tbody tr")
        return page

    yield open_
    for page in pages:
        assert page.title() != "owned"
        assert page.locator("img").count() == 0
        page.close()
    assert said == []


def payload_of(app: App) -> dict[str, Any]:
    return casebook.payload_of(app.study, app.study.ids()[0])


def subjects(page: Any) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('.samples tbody th')].map((cell) => cell.textContent)"
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_run_is_drawn_and_fits(app: App, open_page: Open, size: tuple[int, int], scheme: str) -> None:
    page = open_page(f"/run/{app.study.ids()[0]}#sample=3", ".sample-panel h3", size=size, color_scheme=scheme)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".series.own .band").count() == 1  # the operator's interval
    assert page.locator(".series .curve").count() >= 5
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"relation-{size[0]}-{scheme}.png", full_page=True)


def test_the_page_says_what_the_record_has(app: App, open_page: Open) -> None:
    record = app.study.find(app.study.ids()[0])
    split = record.stage("split-0")
    page = open_page(f"/run/{record.id}", ".samples tbody tr")
    assert subjects(page) == [row[0] for row in split.data["said"]]
    assert page.inner_text(".figures dd >> nth=0") == f"{split.data['chosen']['layer']} of 3"
    page.click(".samples tbody tr >> nth=4")
    page.wait_for_selector(".tops")
    subject, object, mine, its = split.data["said"][4]
    panel = page.inner_text(".sample-panel")
    assert all(text.strip() in panel for text in (subject, object, mine, its))
    tokens = page.locator(".tops ol >> nth=0").locator(".word").all_inner_texts()
    assert [text for text, _ in split.data["tops"]["model"][4]] == tokens and tokens[0] == mine
    assert page.locator(".ladder i").count() == len(split.arrays["by_layer"])
    assert page.locator(".ladder .full").count() == int(split.arrays["at_layer"][:, 4].sum())
    until(page, lambda: "sample=4" in page.url)


def test_thousands_of_samples_are_searched_sorted_and_paged(app: App, open_file: Open) -> None:
    page = open_file(invented(payload_of(app)))
    assert len(subjects(page)) == 100
    assert page.evaluate("document.querySelectorAll('*').length") < 3_000
    fits = [i for i in range(MANY) if "49" in str(i)]
    page.fill("#sample-search", "subject 49")
    until(page, lambda: f"{len(fits)} of 5,000" in page.inner_text(".explorer-bar") and "find=subject" in page.url)
    page.click(".explorer-bar button:has-text('misses')")
    misses = [f"subject {i}" for i in fits if i % 3 == 0]
    until(page, lambda: subjects(page) == misses and "show=miss" in page.url)
    assert page.locator(".samples .sign.hit").count() == 0
    page.fill("#sample-search", "")
    page.click(".samples thead button:has-text('subject')")
    page.click(".samples thead button:has-text('subject')")
    until(page, lambda: subjects(page)[0] == "subject 4998" and "down=true" in page.url)
    page.click(".turner button:has-text('on')")
    until(page, lambda: "101 to 200 of 1,667" in page.inner_text(".turner"))
    page.fill("#sample-search", "nosuchword")
    until(page, lambda: "No sample is like this" in page.inner_text(".explorer-bar") and not subjects(page))
    again = open_file(invented(payload_of(app)), "#show=miss&find=subject+49&sample=4902")
    assert subjects(again) == misses
    assert "subject 4902" in again.inner_text(".sample-panel h3")
    assert again.locator("tr.chosen").count() == 1
    for bad in ("#sample=5000", "#sample=x", "#page=0&sort=nosuch&show=none"):
        assert len(subjects(open_file(invented(payload_of(app)), bad))) == 100


def test_the_keyboard_walks_the_samples_and_leaves_step_by_step(app: App, open_page: Open) -> None:
    page = open_page(f"/run/{app.study.ids()[0]}", ".samples tbody tr")
    page.focus("#sample-search")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('tr').dataset.sample") == "2"
    assert page.inner_text(".sample-panel h3") == subjects(page)[2]
    page.keyboard.press("End")
    assert page.inner_text(".sample-panel h3") == subjects(page)[-1]
    assert page.locator(".samples button[tabindex='0']").count() == 1
    until(page, lambda: "sample=" in page.url)
    page.keyboard.press("Escape")
    until(page, lambda: "sample=" not in page.url)
    assert page.locator(".sample-panel h3").count() == 0
    page.keyboard.press("Escape")
    page.wait_for_selector("tr[data-run]")


def test_hostile_words_are_only_text(app: App, open_file: Open) -> None:
    page = open_file(invented(payload_of(app), 200, word=HOSTILE), "#sample=1", size=NARROW)
    for place in (".samples tbody", ".sample-panel", ".claim"):
        text = page.inner_text(place)
        assert "<img src=x" in text and "⟨202E⟩" in text and "\u202e" not in text, place
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW[0]


def test_a_run_made_before_something_was_kept_is_drawn_without_it(app: App, open_file: Open) -> None:
    payload = payload_of(app)
    samples = {**payload["samples"], "tops": None, "at_layer": None}
    page = open_file({**payload, "samples": samples, "grid": None}, "#sample=0")
    assert page.locator(".tops, .ladder").count() == 0
    assert "operator, strict" in page.inner_text(".sample-panel")


def test_two_relations_are_compared_in_one_plot(app: App, open_page: Open) -> None:
    a, b = app.study.ids()
    page = open_page(f"/compare#a={a}&b={b}", ".plot svg")
    assert [page.locator(f".series.{look} .band").count() for look in ("own", "second")] == [1, 1]
