"""From a source of runs to the report: the ledger of a home, an MLflow experiment, or a CSV."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from rich.console import Console

from dashboards import analysis
from dashboards.agreement import agreement, published_studies, terminal_tables
from dashboards.analysis import Analysis
from dashboards.comparison import compare
from dashboards.comparison import tables as comparison_tables
from dashboards.elsewhere import read_experiment
from dashboards.files import FORMATS, NOT_DRAWN, can_draw
from dashboards.forecast import forecast
from dashboards.published import NAME, RUNS_CSV
from dashboards.report import Known, with_measured, write_report
from dashboards.runs import from_records, read_csv, read_mlflow
from dashboards.sensitivity import Grid, curves, studies
from dashboards.steps import MAX_CELLS, Columns, rows_per_cell, thin
from dashboards.tables import listed, sensitivity_table, terminal_table
from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from search_spaces.study_file import shipped
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.home.location import open_home
from service.home.studies import read_ledger, with_ledger
from service.mlflow.address import check_store, tracking_uri, ui_address
from service.mlflow.store import EXPERIMENT, runs_file
from service.report.forecast import STATES, forecast_features, table_of
from trainers.rows import LazyRows
from trainers.storage.bucket import is_bucket

MLFLOW_PREFIX = "mlflow:"
NAMED_VERSIONS = ("oec-sensitivity", "torch", "ray", "optuna", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table of runs and what is known of where it came from."""

    title: str
    runs: pd.DataFrame
    grid: Grid
    provenance: dict[str, str]
    notes: tuple[str, ...] = ()
    """What a reader should know before relying on it."""
    folder: Path
    """Where its report goes unless told otherwise."""
    known: Known = field(default_factory=Known)


def load(source: str, home: Home, columns: Mapping[str, str] | None = None) -> Source:
    """A study of the home by name, of another home as ``FOLDER:STUDY``, ``mlflow:STUDY``, a CSV by path, or the runs
    that ship with the package as ``published``, unless a study of the home has that name.

    With ``columns``, see ``dashboards.elsewhere``, a CSV that something else wrote, or ``mlflow:EXPERIMENT``.

    Raises:
        InvalidInput: there is no such source, it is damaged, or it has columns of its own.
    """
    folder, colon, name = source.rpartition(":")
    path = Path(source)
    if source.startswith(MLFLOW_PREFIX):
        return _from_mlflow(source.removeprefix(MLFLOW_PREFIX), tracking_uri(home), columns)
    if path.suffix == ".csv" and not home.ledger(source).is_file():
        return _from_csv(path, columns)
    if columns:
        raise InvalidInput(
            "--column", source, "is a study, whose columns are known", "give a .csv or mlflow:EXPERIMENT"
        )
    if colon and not home.ledger(source).is_file():
        other = open_home(folder) if is_bucket(folder) else Home(Path(folder))
        if not other.ledger(name).is_file():
            known = ", ".join(with_ledger(other)) or "none"
            raise InvalidInput("SOURCE", source, "is no study of another home", f"studies in {folder}: {known}")
        return _from_home(name, other)
    if home.ledger(source).is_file():
        return _from_home(source, home)
    if source == NAME:
        return _from_csv(RUNS_CSV, None)
    known = ", ".join(with_ledger(home)) or "none yet"
    remedy = f"studies here: {known}; the published runs: {NAME}"
    raise InvalidInput("SOURCE", source, "is neither a study of this home nor a .csv file", remedy)


