"""Learning rates within one tolerance are the same, in studies, imports, curves, comparisons and refinement."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dashboards.agreement import published_studies
from dashboards.comparison import compare
from dashboards.published import RUNS_CSV
from dashboards.runs import from_records, read_csv
from dashboards.sensitivity import curves
from search_spaces.edge import Edge, search
from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from search_spaces.tolerance import REL_TOLERANCE, match_value, representatives, same_value, snap
from tests.service.oec import invoked

GRID = (1e-4, 3e-4, 1e-3, math.sqrt(1e-5), 1e-2, 1 / 30, 0.1)
lrs = st.floats(1e-8, 1e3)


def in_single_precision(value: float) -> float:
    return float(np.float32(value))


def in_six_digits(value: float) -> float:
    return float(f"{value:g}")


@given(lrs)
def test_digits_lost_in_a_file_change_nothing(lr: float) -> None:
    for other in (in_single_precision(lr), in_six_digits(lr), math.nextafter(lr, 0), 10 ** math.log10(lr)):
        assert same_value(lr, other)
        assert same_value(other, lr)
        assert match_value([lr], other) == lr
        assert snap([lr], other) == lr


@given(lrs)
def test_the_last_digit_of_a_proposal_makes_a_difference(lr: float) -> None:
    other = lr * 1.0001
    assert not same_value(lr, other)
    assert math.isnan(match_value([lr], other))
    assert snap([lr], other) == other


@given(st.lists(lrs | st.sampled_from(GRID) | st.sampled_from(GRID).map(in_single_precision)))
def test_representatives(values: list[float]) -> None:
    found = representatives(values)
    assert set(found) == set(values)
    assert all(same_value(value, one) for value, one in found.items())
    distinct = sorted(set(found.values()))
    assert all(found[one] == one for one in distinct)


def test_the_shortest_number_represents_the_others() -> None:
    assert set(representatives([0.0010000000474974513, 1e-3, math.nextafter(1e-3, 1)]).values()) == {1e-3}


def study(**changes: object) -> dict[str, object]:
    return dict(yaml.safe_load(Study.load("smoke").to_yaml())) | {"name": "mine", "refine": 0} | changes


@pytest.mark.parametrize("other", [in_single_precision(1e-3), math.nextafter(1e-3, 1), 1e-3 * (1 + REL_TOLERANCE / 2)])
@pytest.mark.parametrize("field", ["lrs", "gamma"])
def test_a_study_with_a_duplicate_value_is_refused(tmp_path: Path, field: str, other: float) -> None:
    values = [1e-4, *sorted((1e-3, other)), 1e-2]
    changes = {"lrs": values} if field == "lrs" else {"methods": [{"method": "z-loss", "gamma": values}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study(**changes)))
    done = invoked("plan", tmp_path / "mine.yaml", home=tmp_path / "home")
    assert done.returncode == 2, done
    assert re.search(rf"{field}.* has .*0\.001.* and .*0\.001.*, which are the same to within 1e-05", done.stderr)


def test_a_study_with_close_values_is_accepted() -> None:
    assert Study.validate_fields(study(lrs=[1e-3, 1.0001e-3])).lrs == (1e-3, 1.0001e-3)


def runs(*records: tuple[float, int, float]) -> list[dict[str, object]]:
    common = {"study": "made-up", "scale": "9M", "method": "lion", "gamma": 1e-4, "state": "finished", "l_init": 9.0}
    return [common | {"lr": lr, "seed": seed, "val_loss": loss} for lr, seed, loss in records]


@pytest.mark.parametrize("lost", [in_single_precision, in_six_digits])
@pytest.mark.parametrize("grid", [None, GRID, tuple(map(in_single_precision, GRID))])
def test_seeds_from_two_programs_are_one_curve(lost: type[float], grid: tuple[float, ...] | None) -> None:
    """One program stored learning rates and gammas in single precision, the other in double precision."""
    second = runs(*((lost(lr), 2, 3.5) for lr in GRID))
    for run in second:
        run["gamma"] = lost(1e-4)
    (found,) = curves(from_records([*runs(*((lr, 1, 3.0) for lr in GRID)), *second]), grid)
    assert (found.seeds, found.missing) == (2, ())
    assert found.lr == pytest.approx(GRID, rel=REL_TOLERANCE)
    assert len(found.lr) == len(GRID)
    assert found.mean == (3.25,) * len(GRID)


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="occurs twice"):
        curves(from_records(runs((1e-3, 1, 3.0), (in_single_precision(1e-3), 1, 3.0))))


def test_two_studies_that_differ_in_precision_are_equal() -> None:
    double, single = ([(lost(lr), 1, 3 + lr) for lr in GRID] for lost in (float, in_single_precision))
    comparison = compare(curves(from_records(runs(*double))), curves(from_records(runs(*single))))
    assert set(comparison.rows["verdict"]) == {"equal"}
    assert comparison.notes == ()


def test_a_report_on_two_precisions(tmp_path: Path) -> None:
    table = pd.read_csv(RUNS_CSV)
    table = table[(table["scale"] == "16M") & table["method"].isin(["baseline", "mu-centering"])]
    table.to_csv(tmp_path / "double.csv", index=False)
    single = table.astype(dict.fromkeys(["lr", "test_loss", "train_seconds"], "float32")).astype({"lr": "float64"})
    single.to_csv(tmp_path / "single.csv", index=False)
    assert "0.0003000000142492354" in (tmp_path / "single.csv").read_text()
    names = tmp_path / "double.csv", tmp_path / "single.csv"
    done = invoked("diff", *names, home=tmp_path)
    assert done.stdout.startswith("Equal: 16M baseline and 16M mu-centering"), done
    done = invoked("report", *names, "--format", "csv", "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 0, done
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["lr"].nunique() == 7
    for name in names:
        assert published_studies(read_csv(name)), name


def test_the_search_for_an_edge_takes_no_step_to_a_grid_value() -> None:
    """The middle of 1e-3 and 0.1 rounds to 0.01, which the grid contains with more digits."""
    grid, asked = (1e-3, in_single_precision(1e-2), 0.1), []

    def verdict(lr: float, seed: int) -> str | None:
        asked.append(lr)
        return {1e-3: "converged", in_single_precision(1e-2): "stopped", 0.1: "diverged"}.get(lr)

    found = search(grid, [1], 2.0, verdict)  # type: ignore[arg-type]
    assert found.edge == Edge(low=1e-3, high=0.1)
    assert found.ask is None
    assert set(asked) == set(grid)
