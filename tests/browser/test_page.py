"""The report in a real browser: it opens from disk and in a frame, asks nothing of any network, and answers to mouse and keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caseback.circuits.graph import Graph
from caseback.show import report
from caseback.show.circuit import circuit_payload

from ..show.synthetic import GRAPH, hostile, payload

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDE, NARROW = (1280, 900), (400, 800)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an invented run with 20,000 edges."""
    return report.write(payload(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file; when the test ends, nothing may have been said on the console and nothing fetched."""
    pages, said, fetched = [], [], []

    def open_(
        path: Path, where: str = "", *, size: tuple[int, int] = WIDE, ready: str = "#size", **context: Any
    ) -> Any:
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce", **context)
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri() + where)
        page.wait_for_selector(ready)
        return page

    yield open_
    for page in pages:
        page.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def settled(page: Any) -> None:
    """Two frames later: what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def wait_for_address(page: Any, text: str) -> None:
    """The address is written after a pause; the page's policy lets no polling predicate in."""
    for _ in range(40):
        if text in page.evaluate("location.hash"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{page.evaluate('location.hash')!r} has no {text!r}")


def drawn(page: Any) -> int:
    settled(page)
    return page.locator(".edges path").count()


def size_of(page: Any) -> int:
    return int(page.inner_text(".size b").replace(",", ""))


def centre(page: Any, name: str) -> tuple[float, float]:
    """Where a node is drawn on the screen, found by walking the pointer over the drawn nodes."""
    for box in [node.bounding_box() for node in page.locator(".nodes > *").all()]:
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        if page.locator(".tip b").inner_text() == name:
            return x, y
    raise AssertionError(f"{name} is not drawn")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_opens_from_disk_and_fits(full: Path, open_page: Open, size: tuple[int, int], scheme: str) -> None:
    page = open_page(full, size=size, color_scheme=scheme)
    assert drawn(page) == 500
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert "500 edges, 0.067 % of the graph" in page.inner_text(".claim")
    assert "keeps −1 %" in page.inner_text(".controls")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 21, 24)"}[scheme]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{size[0]}-{scheme}.png", full_page=True)


def test_the_slider_changes_the_circuit(full: Path, open_page: Open) -> None:
    page = open_page(full)
    before = page.inner_text(".claim")
    page.focus("#size")
    page.keyboard.press("ArrowLeft")
    assert size_of(page) < 500
    assert drawn(page) == size_of(page)
    assert "measured at" in page.inner_text(".kept")
    page.keyboard.press("Home")
    assert size_of(page) == 1
    assert drawn(page) == 1
    assert page.inner_text(".claim") != before
    assert page.get_attribute("#size", "aria-valuetext").startswith("1 edge, ")
    page.keyboard.press("End")
    assert size_of(page) == 20_000
    wait_for_address(page, "n=20000")


def test_at_most_fifteen_hundred_edges_are_drawn_and_the_rest_is_said(full: Path, open_page: Open) -> None:
    page = open_page(full, "#n=20000")
    assert drawn(page) == 1500
    assert page.inner_text(".grid .note") == "1,500 edges drawn · 18,500 weaker ones not drawn."


def test_a_circuit_larger_than_the_file_says_so(tmp_path: Path, open_page: Open) -> None:
    path = report.write(payload(300), tmp_path / "report.html")
    page = open_page(path, "#n=20000")
    assert drawn(page) == 300
    assert "19,700 of the circuit’s 20,000 are not in this file" in page.inner_text(".grid .note")


def test_a_click_isolates_a_node_and_escape_clears(full: Path, open_page: Open) -> None:
    page = open_page(full, "#n=200")
    page.locator("#circuit").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#circuit').scrollIntoView()")
    settled(page)
    x, y = centre(page, "a24.h6@to")
    assert "attention head 6 of layer 24, at to" in page.inner_text(".tip")
    page.mouse.click(x, y)
    page.wait_for_selector(".loupe h3:has-text('a24.h6@to')")
    listed = page.locator(".loupe .entries li").count()
    assert 1 < listed == drawn(page) < 200
    wait_for_address(page, "node=a24.h6")
    page.keyboard.press("Escape")
    assert page.inner_text(".loupe h3") == "Strongest nodes"
    assert drawn(page) == 200


def test_hovering_an_edge_shows_its_exact_score(full: Path, open_page: Open) -> None:
    page = open_page(full, "#n=1")
    page.evaluate("document.querySelector('#circuit').scrollIntoView()")
    settled(page)
    x, y = page.evaluate(
        """() => {
          const path = document.querySelector(".edges path");
          const frame = path.ownerSVGElement.getBoundingClientRect();
          const point = path.getPointAtLength(path.getTotalLength() / 2);
          return [frame.left + point.x, frame.top + point.y];
        }"""
    )
    page.mouse.move(x + 2, y)
    score = payload()["edges"]["score"][0]
    assert f"+{score:.5g} supports the answer" in page.inner_text(".tip")
    assert "edge 1 of the circuit" in page.inner_text(".tip")
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()


def test_everything_is_reached_by_keyboard(full: Path, open_page: Open) -> None:
    page = open_page(full, "#n=200")
    page.focus(".grid-scroll svg")
    assert page.inner_text(".tip b") == "logits@to"
    for key in ("ArrowDown", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    walked = page.inner_text(".tip b")
    assert walked != "logits@to"
    page.keyboard.press("Enter")
    assert page.inner_text(".loupe h3") == walked
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").startswith("show all")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    followed = page.inner_text(".loupe h3")
    assert followed != walked
    assert page.evaluate("document.activeElement.closest('.loupe') !== null")
    page.keyboard.press("Escape")
    assert page.inner_text(".loupe h3") == "Strongest nodes"


def test_the_toggles_hide_edges_and_the_link_remembers(full: Path, open_page: Open) -> None:
    page = open_page(full, "#n=200")
    everything = drawn(page)
    page.click(".toggles button.against")
    supporting = drawn(page)
    assert 0 < supporting < everything
    assert page.locator(".edges .against").count() == 0
    page.click(".toggles button.crossing")
    assert 0 < drawn(page) < supporting
    assert page.get_attribute(".toggles button.crossing", "aria-pressed") == "false"
    wait_for_address(page, "crossing")
    again = open_page(full, page.evaluate("location.hash"))
    assert drawn(again) == drawn(page)
    for name in ("residual", "q", "k", "v", "for"):
        page.click(f".toggles button.{name}")
    assert drawn(page) == 0


@pytest.mark.parametrize("where", ["#n=abc&node=nowhere&prompt=99&theme=pink&hide=,,x", "#%", "#n=-5", "#n=1e999"])
def test_a_broken_link_still_opens(full: Path, open_page: Open, where: str) -> None:
    page = open_page(full, where)
    assert drawn(page) >= 1
    assert page.inner_text(".loupe h3") == "Strongest nodes"


def test_prompts_can_be_leafed_through(full: Path, open_page: Open) -> None:
    page = open_page(full)
    assert page.inner_text(".answer .words") == "Mary"
    assert page.locator(".tokens .span .span-name").all_inner_texts() == list(GRAPH.spans)
    page.click(".prompt button:has-text('2')")
    assert page.inner_text(".answer .words") == "Sarah"
    assert page.locator(".counterfactual .changed").all_inner_texts() == [" Lucy", " Mark", " Anna"]
    settled(page)
    assert "Sarah" in page.locator(".frame .example").all_text_contents()


def test_the_table_sorts_and_leads_to_the_circuit(full: Path, open_page: Open) -> None:
    page = open_page(full)
    section = page.locator("section", has=page.get_by_role("heading", name="The strongest edges, checked"))
    first = section.locator("tbody tr").first
    section.get_by_role("button", name="exact patching").click()
    top = max(row["exact"] for row in payload()["table"])
    assert f"+{top:.3g}" in first.inner_text()
    assert section.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    section.get_by_role("button", name="exact patching").click()
    assert "−" in first.inner_text()
    section.get_by_role("button", name=re.compile(r"^a22\.h3->logits@to$")).click()
    assert page.inner_text(".loupe h3") == "logits@to"


def test_on_a_narrow_screen_scores_are_seen_and_the_rest_scrolls_in_its_box(full: Path, open_page: Open) -> None:
    page = open_page(full, size=NARROW)
    box = page.get_by_role("region", name="Top edges with their scores")
    for name in ("edge", "score", "exact patching"):
        head = box.get_by_role("columnheader", name=name, exact=True).bounding_box()
        assert head["x"] >= 0 and head["x"] + head["width"] <= NARROW[0], name
    first = box.locator("tbody tr th").first
    before = first.bounding_box()["x"]
    assert box.evaluate("(box) => { box.scrollLeft = 1e4; return box.scrollLeft; }") > 0
    assert first.bounding_box()["x"] == before  # the edge's name stays
    assert box.get_by_role("columnheader", name="enters at").bounding_box()["x"] < NARROW[0]
    areas = page.get_by_role("region", name="Areas")
    assert areas.evaluate("(box) => box.scrollWidth <= box.clientWidth")
    settled(page)
    assert page.inner_text(".grid .note").endswith("Scroll sideways for the other spans.")


def test_figures_are_explained_beside_them(full: Path, open_page: Open) -> None:
    page = open_page(full)
    assert "exact effect has the sign of the score. Chance is 50 %" in page.inner_text(".beside .note")
    heads = page.get_by_role("region", name="Areas").locator("thead th").all_inner_texts()
    assert heads[1:] == ["CPR, log axis", "CMD, log axis", "CPR, linear axis", "CMD, linear axis"]
    assert "the last step, up to the whole model, is 50 % of it" in page.inner_text(".areas p")


def test_the_curves_have_a_table(full: Path, open_page: Open) -> None:
    page = open_page(full)
    assert page.locator(".plot .series").count() == 4
    page.click("summary")
    rows = page.locator("details tbody tr")
    assert rows.count() == 12
    assert rows.nth(6).inner_text().split("\t")[:3] == ["500", "0.067 %", "86 % 78–93 %"]


def test_light_and_dark_can_be_turned(full: Path, open_page: Open) -> None:
    page = open_page(full, color_scheme="light")
    assert page.inner_text("button.theme") == "dark"
    page.click("button.theme")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 21, 24)"
    assert page.inner_text("button.theme") == "light"
    wait_for_address(page, "theme=dark")


def test_it_prints_without_its_controls(full: Path, open_page: Open) -> None:
    page = open_page(full, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".toggles").is_hidden()
    assert page.locator("details[open]").count() == 1
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(251, 250, 247)"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_works_in_a_notebooks_frame(tmp_path: Path, open_page: Open, size: tuple[int, int]) -> None:
    host = tmp_path / "notebook.html"
    style = "<style>*{color:rgb(255,0,0)!important} svg,section{display:none!important}</style>"
    host.write_text(
        f"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>{style}<p id=cell>cell</p>"
        f"{report.fragment(payload(500, title='it’s &amp; <b>'))}"
    )
    page = open_page(host, size=size, ready="iframe")
    frame = page.frame_locator("iframe")
    frame.locator("#size").focus()
    page.keyboard.press("Home")
    assert frame.locator(".size b").inner_text() == "1"
    assert frame.locator("h1").inner_text() == "it’s &amp; <b>"
    assert frame.locator("h1").evaluate("(h) => getComputedStyle(h).color") != "rgb(255, 0, 0)"
    assert page.locator("#cell").evaluate("(p) => getComputedStyle(p).fontSize") == "16px"
    frame.locator(".loupe .entries button").first.click()
    assert "show all" in frame.locator(".loupe").inner_text()
    page.wait_for_timeout(300)  # the address of the frame is written after a pause
    assert page.url == host.as_uri()
    inner = page.frames[1]
    assert "node=" in inner.evaluate("location.hash")
    assert inner.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_hostile_text_stays_text(tmp_path: Path, open_page: Open, size: tuple[int, int]) -> None:
    texts = hostile()
    made = payload(300, title=texts[0], notes=texts, settings=dict.fromkeys(texts, texts[1]), environment={"a": texts})
    made["task"] |= {"description": texts[1], "dropped": {texts[0]: 3}, "metric": texts[5]}
    made["task"]["spans"] = [f"{text}{i}" for i, text in enumerate(texts[:10])]
    made["model"]["id"] = texts[10]
    prompt = made["prompts"][0]
    prompt["tokens"][:12] = prompt["counterfactual"][3:15] = texts
    prompt["answers"], prompt["foils"] = texts, texts[:2]
    prompt["spans"] = [[name, *rest] for name, (_, *rest) in zip(made["task"]["spans"], prompt["spans"], strict=True)]
    path = report.write(made, tmp_path / "report.html")
    page = open_page(path, size=size)
    drawn(page)
    assert page.evaluate("window.pwned") is None
    assert page.inner_text("h1") == texts[0]
    assert page.locator("main img, main script, iframe").count() == 0
    notes = page.locator(".notes li").all_inner_texts()
    assert notes[4] == "⟨202E⟩txet desrever⟨202C⟩ ⟨2066⟩isolated⟨2069⟩"
    assert notes[5].startswith("␛[31mred")
    shown = page.evaluate("document.body.innerText")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u200b\ufeff\x1b]", shown)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    page.screenshot(path=SCREENSHOTS / f"hostile-{size[0]}.png", full_page=True)


