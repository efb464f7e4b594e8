"""The application in a real browser: every page with real runs, hostile text inert, by keyboard, narrow, in light and dark.

The server runs in a thread of the test with toy runs and models in memory; studies begun from the page are tested in
tests/show/test_begin.py, but for one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from caseback.show.server import application
from caseback.study import Study
from caseback.study.readings import HEADS, LENS

from ..cli import friend
from ..relations.small import affine_of
from ..show.test_begin import reap
from ..show.trial import spec
from ..study.looking import look

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDE, NARROW = (1280, 900), (400, 800)
TOKEN = "browser-test-token"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> \x1b[31mred\x1b[0m \u202egnp.exe"
PROMPT = "the friend of subject3 is"

Open = Callable[..., Any]


@dataclass
class App:
    """A server in a thread."""

    study: Study
    address: str
    place: Path


def runs(study: Study) -> None:
    """Real readings of a small model, toy runs, one that failed, one that is hostile, one page of a circuit."""
    model = affine_of().model
    for prompt in (PROMPT, "the friend of subject1 is"):
        look(study, LENS, LENS.Config(prompt=prompt), model)
    look(study, HEADS, HEADS.Config(sequences=3, length=6), model)
    for seed in range(3):
        study.run(spec(f"task {seed}", seed=seed))
    with pytest.raises(ZeroDivisionError):
        study.run(spec("bad one", fail="defect"))
    study.run(spec(HOSTILE, seed=7))
    asked = LENS.spec(LENS.Config(prompt=HOSTILE + " subject3"), model, passed={"<b>": HOSTILE})
    study.run(asked, have={"model": model})


@contextmanager
def serving(study: Study, place: Path) -> Iterator[App]:
    """A server of a study on a free port."""
    listening = uvicorn.Config("", port=0, log_level="critical", lifespan="off").bind_socket()
    listening.listen()
    port = listening.getsockname()[1]
    made = application(study, token=TOKEN, port=port, load=lambda name: affine_of().model)
    server = uvicorn.Server(uvicorn.Config(made, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield App(study, f"http://localhost:{port}", place)
    made.closing.set()
    server.should_exit = True
    thread.join(10)
    made.prompts.close()
    reap(made.jobs)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    study = Study(tmp_path_factory.mktemp("casebook"))
    runs(study)
    with serving(study, friend.folder(tmp_path_factory.mktemp("model"))) as made:
        yield made


@pytest.fixture
def open_page(browser: Any, app: App) -> Iterator[Open]:
    """Opens a page of the application; when the test ends, nothing may have been said on the console, no other server
    asked, and nothing a run holds may have run."""
    pages, said = [], []

    def open_(path: str, ready: str, *, size: tuple[int, int] = WIDE, token: str = TOKEN, **context: Any) -> Any:
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce", **context)
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on(
            "request", lambda request: request.url.startswith((f"{app.address}/", "data:")) or said.append(request.url)
        )
        page.goto(f"{app.address}{path}{'&' if '#' in path else '#'}token={token}")
        page.wait_for_selector(ready)
        return page

    yield open_
    for page in pages:
        assert page.title() != "owned" and "\u202e" not in page.title()
        assert page.locator("script:not([src]):not([type=importmap])").count() == 0
        assert page.locator("img").count() == 0
        page.close()
    assert said == []


def drawn(page: Any) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def rows(page: Any) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('tr[data-run]')].map((row) => row.dataset.run)")
    return found


def until(page: Any, found: Callable[[], bool]) -> None:
    """Wait for what no selector says; the page's policy lets no polling predicate in."""
    for _ in range(200):
        if found():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited in vain")


def run_named(app: App, task: str) -> str:
    return next(row.id for row in app.study.runs() if row.task.startswith(task))


# --- every page, wide and narrow, light and dark -----------------------------------------------------------------------


def pages_of(app: App) -> dict[str, tuple[str, str]]:
    lenses = [row.id for row in app.study.runs() if row.method == "lens" and row.task.startswith("the friend")]
    return {
        "casebook": ("/", "tr[data-run]"),
        "run": (f"/run/{lenses[0]}", ".record dl"),
        "failed": (f"/run/{run_named(app, 'bad one')}", ".record dl"),
        "compare": (f"/compare#a={lenses[0]}&b={lenses[1]}", ".changes"),
        "choose": (f"/compare#a={lenses[0]}", ".choose"),
        "prompt": (f"/prompt#text={PROMPT.replace(' ', '+')}", ".reading.done"),
        "new": ("/new#method=lens", "form .field"),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["casebook", "run", "failed", "compare", "choose", "prompt", "new"])
def test_a_page_is_drawn_and_fits(app: App, open_page: Open, name: str, size: tuple[int, int], scheme: str) -> None:
    path, ready = pages_of(app)[name]
    page = open_page(path, ready, size=size, color_scheme=scheme)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".problem").count() == (name == "failed")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 21, 24)"}[scheme]
    assert "token" not in page.url
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"view-{name}-{size[0]}-{scheme}.png", full_page=True)


