"""docs/methods.md, followed to the letter: its blocks go into a copy of the packages, its commands are run there."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.docs.conftest import follow


def test_the_registry_is_all_that_oec_methods_asks(copy: Path) -> None:
    assert "+ gamma * mean(abs(log Z))" in follow(copy, "oec methods")


def test_a_plan_has_its_curves(copy: Path) -> None:
    shown = follow(copy, "oec plan")
    assert "z-abs (gamma=0.001)" in shown
    assert "z-abs (gamma=0.1)" in shown


def test_it_trains_and_its_penalty_is_felt(copy: Path) -> None:
    shown = follow(copy, "oec train")
    result = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) == 2)
    assert (result["method"], result["gamma"], result["state"]) == ("z-abs", "0.01", "finished")
    assert float(result["val_loss"]) < float(result["l_init"])


@pytest.mark.slow
@pytest.mark.long
def test_a_study_of_it_is_reported(copy: Path) -> None:
    assert "9 cells, 9 to train" in follow(copy, "oec run")
    table = pd.read_csv(copy / "home" / "studies" / "z-abs" / "report" / "tables" / "sensitivity.csv")
    curves = table[table["method"] == "z-abs"].set_index("gamma")
    assert curves.index.tolist() == [1e-3, 1e-1]
    assert curves["LRS"].notna().all()
    baseline = table.loc[table["method"] == "baseline", "best_loss"].item()
    assert (curves["best_loss"] != baseline).all(), "the penalty changed nothing"


def test_the_tests_of_the_registry_hold_for_it_and_strength_0_is_the_baseline(copy: Path) -> None:
    shown = follow(copy, "python -m pytest")
    chosen = int(shown.rpartition(" passed")[0].split()[-1])
    assert chosen >= 20, f"only {chosen} tests are about the new method:\n{shown}"