def bare(graph: Graph, n: int, **changes: Any) -> dict[str, Any]:
    index = np.flatnonzero(graph.allowed)[::-1][:n]
    return circuit_payload(
        title="bare",
        graph=graph,
        model={"id": "m"},
        task={"name": "t", "description": "", "metric": "logit_diff", "n": 0, "dropped": {}},
        index=index,
        score=np.linspace(-1, 1, len(index)),
        rank=np.arange(1, len(index) + 1),
        **changes,
    )


GAPS = {"edges": [1, 9], "faithfulness": [None, 0.4], "low": [None, None], "high": [None, 0.5], "random": [None, None]}


@pytest.mark.parametrize(
    ("made", "edges"),
    [
        (bare(Graph(n_layers=1, n_heads=1, n_kv_heads=1), 0), 0),
        (bare(Graph(n_layers=1, n_heads=1, n_kv_heads=1), 5), 5),
        (bare(Graph(n_layers=48, n_heads=40, n_kv_heads=8, spans=tuple("abcdefghijklmno")), 3000), 200),
        (bare(Graph(n_layers=3, n_heads=2, n_kv_heads=1, spans=("a", "b")), 9, curve=GAPS), 9),
        (bare(Graph(n_layers=3, n_heads=2, n_kv_heads=1, spans=("a", "b")), 4, curve=dict.fromkeys(GAPS, ())), 4),
    ],
    ids=["no edges", "no curve", "large", "gaps", "empty curve"],
)
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_what_is_missing_is_left_out(
    tmp_path: Path, open_page: Open, made: dict[str, Any], edges: int, size: tuple[int, int]
) -> None:
    page = open_page(report.write(made, tmp_path / "report.html"), size=size)
    assert drawn(page) == edges
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    words = page.inner_text("main")
    assert "NaN" not in words
    assert "undefined" not in words
    assert "null" not in words


def test_without_scripts_it_says_what_to_do(full: Path, open_page: Open) -> None:
    page = open_page(full, ready=".unscripted", java_script_enabled=False)
    assert "here no script ran" in page.inner_text("main")
