"""An experiment's payload: what is drawn is checked, and its page opens in a browser without a word on the console."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from caseback.core.errors import CasebackError
from caseback.show import report
from caseback.show.experiments import validate

NUMBERS = {"x": [100.0, 1000.0, 5000.0], "y": [0.1, None, 1.0], "low": [0.0, None, 1.0], "high": [0.2, None, 1.0]}
GOOD: dict[str, Any] = {
    "kind": "experiment",
    "version": 1,
    "title": "An invented experiment",
    "claim": "80 % of the answer takes 1,000 edges.",
    "model": {"id": "m", "revision": None},
    "task": {"name": "t", "description": "d", "metric": "logit_diff", "n": 8, "kept": 7, "measured": 3}
    | {"accuracy": 0.875, "dropped": {"wrong answer": 1}},
    "sections": [
        {
            "title": "Curves",
            "text": "How they run.",
            "curve": {
                "x": "edges",
                "y": "kept",
                "series": [
                    {"name": "by hand", "look": "own", **NUMBERS},
                    {"name": "induced", "look": "induced", "x": [10.0, 20.0], "y": [0.2, 0.3], "low": None},
                ],
            },
        },
        {"title": "Clouds", "text": "", "points": [{"name": "EAP", "points": [[0.1, 0.2], [1.0, -1.0], [2.0, 1.5]]}]},
        {
            "title": "A table",
            "text": "",
            "table": {
                "columns": [{"kind": kind, "name": kind} for kind in ("text", "count", "percent", "number", "signed")],
                "rows": [["<b>a", 1200, [0.5, 0.4, None], None, [-1.5, -2.0, -1.0]], ["b", 3, 0.25, 1.5, 0.5]],
            },
        },
    ],
    "settings": {"points": 3, "proposed": None},
    "environment": {},
    "cost": {"seconds": 3.0, "cpu_seconds": 2.0, "peak_memory_mb": 500.0, "sessions": 1},
    "notes": ["Nothing here was measured."],
}


def test_a_good_payload_is_valid() -> None:
    validate(GOOD)
    assert "caseback/views/experiment" in report.page(GOOD)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "kind is 'experiment', version 1"),
        (("claim",), None, "claim is of type str"),
        (("settings",), [], "settings is an object"),
        (("task", "metric"), 3, "task.metric is a text"),
        (("model", "id"), None, "model.id is a text"),
        (("sections", 1, "text"), None, r"sections\[1\]\.text is a text"),
        (("sections", 0, "curve", "series"), [], "has at least one line"),
        (("sections", 0, "curve", "series", 0, "y"), [1.0], r"series\[0\] has columns of one length"),
        (("sections", 0, "curve", "series", 0, "x"), [0.0, 1.0, 2.0], "lies on a log axis"),
        (("sections", 0, "curve", "series", 1, "look"), "pink", "look is one of own, "),
        (("sections", 1, "points", 0, "points"), [[1.0]], r"points\[0\] is a name with pairs"),
        (("sections", 2, "table", "columns", 1, "kind"), "colour", "have a kind among text, count"),
        (("sections", 2, "table", "rows", 1), ["b"], r"rows\[1\] has a cell for each of 5 columns"),
        (("sections", 2, "table", "rows", 1, 1), "many", r"rows\[1\] has cells of their column's kind, not 'many' for"),
        (("sections", 2, "table", "rows", 0, 0), 3, "not '3' for text"),
    ],
)
def test_what_does_not_fit_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    made = copy.deepcopy(GOOD)
    inner: Any = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(CasebackError, match=message):
        validate(made)


def test_a_page_of_no_known_kind_is_refused() -> None:
    with pytest.raises(CasebackError, match="there is no payload 'riddle'; there are: circuit, experiment"):
        report.page({**GOOD, "kind": "riddle"})


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    path = report.write(GOOD, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("footer")
    page.wait_for_selector(".plot svg")
    assert page.inner_text(".claim") == GOOD["claim"]
    assert page.locator(".plot .curve").count() == 2
    assert page.locator(".scatter circle").count() == 3
    cells = page.locator("tbody tr").first.locator("td, th").all_inner_texts()
    assert cells == ["<b>a", "1,200", "50 %", "–", "−1.50 −2.00 … −1.00"]
    page.locator("thead button").nth(1).click()
    assert page.locator("tbody tr").first.inner_text().startswith("<b>a")
    page.locator("thead button").nth(1).click()
    assert page.locator("tbody tr").first.inner_text().startswith("b")
    page.locator("button.theme").click()
    assert "theme=" in page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 300))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert said == []
