"""Tables of runs: columns, the three readers, and errors."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from made_up import L_INIT, curve, run, study

from dashboards import published
from dashboards.runs import from_records, read_csv, read_mlflow
from dashboards.sensitivity import curves
from search_spaces.errors import InvalidInput
from search_spaces.record import RUN_COLUMNS


def test_columns_are_frozen() -> None:
    assert (
        *(
            "study",
            "cell",
            "scale",
            "attention_norm",
            "method",
            "gamma",
            "factors",
            "lr_factor",
            "lr",
            "seed",
            "state",
            "origin",
            "val_loss",
        ),
        *(
            "train_loss",
            "l_init",
            "steps",
            "skipped_steps",
            "tokens",
            "train_seconds",
            "tokens_per_second",
            "output_mu_norm",
            "logits_mean",
            "logits_std",
        ),
        *(
            "logits_absmean",
            "logits_absmax",
            "logits_mean_token_std",
            "logits_std_token_std",
            "logits_absmax_token_max",
            "log_z_squared",
            "output_mu_h_cosine",
            "output_mu_h_dot",
            "output_b_ratio",
            "attention_logit_max",
            "loss_spikes",
            "spike_score",
            "torch",
            "reason",
        ),
    ) == RUN_COLUMNS, "runs.csv is a public format: changing a column breaks every file written so far"


@pytest.mark.parametrize("records", [[], [run()], [run(unknown=1, cell="abc")]])
def test_a_table_always_has_exactly_the_columns(records: list[dict[str, object]]) -> None:
    table = from_records(records)
    assert tuple(table) == RUN_COLUMNS
    assert len(table) == len(records)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "finished"),
        ({"state": None}, "finished"),
        ({"state": None, "val_loss": None}, "planned"),
        ({"val_loss": math.nan}, "diverged"),
        ({"val_loss": math.inf}, "diverged"),
        ({"val_loss": L_INIT + 0.01}, "diverged"),
        ({"val_loss": L_INIT + 0.01, "l_init": None}, "finished"),
        ({"val_loss": None}, "crashed"),
        ({"state": "diverged", "val_loss": 3.0}, "diverged"),
        ({"state": "pruned", "val_loss": 9.0}, "pruned"),
    ],
)
def test_state_of_a_record(changes: dict[str, object], state: str) -> None:
    assert from_records([run(**changes)])["state"].item() == state


def test_a_finished_run_without_a_loss_says_so() -> None:
    assert from_records([run(val_loss=None)])["reason"].item() == "finished, but no final loss was recorded"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lr": 0}, "lr"),
        ({"lr": -1e-3}, "lr"),
        ({"lr": None}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"val_loss": "low"}, "val_loss"),
        ({"scale": None}, "scale"),
        ({"method": None}, "method"),
        ({"state": "asleep"}, "state"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        from_records([run(), run(**changes)])
    assert error.value.field == field
    value = error.value.value
    assert value in (changes[field], None) or math.isnan(float(str(value)))


def test_a_method_without_gamma_has_none() -> None:
    table = from_records([run(gamma=0.0), run(method="mu-centering", gamma=0.0), run(method="z-loss", gamma=0.0)])
    assert table["gamma"].isna().tolist() == [True, True, False]


def test_a_run_without_an_attention_norm_has_the_default(tmp_path: Path) -> None:
    table = from_records([run(), run(attention_norm="none"), run(attention_norm="from elsewhere")])
    assert table["attention_norm"].tolist() == ["qk-norm", "none", "from elsewhere"]
    table.to_csv(tmp_path / "runs.csv", index=False)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "runs.csv"), table)


def test_published_runs() -> None:
    table = read_csv(published.RUNS_CSV)
    assert len(table) == 350
    assert set(table["state"]) == {"finished"}
    assert set(table["attention_norm"]) == {"qk-norm"}
    assert set(table["l_init"]) == {math.log(50304)}
    assert table.loc[table["method"] == "baseline", "gamma"].isna().all()
    for method in ("z-loss", "mu-loss"):
        strengths = table.loc[table["method"] == method, "gamma"].value_counts()
        assert strengths.to_dict() == dict.fromkeys(published.GAMMAS, 35)
    assert table["logits_std"].iloc[0] == 2.6094
    assert table["study"].iloc[0] == "published"


def test_our_own_file_reads_back(tmp_path: Path) -> None:
    table = study(
        curve([3.0, math.nan, math.inf, 99.0], reason='it said, "no"\nand left'),
        curve([3.0, 2.0, 2.5, 3.0], method="z-loss", gamma=1e-4, steps=20),
        [
            run(state="crashed", val_loss=None, seed=7, reason="out of memory"),
            run(state="planned", val_loss=None, seed=8),
        ],
    )
    table.to_csv(tmp_path / "runs.csv", index=False)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "runs.csv"), table)


@pytest.mark.parametrize(
    ("state", "loss", "expected"),
    [
        (None, "", "crashed"),
        (None, " ", "crashed"),
        (None, "None", "crashed"),
        (None, "null", "crashed"),
        (None, "N/A", "crashed"),
        (None, "nan", "diverged"),
        (None, "NaN", "diverged"),
        (None, "inf", "diverged"),
        (None, "-Infinity", "diverged"),
        (None, "1e999", "diverged"),
        (None, "99", "diverged"),
        ("finished", "", "crashed"),
        ("FINISHED", "nan", "diverged"),
        ("Finished", "3", "finished"),
        ("", "", "planned"),
        ("", "3", "finished"),
        ("", "nan", "diverged"),
        ("diverged", "", "diverged"),
        ("NaN loss", "", "diverged"),
        ("failed", "", "crashed"),
        ("Failed", "3", "crashed"),
        ("killed", "nan", "crashed"),
        ("crashed", "3", "crashed"),
        ("running", "3", "running"),
        ("TrialState.FAIL", "3", "crashed"),
        ("TrialState.COMPLETE", "", "crashed"),
        ("PRUNED", "3", "pruned"),
    ],
)
def test_the_state_of_a_run_in_a_csv(tmp_path: Path, state: str | None, loss: str, expected: str) -> None:
    """A loss that was never recorded is not a result. Only NaN, infinity or an explicit status count as divergence."""
    for column in ("state", "Status", "STATE"):
        path = tmp_path / f"{column}.csv"
        name, value = ("", "") if state is None else (f",{column}", f",{state}")
        path.write_text(f"scale,method,gamma,lr,seed,val_loss{name}\n16M,baseline,0,0.1,1,{loss}{value}\n")
        assert read_csv(path)["state"].item() == expected


def test_a_curve_with_a_loss_that_was_never_recorded_has_no_lrs(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "scale,method,gamma,lr,seed,val_loss\n"
        + "".join(f"9M,lion,,0.{i},1,{'' if i == 2 else 3}\n" for i in (1, 2, 3))
    )
    (found,) = curves(read_csv(path))
    assert (found.LRS, found.diverged) == (None, 0)
    assert found.missing == ("lr=0.2 seed=1 (no loss recorded)",)
    path.write_text(path.read_text().replace("0.2,1,", "0.2,1,nan"))
    (found,) = curves(read_csv(path))
    assert (found.diverged, found.missing) == (1, ())
    assert found.LRS is not None


def test_an_unknown_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("scale,method,gamma,lr,seed,val_loss,Status\n16M,baseline,0,0.1,1,3,California\n")
    with pytest.raises(InvalidInput, match=r"'California' is not a state of a run.*--column state==finished"):
        read_csv(path)
    assert read_csv(path, {"state": "=finished"})["state"].item() == "finished"


HEADER = b"scale,method,gamma,lr,seed,val_loss\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe\x00\xd8binary", "cannot be read"),
        (HEADER, "has no run"),
        (b"scale,method,lr,seed\n16M,baseline,0.1,1\n", "lacks the columns gamma, val_loss"),
        (HEADER + b"16M,baseline,,fast,1,3\n", "is not a number"),
        (HEADER + b"16M,baseline,,-0.1,1,3\n", "is not a learning rate"),
        (HEADER + b"16M,baseline,,,1,3\n", "is not a learning rate"),
        (HEADER + b'16M,"baseline,,0.1,1,3\n', "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=problem):
        read_csv(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_csv(tmp_path / "none.csv")


def test_read_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("oec", artifact_location=str(tmp_path / "artifacts"))
    client.create_run(experiment, tags={"oec.study": "made-up"})  # the study's own run, which is not a cell
    client.create_run(experiment, tags={"oec.study": "another", "oec.cell": "zzz"})
    for cell, method, gamma, state, norm in (
        ("aaa", "baseline", "None", "finished", {}),  # as written by versions without attention norms
        ("bbb", "z-loss", "0.0001", "diverged", {"attention_norm": "none"}),
    ):
        tags = {"oec.study": "made-up", "oec.cell": cell, "oec.state": state, "oec.reason": "because"}
        child = client.create_run(experiment, tags=tags).info.run_id
        params = {"scale": "tiny", "method": method, "gamma": gamma, "lr": "0.1", "seed": "1", **norm}
        for key, value in params.items():
            client.log_param(child, key, value)
        for step, loss in enumerate((4.0, 3.5)):
            client.log_metric(child, "train_loss", loss, step=step)
        client.log_metric(child, "l_init", 6.9)
        client.log_metric(child, "val_loss", 3.6)
        if state == "finished":
            client.log_metric(child, "final_val_loss", 3.25)

    table = read_mlflow(uri, "oec", "made-up").sort_values("cell").reset_index(drop=True)
    assert tuple(table) == RUN_COLUMNS
    assert table["cell"].tolist() == ["aaa", "bbb"]
    assert table["state"].tolist() == ["finished", "diverged"]
    assert table["attention_norm"].tolist() == ["qk-norm", "none"]
    assert table["val_loss"].iloc[0] == 3.25
    assert table["train_loss"].tolist() == [3.5, 3.5]
    assert math.isnan(table["gamma"].iloc[0])
    assert table["gamma"].iloc[1] == 1e-4
    assert table["reason"].iloc[0] == "because"
    with pytest.raises(InvalidInput, match="is not in this MLflow"):
        read_mlflow(uri, "nothing", "made-up")
    with pytest.raises(InvalidInput, match="has no cell"):
        read_mlflow(uri, "oec", "nothing")
    with pytest.raises(InvalidInput, match="contains a quote"):
        read_mlflow(uri, "oec", "a' OR '1'='1")
