"""The analysis of kept weights: tables that can be read back, and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dashboards.analysis import TABLES, Analysis, b_ratio_figures, cell_figures, representative_cells, table_rows
from dashboards.embeddings import measure_embedding
from dashboards.files import save_figure
from search_spaces.errors import InvalidInput


def cell(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "cell": name,
        "scale": "tiny",
        "attention_norm": "qk-norm",
        "method": "baseline",
        "gamma": None,
        "lr": 0.1,
        "seed": 1,
        "state": "finished",
        "step": 20,
    } | changes


def matrix(seed: int, shift: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(40, 6)) + shift * random.normal(size=6)


def analysis(*cells: dict[str, Any], shift: float = 1.0, **tables: Any) -> Analysis:
    told: dict[str, list[dict[str, Any]]] = dict(tables)
    for seed, one in enumerate(cells):
        found = {"output": measure_embedding(matrix(seed, shift)), "input": measure_embedding(matrix(100 + seed, 0.0))}
        for name, rows in table_rows(one, found).items():
            told.setdefault(name, []).extend(rows)
    return Analysis.from_rows(told)


LOSS = cell("a") | {"data": "theirs", "digest": "0" * 16, "tokens": 640, "loss": 3.5, "val_loss": None}


def test_tables_read_back_as_written(tmp_path: Path) -> None:
    found = analysis(cell("a"), cell("b", method="z-loss", gamma=1e-4), cell("12e5", seed=2), losses=[LOSS])
    found.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.csv" for name in TABLES)
    again = Analysis.read(tmp_path)
    assert again is not None
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_dtype=False)
    assert again.embeddings["cell"].tolist() == ["a", "a", "b", "b", "12e5", "12e5"], (
        "an id of digits must not become a number"
    )


def test_a_folder_without_an_analysis_gives_none(tmp_path: Path) -> None:
    assert Analysis.read(tmp_path) is None


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\xff", "cell,step,what,low,high,rows\na,x,e_mu,0,1,2\n"])
def test_a_damaged_table_is_named(tmp_path: Path, content: str) -> None:
    analysis(cell("a")).write(tmp_path)
    (tmp_path / "histograms.csv").write_text(content, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"histograms.csv' is not a valid analysis table .*; delete its folder"):
        Analysis.read(tmp_path)


def test_the_histogram_of_b_ratios_counts_the_last_weights_of_each_cell() -> None:
    rows = [
        {**cell(name, **more), "embedding": embedding, "b_ratio": ratio, "mu_norm": 1.0}
        for name, embedding, ratio, more in (
            ("a", "output", 0.68, {"step": 10}),
            ("a", "output", 0.71, {}),
            ("a", "input", 0.11, {}),
            ("b", "output", 0.69, {"lr": 1.0}),
            ("c", "output", 0.69, {"method": "mu-loss", "gamma": 1e-4}),
            ("d", "output", 1.0 - 1e-7, {"method": "mu-centering"}),
            ("e", "output", 1.0 + 1e-7, {"method": "mu-centering"}),
            ("f", "output", None, {}),
        )
    ]
    (figure,) = b_ratio_figures(Analysis.from_rows({"embeddings": rows}))
    facts = figure.spec["datasets"]["facts"]
    assert {(row["label"], row["low"], row["high"]): row["cells"] for row in facts} == {
        ("baseline", 0.675, 0.725): 2,
        ("mu-loss (gamma=0.0001)", 0.675, 0.725): 1,
        ("mu-centering", 0.975, 1.025): 2,
    }
    assert "5 cells" in figure.caption


def test_without_a_b_ratio_there_is_no_histogram() -> None:
    assert not list(b_ratio_figures(Analysis.from_rows({})))


def test_the_figures_of_a_cell_use_its_last_weights() -> None:
    found = analysis(cell("a", step=10), cell("a"), cell("b", lr=1.0))
    figures = cell_figures(found)
    assert [figure.name for figure in figures] == ["e-mu", "row-norms", "singular-values"]
    last = found.last_outputs().set_index("cell")
    for figure in figures:
        assert set(figure.data) == {"a", "b"}
        for name, tables in figure.data.items():
            if "bins" in tables:
                assert tables["bins"]["rows"].sum() == 40, "a histogram must count the rows of one file of weights only"
            assert f"B-ratio {last.loc[name, 'b_ratio']:.2f}" in tables["about"]["text"].iloc[0]
    marks = figures[0].data["a"]["marks"]
    assert marks["value"].tolist() == pytest.approx(
        [0.0, last.loc["a", "mu_norm"] ** 2, last.loc["a", "e_mu_min"], last.loc["a", "e_mu_max"]], rel=1e-4
    )
    bins = figures[0].data["a"]["bins"]
    assert (bins["low"].min(), bins["high"].max()) == (marks["value"].iloc[2], marks["value"].iloc[3])


def test_a_non_finite_matrix_has_no_figure() -> None:
    broken = matrix(0)
    broken[0, 0] = np.nan
    rows = table_rows(cell("a", state="diverged"), {"output": measure_embedding(broken)})
    found = Analysis.from_rows(rows)
    assert cell_figures(found) == []
    assert not list(b_ratio_figures(found))
    assert len(found.embeddings) == 1


def test_the_representative_cell_has_the_largest_converged_lr_of_the_first_curve() -> None:
    cells = (
        cell("a", lr=0.1),
        cell("b", lr=1.0),
        cell("c", lr=10.0, state="diverged"),
        cell("d", lr=1.0, method="mu-loss", gamma=1.0),
        cell("e", scale="16M", state="diverged"),
    )
    assert representative_cells(analysis(*cells)) == {"b": "tiny", "e": "16M"}
    files = analysis({"cell": "theirs"}, {"cell": "ours"})
    assert representative_cells(files) == {"theirs": "theirs", "ours": "ours"}
    assert cell_figures(files)[0].for_cell("ours", "ours").name == "e-mu-ours"


def test_every_figure_can_be_drawn(tmp_path: Path) -> None:
    found = analysis(cell("a"), cell("b", method="z-loss", gamma=1e-4))
    for figure in (*b_ratio_figures(found), *(one.for_cell("a", "tiny") for one in cell_figures(found))):
        (wide, _) = save_figure(figure, tmp_path, ["svg"])
        drawn = wide.read_text()
        assert drawn.count("mark-rect") + drawn.count("mark-line") >= 1, figure.name
        assert "B-ratio" in drawn
