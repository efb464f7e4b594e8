"""Heat maps in a real browser: every cell is there, by pointer and by keyboard, in light and dark, wide and narrow, and only as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.show import report

from ..show.synthetic import hostile

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDE, NARROW = (1280, 900), (400, 800)
WORDS = [" the", " city", " Tokyo", " of", ",", "\n", " internationalisation", "東京", " New", ""]

Open = Callable[..., Any]
Heat = dict[str, Any]


def heat(
    values: Any, *, x: list[str], y: list[str], scale: str = "sequential", kind: str = "percent", **more: Any
) -> Heat:
    axes = {"x": {"name": "token", "labels": x}, "y": {"name": "layer", "labels": y}}
    return {**axes, "values": values, "format": kind, "scale": scale, **more}


def lens(layers: int = 40, tokens: int = 60) -> Heat:
    """A logit lens: the top token's probability rises with the layers."""
    draw = np.random.default_rng(0)
    share = np.clip(np.linspace(0, 0.9, layers)[:, None] ** 2 + draw.normal(0, 0.06, (layers, tokens)), 0.0004, 1)
    texts = [[WORDS[k] for k in row] for row in draw.integers(0, len(WORDS), (layers, tokens))]
    names = [WORDS[j % 9] for j in range(tokens)]
    return heat(share.round(4).tolist(), x=names, y=[str(i) for i in range(layers)], texts=texts, note="Invented.")


def heads(layers: int = 30, n: int = 9) -> Heat:
    """Signed effects of heads with one strong head for and one against, and a gap."""
    effect = np.random.default_rng(1).normal(0, 0.2, (layers, n))
    effect[22, 5], effect[20, 3] = 2.4, -1.75
    values: list[list[float | None]] = effect.round(4).tolist()
    values[0][0] = None
    low, high = (effect - 0.1).tolist(), (effect + 0.1).tolist()
    names = {"x": [str(i) for i in range(n)], "y": [str(i) for i in range(layers)]}
    return heat(values, **names, scale="diverging", kind="signed", low=low, high=high)


def pattern(n: int) -> Heat:
    rows = [[1 / (i + 1) if j <= i else None for j in range(n)] for i in range(n)]
    return heat(rows, x=[f"token {j}" for j in range(n)], y=[f"token {j}" for j in range(n)])


