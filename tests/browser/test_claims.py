"""The ledger of claims and one claim in a browser: real claims about a model whose one head is known, by keyboard, narrow,
in light and dark, with a test that ends while the page is open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caseback.core.progress import silent
from caseback.study import Record, Study
from caseback.study.claims import CLAIM_TEST, Claim, asked, found_on_task, new_claim, read_claim, standing
from caseback.tasks import write_task
from caseback.zoo import copying

from .test_view import HOSTILE, NARROW, SCREENSHOTS, WIDE, App, Open, drawn, open_page, serving, until

pytestmark = pytest.mark.browser
__all__ = ["open_page"]

ZOO = copying(n=40)
SAID = "moves the name to the end"


def say(study: Study, component: str, description: str, *, data: bool = True, **more: Any) -> Claim:
    """Write a claim down."""
    found = {"found_on": found_on_task(str(study.path / "t.jsonl"), ZOO.model)} if data else {}
    return new_claim(study, ZOO.model, Claim(component=component, description=description, model={}, **found, **more))


def test_it(study: Study, claim: Claim, **more: Any) -> Record:
    config = asked(study, claim, **more)
    spec, have = CLAIM_TEST.prepare(config, study, passed={}, progress=silent, model=ZOO.model)
    return study.run(spec, have=have)


test_it.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    study = Study(tmp_path_factory.mktemp("casebook"))
    write_task(ZOO.task, study.path / "t.jsonl")
    true = say(study, "z.1.2@end", SAID, attends=("end", "name"))
    test_it(study, true)
    test_it(study, true, tests=("necessity", "specificity"), twin=True)
    false = say(study, "z.1.1@end", SAID, causal=("necessity",))
    test_it(study, false, tests=("necessity",))
    say(study, "z.0.1@end+z.1.0@end", HOSTILE, effect=(0.2, 0.6))
    with serving(study, Path()) as made:
        yield made


def listed(page: Any) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('tr[data-claim]')].map((row) => row.dataset.claim)")
    return found


def named(app: App, component: str) -> str:
    start = component.replace(".", "-").replace("@", "-")
    return next(path.stem for path in (app.study.path / "claims").glob(f"{start}*.json"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["claims", "supported", "refuted", "hypothesis"])
def test_a_page_is_drawn_and_fits(app: App, open_page: Open, name: str, size: tuple[int, int], scheme: str) -> None:
    component = {"supported": "z.1.2", "refuted": "z.1.1", "hypothesis": "z.0.1"}.get(name)
    path, ready = (f"/claims/{named(app, component)}", ".codes") if component else ("/claims", "tr[data-claim]")
    page = open_page(path, ready, size=size, color_scheme=scheme)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".problem").count() == 0
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"claims-{name}-{size[0]}-{scheme}.png", full_page=True)


def test_the_ledger_is_narrowed_and_its_address_says_so(app: App, open_page: Open) -> None:
    page = open_page("/claims", "tr[data-claim]")
    assert len(listed(page)) == 3
    signs = dict.fromkeys(page.locator("tbody .of-status").all_inner_texts())
    assert sorted(text.split() for text in signs) == [["○", "hypothesis"], ["✓", "supported"], ["✕", "refuted"]]
    assert "4 tests in 1 run" in page.inner_text("tbody")
    page.click(".facet button:has-text('refuted')")
    until(page, lambda: listed(page) == [named(app, "z.1.1")] and "status=refuted" in page.url)
    page.click(".facet button:has-text('refuted')")
    page.fill("#search", "MOVES z.1.2")
    until(page, lambda: listed(page) == [named(app, "z.1.2")] and "words=MOVES" in page.url)
    page.fill("#search", "nosuchword")
    page.wait_for_selector(".empty")
    page.click("text=Show all")
    until(page, lambda: len(listed(page)) == 3 and "words" not in page.url)
    again = open_page("/claims#status=supported", "tr[data-claim]")
    assert listed(again) == [named(app, "z.1.2")]
    page.click("thead button:has-text('tested')")
    until(page, lambda: listed(page)[0] == named(app, "z.1.2") and "sort=tests" in page.url)


def test_the_keyboard_reaches_a_claim_and_comes_back(app: App, open_page: Open) -> None:
    page = open_page("/", "nav a[href='/claims']")
    page.click("nav a[href='/claims']")
    page.wait_for_selector("tr[data-claim]")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    second = listed(page)[1]
    assert page.evaluate("document.activeElement.closest('tr').dataset.claim") == second
    page.keyboard.press("Enter")
    page.wait_for_selector(".standing")
    assert page.url.endswith(second)
    page.keyboard.press("Escape")
    page.wait_for_selector("tr[data-claim]")
    assert page.url.endswith("/claims")


def test_runs_and_forms_name_a_claim_by_what_it_says(app: App, open_page: Open) -> None:
    whole = f"z.1.2@end: {SAID}"
    page = open_page("/#status=finished", "tr[data-run]")
    assert whole in page.locator("tbody .of-run a").all_inner_texts()
    page.click(f"text={whole} >> nth=0")
    page.wait_for_selector(".record dl")
    assert page.inner_text("h1") == whole and page.title().startswith(whole)
    form = open_page("/new#method=claim-test", "form .field")
    offered = form.locator("#field-claim-list option")
    assert offered.count() == 3
    assert {offered.nth(i).get_attribute("value"): offered.nth(i).get_attribute("label") for i in range(3)}[
        named(app, "z.1.2")
    ] == whole


def test_a_claim_says_what_its_tests_found(app: App, open_page: Open) -> None:
    found = standing(app.study, read_claim(app.study, named(app, "z.1.2")))
    page = open_page(f"/claims/{found.claim.id}", ".tests")
    assert page.inner_text(".stands").split() == ["✓", "supported"]
    assert page.get_attribute(".now-so", "aria-current") == "true"
    assert page.inner_text(".now-so").split()[1] == "supported"
    rows = page.locator(".tests tbody tr:not(.of-run)")
    assert rows.count() == len(found.tests) == 4
    for i, test in enumerate(found.tests):
        row = rows.nth(i)
        assert row.locator("th").inner_text() == test["test"]
        assert row.locator(".of-verdict").inner_text().split() == ["✓", "supports"]
        shown = f"{test['over']:.0%}".replace("%", " %")
        assert row.locator(".of-over b").inner_text().lstrip("+") == shown
        assert row.locator(".of-must-reach").inner_text() == test["bar"]
        zero = row.locator(".tick.zero").bounding_box()
        dot = row.locator(".dot").bounding_box()
        assert zero["x"] < dot["x"]  # supports: right of the zero line
    zeros = {
        round(box["x"])
        for box in page.evaluate(
            "[...document.querySelectorAll('.tests .zero')].map((i) => i.getBoundingClientRect().toJSON())"
        )
    }
    assert len(zeros) == 1  # one scale
    assert "random twin" in page.inner_text("section:has-text('do not count') >> nth=-1")
    assert "from 'end' it takes most from 'name'" in page.inner_text(".said").replace("From", "from")
    shell, python = (page.inner_text(f"figure:has-text('{name}') code") for name in ("Terminal", "Python"))
    assert f"caseback claim show {found.claim.id}" in shell
    space: dict[str, Any] = {}
    exec(python, space)  # the code shown is code that runs
    assert space["found"] == found
    page.click(".of-run a")
    page.wait_for_selector(".record dl")
    page.click("text=the claim and all its tests")
    page.wait_for_selector(".standing")


def test_hostile_words_are_only_text(app: App, open_page: Open) -> None:
    page = open_page("/claims", "tr[data-claim]")
    text = page.inner_text("tbody")
    assert "<img src=x" in text and "⟨202E⟩" in text and "␛" in text
    one = open_page(f"/claims/{named(app, 'z.0.1')}", ".standing")
    assert "<img src=x" in one.inner_text("h1")


def test_a_claim_that_is_not_there_is_said(browser: Any, app: App) -> None:
    page = browser.new_page()
    page.goto(f"{app.address}/claims/nosuch#token=browser-test-token")
    page.wait_for_selector(".problem")
    assert "there is no claim 'nosuch'" in page.inner_text(".problem")
    page.close()


def test_the_pages_change_while_a_claim_is_made_and_tested(app: App, open_page: Open) -> None:
    ledger = open_page("/claims#words=late", ".empty")
    claim = say(app.study, "z.1.3@end", "a late claim", causal=("necessity",))
    ledger.wait_for_selector("tr[data-claim]")
    page = open_page(f"/claims/{claim.id}", ".stands")
    assert page.inner_text(".stands").split()[1] == "hypothesis"
    test_it(app.study, claim, tests=("necessity",))
    page.wait_for_selector(".tests tbody .status")
    assert page.inner_text(".stands").split()[1] == standing(app.study, claim).status != "hypothesis"
    until(ledger, lambda: "1 test in 1 run" in ledger.inner_text("tbody"))


def test_a_damaged_claim_is_listed_and_said(app: App, open_page: Open) -> None:
    path = app.study.path / "claims" / "broken.json"
    path.write_text("{")
    try:
        page = open_page("/claims#status=damaged", "tr[data-claim]")
        assert listed(page) == ["broken"] and "damaged" in page.inner_text("tbody")
        whole = open_page("/claims", "tr[data-claim]")
        facets = whole.locator(".facet button").all_inner_texts()
        assert facets and not any("none" in text for text in facets)
        assert whole.locator(".facet button[aria-pressed=true]").count() == 0
    finally:
        path.unlink()
