"""Tables of other programs: rows that are not runs, file endings, and columns that only one of two sources has."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from dashboards.runs import csv_title, is_csv, parse_columns, read_csv, read_experiment
from dashboards.sensitivity import curves
from search_spaces.errors import InvalidInput
from tests.service.oec import invoked

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
COLUMNS = parse_columns(("lr=learning_rate", "val_loss=val/loss"))


def log_children(folder: Path, parent_params: dict[str, object], parent_metrics: dict[str, float]) -> str:
    """Logs runs like tutorials on hyperparameter search: one parent with ten nested runs. Returns the address of the
    store."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    uri = f"sqlite:///{folder}/ml.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("hpo", artifact_location=str(folder / "artifacts"))

    def log(name: str, params: dict[str, object], metrics: dict[str, float], tags: dict[str, str]) -> str:
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for key, value in params.items():
            client.log_param(run, key, value)
        for key, number in metrics.items():
            client.log_metric(run, key, number)
        client.set_terminated(run)
        return str(run)

    parent = log("search", parent_params, parent_metrics, {})
    for method in ("baseline", "z-loss"):
        for lr in LRS:
            gamma = None if method == "baseline" else 1e-4
            params: dict[str, object] = {
                "learning_rate": lr,
                "method": method,
                "gamma": gamma,
                "seed": 1,
                "scale": "1B",
            }
            log(f"{method} {lr}", params, {"val/loss": 3 + (math.log10(lr) + 2) ** 2}, {MLFLOW_PARENT_RUN_ID: parent})
    return uri


@pytest.mark.parametrize(
    ("params", "metrics", "sentence"),
    [
        ({"n_trials": 10}, {"best": 3.0}, "1 run without scale, method, lr, seed left out, such as search"),
        ({"learning_rate": 0.01}, {"best": 3.0}, "1 run without scale, method, seed left out, such as search"),
        (
            {"learning_rate": 0.01, "method": "baseline", "seed": 1, "scale": "1B"},
            {"val/loss": 3.0},
            "1 run that only groups others left out, such as search",
        ),
    ],
)
def test_the_parent_of_nested_runs(
    tmp_path: Path, params: dict[str, object], metrics: dict[str, float], sentence: str
) -> None:
    """The parent has none of the required values, the best parameters, or a copy of the best run."""
    uri = log_children(tmp_path, params, metrics)
    notes: list[str] = []
    found = curves(read_experiment(uri, "hpo", COLUMNS, notes.append))
    assert [(curve.method, len(curve.lr), len(curve.missing)) for curve in found] == [
        ("baseline", 5, 0),
        ("z-loss", 5, 0),
    ]
    assert notes == [sentence]
    options = ("--column=lr=learning_rate", "--column=val_loss=val/loss", "--format=html", "--out", tmp_path / "out")
    done = invoked("report", "mlflow:hpo", *options, home=tmp_path / "home", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done
    assert sentence in done.stdout
    assert sentence in (tmp_path / "out" / "report.html").read_text()


def test_a_run_with_a_nested_evaluation_is_a_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    uri = log_children(tmp_path, {}, {})
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("hpo")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], "params.method = 'baseline' and params.learning_rate = '0.01'")
    tags = {MLFLOW_PARENT_RUN_ID: run.info.run_id}
    client.set_terminated(client.create_run(found.experiment_id, run_name="evaluation", tags=tags).info.run_id)
    notes: list[str] = []
    assert len(read_experiment(uri, "hpo", COLUMNS, notes.append)) == 10
    assert "2 runs without scale, method, lr, seed left out" in notes[0]


