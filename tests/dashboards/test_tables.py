"""Tables of curves: columns, layouts, and that no name can break out of a format."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import GRID, curve, study
from rich.console import Console

from dashboards import published
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from dashboards.tables import (
    LAYOUTS,
    RENDERERS,
    TABLE_COLUMNS,
    name_curves,
    published_layout,
    sensitivity_table,
    sheets,
    terminal_table,
)
from search_spaces.methods import label


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sensitivity_table(curves(read_csv(published.RUNS_CSV)))


def drawn(table: pd.DataFrame, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(terminal_table(table, "title"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def written(form: str, table: pd.DataFrame) -> str:
    return RENDERERS[form](sheets(table)[0]).decode("utf-8" if form != "parquet" else "latin-1")


def test_columns_are_frozen(table: pd.DataFrame) -> None:
    columns = "study scale attention_norm method gamma factors lr_factor LRS LRS_low LRS_high LRS_n best_loss best_lr"
    rest = "highest_lr edge_low edge_high diverged cells overhead_percent overhead_low overhead_high"
    optimum = "optimum_lr optimum_low optimum_high"
    parts = ("low", "high", "open", "width", "width_low", "width_high")
    valleys = " ".join(f"within_{tolerance}_{part}" for tolerance in ("0.01", "0.05") for part in parts)
    want = f"{columns} {rest} {optimum} {valleys} headroom note"
    assert " ".join(TABLE_COLUMNS) == want, "tables/sensitivity.csv is a public format"
    assert tuple(table) == TABLE_COLUMNS
    assert tuple(sensitivity_table([])) == TABLE_COLUMNS


def test_published_layout(table: pd.DataFrame) -> None:
    wide = published_layout(table)
    assert list(wide.index) == list(published.SCALES)
    assert list(wide) == [label(*curve) for curve in published.CURVES]
    for scale in published.SCALES:
        assert wide.loc[scale].round(3).tolist() == list(published.LRS[scale])


def test_a_layout_has_gaps_for_missing_methods() -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.4], scale="16M", method="z-loss", gamma=0.1))
    wide = published_layout(sensitivity_table(curves(runs, GRID)), "best_loss")
    assert wide.isna().sum().sum() == 2


def test_terminal_table_with_every_column_fits_80_columns(table: pd.DataFrame) -> None:
    text = drawn(table.assign(LRS_low=0.1, LRS_high=0.2))
    assert "…" not in text
    assert "within" not in text
    assert "mu-centering" in text
    assert re.search("every lr .* converges", " ".join(text.split()))
    of_one_gamma = drawn(table[table["gamma"].isna()].assign(LRS_low=0.1, LRS_high=0.2))
    assert "+0.6 ± 0.1" in of_one_gamma, "the terminal has room for the extra time"
    assert "…" not in of_one_gamma


def several_norms() -> pd.DataFrame:
    """Returns curves with several norms and two seeds, so that intervals are shown too."""
    records = [
        curve([3.5 + seed / 10, 3.0, 3.2, math.nan], attention_norm=norm, method=method, seed=seed)
        for norm in ("sigma-reparam", "qk-norm", "none")
        for method in ("baseline", "mu-centering")
        for seed in (1, 2)
    ]
    return sensitivity_table(curves(study(*records), GRID))


def test_a_layout_has_a_column_for_each_attention_norm() -> None:
    names = ["none", "qk-norm", "sigma-reparam"]
    assert list(published_layout(several_norms())) == [
        f"{method} + {norm}" for norm in names for method in ("baseline", "mu-centering")
    ]


def test_attention_norms_are_shown_unless_all_are_the_default(table: pd.DataFrame) -> None:
    assert "attention_norm" not in written("md", table)
    assert "attention_norm" in written("csv", table)
    text = drawn(several_norms().assign(gamma=0.0001))
    assert "…" not in text
    for name in ("attention", "sigma-reparam", "qk-norm", "mu-centering"):
        assert name in text


def test_the_highest_lr_of_a_whole_grid_is_a_lower_bound(table: pd.DataFrame) -> None:
    assert set(table["highest_lr"]) == {0.3}
    assert "≥ 0.3" in drawn(table)
    assert "≥ 0.3" in written("md", table)
    assert r"$\geq$ 0.3" in written("tex", table)
    exceptions = "109M z-loss (gamma=100) and 221M z-loss (gamma=100)"
    said = " ".join(drawn(table).split())
    assert f"every curve but {exceptions}: every lr of the grid converges" in said
    assert f"{exceptions}: best lr 0.0003 is the smallest" in said
    assert "every curve: every lr of the grid converges" in drawn(table[table["gamma"] != 100])
    assert "≥" not in drawn(several_norms())
    assert set(several_norms()["highest_lr"]) == {0.1}


@pytest.mark.parametrize(
    ("named", "everyone", "said"),
    [
        ("a", "a", "a"),
        ("ab", "ab", "every curve"),
        ("ab", "abc", "a and b"),
        ("abcd", "abcdefgh", "a, b, c and d"),
        ("abcde", "abcdefg", "every curve but f and g"),
        ("abcdef", "abcdefghij", "6 of 10 curves"),
    ],
)
def test_a_sentence_about_curves_names_the_minority(named: str, everyone: str, said: str) -> None:
    assert name_curves(list(named), list(everyone)) == said


def test_the_notes_below_the_terminal_table_name_missing_cells() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4])
    records[3] |= {"state": "crashed", "val_loss": None}
    assert "lr=1 seed=1 (crashed)" in " ".join(drawn(sensitivity_table(curves(study(records), GRID))).split())


def test_csv_keeps_every_digit(table: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(written("csv", table)), keep_default_na=False, na_values={c: [""] for c in NUMBERS}),
        table.fillna({"factors": ""}),
        check_dtype=False,
    )


TEXTS = ("study", "scale", "attention_norm", "method", "factors", "lr_factor", "note")
TEXTS += ("within_0.01_open", "within_0.05_open")
NUMBERS = [column for column in TABLE_COLUMNS if column not in TEXTS]


@pytest.mark.parametrize("form", RENDERERS)
def test_an_unknown_value_is_never_written_as_nan(form: str) -> None:
    runs = study(curve([math.nan, math.nan, 3.0, 3.1], l_init=None))
    assert "nan" not in written(form, sensitivity_table(curves(runs, GRID))).lower()


def test_parquet_keeps_every_digit_of_every_sheet(table: pd.DataFrame) -> None:
    assert [sheet.name for sheet in sheets(table)] == ["sensitivity", *LAYOUTS]
    for sheet in sheets(table):
        pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(RENDERERS["parquet"](sheet))), sheet.values)


def test_a_layout_is_written_as_the_published_table(table: pd.DataFrame) -> None:
    sheet = sheets(table[table["gamma"].isin([published.GAMMA, math.nan])])[1]
    assert "16M & 0.306 & 0.054 & 0.031 & 0.028" in RENDERERS["tex"](sheet).decode()
    assert "{lrrrr}" in RENDERERS["tex"](sheet).decode()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in RENDERERS["md"](sheet).decode().split("\n")
    ]
    assert rows[-2] == ["221M", "0.412", "0.109", "0.056", "0.061"]


def test_two_studies_in_one_layout() -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.3], study="another"))
    table = sensitivity_table(curves(runs, GRID))
    assert list(published_layout(table)) == ["another: baseline", "made-up: baseline"]
    text = drawn(table)
    assert "another" in text
    assert "made-up" in text
    assert "…" not in text
    assert "study" not in drawn(table[table["study"] == "another"])


def test_names_cannot_break_out_of_a_format() -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4], method="a|b_[red]$&%"))
    table = sensitivity_table(curves(runs, GRID))
    assert "a\\|b_[red]" in written("md", table)
    assert r"a|b\_[red]\$\&\%" in written("tex", table)
    assert "a|b_[red]$&%" in drawn(table)


MAIN_COMPARISON = (("baseline", None), ("z-loss", 1e-4), ("mu-loss", 1e-4), ("mu-centering", None))


@pytest.mark.parametrize("gammas", [(1e-4,), (1e-7, 1e-4, 1e-1, 1e2), tuple(10.0**i for i in range(-7, 3))])
def test_a_csv_of_raw_runs_gives_the_published_layout_for_a_gamma_sweep_of_any_length(
    gammas: tuple[float, ...], tmp_path: Path
) -> None:
    """Scales are rows; methods and their gammas are columns. With a single gamma, the result is the published table."""
    published_runs = pd.read_csv(published.RUNS_CSV).query("gamma in (0, 0.0001)")
    has_gamma = published_runs["method"].isin(["z-loss", "mu-loss"])
    parts = [published_runs[~has_gamma], *(published_runs[has_gamma].assign(gamma=gamma) for gamma in gammas)]
    pd.concat(parts).to_csv(tmp_path / "sweep.csv", index=False)
    found = {sheet.name: sheet for sheet in sheets(sensitivity_table(curves(read_csv(tmp_path / "sweep.csv"))))}
    swept = [f"{method} (gamma={gamma:g})" for method in ("z-loss", "mu-loss") for gamma in gammas]
    for name in LAYOUTS:
        assert list(found[name].values) == ["scale", "baseline", *swept, "mu-centering"]
        assert list(found[name].values["scale"]) == list(published.SCALES)
    for row, scale in zip(found["LRS"].texts.to_numpy(), published.SCALES, strict=True):
        main = (published.CURVES.index((method, gamma)) for method, gamma in MAIN_COMPARISON)
        baseline, z_loss, mu_loss, centering = (f"{published.LRS[scale][place]:.3f}" for place in main)
        assert list(row) == [scale, baseline, *[z_loss] * len(gammas), *[mu_loss] * len(gammas), centering]
