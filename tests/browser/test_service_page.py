"""The page of ``oec serve`` in a real browser: accessible in every view, and usable from the form to the final
curve."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from benchmarks.serve import Server
from search_spaces.study import Study
from service.cluster.connection import free_port
from service.cluster.local_head import stop_head
from service.home.layout import Home
from service.home.location import open_home
from service.home.studies import read_ledger
from service.http.tokens import TokenFile
from tests.browser.test_page import SIZES
from tests.service.http.conftest import CELLS, FINISHED, Served, begin, served
from tests.service.http.test_comparisons import three
from tests.service.http.test_events import listening

pytestmark = pytest.mark.slow
TRAINS_MS = 240_000
"""Starting Ray, the study's driver and its workers takes this long on a busy machine."""
EVIL = "<img src=x onerror=alert(1)>"


def entered(page: Page, url: str, secret: str) -> list[str]:
    """Opens the page and signs in. Returns the list of console messages and errors, which grows while the page is
    open."""
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(url)
    page.fill("#token", secret)
    page.press("#token", "Enter")
    expect(page.locator("#list")).to_be_visible()
    return complaints


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def at(url: str) -> str:
    return url.partition("/api")[0] + "/"


def secret_of(service: Served) -> str:
    return service.runner.headers["Authorization"].removeprefix("Bearer ")


VIEWS = {
    "#/": ("#list tbody tr", {"Compare smoke", "Compare run-a", "compare-chosen"}),
    "#/new": ("#start-hint:not(:empty)", {"start", "use-start", "field-name", "field-scales-nano"}),
    "#/study/smoke": ("#charts .point", {"stop", "report"}),
    "#/compare/run-a/run-b/run-c": ("#compare[aria-busy=false] table", {"Table of run-a to run-b"}),
}
"""For each view, what shows that it is complete, and what the Tab key reaches."""
FOCUSED = "document.activeElement.ariaLabel || document.activeElement.id || document.activeElement.tagName"
OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"


def serious(page: Page) -> list[str]:
    """Returns the serious and critical violations that axe finds."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible(browser: Browser, home: Home, size: str, scheme: str) -> None:
    """In every view, axe finds nothing serious, nothing is wider than the screen, and Tab reaches every control."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    three(home)
    with begin(home), listening(service := served(home)) as url:
        complaints = entered(page, at(url), secret_of(service))
        page.check("[aria-label='Compare run-a']")
        page.check("[aria-label='Compare run-b']")
        for where, (shown, controls) in VIEWS.items():
            page.goto(at(url) + where)
            page.wait_for_selector(shown)
            page.evaluate(OPEN_ALL)
            assert serious(page) == [], where
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{where} scrolls sideways"
            reached = set()
            for _ in range(20):
                page.keyboard.press("Tab")
                reached.add(page.evaluate(FOCUSED))
            assert reached >= controls, where
            page.goto(at(url) + "#/")
        page.goto(at(url) + "#/new")
        page.click("#submit")
        expect(page.locator("[id='field-name']")).to_be_focused()
        assert serious(page) == [], "with errors shown"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "errors scroll sideways"
        assert complaints == []
        page.close()
    stop_head(home)  # the service has started a Ray of its own


def test_curves_grow_and_text_from_a_study_is_never_markup(browser: Browser, home: Home) -> None:
    page = browser.new_page()
    study = Study.load("smoke").model_copy(update={"description": f"{EVIL}. Two."})
    with begin(home, study) as ledger, listening(service := served(home)) as url:
        complaints = entered(page, at(url), secret_of(service))
        expect(page.locator("#list .note")).to_have_text(f"{EVIL}.")  # the first sentence
        page.click("#list >> text=smoke")
        expect(page.locator("#charts .point")).to_have_count(2)
        expect(page.locator("#running tbody tr")).to_have_count(1)
        expect(page.locator("#study .description")).to_have_text(f"{EVIL}. Two.")
        for cell in CELLS[2:]:
            ledger.end(cell.id, FINISHED)
        expect(page.locator("#charts .point")).to_have_count(6)
        ledger.close()
        expect(page.locator("#study .where")).to_contain_text(re.compile("^ended"))
        expect(page.locator("#stop")).to_be_disabled()
        assert complaints == []
        with page.expect_popup() as opening:
            page.click("#report")
        view = opening.value
        view.wait_for_selector("[data-panel] svg", timeout=90_000)
        assert view.evaluate("self.origin") == "null", "a report's scripts could read the token"
        page.click("#sign-out")
        expect(page.locator("#sign-in")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.close()


def until_it_answers(server: Server, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx2.get(f"http://127.0.0.1:{server.port}/healthz").raise_for_status()
            return
        except httpx2.TransportError:
            assert server.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@pytest.mark.long
def test_from_the_form_to_the_curve(browser: Browser, tmp_path: Path) -> None:
    """Runs the real command with its own Ray: fills in and starts a study, and watches it until the end. The curve must
    match the ledger."""
    home = open_home(tmp_path / "home")
    secret = TokenFile(home).add("me", "run", None)
    server = Server(home, free_port(), tmp_path / "serve.log", OMP_NUM_THREADS="1")
    page = browser.new_page()
    try:
        until_it_answers(server, tmp_path / "serve.log")
        entered(page, f"http://127.0.0.1:{server.port}/", secret)
        page.click("nav >> text=New study")
        page.select_option("#start", "smoke")
        page.click("#use-start")
        page.fill("#field-name", "by-hand")
        page.click("[aria-label='Remove z-loss']")
        page.click("summary >> text=Resources")
        page.fill("[id='field-resources.workers']", "1")
        page.fill("[id='field-resources.concurrency']", "1")
        expect(page.locator("#estimate")).to_contain_text("4 cells")
        page.click("#submit")
        expect(page.locator("#study h1")).to_have_text("by-hand", timeout=TRAINS_MS)
        expect(page.locator("#study .where")).to_contain_text(re.compile("^ended"), timeout=TRAINS_MS)
        expect(page.locator("#charts .point")).to_have_count(4)
        ledger = read_ledger(home, "by-hand")
        for entry in ledger.entries.values():
            loss = f"{entry.result.val_loss:.4g}"
            title = page.locator(f"#charts .point[data-cell='{entry.cell.id}'] title")
            expect(title).to_contain_text(loss.rstrip("0"))
        page.close()
    finally:
        server.end()
        stop_head(home)
