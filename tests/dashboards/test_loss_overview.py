"""``loss_overview.csv`` of the published repository: run names, columns, and errors."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import loss_overview
from dashboards import published
from dashboards.loss_overview import METHODS, as_runs
from dashboards.runs import read_csv
from search_spaces.errors import InvalidInput

NAME = "wor40Z-16M-13p1B-100k-bs64-lr10-zloss-g1e-04-s1"


def row(name: str = NAME, **columns: object) -> dict[str, object]:
    return {"name": name, "test_loss": "3.876", "O.mu norm": "2.5", "time": "5180.0"} | columns


def described(name: str) -> dict[str, object]:
    table = pd.DataFrame([row(name)])
    found: dict[str, object] = as_runs(table, "theirs").iloc[0].to_dict()
    return {column: found[column] for column in ("study", "scale", "method", "gamma", "lr", "seed")}


def test_all_published_runs_match_the_shipped_table(tmp_path: Path) -> None:
    path = loss_overview.write(tmp_path / published.RUNS_CSV.name, loss_overview.published_rows())
    pd.testing.assert_frame_equal(read_csv(path), read_csv(published.RUNS_CSV))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAME, ("theirs", "16M", "z-loss", 1e-4, 1e-3, 1)),
        ("worC0A-221M-13p1B-100k-bs64-lr3000-baseline-g0e+00-s2", ("theirs", "221M", "baseline", 0.0, 0.3, 2)),
        ("wor60E-29M-13p1B-100k-bs64-lr3-muloss-g1e+02-s1", ("theirs", "29M", "mu-loss", 100.0, 3e-4, 1)),
        ("worG0R-902M-5B-203k-bs48-lr2p5-mucentering-g0e+00-s12", ("theirs", "902M", "mu-centering", 0.0, 2.5e-4, 12)),
        ("wor40s-16M-13p1B-100k-bs64-lr30-softcappingwt-g3e+01-s1", ("theirs, tied", "16M", "soft-cap", 30.0, 3e-3, 1)),
        ("wor40a-16M-13p1B-100k-bs64-lr30-baselinewt-g0e+00-s1", ("theirs, tied", "16M", "baseline", 0.0, 3e-3, 1)),
    ],
)
def test_a_name_describes_a_run(name: str, expected: tuple[object, ...]) -> None:
    study, scale, method, gamma, lr, seed = described(name).values()
    assert (study, scale, method, float(str(gamma)), float(str(lr)), int(str(seed))) == expected


@given(
    st.sampled_from(published.SCALES),
    st.sampled_from(published.METHODS),
    st.integers(1, 9).flatmap(lambda digit: st.integers(-9, 9).map(lambda power: float(f"{digit}e{power}"))),
    st.integers(1, 10_000),
    st.integers(0, 99),
)
def test_every_name_reads_back(scale: str, method: str, gamma: float, lr: int, seed: int) -> None:
    found = described(loss_overview.name_of(scale, method, gamma, lr / 1e4, seed))
    assert (found["scale"], found["method"]) == (scale, method)
    assert float(str(found["gamma"])) == gamma
    assert float(str(found["lr"])) == pytest.approx(lr * 1e-4, rel=1e-12)
    assert int(str(found["seed"])) == seed


def test_tied_weights_are_a_separate_study(tmp_path: Path) -> None:
    tied = "wor40z-16M-13p1B-100k-bs64-lr10-zlosswt-g1e-04-s1"
    table = read_csv(loss_overview.write(tmp_path / "both.csv", [row(), row(tied)]))
    assert table["study"].tolist() == ["both", "both, tied"]
    assert table["method"].tolist() == ["z-loss", "z-loss"]


def test_a_run_that_was_not_evaluated_has_crashed_and_one_without_a_finite_loss_has_diverged(tmp_path: Path) -> None:
    names = [NAME.replace("lr10", f"lr{lr}") for lr in (3, 10, 30)]
    rows = [row(name, test_loss=loss) for name, loss in zip(names, ("", "nan", "3.9"), strict=True)]
    table = read_csv(loss_overview.write(tmp_path / "runs.csv", rows))
    assert table["state"].tolist() == ["crashed", "diverged", "finished"]
    assert table["reason"].tolist() == ["the file has no test_loss for it", None, None]


def test_diagnostics_are_renamed_to_our_columns(tmp_path: Path) -> None:
    columns = {
        "O.centering_ratio": "0.969",
        "O.logits_mean_mean": "-6.1562",
        "O.logits_mean_std": "2.6094",
        "O.logits_mean_absmax": "19.2500",
        "H.mean_logsqZ": "156.0",
    }
    table = read_csv(loss_overview.write(tmp_path / "runs.csv", [row(**columns)]))
    ours = ["output_b_ratio", "logits_mean", "logits_std", "logits_absmax", "log_z_squared", "output_mu_norm"]
    assert table[ours].iloc[0].tolist() == [0.969, -6.1562, 2.6094, 19.25, 156.0, 2.5]
    assert table["train_seconds"].item() == 5180.0


def test_more_columns_may_be_mapped(tmp_path: Path) -> None:
    path = loss_overview.write(tmp_path / "runs.csv", [row()])
    assert read_csv(path, {"l_init": "=10.85"})["l_init"].item() == 10.85


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "does not describe a run"),
        ("checkpoint", "does not describe a run"),
        (NAME.removesuffix("-s1"), "does not describe a run"),
        (f"{NAME}-beta2-0p99", "does not describe a run"),
        (NAME.replace("lr10", "lr"), "does not describe a run"),
        (NAME.replace("g1e-04", "g"), "does not describe a run"),
        (NAME.replace("wor40Z", "wor40I"), "has an unknown method letter, I; choose from A baseline, Z zloss"),
        (NAME.replace("wor40Z", "wor40E"), "has the method letter E, which means muloss, but names another method"),
        (NAME.replace("zloss", "zlosswt"), "has the method letter Z, which means zloss, but names another method"),
        (NAME.replace("wor40Z", "wor40z"), "has the method letter z, which means zlosswt, but names another method"),
    ],
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    path = loss_overview.write(tmp_path / "runs.csv", [row(), row(name)])
    with pytest.raises(InvalidInput, match=problem) as error:
        read_csv(path)
    assert error.value.field == "name"
    assert error.value.value == name or not name


def test_a_learning_rate_of_zero_is_refused(tmp_path: Path) -> None:
    path = loss_overview.write(tmp_path / "runs.csv", [row(NAME.replace("lr10", "lr0"))])
    with pytest.raises(InvalidInput, match="is not a learning rate"):
        read_csv(path)


def test_a_name_column_alone_does_not_identify_the_format(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("name,test_loss,scale,method,gamma,lr,seed\nmine,3.0,16M,baseline,0,0.1,1\n")
    assert read_csv(path)["val_loss"].item() == 3.0


def test_every_letter_is_a_method_of_the_registry() -> None:
    from search_spaces.methods import METHODS as REGISTRY

    assert {method for method, _ in METHODS.values()} <= set(REGISTRY)


def test_a_header_alone_has_no_runs() -> None:
    table = pd.DataFrame(columns=["name", "test_loss"])
    with pytest.raises(InvalidInput, match="has no runs"):
        as_runs(table, "loss_overview")
