"""From a source of runs to the report: the ledger of a home, an MLflow experiment, or a CSV."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from dashboards.published import RUNS_CSV, overheads_beside_published
from dashboards.report import write_report
from dashboards.runs import from_records, read_csv, read_mlflow
from dashboards.sensitivity import curves
from dashboards.tables import sensitivity_table, terminal_table
from search_spaces.errors import InvalidInput
from search_spaces.study import Study, shipped
from service.home import Home
from service.ledger import Ledger
from service.mlflow_sink import EXPERIMENT, check

MLFLOW_PREFIX = "mlflow:"
NAMED_VERSIONS = ("oec-sensitivity", "torch", "ray", "optuna", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table of runs and what is known of where it came from."""

    title: str
    runs: pd.DataFrame
    grid: Sequence[float] | None
    provenance: dict[str, str]
    notes: tuple[str, ...] = ()
    """What a reader should know before relying on it."""
    folder: Path
    """Where its report goes unless told otherwise."""


def load(source: str, home: Home) -> Source:
    """A study of the home by name, ``mlflow:<study>``, or a CSV by path.

    Raises:
        InvalidInput: there is no such source, or it is damaged.
    """
    if source.startswith(MLFLOW_PREFIX):
        name = source.removeprefix(MLFLOW_PREFIX)
        check(home.tracking_uri)
        runs = read_mlflow(home.tracking_uri, EXPERIMENT, name)
        return Source(title=name, runs=runs, grid=None, provenance={"MLflow study": name}, folder=Path(name))
    if home.ledger(source).is_file():
        study = Study.load(str(home.study(source) / "study.yaml"))
        runs = from_records(Ledger(home.ledger(source), source).records())
        return Source(
            title=source,
            runs=runs,
            grid=study.lrs,
            provenance=provenance(study),
            notes=(study.description,) if study.description else (),
            folder=home.study(source) / "report",
        )
    path = Path(source)
    if path.suffix == ".csv":
        runs = read_csv(path)
        published = path.read_bytes() == RUNS_CSV.read_bytes()
        return Source(
            title=path.stem,
            runs=runs,
            grid=None,
            provenance={"table": path.name},
            notes=(overheads_beside_published(curves(runs)),) if published else (),
            folder=Path(path.stem),
        )
    known = ", ".join(home.known()) or "none yet"
    raise InvalidInput("SOURCE", source, "is neither a study of this home nor a .csv file", f"studies here: {known}")


def provenance(study: Study) -> dict[str, str]:
    """How a study was made, for its page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NAMED_VERSIONS)
    return {
        "command": f"oec run {study.name}" if study.name in shipped() else "oec run on the study file below",
        "study": f"{study.name} ({study.hash})",
        "seeds": ", ".join(str(seed) for seed in study.seeds),
        "logits": study.training.logits_dtype,
        "reported with": versions,
        "reported on": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "study file": study.to_yaml(),
    }


def report(source: Source, folder: Path | None, console: Console) -> Path:
    """Print the table and write the page, figures and tables; returns the page's path."""
    table = sensitivity_table(curves(source.runs, source.grid))
    console.print(terminal_table(table, title=f"Learning-rate sensitivity: {source.title}"))
    for note in source.notes:
        console.print(note)
    target = folder or source.folder
    try:
        page = write_report(
            source.runs, target, title=source.title, grid=source.grid, provenance=source.provenance, notes=source.notes
        )
    except OSError as error:
        raise InvalidInput("--out", str(target), f"can not be written ({error.strerror})", "choose a folder") from error
    console.print(f"report: {page.resolve()}", soft_wrap=True, highlight=False)
    return page