HEADER = "scale,method,gamma,lr,seed,val_loss\n"
RUNS = HEADER + "9M,lion,,0.1,1,3\n9M,lion,,0.2,1,4\n"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (",,,,,\n", "1 run without scale, method, lr, seed left out, such as line 4"),
        ("best,,,,,3\n,,,,,\n", "2 runs without scale, method, lr, seed left out, such as line 4"),
        ("9M,lion,,None,1,3\n", "1 run without lr left out, such as line 4"),
        ("9M,lion,,0.3,,\n", "1 run without seed left out, such as line 4"),
    ],
)
def test_rows_of_a_csv_that_are_not_runs(tmp_path: Path, rows: str, sentence: str) -> None:
    (tmp_path / "runs.csv").write_text(RUNS + rows)
    notes: list[str] = []
    (found,) = curves(read_csv(tmp_path / "runs.csv", None, notes.append))
    assert (found.lr, notes) == ((0.1, 0.2), [sentence])


def test_a_run_that_lacks_something_is_not_left_out(tmp_path: Path) -> None:
    """It has a learning rate and a loss, so what it lacks must be given rather than guessed."""
    (tmp_path / "runs.csv").write_text(RUNS + "9M,lion,,0.3,,3\n")
    with pytest.raises(InvalidInput, match="seed is missing from a run"):
        read_csv(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("runs.csv", "runs"),
        ("RUNS.CSV", "RUNS"),
        ("Runs.Csv", "Runs"),
        ("runs.csv.gz", "runs"),
        ("RUNS.CSV.GZ", "RUNS"),
        ("runs.csv.bz2", "runs"),
        ("runs.csv.xz", "runs"),
        ("runs.csv.zip", "runs"),
        ("runs.tsv", "runs"),
        ("runs.v2.TSV.gz", "runs.v2"),
    ],
)
def test_endings_of_tables(tmp_path: Path, name: str, title: str) -> None:
    path = tmp_path / name
    assert (is_csv(path), csv_title(path)) == (True, title)
    (tmp_path / "plain.csv").write_text(RUNS)
    pd.read_csv(tmp_path / "plain.csv").to_csv(path, index=False, sep="\t" if "tsv" in name.lower() else ",")
    assert read_csv(path)["study"].tolist() == [title, title]
    for command in (
        ["report", path, "--format", "html", "--out", tmp_path / "out"],
        ["diff", path, tmp_path / "plain.csv"],
    ):
        done = invoked(*command, home=tmp_path / "home")
        assert done.returncode == 0, done


@pytest.mark.parametrize("name", ["runs.csvx", "csv", "runs.txt", "runs.gz", "my.csv.d", "runs.csv.zst"])
def test_files_that_are_not_tables(name: str) -> None:
    assert not is_csv(Path(name))


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x1f\x8b broken", b"\xfd7zXZ\0 broken", b"BZh9 broken", RUNS.encode()]
)
@pytest.mark.parametrize("ending", ["csv.gz", "csv.xz", "csv.bz2", "csv.zip"])
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    (tmp_path / f"runs.{ending}").write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_csv(tmp_path / f"runs.{ending}")


def test_diff_maps_the_columns_of_either_source(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    ours.write_text(RUNS)
    theirs.write_text(RUNS.replace(",lr,", ",learning_rate,").replace("0.1,1,3", "0.1,1,2.5"))
    for pair in ((ours, theirs), (theirs, ours)):
        done = invoked("diff", *pair, "--column", "lr=learning_rate", home=tmp_path)
        assert done.returncode == 0, done
        assert "9M lion" in done.stdout
    wrong = invoked("diff", ours, theirs, "--column", "lr=learning", home=tmp_path)
    assert (wrong.returncode, "'lr=learning' is not a column of the table" in wrong.stderr) == (2, True)
    unused = invoked("diff", ours, ours, "--column", "lr=rate", home=tmp_path)
    assert (unused.returncode, "'lr=rate' applies to none of the sources" in unused.stderr) == (2, True)
    theirs.write_text("learning_rate,loss\n0.1,3\n0.2,4\n,9\n")
    pairs = ("lr=learning_rate", "val_loss=loss", "scale==9M", "method==lion", "gamma==None", "seed==1")
    done = invoked("diff", ours, theirs, *(f"--column={pair}" for pair in pairs), home=tmp_path)
    assert done.returncode == 0, done
    assert "Equal: 9M lion" in done.stdout
    assert "theirs: 1 run without lr left out, such as line 4" in done.stdout
