"""The report page in a real browser: charts, controls and accessibility, without network access or errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from rich.console import Console

from benchmarks.report import filled
from benchmarks.report import shown as times_shown
from dashboards.analysis import CELL_COLUMNS, Analysis, table_rows
from dashboards.embeddings import measure_embedding as embedding_of
from dashboards.published import RUNS_CSV
from dashboards.report import ReportContext, write_report
from dashboards.runs import from_records, read_csv
from service.report.report import report
from service.report.sources import load
from tests.timing import within

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
DRAWN = (
    "[...document.querySelectorAll('[data-panel]:not([hidden]) .chart')]"
    ".every(chart => chart.querySelector('svg, canvas'))"
)
LOSS = "Final loss over learning rate"


def made_up() -> pd.DataFrame:
    """Returns synthetic runs: two scales, two methods, two seeds, some diverged, one crashed."""
    records = []
    for scale in ("16M", "29M"):
        for method, gamma, by in (("baseline", None, 0.2), ("z-loss", 1e-4, 0.1), ("z-loss", 1e-1, 0.3)):
            for i, lr in enumerate((1e-3, 1e-2, 1e-1)):
                for seed in (1, 2):
                    loss = 3.0 + by * (i - 1) ** 2 + seed / 100
                    record = {"study": "<b>made up</b>", "cell": f"{scale}-{method}-{gamma}-{i}-{seed}", "scale": scale}
                    record |= {"method": method, "gamma": gamma, "lr": lr, "seed": seed, "state": "finished"}
                    record |= {"val_loss": loss, "l_init": 10.8, "train_seconds": 60.0, "output_mu_norm": 1.0 + i}
                    record |= {"attention_norm": "qk-norm", "origin": "grid"}
                    records.append(record)
    records[4] |= {"state": "diverged", "val_loss": None}
    records[5] |= {"state": "diverged", "val_loss": None}
    records[10] |= {"state": "crashed", "val_loss": None, "reason": "RuntimeError: <script>alert(1)</script>"}
    return from_records(records)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, pd.DataFrame]]:
    """Returns the path of each page and its runs, by name."""
    tables = {"made up": made_up(), "published": read_csv(RUNS_CSV), "factors": with_factors()}
    folder = tmp_path_factory.mktemp("pages")
    contexts = {"made up": measured(tables["made up"])}
    return {
        name: (
            write_report(runs, folder / name, title=f"{name} <i>&", formats=("html",), context=contexts.get(name)),
            runs,
        )
        for name, runs in tables.items()
    }


def with_factors() -> pd.DataFrame:
    """Returns synthetic runs of two methods and one seed, with two values for each of two factors."""
    records = []
    for method, decay, betas in product(("baseline", "mu-centering"), (0.0, 0.1), ([0.9, 0.95], [0.9, 0.99])):
        for i, lr in enumerate((1e-3, 1e-2)):
            factors = {"training.weight_decay": decay, "training.betas": betas}
            record = {"study": "factors", "cell": f"{method}-{decay}-{betas[1]}-{i}", "scale": "tiny", "seed": 1}
            record |= {"method": method, "lr": lr, "state": "finished", "val_loss": 3.0 + i + decay, "l_init": 7.0}
            records.append(record | {"factors": json.dumps(factors)})
    return from_records(records)


def measured(runs: pd.DataFrame) -> ReportContext:
    """Returns a context with the steps, links and weights of the cells that ended."""
    ended = runs[runs["state"].isin(["finished", "diverged"])]
    steps = {
        cell: {
            "step": [0, 10, 20],
            "val_loss": [10.8, 5.0, 3.0 + i],
            "logits_mean": [0.0, None, -1.0],
            "fc2_norm": [1, 2, 3],
        }
        for i, cell in enumerate(ended["cell"])
    }
    links = {cell: f"http://127.0.0.1:5000/#/experiments/1/runs/{i}" for i, cell in enumerate(ended["cell"])}
    return ReportContext(steps=steps, links=links, cores=2, analysis=analyzed(ended))


def analyzed(ended: pd.DataFrame) -> Analysis:
    """Returns synthetic weights of every second cell, each with a different number of rows."""
    told: dict[str, list[dict[str, object]]] = {}
    for number, run in enumerate(ended[::2].to_dict("records")):
        E_VD = np.random.default_rng(number).normal(size=(30 + number, 4)) + 1.0
        cell = {name: run.get(name, 20) for name in CELL_COLUMNS}
        for name, rows in table_rows(cell, {"output": embedding_of(E_VD)}).items():
            told.setdefault(name, []).extend(rows)
    return Analysis.from_rows(told)


class Opened:
    """A page and the errors that occurred on it."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.complaints = page, list[str]()
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: self._asked(asked.url, path))
        page.goto(path.as_uri())
        self.drawn()

    def _asked(self, url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            self.complaints.append(f"it asked for {url}")

    def drawn(self) -> None:
        self.page.wait_for_selector("main[aria-busy=false]")
        assert self.page.evaluate(DRAWN)

    def column(self, place: int) -> list[float]:
        """Returns a column of the page's tables, as its script reads it."""
        found: list[float] = self.page.evaluate(f"column({place})")
        return found

    def points(self, panel: str) -> dict[str, float]:
        """Returns the value of each cell's point in a panel's chart, as read from the labels for screen readers."""
        labels = self.page.eval_on_selector_all(
            f"[data-panel='{panel}'] svg [aria-roledescription='point']",
            "marks => marks.map(mark => mark.getAttribute('aria-label'))",
        )
        found = {}
        for label in labels:
            value = re.search(r"final validation loss \(nats\): ([\d.,]+)", label)
            cell = re.search(r"cell: (.+?); lr:", label)
            assert value, label
            assert cell, label
            found[cell[1]] = float(value[1].replace(",", ""))
        return found


@pytest.fixture
def opened(
    browser: Browser, pages: dict[str, tuple[Path, pd.DataFrame]], request: pytest.FixtureRequest
) -> Iterator[tuple[Opened, pd.DataFrame]]:
    """Opens a page. The parameter is the page's name, the screen size and the color scheme."""
    name, size, scheme = request.param
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    path, runs = pages[name]
    opened = Opened(page, path)
    yield opened, runs
    assert opened.complaints == []
    page.close()


EVERYWHERE = [
    ("made up", "desktop", "light"),
    ("made up", "phone", "dark"),
    ("published", "desktop", "dark"),
    ("published", "phone", "light"),
]
"""Covers every pair of page and size, page and scheme, and size and scheme."""


@pytest.mark.parametrize("opened", [("made up", "desktop", "light"), ("published", "desktop", "light")], indirect=True)
def test_every_choice_draws_the_numbers_of_the_table(opened: tuple[Opened, pd.DataFrame]) -> None:
    shown, runs = opened
    texts = "options => options.map(option => option.value)"
    runs = runs.assign(tried=runs.groupby("method")["gamma"].transform("nunique"))
    for view in shown.page.eval_on_selector_all("#view option", texts):
        shown.page.select_option("#view", view)
        for gamma in shown.page.eval_on_selector_all("[data-filter=gamma] option", texts) or [None]:
            if gamma is not None:
                shown.page.select_option("[data-filter=gamma]", gamma)
            shown.drawn()
            drawn = runs[runs["scale"] == view.partition(",")[0]]
            drawn = drawn[(drawn["tried"] < 2) | (drawn["gamma"] == float(gamma))] if gamma else drawn
            ended = drawn[drawn["state"].isin(["finished", "diverged"])]
            found = shown.points(LOSS)
            assert len(found) == len(ended), (view, gamma)
            expected = (
                ended["val_loss"].where(ended["state"] == "finished", ended["l_init"]).clip(upper=ended["l_init"])
            )
            for cell, loss in zip(ended["cell"], expected, strict=True):
                if isinstance(cell, str):  # a published run has no id
                    assert found[cell] == pytest.approx(loss, rel=1e-6), cell
            assert sorted(found.values()) == pytest.approx(sorted(expected), rel=1e-6)


@pytest.mark.parametrize("opened", [("made up", "desktop", "light")], indirect=True)
def test_a_single_gamma(opened: tuple[Opened, pd.DataFrame]) -> None:
    """Legends and bars show only the lines that are drawn, each in its original color."""
    shown, _ = opened
    page = shown.page
    named = f"[data-panel='{LOSS}'] svg .mark-text.role-legend-label text"
    texts = "labels => labels.map(label => label.textContent)"
    page.select_option("#view", "29M")
    shown.drawn()
    assert page.eval_on_selector_all(named, texts) == ["baseline", "z-loss (gamma=0.0001)", "z-loss (gamma=0.1)"]
    bars = "[data-panel='LRS by curve'] svg [aria-roledescription=bar]"
    of_each = "[bar.ariaLabel.match(/label: (.+?);/)[1], bar.getAttribute('fill')]"
    looks = f"bars => Object.fromEntries(bars.map(bar => {of_each}))"
    before = page.eval_on_selector_all(bars, looks)
    page.select_option("[data-filter=gamma]", "0.1")
    shown.drawn()
    assert page.eval_on_selector_all(named, texts) == ["baseline", "z-loss (gamma=0.1)"]
    after = page.eval_on_selector_all(bars, looks)
    assert after == {name: look for name, look in before.items() if name != "z-loss (gamma=0.0001)"}
    assert len(after) == len(before) - 1 > 0
    assert "Only gamma 0.1 is shown." in page.inner_text(f"[data-panel='{LOSS}'] figcaption")
    over = "[data-panel='LRS over gamma']"
    assert "is shown" not in page.inner_text(f"{over} figcaption")
    assert len(page.query_selector_all(f"{over} svg [aria-roledescription=point]")) == 2, (
        "it must ignore the selected gamma"
    )


@pytest.mark.parametrize("opened", EVERYWHERE, indirect=True)
def test_the_page_is_accessible(opened: tuple[Opened, pd.DataFrame]) -> None:
    """axe reports nothing serious, nothing is wider than the screen, and the keyboard reaches every control."""
    shown, _ = opened
    findings = Axe().run(shown.page).response["violations"]
    assert [found["id"] for found in findings if found["impact"] in ("serious", "critical")] == []
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    reached = set()
    for _ in range(12):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert "view" in reached, reached


@pytest.mark.parametrize("opened", [("made up", "desktop", "light")], indirect=True)
def test_details_open_and_text_of_a_study_is_text(opened: tuple[Opened, pd.DataFrame]) -> None:
    shown, runs = opened
    for summary in shown.page.query_selector_all("summary"):
        summary.click()
    shown.page.wait_for_function(f"document.querySelectorAll('#all-runs tbody tr').length === {len(runs)}")
    text = shown.page.inner_text("main")
    assert "made up <i>&" in text
    assert "<script>alert(1)</script>" in text, "the crashed cell's reason is not shown as text"
    assert shown.page.query_selector("main b, main i") is None
    for run in runs.to_dict("records"):
        if run["state"] == "finished":
            assert f"{run['val_loss']:.4f}"[:5] in text


def test_runs_are_listed_in_batches_of_200(browser: Browser, tmp_path: Path) -> None:
    """The list opens with the keyboard alone, and each further key press shows more of it."""
    of_seeds = [made_up().assign(seed=lambda runs, i=i: runs["seed"] + 2 * i) for i in range(12)]
    runs = pd.concat(of_seeds, ignore_index=True)
    page = browser.new_page()
    shown = Opened(page, write_report(runs, tmp_path, title="many", formats=("html",)))
    rows = "document.querySelectorAll('#all-runs tbody tr').length"
    page.focus("#all-runs summary")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{rows} === 200")
    page.focus("#more")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{rows} === 400")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{rows} === {len(runs)}")
    assert not page.is_visible("#more")
    assert page.inner_text("#all-runs tbody tr:last-child code") == runs["cell"].iloc[-1]
    assert shown.complaints == []
    page.close()


