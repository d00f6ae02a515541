"""The report: one folder, a page that needs no network, and no text from a study that is interpreted as markup."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import GRID, L_INIT, curve, run, study

from dashboards import published
from dashboards.analysis import Analysis, table_rows
from dashboards.answer import answer
from dashboards.embeddings import measure_embedding
from dashboards.files import FORMATS
from dashboards.forecast import forecast
from dashboards.report import ReportContext, write_report
from dashboards.runs import from_records, read_csv
from dashboards.sensitivity import curves
from dashboards.tables import b_ratio_table, cost_table

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, the text, and the content of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def rows(self, table: dict[str, int]) -> list[dict[str, object]]:
        """Returns the rows of a table that is stored as columns, as the page's script reads it."""
        return list(
            map(dict, zip(*([(name, value) for value in self.column(at)] for name, at in table.items()), strict=True))
        )

    def column(self, at: int) -> list[object]:
        one = json.loads(self.scripts[3])[at]
        return one if isinstance(one, list) else [one["values"][i] for i in one["indices"]]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a report in which every external text tries to be markup."""
    records = curve([3.5, 3.0, 3.2, math.nan], method=EVIL, scale=EVIL, study=EVIL)
    records[0] |= {"state": "crashed", "val_loss": None, "reason": EVIL, "cell": EVIL}
    folder = tmp_path_factory.mktemp("report")
    texts = {"title": EVIL, "provenance": {EVIL: EVIL}, "notes": [EVIL]}
    return write_report(study(records), folder, grid=GRID, formats=FORMATS, **texts)


@pytest.fixture(scope="module")
def page(evil: Path) -> Page:
    return Page(evil)


def test_the_folder(evil: Path) -> None:
    folder = evil.parent
    assert evil.name == "report.html"
    tables = {path.name for path in (folder / "tables").iterdir()}
    names = ("sensitivity", "LRS", "best_loss", "best_lr", "overhead_percent", "cost", "importance")
    assert tables == {f"{name}.{form}" for name in names for form in ("csv", "parquet", "md", "tex")}
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg", ".pdf"}
    assert len(read_csv(folder / "runs.csv")) == 4


def test_external_text_is_never_markup(page: Page) -> None:
    assert len(page.scripts) == 8, (
        "expected figures, steps, runs, columns, gammas and weights as JSON, then Vega and the page's own script"
    )
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count("alert('x')") >= 6, (
        "title, heading, table, note, reason and provenance must be shown as text"
    )


def test_the_page_loads_nothing(page: Page) -> None:
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.elements:
        inside = tag == "a" and (attributes.get("href") or "").startswith("#")
        loads = {"src", "href", "srcset", "action", "data"} - ({"href"} if inside else set())
        assert not loads & set(attributes), f"<{tag}> loads something"
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "fetch(" not in page.scripts[7]
    assert "url(" not in page.scripts[0]


def test_the_page_is_accessible_to_screen_readers(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table")) >= 3
    charts = [element for element in page.all("div") if element.get("role") == "img"]
    assert charts
    assert all(chart.get("aria-label") for chart in charts)
    assert all(header.get("scope") for header in page.all("th"))


def test_figures_are_embedded_as_json(page: Page) -> None:
    panels = json.loads(page.scripts[0])
    figure = panels["Final loss over learning rate"][EVIL]
    assert figure["spec"]["width"] == "container"
    assert not any("</" in script for script in page.scripts[:6])
    facts = page.rows(figure["data"]["facts"])
    assert [fact["loss"] for fact in facts] == [3.0, 3.2, pytest.approx(L_INIT)]
    assert {fact["label"] for fact in facts} == {EVIL}


def test_the_scale_can_be_selected_if_there_are_several(page: Page, tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.4], scale="16M"))
    several = Page(write_report(runs, tmp_path, title="two", grid=GRID))
    assert not page.all("select")
    assert len(several.all("option")) == 2


def test_the_page_begins_with_a_recommendation_and_shows_its_uncertainty(tmp_path: Path) -> None:
    records = [
        curve([3.5, 3.0 + seed / 100, 3.2, last], seed=seed, scale=scale, method=method)
        for scale in ("w96", "w192")
        for method, last in (("baseline", math.nan), ("mu-centering", 3.4))
        for seed in range(2)
    ]
    path = write_report(study(*records), tmp_path, title="begins", grid=GRID, formats=("html", "csv"))
    page = Page(path)
    first = page.text.index("At w192, use a learning rate of 0.01 with mu-centering; twice as much costs 0.059 ± ")
    assert first < page.text.index(" is least sensitive")
    for heading in ("Within 0.01 nats", "Within 0.05 nats", "Headroom", "Factor per doubling"):
        assert heading in page.text
    for figure in ("Loss against sensitivity", "Best learning rate over width"):
        assert figure in json.loads(page.scripts[0])
    assert len(pd.read_csv(tmp_path / "tables" / "drift.csv")) == 2


def test_a_report_without_results_says_so(tmp_path: Path) -> None:
    runs = from_records([run(state="planned", val_loss=None)])
    page = Page(write_report(runs, tmp_path, title="nothing yet", grid=GRID))
    assert "No curve has an LRS yet" in page.text
    assert "No curve has an LRS yet" in Page(write_report(from_records([]), tmp_path, title="no runs")).text


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    first = write_report(runs, tmp_path, title="again", grid=GRID).read_bytes()
    assert write_report(runs, tmp_path, title="again", grid=GRID).read_bytes() == first, (
        "equal runs must give the same page"
    )


def test_the_answer_for_the_published_runs() -> None:
    found = curves(read_csv(published.RUNS_CSV))
    seed = "With only one seed, small differences cannot be told from noise."
    assert answer([curve for curve in found if curve.gamma in (None, published.GAMMA)]) == (
        "mu-centering at 16M and mu-loss (gamma=0.0001) at 29M, 57M, 109M and 221M are least sensitive to the "
        f"learning rate, with an LRS of 0.027 to 0.056, compared with 0.306 to 0.508 for the baseline. {seed}"
    )
    assert answer(found) == (
        "mu-centering at 16M, mu-loss (gamma=0.0001) at 29M and 57M and mu-loss (gamma=100) at 109M and 221M are "
        "least sensitive to the learning rate, with an LRS of 0.027 to 0.055, compared with 0.306 to 0.508 for the "
        "baseline. However, the best loss of mu-loss (gamma=0.0001) at 29M is 3.586, and another curve reaches 3.561. "
        "Over the gammas that all of these methods were tried at, LRS varies by 0.024 to 0.151 for mu-loss and 1.124 "
        f"to 2.091 for z-loss. {seed}"
    )


def test_the_answer_with_one_learning_rate_says_so() -> None:
    alone = curves(study([run(), run(method="mu-centering")]))
    assert answer(alone) == "No curve has an LRS, because the grid has only one learning rate."
    of_eps = {"lr_factor": "training.eps", "factors": '{"training.eps": 1e-8}'}
    assert answer(curves(study([run(**of_eps)]))) == "No curve has an LRS, because the grid has only one eps."
    assert "1 cells of 1 curves have no result" in answer(curves(study([run(state="planned", val_loss=None)])))


def said(*records: list[dict[str, object]]) -> str:
    return answer(curves(study(*records), GRID))


def test_the_answer_where_the_baseline_wins() -> None:
    text = said(curve([3.1, 3.0, 3.1, 3.2]), curve([3.5, 3.0, 3.2, 3.4], method="mu-centering"))
    assert text.startswith("baseline at tiny is least sensitive to the learning rate, with an LRS of 0.133. ")


def test_the_answer_says_which_curves_it_leaves_out() -> None:
    text = said(curve([3.1, 3.0, 3.1, 3.2]), curve([3.5, 3.0, 3.2, 3.4], method="mu-centering")[:2])
    assert "1 of 2 curves" in text


def test_with_several_norms_the_answer_says_what_converges_at_the_highest_lr() -> None:
    stable = curve([3.5, 3.0, 3.2, 3.4], attention_norm="qkv-norm")
    text = said(stable, curve([3.5, 3.0, 3.2, math.nan]), curve([3.5, 3.0, math.nan, math.nan], attention_norm="none"))
    assert text.startswith("baseline + qkv-norm at tiny is least sensitive")
    assert "compared with" not in text, "the best curve is itself a baseline"
    assert "The highest learning rate that converges at tiny is ≥ 1, reached by baseline + qkv-norm. " in text
    many = [
        curve([3.5, 3.0, 3.2, math.nan], attention_norm=norm) for norm in ("none", "qk-norm", "attn-cap", "soft-clip")
    ]
    assert "at tiny is 0.1, reached by 4 of 5 curves. " in said(curve([math.nan] * 4, attention_norm="qkv-norm"), *many)
    broken = [curve([math.nan] * 4, attention_norm=norm) for norm in ("none", "qk-norm")]
    assert "highest" not in said(*broken)


def test_attention_norms_on_the_page(tmp_path: Path) -> None:
    runs = study(*(curve([3.5, 3.0, 3.2, math.nan], attention_norm=norm) for norm in ("none", "qk-norm")))
    page = Page(write_report(runs, tmp_path, title="norms", grid=GRID))
    assert "baseline + qk-norm" in page.text
    assert not page.all("select"), "norms of a single method belong in one chart"
    assert list(json.loads(page.scripts[0])["Final loss over learning rate"]) == ["tiny, baseline"]


def test_the_answer_without_a_baseline() -> None:
    assert "no baseline" in said(*(curve([3.5, 3.0, 3.2, 3.4], method=name) for name in ("mu-centering", "soft-cap")))


def test_the_answer_for_one_curve_compares_nothing() -> None:
    assert said(curve([3.5, 3.0, 3.2, 3.4], method="mu-centering")).startswith("The LRS of mu-centering at tiny is 0.")
    assert said(curve([3.5, 3.0, 3.2, 3.4], method="command", scale="train.py")).startswith("The LRS is 0.")


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0.0, "The lowest LRS is not significantly lower than any other at tiny (t-tests over 3 seeds"),
        (1.0, "The lowest LRS is significantly lower than that of every other curve at tiny (t-tests over 3 seeds"),
    ],
)
def test_with_several_seeds_the_answer_says_what_is_significant(shift: float, words: str) -> None:
    records = [curve([3.5 + s / 50, 3.0, 3.2, 3.4], seed=s) for s in range(3)]
    others = [curve([3.5 + s / 50 + shift, 3.0, 3.2, 3.4], seed=s, method="mu-centering") for s in range(3)]
    assert words in said(*records, *others)


def test_the_answer_says_whether_the_dependence_on_gamma_is_significant() -> None:
    def swept(wild: float) -> list[list[dict[str, object]]]:
        moved = [("z-loss", 0.1, 0.0), ("z-loss", 1.0, wild), ("mu-loss", 0.1, 0.0), ("mu-loss", 1.0, 0.1)]
        return [
            curve([3.5 + s / 50 + by, 3.0, 3.2, 3.4], seed=s, method=method, gamma=gamma)
            for method, gamma, by in moved
            for s in range(3)
        ]

    words = "0.033 for mu-loss and 0.333 for z-loss; mu-loss varies significantly less than any other method."
    assert words in said(*swept(1.0))
    assert "; z-loss does not vary significantly less than any other method." in said(*swept(0.1))
    decays = [[r | {"factors": f'{{"wd": {wd}}}'} for r in c] for wd, by in ((0, 1.0), (0.1, 0.1)) for c in swept(by)]
    text = said(*decays)
    assert f"were tried at (with wd=0), LRS varies by {words}" in text, (
        "curves with different factors must not be mixed"
    )


def test_neither_torch_nor_ray_nor_mlflow_is_imported() -> None:
    code = "import sys, dashboards.report; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", "a report must not wait for the import of these"


def test_the_shipped_runs_are_the_published_ones() -> None:
    assert len(pd.read_csv(published.RUNS_CSV)) == 350


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text(encoding="utf-8").partition("<script")[0])


def rich_context(runs: pd.DataFrame) -> ReportContext:
    """Returns steps of every cell except the last, and a forecast of all cells."""
    columns = {"step": [0, 10, 20], "val_loss": [6.9, 4.0, 3.1], "qkv_norm": [1.0, 2.0, None], "logits_mean": [0, 1, 2]}
    cells = list(runs["cell"])
    begun = pd.DataFrame(
        {"cell": cells, "label": cells, "curve": runs["method"], "lr": runs["lr"], "state": runs["state"]}
        | {"steps": 100.0, "taken": 100.0, "seconds": 10.0, "loss": -1.0, "norm_growth": runs["lr"]}
        | {"attention_logit_max": 1.0, "logits_drift": 0.1}
    )
    return ReportContext(
        steps=dict.fromkeys(cells[:-1], columns),
        forecast=forecast(begun),
        cores=2,
        links={cells[0]: "http://127.0.0.1:5000/#/experiments/1/runs/abc"},
    )


def test_the_order_of_the_page(tmp_path: Path) -> None:
    runs = study(*(curve([3.5, 3.0, 3.2, math.nan], method=name) for name in ("baseline", "mu-centering", "soft-cap")))
    assert headings(write_report(runs, tmp_path, title="plain", grid=GRID, formats=("html",))) == [
        "Final loss over learning rate", "Learning-rate sensitivity", "What matters", "Cost", "How this report was made"
    ]  # fmt: skip
    page = write_report(runs, tmp_path, title="rich", grid=GRID, formats=("html",), context=rich_context(runs))
    assert headings(page) == [
        "Final loss over learning rate", "Learning-rate sensitivity", "Why the curves differ", "What matters", "Cost",
        "How this report was made",
    ]  # fmt: skip


def test_the_steps_of_cells_are_on_the_page(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, math.nan]))
    context = rich_context(runs)
    page = Page(write_report(runs, tmp_path, title="steps", grid=GRID, formats=("html",), context=context))
    steps = json.loads(page.scripts[1])
    assert [cell["cell"] for cell in steps["cells"]] == list(runs["cell"][:-1])
    assert steps["cells"][0]["url"] == context.links[runs["cell"][0]]
    kept = {cell: {key: page.column(at) for key, at in of.items()} for cell, of in steps["values"].items()}
    assert kept == context.steps
    assert len({of["step"] for of in steps["values"].values()}) == 1, "equal columns must be stored once"
    assert "This page includes 3 of 4 cells" in page.text
    norms = json.loads(page.scripts[0])["Output norm of QKV, mean over layers"] if "QKV" in page.scripts[0] else {}
    assert norms == {}, "a figure needs a finite last value"
    assert "There is no forecast of divergence, because it needs at least 5 runs" in page.text
    assert "Total training time: 0.67 minutes (1.33 core-minutes)." in page.text


def test_the_cells_of_another_axis_are_named_by_it(tmp_path: Path) -> None:
    over_eps = {"lr_factor": "training.eps", "factors": '{"training.eps": 1e-8}'}
    runs = study([run(cell="one", **over_eps)])
    context = ReportContext(steps={"one": {"step": [0, 1], "train_loss": [4.0, 3.0]}})
    page = Page(write_report(runs, tmp_path, title="steps", formats=("html",), context=context))
    assert json.loads(page.scripts[1])["cells"][0]["label"] == "baseline, eps 1e-08, seed 1"


def analysis(cells: list[str], method: str = "baseline") -> Analysis:
    """Returns an analysis of synthetic weights; the last cell diverged."""
    told: dict[str, list[dict[str, object]]] = {}
    for number, cell in enumerate(cells):
        E_VD = np.random.default_rng(number).normal(size=(30, 4)) + 1.0
        E_VD[0, 0] = math.nan if cell == cells[-1] else 0.0
        about = {"cell": cell, "scale": "tiny", "attention_norm": "qk-norm", "method": method, "gamma": None}
        about |= {"lr": 0.1, "seed": 1, "state": "finished", "step": 20}
        for name, rows in table_rows(about, {"output": measure_embedding(E_VD)}).items():
            told.setdefault(name, []).extend(rows)
    told["losses"] = [about | {"data": EVIL, "digest": "0", "tokens": 64, "loss": 3.25, "val_loss": 3.0}]
    return Analysis.from_rows(told)


def test_the_weights_of_selectable_cells_are_on_the_page(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    cells = list(runs["cell"])
    context = replace(rich_context(runs), analysis=analysis(cells))  # the last cell has no steps
    path = write_report(runs, tmp_path, title="weights", grid=GRID, formats=("html", "svg", "csv"), context=context)
    page = Page(path)
    weights = json.loads(page.scripts[5])
    assert len(weights) == 3
    for title, figure in weights.items():
        assert list(figure["cells"]) == cells[:-1], title
        for tables in figure["cells"].values():
            for table in tables.values():
                assert page.rows(table), title
    figures_ = [holder["data-weights"] for holder in page.all("figure") if "data-weights" in holder]
    assert figures_ == list(weights)
    assert "B-ratio of the output embedding" in json.loads(page.scripts[0])
    assert "3.2500" in page.text, "the loss on other tokens is missing"
    names = {file.name for file in tmp_path.rglob("*.*")}
    assert names >= {"e-mu-tiny.svg", "row-norms-tiny-column.svg", "b-ratio.svg", "embeddings.csv", "losses.csv"}


def test_names_in_an_analysis_are_never_markup(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4], method=EVIL, scale=EVIL))
    context = replace(rich_context(runs), analysis=analysis([EVIL, "other"], EVIL))
    page = Page(write_report(runs, tmp_path, title="evil", grid=GRID, formats=("html", "svg"), context=context))
    assert len(page.all("script")) == 8
    assert not page.all("img")
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {tmp_path / "figures"}


def test_only_the_page_of_a_running_study_reloads(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    for seconds, expected in ((None, []), (30, ["30"])):
        context = ReportContext(refresh_s=seconds)
        page = Page(write_report(runs, tmp_path, title="live", grid=GRID, formats=("html",), context=context))
        assert [m["content"] for m in page.all("meta") if m.get("http-equiv") == "refresh"] == expected


def test_cost_counts_every_cell() -> None:
    records = curve([3.5, 3.0, 3.2, math.nan]) + curve([3.5, 3.0, 3.2, 3.4], method="z-loss", gamma=1e-4)
    records[5] |= {"state": "crashed", "val_loss": None, "reason": "x"}
    records += [run(lr=0.02, method="z-loss", gamma=0.3, origin="refine", state="pruned", tokens_per_second=50.0)]
    records += [run(lr=0.03, method="z-loss", gamma=0.3, origin="refine", state="planned", val_loss=None)]
    runs = study(records)
    table = cost_table(runs, curves(runs, GRID), cores=4).set_index("method")
    states = ["finished", "diverged", "crashed", "pruned", "waiting"]
    assert table.loc["baseline", states].tolist() == [3, 1, 0, 0, 0]
    assert table.loc["z-loss", states].tolist() == [3, 0, 1, 1, 1]
    assert table.loc["baseline", "core_hours"] == pytest.approx(4 * 40 / 3600)
    assert table.loc["z-loss", "tokens_per_second"] == 50.0
    assert table.loc["z-loss", "overhead_percent"] == pytest.approx(0.0)


def test_b_ratios_by_curve_and_learning_rate() -> None:
    losses = [3.5, 3.0, 3.2, 3.4]
    records = curve(losses) + curve(losses, seed=2) + curve(losses, method="max-z", gamma=1)
    for i, record in enumerate(records[:8]):
        record["output_b_ratio"] = i / 10
    records.append(run(lr=0.5, origin="refine", output_b_ratio=9.0))
    table = b_ratio_table(study(records))
    assert list(table.columns) == ["scale", "label", "0.001", "0.01", "0.1", "1"]
    assert table.to_numpy().tolist() == [["tiny", "baseline", *map(pytest.approx, (0.2, 0.3, 0.4, 0.5))]]
    assert b_ratio_table(study(curve([3.5, 3.0, 3.2, 3.4]))).empty


def test_a_gamma_of_zero_is_a_gamma(tmp_path: Path) -> None:
    """It is in the tables and the loss curves, but not on logarithmic axes."""
    losses = [3.5, 3.0, 3.2, 3.4]
    gammas = (0.0, 0.1, 0.5, 1.0)
    runs = study(*(curve([loss + g for loss in losses], method="z-loss", gamma=g) for g in gammas))
    page = Page(write_report(runs, tmp_path, title="zero", grid=GRID, formats=("html",)))
    assert "z-loss (gamma=0)" in page.text
    panels = json.loads(page.scripts[0])
    assert "Importance of each hyperparameter, z-loss" in panels
    for title in ("LRS over gamma", "Loss over learning rate and gamma, z-loss"):
        (figure,) = panels[title].values()
        drawn = [row["gamma"] for table in figure["data"].values() for row in page.rows(table) if "gamma" in row]
        assert min(gamma for gamma in drawn if gamma is not None) == pytest.approx(0.1)
    (figure,) = panels["Every cell at once"].values()
    lines_ = page.rows(figure["data"]["lines"])
    assert len({row["cell"] for row in lines_}) == 16
    assert len([row for row in lines_ if row["axis"] == "gamma"]) == 12