def test_light_and_dark_are_kept_from_page_to_page(open_page: Open) -> None:
    page = open_page("/", "tr[data-run]", color_scheme="light")
    page.click(".top .theme")
    page.click("nav a[href='/new']")
    page.wait_for_selector("form .field")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 21, 24)"


# --- the casebook ------------------------------------------------------------------------------------------------------


def test_the_casebook_is_searched_and_narrowed_and_its_address_says_so(app: App, open_page: Open) -> None:
    page = open_page("/", "tr[data-run]")
    assert rows(page) == [row.id for row in app.study.runs()]
    page.fill("#search", "subject3")
    until(page, lambda: len(rows(page)) == 2 and "words=subject3" in page.url)  # the hostile prompt has it too
    page.fill("#search", "nosuchword")
    page.wait_for_selector(".empty")
    page.click("text=Show all")
    page.wait_for_selector("tr[data-run] >> nth=3")
    page.click(".facet button:has-text('failed')")
    until(page, lambda: len(rows(page)) == 1)
    assert "ZeroDivisionError" in page.inner_text("tbody .of-result")
    again = open_page("/#status=failed", "tr[data-run]")
    assert len(rows(again)) == 1


def test_the_keyboard_reaches_a_run_and_comes_back(open_page: Open) -> None:
    page = open_page("/", "tr[data-run]")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("ArrowDown")
    first = page.evaluate("document.activeElement.closest('tr').dataset.run")
    assert first == rows(page)[0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.closest('tr').dataset.run") == first
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".record")
    assert rows(page) == [] and "/run/" in page.url
    page.keyboard.press("Escape")
    page.wait_for_selector("tr[data-run]")


def test_what_is_marked_stays_marked_when_the_search_is_left(app: App, open_page: Open) -> None:
    page = open_page("/", "tr[data-run]")
    page.fill("#search", "friend")
    until(page, lambda: len(rows(page)) == 2 and "words=friend" in page.url)
    for box in page.locator("tr[data-run] input").all():
        box.check()
    page.wait_for_selector(".compare-bar a")
    page.focus("#search")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("Escape")
    assert page.input_value("#search") == "friend"
    page.keyboard.press("c")
    page.wait_for_selector(".changes")


def test_an_address_without_a_page_says_so(browser: Any, app: App) -> None:
    for path in ("/zzz", "/run", "/run/a/b", "/claims/a/b", "/constructor"):
        page = browser.new_page()
        page.goto(f"{app.address}{path}#token={TOKEN}")
        page.wait_for_selector(".problem")
        assert page.inner_text(".problem") == "There is no such page."
        page.click("#page a")
        page.wait_for_selector("tr[data-run]")
        page.close()


def test_a_narrow_table_is_not_cut(app: App, open_page: Open) -> None:
    lenses = [row.id for row in app.study.runs() if row.method == "lens" and row.task.startswith("the friend")]
    for path in (f"/run/{lenses[0]}", f"/compare#a={lenses[0]}&b={lenses[1]}"):
        page = open_page(path, ".scroll", size=NARROW)
        heights = "[...document.querySelectorAll('.scroll')].map((box) => [box.scrollHeight, box.clientHeight])"
        sizes = page.evaluate(heights)
        assert sizes and all(whole == seen for whole, seen in sizes)
    lines = "[...document.querySelectorAll('.changes td.number > *')].map((value) => value.getClientRects().length)"
    assert set(page.evaluate(lines)) == {1}  # no number is broken
    assert page.evaluate(
        "[...document.querySelectorAll('.changes .scroll')].every((b) => b.scrollWidth === b.clientWidth)"
    )


def test_two_marked_runs_are_compared(app: App, open_page: Open) -> None:
    page = open_page("/#words=friend", "tr[data-run]")
    page.focus("tr[data-run] a")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    page.wait_for_selector(".compare-bar a")
    page.keyboard.press("c")
    page.wait_for_selector(".changes")
    assert page.locator(".card").count() == 2
    assert "prompt" in page.inner_text(".changes >> nth=1")
    assert page.locator(".together .heat").count() >= 2  # both lenses, side by side


# --- one run -----------------------------------------------------------------------------------------------------------


def test_a_run_shows_view_code_tables_and_events(app: App, open_page: Open) -> None:
    page = open_page(f"/run/{run_named(app, PROMPT)}", ".record dl")
    assert page.locator(".heat .cell").count() > 10
    assert "Study(" in page.inner_text(".code >> nth=0")
    page.click("summary:has-text('What happened')")
    assert "stage-finished" in page.inner_text(".events table")
    with page.expect_download() as caught:
        page.click(".downloads button >> nth=0")
    assert Path(caught.value.path()).read_text("utf-8").count("\n") > 3
    assert caught.value.suggested_filename.endswith(".csv")


def test_a_run_that_is_computed_moves_and_then_shows_its_result(app: App, open_page: Open) -> None:
    asked = spec("slow one", steps=12, pause=0.25)
    working = threading.Thread(target=lambda: app.study.run(asked))
    working.start()
    while not any(row.task == "slow one" for row in app.study.runs()):
        pass
    page = open_page(f"/run/{run_named(app, 'slow one')}", "#progress .progress")
    ledger = open_page("/", ".now .progress")
    assert "slow-one" in ledger.inner_text(".now")
    page.wait_for_selector(".status.finished", timeout=60_000)
    ledger.wait_for_selector(".now", state="hidden", timeout=60_000)
    working.join()
    assert "mean" in page.inner_text(".lists")


