"""Tables of runs that something else wrote: what their columns are called, and experiments of MLflow."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dashboards.runs import from_records, mlflow_runs, renamed
from search_spaces.errors import InvalidInput
from search_spaces.record import RUN_COLUMNS

STATES = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "planned"}
"""Of MLflow's; the others are crashed."""


def mapping(pairs: list[str] | tuple[str, ...]) -> dict[str, str]:
    """``OURS=THEIRS`` pairs as they stand in a command, by our names.

    Raises:
        InvalidInput: not such a pair, or ours is no column of a table of runs.
    """
    found = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (equals and theirs):
            raise InvalidInput("--column", pair, "is no pair", "give OURS=THEIRS, or OURS==VALUE for all runs")
        if ours not in RUN_COLUMNS:
            raise InvalidInput("--column", ours, "is no column of ours", f"choose from {', '.join(RUN_COLUMNS)}")
        found[ours] = theirs
    return found


def read_experiment(tracking_uri: str, experiment: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of every run of an MLflow experiment, whose columns are the names of parameters and of metrics' latest
    values, a parameter before a metric of its name.

    Raises:
        InvalidInput: see ``dashboards.runs.mlflow_runs`` and ``renamed``; a column that every run needs is missing.
    """
    runs = mlflow_runs(tracking_uri, experiment)
    if not runs:
        raise InvalidInput("experiment", experiment, "holds no run", "check the name and the tracking URI")
    state = [STATES.get(run.info.status, "crashed") for run in runs]
    # As text, so that a loss of NaN is not taken for one that was never recorded.
    metrics = [{name: str(value) for name, value in run.data.metrics.items()} for run in runs]
    found = pd.DataFrame([of | run.data.params for of, run in zip(metrics, runs, strict=True)], dtype=object)
    found = found.assign(study=experiment, cell=[run.info.run_id for run in runs], state=state)
    found = renamed(found, columns)
    needed = [column for column in ("scale", "method", "lr", "seed", "val_loss") if column not in found]
    if needed:
        there = ", ".join(column for column in map(str, found) if column not in RUN_COLUMNS)
        raise InvalidInput(
            "--column", experiment, f"has no {' and no '.join(needed)}", f"say what is to be taken, of {there}"
        )
    found = found.where(found.notna(), None)
    return from_records({str(name): value for name, value in row.items()} for row in found.to_dict("records"))
