"""Extra training time: a ratio over pairs of runs with an interval, or no number at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import GRID, curve, study

from dashboards.overhead import overhead
from dashboards.report import write_report
from dashboards.sensitivity import curves
from dashboards.tables import format_columns, method_overheads, sensitivity_table


def seconds(*values: float) -> dict[tuple[float, int], float]:
    return {(float(i), 1): value for i, value in enumerate(values)}


def test_by_hand() -> None:
    """The ratio is 33 / 30. The runs differ from it by 11 - 11, 10 - 11 and 12 - 11 seconds, so its standard error is 1
    / sqrt(3) / 10. Student's t with two degrees of freedom is 4.3027."""
    found = overhead([seconds(11, 10, 12)], seconds(10, 10, 10))
    assert found is not None
    assert found.percent == pytest.approx(10)
    assert found.half_width == pytest.approx(100 * 4.3027 / 3**0.5 / 10, rel=1e-4)
    assert found.interval == pytest.approx((found.percent - found.half_width, found.percent + found.half_width))


def test_one_pair_of_runs_gives_no_number() -> None:
    assert overhead([seconds(20.7)], seconds(10.0)) is None
    assert overhead([seconds(20.7)], seconds(10.0, 11.0, 12.0)) is None, "the other runs have no partner"
    assert overhead([], seconds(10.0)) is None
    assert overhead([seconds(6.1), {(9.0, 1): 1.0}], seconds(10.0)) is None


def test_equal_times_have_an_interval_without_width() -> None:
    found = overhead([seconds(11, 22)], seconds(10, 20))
    assert found is not None
    assert found.percent == pytest.approx(10)
    assert found.half_width == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("pairs", "gammas"), [(2, 1), (3, 1), (7, 1), (3, 2), (7, 4)])
def test_the_interval_covers_the_truth(pairs: int, gammas: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        times = np.exp(0.2 * rng.standard_normal((gammas + 1, pairs)))
        found = overhead([seconds(*1.1 * of_gamma) for of_gamma in times[1:]], seconds(*times[0]))
        assert found is not None
        low, high = found.interval
        covered += low <= 10 <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)


def runs_of(seeds: int, lrs: int) -> pd.DataFrame:
    records = [
        record | {"train_seconds": time * (1 + 0.01 * seed)}
        for method, time in (("baseline", 10.0), ("mu-centering", 20.7))
        for seed in range(seeds)
        for record in curve([3.5, 3.0, 3.2, 3.4], method=method, seed=seed)[:lrs]
    ]
    return study(records)


def test_one_run_each_is_not_shown_as_a_number(tmp_path: Path) -> None:
    """On a busy machine, a single run of each once measured +107%."""
    runs = runs_of(seeds=1, lrs=1)
    found = curves(runs, GRID[:1])
    assert method_overheads(found) == {}
    table = sensitivity_table(found)
    assert table[["overhead_percent", "overhead_low", "overhead_high"]].isna().all(axis=None)
    assert "overhead_percent" not in format_columns(table)
    page = write_report(runs, tmp_path, title="one", grid=GRID[:1], formats=("html", "csv")).read_text()
    assert "107" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert pd.read_csv(tmp_path / "tables" / "cost.csv")["overhead_percent"].isna().all()


def test_with_seeds_it_is_shown_with_its_interval(tmp_path: Path) -> None:
    runs = runs_of(seeds=3, lrs=4)
    table = sensitivity_table(curves(runs, GRID))
    shown = format_columns(table)
    assert list(shown["overhead_percent"]) == ["–", "+107.0 ± 0.0"]
    assert not {"overhead_low", "overhead_high"} & set(shown)
    page = write_report(runs, tmp_path, title="three", grid=GRID, formats=("html", "tex")).read_text()
    assert "<td>+107.0 ± 0.0%</td>" in page
    assert r"+107.0 $\pm$ 0.0" in (tmp_path / "tables" / "sensitivity.tex").read_text()