@contextmanager
def uncollected() -> Iterator[None]:
    """Of what 10,000 cells become nothing is garbage before the report is written, and Python's collector would walk
    through all of it again and again: a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def _from_home(name: str, home: Home) -> Source:
    study = Study.load(str(home.study(name) / "study.yaml"))
    ledger = read_ledger(home, name)
    known, notes = _known(home, study, ledger.entries)
    runs = from_records(ledger.records())
    return Source(
        title=name,
        runs=runs,
        grid=study.lrs,
        provenance=provenance(study) | trained_with(runs),
        notes=(*([study.description] if study.description else []), *notes),
        folder=home.study(name) / "report",
        known=known,
    )


def _known(home: Home, study: Study, entries: Mapping[str, Entry]) -> tuple[Known, list[str]]:
    """What the home has of a study beside its ledger, and what a reader should know of that."""
    # Of many cells those of the first seed are kept for the page, then those of the second.
    ended = [(cell_id, entry) for cell_id, entry in entries.items() if entry.state in STATES]
    ended.sort(key=lambda one: one[1].cell.seed)
    kept = ended[:MAX_CELLS]
    copies.download_metrics(home, [(cell_id, entry.reused_from or study.name) for cell_id, entry in kept])
    steps: dict[str, Columns] = {}
    beginnings, damaged = [], []
    for cell_id, entry in kept:
        try:
            rows = LazyRows(home.metrics(cell_id, entry.reused_from or study.name))
            if rows:
                steps[cell_id] = thin(rows, rows_per_cell(len(kept)))
                beginnings.append(forecast_features(entry, rows))
        except InvalidInput:
            damaged.append(cell_id)
            steps.pop(cell_id, None)
    known = Known(
        steps=steps,
        forecast=forecast(table_of(beginnings)) if beginnings else None,
        cores=study.resources.workers * study.resources.cpus_per_worker,
        links=_links(home, study.name),
        analysis=_analysis(home, study.name),
    )
    return known, [f"the metrics of these cells can not be read: {', '.join(damaged)}"] if damaged else []


def _analysis(home: Home, study: str) -> Analysis | None:
    """What `oec analyze` found of the weights that the study kept."""
    copies.download_folder(home, f"studies/{study}/{analysis.FOLDER}")
    return Analysis.read(home.study(study) / analysis.FOLDER)


def _links(home: Home, study: str) -> dict[str, str]:
    """The address of each cell's run, where MLflow knows them."""
    path = runs_file(home, study)
    if not path.is_file():
        return {}
    known = json.loads(path.read_text())
    base = f"{ui_address(tracking_uri(home))}/#/experiments/{quote(known['experiment'])}/runs"
    return {cell: f"{base}/{quote(run)}" for cell, run in known["runs"].items()}


def _from_mlflow(name: str, uri: str, columns: Mapping[str, str] | None) -> Source:
    check_store(uri)
    if columns:
        runs, kind = read_experiment(uri, name, columns), "MLflow experiment"
    else:
        runs, kind = read_mlflow(uri, EXPERIMENT, name), "MLflow study"
    return Source(
        title=name,
        runs=runs,
        grid=None,
        provenance={"command": f"oec report {MLFLOW_PREFIX}{name}", kind: name, **_reported()},
        folder=Path(name),
    )


def _from_csv(path: Path, columns: Mapping[str, str] | None) -> Source:
    runs = read_csv(path, columns)
    command = f"oec report {NAME if path == RUNS_CSV else path.name}"
    return Source(
        title=path.stem,
        runs=runs,
        grid=None,
        provenance={"command": command, "table": path.name, **_reported()},
        folder=Path(path.stem),
        known=Known(published=not published_studies(runs)),
    )


def load_all(names: Sequence[str], home: Home, columns: Mapping[str, str]) -> Source:
    """One source, or several as one whose studies are told apart by the sources' titles.

    ``columns`` is for those that are no study of a home.

    Raises:
        InvalidInput: see ``load``; one source is given twice.
    """
    if len(names) == 1:
        return load(names[0], home, columns)
    foreign = [name.startswith(MLFLOW_PREFIX) or name.endswith(".csv") for name in names]
    if columns and not any(foreign):
        raise InvalidInput("--column", ", ".join(names), "are studies, whose columns are known", "leave it out")
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidInput("SOURCE", twice.pop(), "is given twice", "give each source once")
    sources = [
        load(name, home, columns if is_foreign else None) for name, is_foreign in zip(names, foreign, strict=True)
    ]
    titles = [source.title for source in sources]
    # Two homes may have studies of one name: the sources as they were given are what tells them apart.
    titles = [name if titles.count(title) > 1 else title for name, title in zip(names, titles, strict=True)]
    named = list(zip(titles, sources, strict=True))
    return Source(
        title=listed(titles),
        runs=pd.concat([_under(title, source.runs) for title, source in named], ignore_index=True),
        grid={title: grid for title, source in named if isinstance(grid := source.grid, Sequence)},
        provenance={f"{key}, {title}": text for title, source in named for key, text in source.provenance.items()},
        notes=tuple(f"{title}: {note}" for title, source in named for note in source.notes),
        folder=Path(re.sub(r"[^\w.-]+", "-", "-and-".join(titles))),
        known=_together([source.known for source in sources]),
    )