@pytest.mark.parametrize("opened", [("made up", "desktop", "light")], indirect=True)
def test_a_cell_step_by_step(opened: tuple[Opened, pd.DataFrame]) -> None:
    """Every cell of the view can be selected, its charts show its numbers, and it links to its run."""
    shown, runs = opened
    page, steps = shown.page, json.loads(shown.page.inner_text("#steps"))
    for view in ("29M", "16M"):
        page.select_option("#view", view)
        shown.drawn()
        options = page.eval_on_selector_all("#cell option", "options => options.map(o => o.value)")
        ended = runs[(runs["scale"] == view) & runs["state"].isin(["finished", "diverged"])]
        assert sorted(options) == sorted(ended["cell"])
        for cell in (options[0], options[-1]):
            page.select_option("#cell", cell)
            page.wait_for_function(
                "last => document.querySelector('[data-metric=val_loss]').innerHTML.includes('value: ' + last)",
                arg=f"{shown.column(steps['values'][cell]['val_loss'])[-1]:g}",
            )
            drawn = page.eval_on_selector_all(
                "[data-metric]:not([hidden])", "charts => charts.map(chart => chart.dataset.metric)"
            )
            assert set(drawn) == {"val_loss", "logits_mean", "fc2_norm"}
            points = page.query_selector_all("[data-metric=logits_mean] [aria-roledescription=point]")
            assert len(points) == 2, "a missing value was drawn as a point"
            assert page.get_attribute("#run", "href") == next(c["url"] for c in steps["cells"] if c["cell"] == cell)
    page.context.route("http://127.0.0.1:5000/**", lambda route: route.fulfill(body="its run"))
    for number, point in enumerate(page.query_selector_all(f"[data-panel='{LOSS}'] svg [aria-roledescription=point]")):
        if number in (0, len(ended) - 1):
            with page.expect_popup() as opening:
                point.click(force=True)
            assert opening.value.url.startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
            opening.value.close()


