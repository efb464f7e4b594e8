"""The prompt box in a real browser: a random twin beside each part, a grid of patches against a second prompt, and the
button that stops a run begun elsewhere. One page is of the default model, the others of a small one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn

from caseback.model.model import Model
from caseback.show.server import application
from caseback.study import Study

from ..relations.small import affine_of
from ..show.test_stop import Outside

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDE, NARROW = (1280, 900), (400, 800)
TOKEN = "browser-test-token"
PROMPT, OTHER = "the friend of subject3 is", "the friend of subject1 is"
TOKYO, PARIS = "The capital of Japan is the city of", "The capital of France is the city of"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> \u202e"

Open = Callable[..., Any]


@contextmanager
def served(study: Study, model: Model) -> Iterator[str]:
    """The address of a server in a thread."""
    listening = uvicorn.Config("", port=0, log_level="critical", lifespan="off").bind_socket()
    listening.listen()
    port = listening.getsockname()[1]
    app = application(study, token=TOKEN, port=port, load=lambda name: model)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield f"http://localhost:{port}"
    finally:
        app.closing.set()
        server.should_exit = True
        thread.join(10)
        app.prompts.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("casebook"))


@pytest.fixture(scope="module")
def small(study: Study) -> Iterator[str]:
    with served(study, affine_of().model) as address:
        yield address


@pytest.fixture(scope="module")
def real(study: Study, default_model: Any) -> Iterator[str]:
    with served(study, default_model) as address:
        yield address


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page; when the test ends, nothing may have been said on the console, no other server asked, and no text run."""
    pages, said = [], []

    def open_(address: str, ready: str, path: str = "/prompt", *, size: tuple[int, int] = WIDE, **asked: str) -> Any:
        scheme = asked.pop("scheme", "light")
        width, height = size
        page = browser.new_page(
            viewport={"width": width, "height": height}, reduced_motion="reduce", color_scheme=scheme
        )
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith((f"{address}/", "data:")) or said.append(request.url))
        page.goto(f"{address}{path}#{asked.pop('here', '')}&{urlencode({**asked, 'token': TOKEN})}")
        page.wait_for_selector(ready, timeout=120_000)
        return page

    yield open_
    for page in pages:
        assert page.title() != "owned"
        assert page.locator("script:not([src]):not([type=importmap])").count() == 0
        assert page.locator("img").count() == 0
        page.close()
    assert said == []


def until(page: Any, found: Callable[[], bool]) -> None:
    """Wait for what no selector says; the page's policy lets no polling predicate in."""
    for _ in range(400):
        if found():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited in vain")


def cells(page: Any) -> list[str]:
    found: list[str] = page.locator("#patch .cell").all_inner_texts()
    return found


# --- as it looks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_default_model_beside_its_twin_and_against_a_second_prompt(
    real: str, open_page: Open, size: tuple[int, int], scheme: str
) -> None:
    asked = {"text": TOKYO, "twin": "true", "against": "true", "other": PARIS}
    page = open_page(real, ".reading.done", size=size, scheme=scheme, **asked)
    assert page.locator(".problem").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert "“·Tokyo” minus that of “·Paris”" in page.inner_text("#patch")
    grid = cells(page)
    assert len(grid) == 30 * 8 and "" not in grid  # every layer, every token
    assert grid[7] == "100"  # the stream after the last layer at the last token is all there is
    assert grid[:3] == ["0", "0", "0"]  # before the first difference
    assert int(float(grid[-5])) > 90  # the country's own token in the first layer
    assert page.locator(".twin").count() == 2 and page.locator("#lens .heat").count() == 2
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"view-prompt-both-{size[0]}-{scheme}.png", full_page=True)


# --- the twin ---------------------------------------------------------------------------------------------------------