def test_hostile_text_is_only_text(app: App, open_page: Open) -> None:
    page = open_page("/#words=onerror", "tr[data-run]")
    assert len(rows(page)) == 2
    shown = " ".join(page.locator("tbody .of-run").all_inner_texts())
    assert "<img src=x" in shown and "\u202e" not in shown and "\x1b" not in shown and "␛" in shown
    for run in rows(page):
        one = open_page(f"/run/{run}", ".record dl")
        assert "<img src=x" in one.inner_text("h1")
        assert "⟨202E⟩" in one.inner_text("body")
    both = open_page(f"/compare#a={rows(page)[1]}&b={run_named(app, 'task 0')}", ".changes")
    assert "<img src=x" in both.inner_text(".card >> nth=0")


def test_a_run_that_is_not_there_is_said(browser: Any, app: App) -> None:
    page = browser.new_page()
    page.goto(f"{app.address}/run/%3Cscript%3Edocument.title='owned'%3C%5Cscript%3E#token={TOKEN}")
    page.wait_for_selector(".problem")
    assert 'there is no run "<script>' in page.inner_text(".problem")
    assert "owned" not in page.title()
    page.close()


# --- the prompt and new studies ----------------------------------------------------------------------------------------


def test_a_prompt_is_read_while_it_is_typed(open_page: Open) -> None:
    page = open_page("/prompt", "#prompt")
    page.click("#prompt")
    page.keyboard.type(PROMPT)
    page.wait_for_selector(".reading.done")
    assert page.locator("#next .token").count() == 5
    assert "object3" in page.inner_text(".next li >> nth=0")
    assert page.locator("#lens .cell").count() >= 5
    assert page.locator("#inputs .token").count() == 5
    page.focus("#next .token[aria-selected=true]")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".reading.done")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("3 ")
    page.wait_for_selector("#inputs .token >> nth=3")
    page.click(".choice button:has-text('gradient ×')")
    until(page, lambda: all(part in page.url for part in ("method=gradient", "token=3", "text=the+friend")))


def test_a_hostile_prompt_is_only_text(open_page: Open) -> None:
    page = open_page("/prompt", "#prompt")
    page.fill("#prompt", "<script>document.title='owned'</script> subject3 \u202e")
    page.wait_for_selector(".reading.done")
    page.fill("#prompt", "is " * 300)
    page.wait_for_selector(".problem")
    assert "128" in page.inner_text(".problem")


def test_a_study_is_begun_from_its_form(app: App, open_page: Open) -> None:
    page = open_page("/new#method=lens", "form .field")
    page.click("form .act")
    page.wait_for_selector(".problem")
    assert page.inner_text(".problem") == "prompt is needed."
    assert page.evaluate("document.activeElement.id") == "field-prompt"
    page.fill("#field-prompt", "the friend of subject2 is")
    page.click("form details.more summary")
    page.fill("#field-seed", "x")
    assert "whole number" in page.inner_text(".problem")
    page.fill("#field-seed", "0")
    page.fill("#field-model", str(app.place / "m"))
    page.keyboard.press("Enter")
    page.wait_for_selector(".job")
    page.wait_for_selector(".job:has-text('finished')", timeout=120_000)
    page.click(".job a")
    page.wait_for_selector(".heat .cell")
    assert "subject2" in page.inner_text("h1")
    files = app.study.find(page.url.split("/run/")[1]).spec.model["files"]
    assert files and all(page.inner_text("#page").count(sha) == 1 for sha in set(files.values()))


# --- the gate, as a reader meets it -------------------------------------------------------------------------------------


def test_without_the_token_the_page_says_what_to_do(browser: Any, app: App) -> None:
    page = browser.new_page()
    page.goto(app.address)
    page.wait_for_selector(".problem")
    assert "open the address the terminal printed" in page.inner_text(".problem")
    page.close()


def test_another_page_cannot_ask(browser: Any, app: App, tmp_path: Path) -> None:
    """From a page of another origin, with the token even: neither read nor changed."""
    page = browser.new_page()
    (tmp_path / "evil.html").write_text("<title>evil</title>")
    page.goto((tmp_path / "evil.html").as_uri())
    ask = f"""fetch("{app.address}/api/runs", {{headers: {{"x-caseback-token": "{TOKEN}"}}}}).then(() => "answered", () => "refused")"""
    assert page.evaluate(ask) == "refused"
    post = f"""fetch("{app.address}/api/jobs", {{method: "POST", mode: "no-cors", body: "{{}}"}}).then((a) => a.type, () => "refused")"""
    assert page.evaluate(post) in ("opaque", "refused")
    frame = f"""new Promise((done) => {{
        const frame = document.createElement("iframe");
        frame.onload = () => done(frame.contentDocument === null);
        frame.src = "{app.address}";
        document.body.append(frame);
    }})"""
    assert page.evaluate(frame) is True
    page.close()