@pytest.mark.parametrize("opened", [("made up", "desktop", "light"), ("made up", "phone", "dark")], indirect=True)
def test_the_weights_of_the_chosen_cell(opened: tuple[Opened, pd.DataFrame]) -> None:
    """The histograms count every row of E; a cell without weights has no histogram."""
    shown, _ = opened
    page, weights = shown.page, json.loads(shown.page.inner_text("#weights"))
    bars = "[data-weights='Norms of the rows of the output embedding'] svg [aria-roledescription=bar]"
    options = page.eval_on_selector_all("#cell option", "options => options.map(o => o.value)")
    kept = set(weights["Norms of the rows of the output embedding"]["cells"])
    assert len(kept & set(options)) >= 2
    assert set(options) - kept
    counted = set()
    for cell in options:
        page.select_option("#cell", cell)
        if cell not in kept:
            assert not page.locator("[data-weights]:visible").count()
            continue
        table = weights["Norms of the rows of the output embedding"]["cells"][cell]["bins"]
        rows = sum(shown.column(table["rows"]))
        page.wait_for_function(
            "([bars, rows]) => [...document.querySelectorAll(bars)].map(bar => "
            "Number(/rows: (\\d+)/.exec(bar.getAttribute('aria-label'))[1])).reduce((a, b) => a + b, 0) === rows",
            arg=[bars, rows],
        )
        assert page.locator("[data-weights]:visible").count() == 3
        counted.add(rows)
    assert len(counted) == len(kept & set(options)), "two cells show the same histogram"


