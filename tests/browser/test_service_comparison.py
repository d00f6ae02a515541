"""Selecting and comparing studies in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from service.home.location import open_home
from tests.browser.test_page import SIZES
from tests.browser.test_service_page import at, entered, secret_of
from tests.service.http.conftest import served
from tests.service.http.test_comparisons import three
from tests.service.http.test_events import listening

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", list(SIZES))
def test_choose_and_compare(browser: Browser, tmp_path: Path, size: str) -> None:
    """Works with the keyboard alone. The charts show every cell, the tables match the API, and the page's security
    policy is never violated."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    home = open_home(tmp_path / "home")
    three(home)
    with listening(service := served(home)) as url:
        complaints = entered(page, at(url), secret_of(service))
        button = page.locator("#compare-chosen")
        for name in ("run-b", "run-a"):
            expect(button).to_be_disabled()
            page.get_by_label(f"Compare {name}").focus()
            page.keyboard.press("Space")
        expect(page.locator("#chosen")).to_have_text("run-a against run-b")
        with page.expect_response(re.compile("/api/v1/studies$")):
            pass
        expect(page.get_by_label("Compare run-a")).to_be_focused()
        expect(page.get_by_label("Compare run-a")).to_be_checked()
        button.press("Enter")
        page.wait_for_selector("#compare[aria-busy=false]")
        assert page.url.endswith("#/compare/run-b/run-a")
        expect(page.locator("#compare h1")).to_have_text("run-a against run-b")
        told = service.reader.get("/api/v1/compare", params={"study": ["run-b", "run-a"]}).json()
        marks = page.locator("#compare .chart >> nth=0 >> [aria-roledescription=point]")
        labels = marks.evaluate_all("marks => marks.map(mark => mark.getAttribute('aria-label'))")
        cells = {re.search("cell: (.+?);", label)[1] for label in labels}  # type: ignore[index]
        assert cells == {row["cell"] for row in told["figures"][0]["spec"]["datasets"]["facts"]}
        (found,) = told["comparisons"]
        rows = page.locator("#compare tbody tr:has(td)")
        shown = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
        columns = ("measure", "before", "after", "change", "verdict")
        assert shown == [[row[name] for name in columns] for row in found["texts"]]
        assert page.locator("#compare li").all_text_contents() == found["sentences"]
        assert page.locator("#compare tbody th[scope=rowgroup]").all_text_contents() == list(
            dict.fromkeys(row["curve"] for row in found["texts"])
        )
        page.emulate_media(color_scheme="dark")
        expect(page.locator("#compare .chart >> nth=0 >> svg")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(at(url) + "#/compare/run-b/absent")
        expect(page.locator("#error")).to_contain_text("is not in this home")
        assert [text for text in complaints if "status of 404" not in text] == []
        page.close()
