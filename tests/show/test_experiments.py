"""An experiment's payload: what is drawn is checked, and its page opens in a browser without a word on the console."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from caseback.core.errors import CasebackError
from caseback.show import report
from caseback.show.experiments import validate

NUMBERS = {"x": [100.0, 1000.0, 5000.0], "y": [0.1, None, 1.0], "low": [0.0, None, 1.0], "high": [0.2, None, 1.0]}
HEAT: dict[str, Any] = {
    "x": {"name": "position", "labels": ["the", "city", "of"]},
    "y": {"name": "layer", "labels": ["0", "1"]},
    "values": [[0.5, None, -1.25], [0, 2.5, 1]],
    "low": [[0.25, None, -2.0], [0, 2.25, None]],
    "high": [[0.75, None, -1.0], [0, 2.75, None]],
    "texts": [["a", "", "<b>"], [" Tokyo", "c", "d"]],
    "format": "signed",
    "scale": "diverging",
    "note": "Invented.",
}
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
        {"title": "A heat map", "text": "", "heat": HEAT},
        {
            "title": "Two",
            "text": "",
            "heats": [
                {"name": "a", **HEAT},
                {"name": "b", **HEAT, "texts": None, "low": None, "values": [[1, 2, 3], [4, 5, 6]]},
            ],
        },
        {
            "title": "By layer",
            "text": "",
            "curve": {
                "x": "layer",
                "y": "nats",
                "axis": "linear",
                "format": "number",
                "series": [
                    {"name": "entropy", "look": "own", **NUMBERS, "x": [0, 1, 2]},
                    {"name": "random twin", "look": "control", "x": [0], "y": [3.5]},
                ],
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
        (("sections", 2, "table", "rows", 0, 3), math.nan, "not 'nan' for number"),
        (("sections", 0, "curve", "axis"), "loglog", "curve.axis is log or linear"),
        (("sections", 0, "curve", "format"), "text", "curve.format is one of count, percent, number, signed in"),
        (("sections", 0, "curve", "series", 0, "y"), [0.1, math.inf, 1.0], r"series\[0\] has numbers, finite or null"),
        (("sections", 5, "curve", "series", 0, "x"), [0, None, 2], "lies on a linear axis"),
        (("sections", 3, "heat", "x"), {"name": "x"}, r"heat\.x\.labels holds texts, at least one"),
        (("sections", 3, "heat", "x", "labels"), ["a", "b"], r"heat\.values has 2 rows .* of 2 cells"),
        (("sections", 3, "heat", "y", "labels"), [], r"heat\.y\.labels holds texts, at least one"),
        (("sections", 3, "heat", "y", "labels"), [0, 1], r"heat\.y\.labels holds texts"),
        (("sections", 3, "heat", "y"), None, r"heat\.y is {name, labels}"),
        (("sections", 3, "heat", "values"), None, r"heat\.values has 2 rows \(one a label of y\) of 3 cells"),
        (("sections", 3, "heat", "values", 1), [1.0], r"heat\.values has 2 rows"),
        (("sections", 3, "heat", "values", 1, 0), math.nan, r"heat\.values holds numbers, finite or null"),
        (("sections", 3, "heat", "values", 1, 0), True, r"heat\.values holds numbers"),
        (("sections", 3, "heat", "low"), [[0.0]], r"heat\.low has 2 rows"),
        (("sections", 3, "heat", "texts", 0, 1), None, r"heat\.texts holds texts"),
        (("sections", 3, "heat", "format"), "text", r"heat\.format is one of count, percent, number, signed in"),
        (("sections", 3, "heat", "scale"), "rainbow", r"heat\.scale is one of sequential, diverging"),
        (("sections", 3, "heat", "note"), 3, r"heat\.note is a text where there is one"),
        (("sections", 4, "heats"), [], r"heats has at least one heat map"),
        (("sections", 4, "heats", 1, "name"), None, r"heats\[1\]\.name is a text"),
        (("sections", 4, "heats", 1, "scale"), "sequential", r"heats have one scale, as they share one legend"),
        (("sections", 4, "heats", 1, "values", 0), [], r"heats\[1\]\.values has 2 rows"),
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


def grid(rows: int, columns: int) -> dict[str, Any]:
    labels = {"x": [str(j) for j in range(columns)], "y": [str(i) for i in range(rows)]}
    axes = {axis: {"name": axis, "labels": names} for axis, names in labels.items()}
    return {**axes, "values": [[0.5] * columns] * rows, "format": "percent", "scale": "sequential"}


def test_a_page_holds_so_many_cells_and_no_more() -> None:
    sections = [{"title": "", "text": "", "heat": grid(100, 150)}]
    sections += [{"title": "", "text": "", "heats": [{"name": "", **grid(50, 50)}, {"name": "", **grid(50, 50)}]}]
    validate({**GOOD, "sections": sections})
    sections[1]["heats"].append({"name": "", **grid(1, 1)})
    with pytest.raises(
        CasebackError, match="the heat maps have 20,001 cells and a page holds at most 20,000; show fewer"
    ):
        validate({**GOOD, "sections": sections})


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
    assert page.locator(".plot .curve").count() == 4
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
