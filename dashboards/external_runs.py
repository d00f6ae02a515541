"""Reads runs that another program recorded: column mappings, and MLflow experiments."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dashboards.runs import from_records, mlflow_runs, renamed
from search_spaces.errors import InvalidInput
from search_spaces.record import RUN_COLUMNS

STATES = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "planned"}
"""Our state for each MLflow status; any other status means crashed."""


def parse_columns(pairs: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The ``OURS=THEIRS`` pairs of the command line as a mapping from our names to theirs.

    Raises:
        InvalidInput: an argument is not such a pair, or ours is not a column of a table of runs.
    """
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (equals and theirs):
            raise InvalidInput("--column", pair, "is not a valid pair", "give OURS=THEIRS, or OURS==VALUE for all runs")
        if ours not in RUN_COLUMNS:
            raise InvalidInput("--column", ours, "is not one of our columns", f"choose from {', '.join(RUN_COLUMNS)}")
        columns[ours] = theirs
    return columns


def read_experiment(tracking_uri: str, experiment: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of every run of an MLflow experiment.

    Its columns are parameters and the latest values of metrics; a parameter takes precedence over a metric of the same
    name.

    Raises:
        InvalidInput: see ``dashboards.runs.mlflow_runs`` and ``renamed``; or a required column is missing.
    """
    runs = mlflow_runs(tracking_uri, experiment)
    if not runs:
        raise InvalidInput("experiment", experiment, "has no runs", "check the name and the tracking URI")
    state = [STATES.get(run.info.status, "crashed") for run in runs]
    # As text, so that a NaN loss differs from a loss that was never recorded.
    metrics = [{name: str(value) for name, value in run.data.metrics.items()} for run in runs]
    table = pd.DataFrame([values | run.data.params for values, run in zip(metrics, runs, strict=True)], dtype=object)
    table = table.assign(study=experiment, cell=[run.info.run_id for run in runs], state=state)
    table = renamed(table, columns)
    needed = [column for column in ("scale", "method", "lr", "seed", "val_loss") if column not in table]
    if needed:
        available = ", ".join(column for column in map(str, table) if column not in RUN_COLUMNS)
        raise InvalidInput(
            "--column", experiment, f"has no {' and no '.join(needed)}", f"map each one to one of {available}"
        )
    table = table.where(table.notna(), None)
    return from_records({str(name): value for name, value in row.items()} for row in table.to_dict("records"))