def test_published_curves_come_and_go(browser: Browser, tmp_path: Path) -> None:
    runs = read_csv(RUNS_CSV).query("method == 'baseline'")
    path = write_report(runs.assign(val_loss=runs["val_loss"] + 0.1), tmp_path, title="mine", formats=("html",))
    page = browser.new_page()
    shown = Opened(page, path)
    lines = f"[data-panel='{LOSS}'] svg .mark-line path"
    own = len(page.query_selector_all(lines))
    assert not page.is_checked("#published")
    page.check("#published")
    page.wait_for_function(f'document.querySelectorAll("{lines}").length === {own + 4}')
    page.select_option("#view", "221M")
    page.wait_for_function(f'document.querySelectorAll("{lines}").length === {own + 4}')
    page.uncheck("#published")
    page.wait_for_function(f'document.querySelectorAll("{lines}").length === {own}')
    assert shown.complaints == []
    page.close()


def test_a_page_that_reloads_keeps_its_state(browser: Browser, tmp_path: Path) -> None:
    runs = read_csv(RUNS_CSV).query("method == 'baseline'")
    runs = runs.assign(cell=[f"cell-{i}" for i in range(len(runs))])
    context = replace(measured(runs), refresh_s=5)
    path = write_report(runs, tmp_path, title="live", formats=("html",), context=context)
    page = browser.new_page()
    shown = Opened(page, path)
    page.select_option("#view", "221M")
    page.check("#published")
    shown.drawn()
    cell = page.eval_on_selector_all("#cell option", "options => options[2].value")
    page.select_option("#cell", cell)
    page.evaluate("allRuns.open = true; scrollTo(0, 600)")
    page.evaluate("before = true")
    page.wait_for_function("typeof before === 'undefined' && main.ariaBusy === 'false'")
    choices = "[view.value, published.checked, cell.value, allRuns.open, scrollY]"
    assert page.evaluate(choices) == ["221M", True, cell, True, 600]
    assert shown.complaints == []
    page.close()


