"""Runs that were recorded by another program."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from made_up import curve, study

from dashboards.runs import parse_columns, read_csv, read_experiment
from dashboards.sensitivity import curves
from search_spaces.errors import InvalidInput

PAIRS = (
    "lr=learning rate",
    "val_loss=test/loss",
    "scale==9M",
    "method=optimizer",
    "gamma==None",
    "seed==1",
    "l_init==7",
)


def test_a_csv_with_mapped_columns_and_constants(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "optimizer,learning rate,lr,test/loss,test_loss\nlion,0.1,0,3.5,0\nlion,0.2,0,nan,0\nlion,0.3,0,8,0\n"
    )
    (found,) = curves(read_csv(path, parse_columns(PAIRS)))
    assert (found.scale, found.method, found.gamma, found.lr) == ("9M", "lion", None, (0.1, 0.2, 0.3))
    assert found.mean == (3.5, 7, 7)
    assert (found.diverged, found.LRS) == (2, 3.5)


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("lr", "'lr' is not a valid pair"),
        ("lr=", "'lr=' is not a valid pair"),
        ("loss=test", "'loss' is not one of our columns; choose from study, cell, scale"),
    ],
)
def test_a_bad_pair_is_refused(pair: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        parse_columns([pair])


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("optimizer,rate\nlion,0.1\n")
    with pytest.raises(
        InvalidInput, match="'lr=learning rate' is not a column of the table; choose from optimizer, rate"
    ):
        read_csv(path, parse_columns(PAIRS))
    with pytest.raises(InvalidInput, match=r"lacks the columns scale, method, gamma, seed, val_loss.*--column"):
        read_csv(path, {"lr": "rate"})


def test_an_mlflow_experiment(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("theirs", artifact_location=str(tmp_path / "artifacts"))
    for rate, loss, status in ((0.1, 3.5, "FINISHED"), (0.2, math.nan, "FINISHED"), (0.3, None, "FAILED")):
        run = client.create_run(experiment).info.run_id
        client.log_param(run, "learning rate", str(rate))
        client.log_param(run, "optimizer", "lion")
        client.log_metric(run, "lr", 0.0)
        if loss is not None:
            client.log_metric(run, "test/loss", loss)
        client.set_terminated(run, status)
    table = read_experiment(uri, "theirs", parse_columns(PAIRS)).sort_values("lr")
    assert table["state"].tolist() == ["finished", "diverged", "crashed"]
    assert table["lr"].tolist() == [0.1, 0.2, 0.3]
    assert table["val_loss"].iloc[0] == 3.5
    assert table["cell"].nunique() == 3
    with pytest.raises(InvalidInput, match=r"has no scale and no method.*learning rate, optimizer"):
        read_experiment(uri, "theirs", {"lr": "learning rate"})
    client.create_experiment("empty")
    with pytest.raises(InvalidInput, match="has no runs"):
        read_experiment(uri, "empty", parse_columns(PAIRS))


def test_columns_of_a_csv_become_factors(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    rows = [f"{decay},{lr},{3 + decay + lr}" for decay in (0, 0.1) for lr in (1e-3, 1e-2)]
    path.write_text("\n".join(["wd,lr,val_loss", *rows]) + "\n")
    columns = ["scale==mine", "method==command", "gamma==None", "seed==1", "l_init==9", "factors.weight_decay=wd"]
    found = curves(read_csv(path, parse_columns(columns)))
    assert [(curve.factors, curve.label, curve.best_loss) for curve in found] == [
        ((("weight_decay", 0),), "weight_decay=0", 3.001),
        ((("weight_decay", 0.1),), "weight_decay=0.1", 3.101),
    ]


def test_a_further_factor_is_added_to_those_of_our_own_table(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    study(curve([3.5, 3.0, 3.2, 3.4], factors='{"training.weight_decay": 0.1}')).assign(host="a").to_csv(path)
    (found,) = curves(read_csv(path, parse_columns(["factors.host=host"])))
    assert found.factors == (("training.weight_decay", 0.1), ("host", "a"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("NaN", None), ("nan", None), ("None", None), ("null", None), ("", None), ("  ", None)),
        *(("True", True), ("False", False), ("true", True), ("7", 7), ("1e-4", 1e-4), ("[1, 2]", (1, 2))),
        *(("Infinity", "Infinity"), ("-Infinity", "-Infinity"), ("inf", "inf"), ("none", "none")),
        *(("[NaN]", "[NaN]"), ('{"a": 1}', '{"a": 1}'), ("adamw", "adamw")),
    ],
)
def test_values_of_factors(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "runs.csv"
    rows = study(curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.4], seed=2))
    rows.assign(theirs=text).to_csv(path, index=False)
    (found,) = curves(read_csv(path, parse_columns(["factors.x=theirs"])))
    assert found.factors == (("x", value),)
    assert type(dict(found.factors)["x"]) is type(value)


def test_a_factor_may_be_missing_from_some_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    study(curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.4])).assign(width=["64"] * 4 + [""] * 4).to_csv(path)
    found = curves(read_csv(path, parse_columns(["factors.width=width"])))
    assert [curve.factors for curve in found] == [(("width", 64),), (("width", None),)]


def test_a_csv_over_another_axis(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    rows = [f"{eps},{lr},{3 + eps}" for lr in (1e-3, 1e-2) for eps in (0.1, 1, 10)]
    path.write_text("\n".join(["eps,lr,val_loss", *rows]) + "\n")
    columns = ["scale==mine", "method==command", "gamma==None", "seed==1", "l_init==9"]
    found = curves(read_csv(path, parse_columns([*columns, "factors.eps=eps", "lr_factor==eps"])))
    assert [(curve.lr, curve.best_lr, curve.highest_lr, curve.label) for curve in found] == [
        ((0.1, 1, 10), 0.1, 1, "lr=0.001"),
        ((0.1, 1, 10), 0.1, 1, "lr=0.01"),
    ], "at an eps of 10, the loss of 13 is above l_init"
    with pytest.raises(InvalidInput, match="lr_factor: 'eps' is not a positive number in a run"):
        curves(read_csv(path, parse_columns([*columns, "lr_factor==eps"])))
