"""Results recomputed from the published runs, compared with the published numbers."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import curve, study
from rich.console import Console

from benchmarks import loss_overview
from dashboards import published
from dashboards.agreement import Agreement, agreement, published_studies, sheets, terminal_tables
from dashboards.runs import read_csv
from dashboards.sensitivity import curves

ALL = (
    "Recomputed from these runs, 50 of 50 LRS, 50 of 50 best losses, 50 of 50 best learning rates and 15 of 15 extra "
    "training times match the published numbers to the last digit."
)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return read_csv(published.RUNS_CSV)


def of(runs: pd.DataFrame) -> Agreement:
    found = agreement(curves(runs))
    assert found is not None
    return found


def drawn(found: Agreement) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for table in terminal_tables(found):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_published_number_is_reproduced_from_the_runs(runs: pd.DataFrame) -> None:
    assert of(runs).sentence == ALL


def test_each_number_has_its_published_counterpart(runs: pd.DataFrame) -> None:
    found = of(runs)
    assert len(found.curves) == 50
    assert len(found.overheads) == 15
    row = found.curves.query("scale == '57M' and method == 'z-loss' and gamma == 0.0001").iloc[0]
    assert (row["LRS_published"], row["best_loss_published"], row["best_lr_published"]) == (0.235, 3.37, 0.01)
    assert (round(row["LRS"], 3), round(row["best_loss"], 2), row["best_lr"]) == (0.235, 3.37, 0.01)
    times = found.overheads.pivot(index="scale", columns="method", values="overhead_percent").round(3)
    assert times.loc["16M", ["z-loss", "mu-loss", "mu-centering"]].tolist() == [6.358, 0.383, 0.587]
    assert times.loc["221M", ["z-loss", "mu-loss", "mu-centering"]].tolist() == [0.751, 0.154, 0.278]


def test_the_terminal_shows_both_in_80_columns(runs: pd.DataFrame) -> None:
    text = drawn(of(runs))
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["16M", "z-loss", "1e-07", "0.037", "0.037", "3.84", "3.84", "0.01", "0.01"] in lines
    assert ["221M", "0.8", "0.8", "0.2", "0.2", "0.3", "0.3"] in lines
    assert sum(len(line) == 9 and line[0] in published.SCALES for line in lines) == 50
    assert "≠" not in text


def test_numbers_that_differ_are_marked_and_listed(runs: pd.DataFrame) -> None:
    changed = runs.copy()
    of_curve = (changed["scale"] == "29M") & (changed["method"] == "mu-centering")
    changed.loc[of_curve & (changed["lr"] == 0.3), "val_loss"] += 0.01
    found = of(changed)
    assert "49 of 50 LRS, 50 of 50 best losses" in found.sentence
    assert found.sentence.endswith("These differ: LRS of 29M mu-centering.")
    assert re.search(r"29M +mu-centering +– +0\.031 +≠ 0\.029", drawn(found))
    (sheet, _) = sheets(found)
    assert (sheet.texts["LRS_published"] == "≠ 0.029").sum() == 1
    assert sheet.values["LRS_published"].dtype == "float64"


def test_a_curve_with_a_missing_run_matches_no_published_number(runs: pd.DataFrame) -> None:
    found = of(runs.drop(index=runs.index[3]))
    assert "49 of 50 LRS" in found.sentence
    assert "LRS of 16M baseline, best loss of 16M baseline and best lr of 16M baseline" in found.sentence
    assert re.search(r"16M +baseline +– +– +≠ 0\.306", drawn(found))


def test_extra_times_need_every_gamma(runs: pd.DataFrame) -> None:
    main = of(runs[runs["gamma"].fillna(published.GAMMA) == published.GAMMA])
    assert "20 of 20 LRS" in main.sentence
    assert "5 of 5 extra training times" in main.sentence
    assert set(main.overheads["method"]) == {"mu-centering"}
    without_baseline = of(runs[runs["method"] == "z-loss"])
    assert without_baseline.overheads.empty
    assert "20 of 20 best learning rates match" in without_baseline.sentence
    assert [sheet.name for sheet in sheets(without_baseline)] == ["published"]
    assert "Extra training time" not in drawn(without_baseline)


def test_sheets_have_every_number(runs: pd.DataFrame) -> None:
    of_curves, times = sheets(of(runs))
    assert list(of_curves.values) == [
        "study", "scale", "method", "gamma", "LRS", "LRS_published", "best_loss", "best_loss_published", "best_lr",
        "best_lr_published",
    ]  # fmt: skip
    assert list(times.values) == ["study", "scale", "method", "overhead_percent", "overhead_percent_published"]
    assert of_curves.texts.loc[0, ["LRS", "best_loss", "best_loss_published"]].tolist() == ["0.306", "3.84", "3.84"]


def test_two_studies_are_distinguished(runs: pd.DataFrame) -> None:
    both = pd.concat([runs, runs[runs["scale"] == "16M"].assign(study="[b]main[/b]")], ignore_index=True)
    found = of(both)
    assert "60 of 60 LRS" in found.sentence
    assert "[b]main[/b]" in drawn(found)


def test_published_runs_are_recognized_in_any_file(runs: pd.DataFrame, tmp_path: Path) -> None:
    assert published_studies(runs) == {"published"}
    assert published_studies(runs.sample(frac=1, random_state=1).head(9)) == {"published"}
    runs.assign(study="mine").to_csv(tmp_path / "runs.csv", index=False)
    assert published_studies(read_csv(tmp_path / "runs.csv")) == {"mine"}
    overview = loss_overview.write(tmp_path / "loss_overview.csv", loss_overview.published_rows()[:7])
    assert published_studies(read_csv(overview)) == {"loss_overview"}


@pytest.mark.parametrize(
    "changes",
    [{"train_seconds": 4877.5}, {"train_seconds": None}, {"attention_norm": "none"}, {"scale": "23M"}, {"seed": 2}],
)
def test_other_runs_are_not_recognized_as_published(runs: pd.DataFrame, changes: dict[str, object]) -> None:
    other = runs.head(7).copy()
    for column, value in changes.items():
        other.loc[0, column] = value
    mixed = pd.concat([other.assign(study="other"), runs.assign(study="theirs")], ignore_index=True)
    assert published_studies(mixed) == {"theirs"}


def test_without_published_curves_there_is_no_comparison() -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    assert published_studies(runs) == frozenset()
    assert agreement(curves(runs)) is None
    assert agreement([]) is None