def _together(known: Sequence[Known]) -> Known:
    """Of several studies: what stands by cell. Forecasts, and cores where they differ, are left out."""
    cores = {one.cores for one in known}
    return Known(
        steps={cell: columns for one in known for cell, columns in one.steps.items()},
        links={cell: link for one in known for cell, link in one.links.items()},
        cores=cores.pop() if len(cores) == 1 else None,
        published=all(one.published for one in known),
    )


def _under(title: str, runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` as those of the study ``title``; where they are of several, these stand behind it."""
    of = studies(runs)
    return runs.assign(study=title if of.nunique() < 2 else title + " " + of)


def provenance(study: Study) -> dict[str, str]:
    """How a study was made, for its page."""
    return {
        "command": f"oec run {study.name}" if study.name in shipped() else "oec run on the study file below",
        "study": f"{study.name} ({study.hash})",
        **({"commit": commit} if (commit := _commit()) else {}),
        "seeds": ", ".join(str(seed) for seed in study.seeds),
        "logits": study.training.logits_dtype,
        **_reported(),
        "study file": study.to_yaml(),
    }


def trained_with(runs: pd.DataFrame) -> dict[str, str]:
    """The versions of PyTorch that the runs were trained with, where they are recorded; it may not be ours."""
    versions = sorted(set(runs["torch"].dropna()))
    return {"trained with": f"torch {listed(versions)}"} if versions else {}


def _reported() -> dict[str, str]:
    return {
        "reported with": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NAMED_VERSIONS),
        "reported on": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _commit() -> str:
    """The commit of a checkout that this package runs from, and whether files differ from it; nothing elsewhere."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return ""
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of somebody else
        return ""
    return head.stdout.strip() + (", with changes" if changed.stdout else "")


@uncollected()
def report(
    source: Source, folder: Path | None, console: Console, formats: Sequence[str] = (), only: Sequence[str] = ()
) -> Path:
    """Print the table and write page, figures and tables; returns the path of the page, or of the folder without one.

    ``formats`` and ``only`` are those of ``dashboards.report.write_report``.
    """
    found = curves(with_measured(source.runs, source.known), source.grid)
    known, notes = source.known, source.notes
    of_published = published_studies(source.runs)
    beside = agreement(curve for curve in found if curve.study in of_published)
    if beside is None or len(beside.curves) < len(found):
        title = f"Learning-rate sensitivity: {source.title}"
        console.print(terminal_table(sensitivity_table(found), title=title))
    if beside is not None:
        known, notes = replace(known, agreement=beside), (*notes, beside.sentence)
        for drawn in terminal_tables(beside):
            console.print(drawn)
    for note in notes:
        console.print(note)
    target = folder or source.folder
    try:
        page = write_report(
            source.runs,
            target,
            title=source.title,
            grid=source.grid,
            provenance=source.provenance,
            notes=notes,
            formats=formats or FORMATS,
            only=only,
            known=known,
            found=found,
        )
    except OSError as error:
        raise InvalidInput("--out", str(target), f"can not be written ({error.strerror})", "choose a folder") from error
    if not can_draw():
        console.print(NOT_DRAWN, soft_wrap=True, highlight=False)
    console.print(f"report: {page.resolve()}", soft_wrap=True, highlight=False)
    return page


def write_live_page(name: str, home: Home, refresh_s: int | None, folder: Path | None = None) -> Path:
    """Write the page of a study alone, which loads itself again after so many seconds; its path.

    It goes into the study's own report unless a ``folder`` is given.
    """
    source = load(name, home)
    return write_report(
        source.runs,
        folder or source.folder,
        title=source.title,
        grid=source.grid,
        provenance=source.provenance,
        notes=source.notes,
        formats=("html",),
        known=replace(source.known, refresh_s=refresh_s),
    )


def diff(before: Source, after: Source, console: Console) -> None:
    """Print which curves of both moved, by how much, and which are in one of them only.

    Raises:
        InvalidInput: a source holds several studies.
    """
    for source in (before, after):
        if studies(source.runs).nunique() > 1:
            raise InvalidInput("SOURCE", source.title, "holds several studies", "give a source of one")
    found = compare(*(curves(source.runs, source.grid) for source in (before, after)))
    names = (before.title, after.title) if before.title != after.title else ("before", "after")
    for renderable in comparison_tables(found, *names):
        console.print(renderable, soft_wrap=True)