def test_the_twin_comes_when_it_is_wanted_and_goes(small: str, open_page: Open) -> None:
    page = open_page(small, ".reading.done", text=PROMPT)
    assert page.locator(".twin").count() == 0
    page.focus("#twin")
    page.keyboard.press("Space")
    page.wait_for_selector("#inputs .twin .token >> nth=4")
    page.wait_for_selector("#attention .twin .token >> nth=4")
    page.wait_for_selector("#lens .heat >> nth=1")
    assert "its random twin" in page.inner_text("#lens")
    until(page, lambda: "twin=true" in page.url)
    page.focus("#next .token[aria-selected=true]")
    page.keyboard.press("ArrowLeft")  # the twin follows the chosen token
    until(page, lambda: page.locator("#inputs .twin .token").count() == 4)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("3 ")
    page.uncheck("#twin")
    page.wait_for_selector(".twin", state="detached")
    assert page.locator("#lens .heat").count() == 1


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_a_second_prompt_is_patched_by_keyboard_and_the_address_says_so(small: str, open_page: Open) -> None:
    page = open_page(small, ".reading.done", text=PROMPT)
    page.focus("#against")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.id") == "other"
    assert page.input_value("#other") == PROMPT
    assert "Change a word of the second prompt" in page.inner_text("#patch")
    page.fill("#other", OTHER)
    page.wait_for_selector("#patch .cell")
    until(page, lambda: "" not in cells(page))
    page.keyboard.press("Tab")
    layers = page.locator("#patch [role=rowheader]").count()
    assert len(cells(page)) == 5 * layers
    page.focus("#patch .heat-scroll")
    page.keyboard.press("End")
    page.keyboard.press("PageUp")
    assert "100 %" in page.inner_text("#patch .tip")  # numbers without a pointer, signs without colour
    stream = cells(page)
    page.focus("#patch button:has-text('MLP')")
    page.keyboard.press("Enter")
    until(page, lambda: "what a layer's MLP adds" in page.inner_text("#patch") and cells(page) != stream)
    assert page.evaluate("document.activeElement.textContent") == "MLP"  # the focus stays where it was
    page.click("#patch button:has-text('second into first')")
    until(page, lambda: "A value of the second prompt's run" in page.inner_text("#patch"))
    page.fill("#patch input[name=answer]", "object7")
    until(page, lambda: "logit of “object7”" in page.inner_text("#patch"))
    asked = ("site=mlp_out", "direction=noise", "answer=object7", "against=true", "other=the+friend+of+subject1")
    until(page, lambda: all(part in page.url for part in asked))
    until(page, lambda: len(cells(page)) == 5 * layers and "" not in cells(page))
    again = open_page(small, "#patch .cell", here=page.url.partition("#")[2])
    until(again, lambda: cells(again) == cells(page))
    assert again.input_value("#patch input[name=answer]") == "object7"
    page.uncheck("#against")
    page.wait_for_selector("#patch .cell", state="detached")


def test_what_cannot_be_patched_is_said(small: str, open_page: Open) -> None:
    page = open_page(small, "#patch .problem", text=PROMPT, against="true", other="the friend of subject1 is is")
    assert "the first prompt has 5 tokens and the second 6" in page.inner_text("#patch .problem")
    page.fill("#patch input[name=answer]", "object1")
    page.fill("#other", OTHER)
    until(page, lambda: "compared with itself" in page.inner_text("#patch"))


def test_a_hostile_second_prompt_is_only_text(small: str, open_page: Open) -> None:
    page = open_page(small, "#patch .problem", text=PROMPT, against="true", other=HOSTILE, answer=HOSTILE)
    assert "tokens" in page.inner_text("#patch .problem")
    asked = {"twin": "x", "against": "true", "other": OTHER, "site": "<b>", "direction": "__proto__", "answer": ""}
    page = open_page(small, "#patch .cell", text=PROMPT, **asked)
    assert page.locator("#patch button[aria-pressed=true]").all_inner_texts() == ["stream", "first into second"]
    assert page.locator(".twin").count() == 0


# --- a run begun elsewhere --------------------------------------------------------------------------------------------


def test_a_run_begun_in_a_terminal_is_stopped_from_its_page(study: Study, small: str, open_page: Open) -> None:
    with Outside(study) as outside:
        page = open_page(small, "#act button", path=f"/run/{outside.record.id}")
        page.focus("#act button:has-text('stop')")
        page.keyboard.press("Enter")
        page.wait_for_selector(".status.interrupted", timeout=60_000)
        assert outside.process.wait(timeout=60) != 0
    assert "Go on with it" in page.inner_text("#act")
    assert study.find(outside.record.id).status == "interrupted"
