"""Follows docs/methods.md literally: adds its blocks to a copy of the packages and runs its commands there."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.docs.conftest import follow


def test_oec_methods_lists_the_new_method(copy: Path) -> None:
    assert "+ gamma * mean(abs(log Z))" in follow(copy, "oec methods")


def test_a_plan_lists_its_curves(copy: Path) -> None:
    shown = follow(copy, "oec plan")
    assert "z-abs (gamma=0.001)" in shown
    assert "z-abs (gamma=0.1)" in shown


def test_oec_train_trains_it_with_its_gamma(copy: Path) -> None:
    shown = follow(copy, "oec train")
    result = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) == 2)
    assert (result["method"], result["gamma"], result["state"]) == ("z-abs", "0.01", "finished")
    assert float(result["val_loss"]) < float(result["l_init"])


@pytest.mark.slow
@pytest.mark.long
def test_a_study_with_it_has_a_report(copy: Path) -> None:
    assert "9 cells, 9 to train" in follow(copy, "oec run")
    table = pd.read_csv(copy / "home" / "studies" / "z-abs" / "report" / "tables" / "sensitivity.csv")
    curves = table[table["method"] == "z-abs"].set_index("gamma")
    assert curves.index.tolist() == [1e-3, 1e-1]
    assert curves["LRS"].notna().all()
    baseline = table.loc[table["method"] == "baseline", "best_loss"].item()
    assert (curves["best_loss"] != baseline).all(), "the penalty has no effect on the loss"


def test_it_passes_the_tests_that_iterate_over_the_registry(copy: Path) -> None:
    shown = follow(copy, "python -m pytest")
    chosen = int(shown.rpartition(" passed")[0].split()[-1])
    assert chosen >= 20, f"only {chosen} tests cover the new method:\n{shown}"