def made(*sections: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "experiment",
        "version": 1,
        "title": "Invented heat maps",
        "claim": "Nothing here was measured.",
        "model": {"id": "m"},
        "task": {"name": "t", "description": "d", "metric": "logit_diff", "n": 1, "kept": 1, "measured": 1},
        "sections": [{"title": f"Section {i}", "text": "", **section} for i, section in enumerate(sections)],
        "settings": {},
        "environment": {},
        "cost": {},
        "notes": [],
        **changes,
    }


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a payload; when the test ends, nothing may have been said on the console and nothing fetched."""
    pages, said = [], []

    def open_(payload: dict[str, Any], *, size: tuple[int, int] = WIDE, **context: Any) -> Any:
        path = report.write(payload, tmp_path / "report.html")
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce", **context)
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("footer")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page

    yield open_
    for page in pages:
        page.close()
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_lens_and_heads_are_drawn_and_fit(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    sites = [{"name": name, **heads(30, 20)} for name in ("resid", "attn_out", "mlp_out")]
    page = open_page(made({"heat": lens()}, {"heat": heads()}, {"heats": sites}), size=size, color_scheme=scheme)
    assert page.locator(".heat").count() == 5
    assert [page.locator(".cells").nth(i).locator(".cell").count() for i in range(5)] == [2400, 270, 600, 600, 600]
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".cells").first.locator(".top").all_inner_texts()[5:8] == ["␊", " internationalisation", "東京"]
    wanted = "[...document.querySelectorAll('.heat-scroll')].map((box) => box.scrollWidth > box.clientWidth)"
    assert page.evaluate(wanted)[:2] == [True, False]  # the lens scrolls in its own box, the heads fit
    assert page.locator(".heat .legend").first.inner_text().split() == ["0", "%", "95", "%"]
    assert page.locator(".heat .legend").nth(1).inner_text().split() == ["−2.4", "+2.4"]
    assert page.locator(".legend").count() == 3  # the small ones share one
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"heat-{size[0]}-{scheme}.png", full_page=True)


def test_the_pointer_shows_value_interval_and_text(open_page: Open) -> None:
    page = open_page(made({"heat": heads()}, {"heat": lens()}))
    tip = page.locator(".tip").first
    assert tip.is_hidden()
    page.locator(".cells").first.locator(".cell").nth(22 * 9 + 5).hover()
    assert tip.inner_text().splitlines() == ["+2.400", "+2.30 … +2.50", "layer 22 · token 5"]
    page.locator(".cells").first.locator(".cell").first.hover()
    assert tip.inner_text().splitlines()[0] == "–"
    second = lens()
    cell = page.locator(".cells").nth(1).locator(".cell").nth(60 + 2)
    cell.hover()
    shown = page.locator(".tip").nth(1).inner_text()
    assert second["texts"][1][2].strip() in shown
    assert "layer 1 · token Tokyo" in " ".join(shown.split())
    page.mouse.move(2, 2)
    assert page.locator(".tip:visible").count() == 0


def test_the_keyboard_walks_every_cell(open_page: Open) -> None:
    page = open_page(made({"heat": heads()}, {"heat": lens()}))
    tip = page.locator(".tip").first
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("heat-scroll")
    assert "layer 22 · token 5" in tip.inner_text()  # it begins at the strongest
    for key, at in (("ArrowUp", "21 · token 5"), ("ArrowLeft", "21 · token 4"), ("End", "21 · token 8")):
        page.keyboard.press(key)
        assert at in tip.inner_text()
    page.keyboard.press("ArrowRight")  # nothing lies beyond
    assert "21 · token 8" in tip.inner_text()
    page.keyboard.press("PageDown")
    page.keyboard.press("Home")
    assert "layer 29 · token 0" in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    box = page.locator(".heat-scroll").nth(1)
    assert box.evaluate("(box) => box.scrollLeft") > 0
    lit = box.locator(".lit").bounding_box()
    frame = box.bounding_box()
    assert frame["x"] < lit["x"] and lit["x"] + lit["width"] <= frame["x"] + frame["width"] + 1
    page.keyboard.press("Home")  # not under the labels, which stay
    side, lit = box.locator(".side").first.bounding_box(), box.locator(".lit").bounding_box()
    assert lit["x"] >= side["x"] + side["width"] - 1
    assert page.locator(".tip:visible").count() == 1


def test_labels_stay_in_sight(open_page: Open) -> None:
    page = open_page(made({"heat": lens(layers=80)}), size=NARROW)
    box = page.locator(".heat-scroll")
    box.evaluate("(box) => box.scrollTo(900, 700)")
    frame, corner = box.bounding_box(), box.locator(".corner").bounding_box()
    side, top = box.locator(".side").nth(40).bounding_box(), box.locator(".top").nth(20).bounding_box()
    assert (corner["x"], corner["y"]) == pytest.approx((frame["x"], frame["y"]), abs=1)
    assert side["x"] == pytest.approx(frame["x"], abs=1)
    assert top["y"] == pytest.approx(frame["y"], abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scale", ["sequential", "diverging"])
def test_what_stands_in_a_cell_can_be_read(open_page: Open, scheme: str, scale: str) -> None:
    steps = np.linspace(-1, 1, 41).tolist() if scale == "diverging" else np.linspace(0, 1, 41).tolist()
    grid = heat([[step] for step in steps], x=["value"], y=[str(i) for i in range(41)], scale=scale, kind="number")
    page = open_page(made({"heat": grid}), color_scheme=scheme)
    contrast = page.evaluate(
        """() => {
          const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
            .getContext("2d", { willReadFrequently: true });
          const luminance = (colour) => {
            brush.fillStyle = colour;
            brush.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].map((c) => (c / 255 <= .04045 ? c / 255 / 12.92
              : ((c / 255 + .055) / 1.055) ** 2.4));
            return .2126 * r + .7152 * g + .0722 * b + .05;
          };
          return [...document.querySelectorAll(".cell")].map((cell) => {
            const { color, backgroundColor } = getComputedStyle(cell);
            const [a, b] = [luminance(color), luminance(backgroundColor)];
            return Math.max(a, b) / Math.min(a, b);
          });
        }"""
    )
    assert len(contrast) == 41
    assert min(contrast) > 3.6
    assert np.mean(contrast) > 6


def test_colour_follows_the_value(open_page: Open) -> None:
    values = [[-2.0, -1.0, 0.0, 1.0, 2.0], [None, 4.0, 4.0, 4.0, 4.0]]
    page = open_page(
        made(
            {"heat": heat(values, x=list("abcde"), y=["0", "1"], scale="diverging", kind="signed")},
            {"heat": heat(values[:1], x=list("abcde"), y=["0"], kind="number")},
            {"heat": heat([[0.25, 0.5]], x=["a", "b"], y=["0"])},
        )
    )
    parts = "[...document.querySelectorAll('.cell')].map((cell) => Number(cell.style.getPropertyValue('--part')))"
    assert page.evaluate(parts)[:5] == [0.5, 0.25, 0, 0.25, 0.5]
    assert page.evaluate(parts)[10:15] == [0, 0.25, 0.5, 0.75, 1]
    assert page.evaluate(parts)[15:] == [0.5, 1]  # a share's scale begins at nothing
    assert page.locator(".under").count() == 4
    assert page.locator(".gap").count() == 1
    assert page.locator(".legend").all_inner_texts() == ["−4\n+4", "−2\n2", "0 %\n50 %"]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_hostile_text_stays_text(open_page: Open, size: tuple[int, int]) -> None:
    texts = hostile()
    n = len(texts)
    grid = heat([[0.5] * n] * n, x=texts, y=texts[::-1], texts=[texts] * n, note=texts[0])
    grid["x"]["name"], grid["y"]["name"] = texts[1], texts[10]
    page = open_page(
        made({"heat": grid}, {"heats": [{**grid, "name": text} for text in texts[:4]]}, title=texts[0]), size=size
    )
    for at in range(0, n * n, 7):
        page.locator(".cells").first.locator(".cell").nth(at).dispatch_event("pointerover")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script, iframe").count() == 0
    assert page.locator(".cells").first.locator(".top").all_inner_texts()[1] == texts[1]
    shown = page.evaluate("document.body.innerText")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u200b\ufeff\x1b]", shown)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "grid",
    [
        heat([[None]], x=["a"], y=["0"]),
        heat([[0]], x=["a"], y=["0"], scale="diverging", kind="count"),
        heat([[3.5, 3.5]], x=["a", "b"], y=["0"], kind="number"),
        heat([[1e9, -1e-9, 0]], x=["a", "b", ""], y=[""], kind="signed", scale="diverging"),
        heat([[1, None]], x=["a", "b"], y=["0"], texts=[["  ", "only a text"]], low=[[None, 1]], high=[[2, None]]),
    ],
    ids=["nothing known", "zero", "all equal", "far apart", "half known"],
)
def test_what_is_missing_is_left_out(open_page: Open, grid: Heat, size: tuple[int, int]) -> None:
    page = open_page(made({"heat": grid}), size=size)
    for cell in page.locator(".cell").all():
        cell.hover()
        words = page.inner_text("main")
        assert not re.search("NaN|undefined|null|Infinity", words)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_the_largest_page_is_drawn(open_page: Open) -> None:
    page = open_page(made({"heat": pattern(100)}, {"heats": [{"name": f"head {i}", **pattern(50)} for i in range(4)]}))
    assert page.locator(".cell").count() == 20_000
    page.locator(".cell").nth(5050).hover()
    assert "layer token 50 · token token 50" in page.locator(".tip").first.inner_text()
