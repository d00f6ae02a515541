"""A table of runs, one row per run, and its three sources: records, CSV files and MLflow."""

from __future__ import annotations

import json
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from dashboards.factors import factors_of
from dashboards.foreign import training_runs
from dashboards.loss_overview import as_runs, is_loss_overview
from dashboards.published import L_INIT
from dashboards.statuses import state_of
from search_spaces.attention_norms import DEFAULT
from search_spaces.errors import InvalidInput, reason
from search_spaces.factors import LR, Value, to_json
from search_spaces.methods import METHODS
from search_spaces.record import COLUMNS, RUN_COLUMNS
from search_spaces.tolerance import representatives

if TYPE_CHECKING:
    from mlflow.entities import Run

OFF_CURVE = ("refine", "edge")
"""Origins of the runs that belong to no curve: their learning rates depend on earlier results."""

CONSTANT = "="
"""Prefix of a value that all runs have, in place of a column's name."""
FACTOR = "factors."
"""Prefix of the name of a factor, in place of one of our columns."""

_REQUIRED = ("scale", "method", "gamma", "lr", "seed", "val_loss")
_PUBLISHED_NAMES = {"test_loss": "val_loss", "logits_mean_std": "logits_std"}
NO_LOSS = "finished, but no final loss was recorded"
"""The reason of a run that is crashed because it has no loss."""
STATE_COLUMNS = ("state", "status")
"""Columns, in any case, with the state of a run in tables of other programs."""
_PYTHON_VALUES = {"": None, "None": None, "nan": None, "NaN": None, "True": True, "False": False}
"""Texts in the column of a factor that are not JSON, and what they mean."""
_FACTOR: TypeAdapter[Any] = TypeAdapter(Value)
_BLANK = ("", "none", "null", "na", "n/a", "<na>", "-")
"""How other programs, and MLflow's params, write that there is no number. NaN is one: that of a diverged run."""
_Note = Callable[[str], None]