@pytest.mark.long
def test_ten_thousand_cells_open_within_seconds(browser: Browser, tmp_path: Path) -> None:
    home = filled(tmp_path, 10_000)
    path = report(load("many", home), tmp_path / "out", Console(quiet=True), ("html",))
    assert path.stat().st_size < 15e6
    found = times_shown(browser, path)
    assert found["first"] < within(10), "the first chart takes too long; it takes about 3 s on an idle machine"
    assert found["longest"] < within(3), "a task blocks the page for too long"
    page = browser.new_page()
    shown = Opened(page, path)
    choices = page.eval_on_selector_all("#view option", "options => options.map(o => o.value)")
    page.select_option("#view", choices[-1])
    shown.drawn()
    assert shown.complaints == []
    page.close()


@pytest.mark.parametrize("opened", [("factors", "desktop", "light"), ("factors", "phone", "dark")], indirect=True)
def test_factors_select_color_and_facet_lines(opened: tuple[Opened, pd.DataFrame]) -> None:
    shown, runs = opened
    page, charts = shown.page, f"[data-panel='{LOSS}'] svg"
    assert len(shown.points(LOSS)) == len(runs)
    page.select_option("[data-filter=weight_decay]", "0.1")
    shown.drawn()
    assert set(shown.points(LOSS)) == {cell for cell in runs["cell"] if "-0.1-" in cell}
    assert "Only weight decay 0.1 is shown." in page.inner_text(f"[data-panel='{LOSS}'] figcaption")
    page.select_option("[data-filter=weight_decay]", "")
    page.select_option("#color", "betas")
    shown.drawn()
    lines = f"{charts} [aria-roledescription='line mark']"
    strokes = "lines => [...new Set(lines.map(line => line.getAttribute('stroke')))].length"
    assert page.eval_on_selector_all(lines, strokes) == 2, "each value needs its own color"
    page.select_option("#facet", "method")
    shown.drawn()
    headings = page.eval_on_selector_all(f"[data-panel='{LOSS}'] h4", "all => all.map(one => one.textContent)")
    assert headings == ["method baseline", "method mu-centering"]
    assert page.locator(charts).count() == 2
    assert len(shown.points(LOSS)) == len(runs), "facets must not leave out any cell"