def from_records(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of runs from mappings, one per run, such as those of a ledger.

    A column that a record lacks is missing, and a key that is not a column is dropped. A record without a state is
    planned, or finished if it has a loss.

    Raises:
        InvalidInput: a value of the wrong kind; see ``_checked``.
    """
    rows = []
    for record in records:
        row = {column: record.get(column) for column in RUN_COLUMNS}
        if row["state"] is None:
            row["state"] = "planned" if row["val_loss"] is None else "finished"
        rows.append(row)
    return _checked(pd.DataFrame(rows, columns=list(RUN_COLUMNS), dtype=object))


def read_csv(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    note: _Note = lambda sentence: None,
    absent: _Note | None = None,
) -> pd.DataFrame:
    """A table of runs from a CSV file: one of ours, one with the columns of the published runs, a ``loss_overview.csv``
    of the published repository, or any other whose columns are given, see ``renamed``.

    The file may be compressed (``.csv.gz``), or separated by tabs (``.tsv``). In a file without states every run has
    finished; see ``_checked`` for what a loss that is missing or not finite means. ``l_init`` defaults to that of the
    published runs, and ``study`` to the file's name.

    Args:
        note: called with a sentence about rows that were left out.
        absent: see ``renamed``.

    Raises:
        InvalidInput: the file cannot be read, has no run, lacks a column, or has a value of the wrong kind; see also
            ``dashboards.loss_overview.as_runs``.
    """
    path = Path(path)
    try:
        # As text, so that only an empty field is missing, and any other wrong value is named.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], sep=separator(path))
    except (
        OSError,
        ValueError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
    ) as error:  # a ParserError is a ValueError
        problem, remedy = f"cannot be read ({reason(error)})", "give a comma-separated file with a header"
        raise InvalidInput("csv", str(path), problem, remedy) from error
    if is_loss_overview(table):
        table = as_runs(table, csv_title(path))
    table = renamed(table, columns or {}, absent)
    table = table.rename(columns={theirs: ours for theirs, ours in _PUBLISHED_NAMES.items() if ours not in table})
    if missing := [column for column in _REQUIRED if column not in table]:
        remedy = f"map them with --column to some of {', '.join(map(str, table))}"
        raise InvalidInput("csv", str(path), f"lacks the columns {', '.join(missing)}", remedy)
    if table.empty:
        raise InvalidInput("csv", str(path), "has no run", "give at least one row under the header")
    theirs = [column for column in table if str(column).strip().lower() in STATE_COLUMNS]
    state = table[theirs[0]] if len(theirs) == 1 else "finished"
    defaults: dict[str, Any] = {"l_init": L_INIT, "study": csv_title(path), "state": state}
    table = table.assign(**{column: value for column, value in defaults.items() if column not in table})
    table = _with_none(table.reindex(columns=list(RUN_COLUMNS)).astype(object))
    table, left_out = training_runs(table, [f"line {i + 2}" for i in range(len(table))])
    if left_out:
        note(left_out)
    inferred = table["val_loss"].isna().map({True: "planned", False: "finished"})
    return _checked(table.assign(state=table["state"].where(table["state"].notna(), inferred)))


def read_mlflow(tracking_uri: str, experiment: str, study: str) -> pd.DataFrame:
    """A table of the runs of ``study`` in MLflow: every run with the tag ``oec.cell``.

    Scale, attention norm, method, gamma, lr and seed are its params, the final loss is the metric ``final_val_loss``,
    and every other number is the latest value of the metric with the column's name.

    Raises:
        InvalidInput: the server does not respond, or has no such experiment or no cell of this study.
    """
    if "'" in study:
        raise InvalidInput("study", study, "contains a quote", "give the name of a study")
    runs = mlflow_runs(tracking_uri, experiment, f"tags.`oec.study` = '{study}'")
    # Several studies on one server may have this name; the one that began last counts.
    newest = max(runs, key=lambda run: int(run.info.start_time), default=None)
    current = newest and newest.data.tags.get("oec.hash")
    cells = [run for run in runs if "oec.cell" in run.data.tags and run.data.tags.get("oec.hash") == current]
    if not cells:
        raise InvalidInput("study", study, f"has no cell in experiment {experiment!r}", "check the name of the study")
    return from_records(_mlflow_record(run) for run in cells)


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
        if ours not in RUN_COLUMNS and not ours.startswith(FACTOR):
            raise InvalidInput(
                "--column", ours, "is not one of our columns", f"choose from {', '.join(RUN_COLUMNS)}, {FACTOR}NAME"
            )
        columns[ours] = theirs
    return columns


def read_experiment(
    tracking_uri: str,
    experiment: str,
    columns: Mapping[str, str],
    note: _Note = lambda sentence: None,
    absent: _Note | None = None,
) -> pd.DataFrame:
    """A table of every run of an MLflow experiment.

    Its columns are parameters and the latest values of metrics; a parameter takes precedence over a metric of the same
    name.

    Args:
        note: called with a sentence about runs that were left out.
        absent: see ``renamed``.

    Raises:
        InvalidInput: see ``mlflow_runs`` and ``renamed``; or a required column is missing.
    """
    runs = mlflow_runs(tracking_uri, experiment)
    if not runs:
        raise InvalidInput("experiment", experiment, "has no runs", "check the name and the tracking URI")
    state = [state_of(run.info.status) for run in runs]
    # As text, so that a NaN loss differs from a loss that was never recorded.
    metrics = [{name: str(value) for name, value in run.data.metrics.items()} for run in runs]
    table = pd.DataFrame([values | run.data.params for values, run in zip(metrics, runs, strict=True)], dtype=object)
    table = table.assign(study=experiment, cell=[run.info.run_id for run in runs], state=state)
    table = renamed(table, columns, absent)
    if needed := [column for column in _REQUIRED if column != "gamma" and column not in table]:
        available = ", ".join(column for column in map(str, table) if column not in RUN_COLUMNS)
        remedy = f"map each one to one of {available}"
        raise InvalidInput("--column", experiment, f"has no {' and no '.join(needed)}", remedy)
    table = _with_none(table)
    place = {run.info.run_id: i for i, run in enumerate(runs)}
    parents = [place.get(run.data.tags.get("mlflow.parentRunId", "")) for run in runs]
    names = [str(run.info.run_name or run.info.run_id) for run in runs]
    table, left_out = training_runs(table, names, parents)
    if left_out:
        note(left_out)
    return from_records({str(name): value for name, value in row.items()} for row in table.to_dict("records"))


def records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """One mapping per run; ``DataFrame.to_dict`` takes ten times as long because it inspects each value."""
    names = list(table)
    return [dict(zip(names, row, strict=True)) for row in zip(*(table[name].tolist() for name in names), strict=True)]


def renamed(table: pd.DataFrame, columns: Mapping[str, str], absent: _Note | None = None) -> pd.DataFrame:
    """``table`` with our columns added.

    Args:
        columns: for each of our names, the name in ``table``, or ``=`` and a value that all runs have. A name with the
            prefix ``FACTOR`` makes a factor of that column, next to those that the table already has; see
            ``_factor_value``.
        absent: if given, ``columns`` are those of several tables. One that has our column keeps it, and this is called
            with our name if it does not have theirs; None: they are those of this table alone.

    Raises:
        InvalidInput: the table has no such column.
    """
    found: dict[str, Any] = {}
    for ours, theirs in columns.items():
        if absent and ours in table and theirs not in table:
            absent(ours)
        elif theirs.startswith(CONSTANT):
            found[ours] = theirs.removeprefix(CONSTANT)
        elif theirs in table:
            found[ours] = table[theirs]
        else:
            there = ", ".join(map(str, table))
            raise InvalidInput("--column", f"{ours}={theirs}", "is not a column of the table", f"choose from {there}")
    factors = {ours.removeprefix(FACTOR): found.pop(ours) for ours in list(found) if ours.startswith(FACTOR)}
    table = table.assign(**found)
    if factors:
        rows = records(pd.DataFrame(factors, index=table.index, dtype=object))
        added = [{str(name): _factor_value(value) for name, value in row.items()} for row in rows]
        before = factors_of(table) if "factors" in table else [{}] * len(table)
        merged: list[Any] = [to_json({**own, **new}) for own, new in zip(before, added, strict=True)]
        table = table.assign(factors=merged)
    return table


def _factor_value(value: object) -> object:
    """A value of a factor from a field of a table: JSON, a missing or truth value as Python writes it, or else text."""
    if not isinstance(value, str):
        return None if value is None or value != value else value  # NaN differs from itself
    text = value.strip()
    if text in _PYTHON_VALUES:
        return _PYTHON_VALUES[text]
    try:
        return _FACTOR.validate_python(json.loads(text))
    except ValueError:  # pydantic's is one: an infinity, or an object
        return value


def mlflow_runs(tracking_uri: str, experiment: str, which: str = "") -> list[Run]:
    """Every run of an experiment that passes the filter ``which``.

    Raises:
        InvalidInput: the server does not respond, or has no such experiment.
    """
    # Importing mlflow takes seconds, and reports from the ledger do not need it.
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise InvalidInput("experiment", experiment, "is not in this MLflow", "check the name and the tracking URI")
        runs: list[Run] = []
        page: str | None = None
        while page is None or page:
            answer = client.search_runs([found.experiment_id], which, page_token=page)
            runs += answer
            page = answer.token or ""
    except MlflowException as error:
        problem = f"cannot be read ({error.error_code})"
        raise InvalidInput("tracking_uri", tracking_uri, problem, "check that the server is running") from error
    return runs


def _mlflow_record(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    named = {name: tags.get(f"oec.{name}") for name in ("study", "cell", "state", "origin", "torch", "reason")}
    return {**run.data.metrics, **run.data.params, "val_loss": run.data.metrics.get("final_val_loss"), **named}


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the dtypes of a table of runs: text as objects, whole numbers as Int64, the rest as float64.

    States become ours (``state_of``), and learning rates and gammas that are the same become equal. A finished run
    whose loss is NaN, infinite or above ``l_init`` becomes diverged, so that the rest of the code needs only the state.
    One whose loss was never recorded becomes crashed, with that as its reason: it must not be mistaken for one that
    diverged. The gamma of a method without one becomes a missing value, a missing attention norm the default, and
    without ``lr_factor`` the axis is the learning rate.

    Raises:
        InvalidInput: a value is not a number, a learning rate is not positive and finite, a scale or method is missing,
            or a state is unknown.
    """
    table["state"] = [state_of(state) for state in table["state"]]
    unrecorded = (table["state"] == "finished") & table["val_loss"].map(_is_blank)
    table.loc[unrecorded, ["state", "reason"]] = "crashed", NO_LOSS
    for column, kind in COLUMNS.items():
        text = kind.kind == "text"
        table[column] = table[column].where(table[column].notna(), None) if text else _numbers(table[column])
    table["attention_norm"] = table["attention_norm"].fillna(DEFAULT)
    table["lr_factor"] = table["lr_factor"].fillna(LR)
    for column in ("scale", "method", "seed"):
        if table[column].isna().any():
            raise InvalidInput(column, None, "is missing from a run", f"give every run its {column}")
    for lr in table["lr"]:
        if not (lr > 0 and math.isfinite(lr)):
            raise InvalidInput("lr", lr, "is not a learning rate", "give a positive number")
    without_gamma = [name for name, method in METHODS.items() if method.gamma is None]
    table.loc[table["method"].isin(without_gamma), "gamma"] = np.nan
    for column in ("lr", "gamma"):
        table[column] = merge_close_values(table[column])
    broken = ~np.isfinite(table["val_loss"]) | (table["val_loss"] > table["l_init"])
    table.loc[(table["state"] == "finished") & broken, "state"] = "diverged"
    return table.reset_index(drop=True)


def merge_close_values(values: pd.Series[float]) -> pd.Series[float]:
    """Learning rates or gammas, with one number for all that are the same."""
    return values.map(representatives(values.dropna().unique()))


def separator(path: Path) -> str:
    return "\t" if ".tsv" in path.name.lower() else ","


def is_csv(path: Path) -> bool:
    """Whether the name is that of a table: ``.csv`` or ``.tsv`` in any case, perhaps compressed."""
    return re.search(r"\.[ct]sv(\.(gz|bz2|xz|zip))?$", path.name.lower()) is not None


def csv_title(path: Path) -> str:
    """The name of a table without its endings."""
    return re.sub(r"(?i)\.[ct]sv(\.\w+)?$", "", path.name)


def _with_none(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with None for every missing value, and for words in place of a number."""
    numbers = [name for name in table if name in COLUMNS and COLUMNS[name].kind != "text"]
    table = table.astype(object).where(table.notna(), None)
    return table.assign(**{name: table[name].where(~table[name].map(_is_blank), None) for name in numbers})


def _is_blank(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, str) and value.strip().lower() in _BLANK)


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    whole = COLUMNS[str(column.name)].kind == "integer"
    if set(map(type, column)) <= ({int, NoneType} if whole else {float, int, NoneType}):  # a ledger's: nothing to check
        numbers = pd.Series([math.nan if value is None else value for value in column], dtype="float64")
    else:
        numbers = pd.Series([_number(str(column.name), value, whole) for value in column], dtype="float64")
    return numbers.astype("Int64") if whole else numbers


def _number(name: str, value: object, whole: bool) -> float:
    if _is_blank(value):
        return math.nan
    kind = "a whole number" if whole else "a number"
    try:
        number = float(str(value))
        if whole and not (math.isnan(number) or number.is_integer()):
            raise ValueError(kind)
    except ValueError as error:
        raise InvalidInput(name, value, f"is not {kind}", f"give {kind} in every row") from error
    return number
