"""Sources of runs: the ledger of a home, MLflow, or a CSV, each as a table of runs with its context."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from dashboards import analysis
from dashboards.analysis import Analysis
from dashboards.forecast import forecast
from dashboards.published import NAME, RUNS_CSV
from dashboards.report import ReportContext
from dashboards.runs import csv_title, from_records, is_csv, merge_close_values, read_csv, read_experiment, read_mlflow
from dashboards.sensitivity import Grid, studies
from dashboards.steps import MAX_CELLS, Columns, rows_per_cell, thin
from dashboards.tables import join_words
from search_spaces.errors import InvalidInput, expand
from search_spaces.shipped import shipped
from search_spaces.study import Study, is_name
from service import __version__
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.home.location import open_home
from service.home.studies import read_ledger, with_ledger
from service.mlflow.address import check_store, tracking_uri, ui_address
from service.mlflow.store import EXPERIMENT, runs_file
from service.report.forecast import FORECAST_STATES, forecast_features, forecast_table
from trainers.rows import LazyRows
from trainers.storage.bucket import is_bucket

MLFLOW_PREFIX = "mlflow:"
NAMED_LIBRARIES = ("torch", "ray", "optuna", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table of runs with its origin and context."""

    title: str
    runs: pd.DataFrame
    grid: Grid = None
    provenance: dict[str, str]
    notes: tuple[str, ...] = ()
    """Caveats for the reader."""
    left_out: tuple[str, ...] = ()
    """Those of ``notes`` about rows that were left out."""
    folder: Path
    """The default folder for its report."""
    context: ReportContext = field(default_factory=ReportContext)


def load(
    source: str,
    home: Home,
    columns: Mapping[str, str] | None = None,
    absent: Callable[[str], None] | None = None,
) -> Source:
    """Load one source of runs.

    Args:
        source: the name of a study in this home, ``HOME:STUDY`` for another home, ``mlflow:STUDY``, the path of a CSV,
            or ``published`` for the runs that come with the package, unless a study of the home has that name.
        columns: for a CSV or ``mlflow:EXPERIMENT`` of another project, see ``dashboards.runs.parse_columns``.
        absent: see ``dashboards.runs.renamed``.

    Raises:
        InvalidInput: the source does not exist or is damaged, or ``columns`` does not apply to it.
    """
    folder, colon, name = source.rpartition(":")
    path = Path(source)
    if source.startswith(MLFLOW_PREFIX):
        return _from_mlflow(source.removeprefix(MLFLOW_PREFIX), home, columns, absent)
    in_home = is_name(source) and home.ledger(source).is_file()
    if is_csv(path) and not in_home:
        return _from_csv(path, home, columns, absent)
    if columns:
        remedy = "give a .csv or mlflow:EXPERIMENT, or remove it"
        raise InvalidInput("--column", source, "does not apply to a study of a home", remedy)
    if in_home:
        return _from_home(source, home)
    if colon:
        other = open_home(folder) if is_bucket(folder) else Home(expand(folder, "SOURCE"))
        if not (is_name(name) and other.ledger(name).is_file()):
            known = ", ".join(with_ledger(other)) or "none"
            raise InvalidInput("SOURCE", source, "is not a study of that home", f"studies in {folder}: {known}")
        return _from_home(name, other)
    if source == NAME:
        return _from_csv(RUNS_CSV, home)
    known = ", ".join(with_ledger(home)) or "none yet"
    remedy = f"studies here: {known}; the published runs: {NAME}"
    raise InvalidInput("SOURCE", source, "is neither a study of this home nor a .csv or .tsv file", remedy)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Nothing is garbage here until the report is written. With 10,000 cells, repeated collections would take a tenth
    of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@gc_disabled()
def _from_home(name: str, home: Home) -> Source:
    study = Study.load(str(home.study(name) / "study.yaml"))
    ledger = read_ledger(home, name)
    context, notes = _context(home, study, ledger.entries)
    runs = from_records(ledger.records())
    return Source(
        title=name,
        runs=runs,
        grid=study.grid,
        provenance=provenance(study, runs),
        notes=tuple(notes),
        folder=home.study(name) / "report",
        context=context,
    )


def _context(home: Home, study: Study, entries: Mapping[str, Entry]) -> tuple[ReportContext, list[str]]:
    """What the home has of a study in addition to its ledger, and notes for the reader."""
    # If there are too many cells for the page, it shows those of the first seeds.
    started = [(cell_id, entry) for cell_id, entry in entries.items() if entry.state in FORECAST_STATES]
    started.sort(key=lambda one: one[1].cell.seed)
    shown = started[:MAX_CELLS]
    copies.download_metrics(home, [(cell_id, entry.reused_from or study.name) for cell_id, entry in shown])
    steps: dict[str, Columns] = {}
    features, damaged = [], []
    for cell_id, entry in shown:
        try:
            rows = LazyRows(home.metrics(cell_id, entry.reused_from or study.name))
            if rows:
                steps[cell_id] = thin(rows, rows_per_cell(len(shown)))
                features.append(forecast_features(entry, rows))
        except InvalidInput:
            damaged.append(cell_id)
            steps.pop(cell_id, None)
    copies.download_folder(home, f"studies/{study.name}/{analysis.FOLDER}")
    context = ReportContext(
        steps=steps,
        forecast=forecast(forecast_table(features)) if features else None,
        cores=study.resources.workers * study.resources.cpus_per_worker,
        links=_links(home, study.name),
        analysis=Analysis.read(home.study(study.name) / analysis.FOLDER),
    )
    return context, [f"the metrics of these cells cannot be read: {', '.join(damaged)}"] if damaged else []


def _links(home: Home, study: str) -> dict[str, str]:
    """The address of each cell's run in MLflow, if it has been delivered."""
    path = runs_file(home, study)
    if not path.is_file():
        return {}
    delivered = json.loads(path.read_text(encoding="utf-8"))
    base = f"{ui_address(tracking_uri(home))}/#/experiments/{quote(delivered['experiment'])}/runs"
    return {cell: f"{base}/{quote(run)}" for cell, run in delivered["runs"].items()}


def _from_mlflow(
    name: str, home: Home, columns: Mapping[str, str] | None, absent: Callable[[str], None] | None = None
) -> Source:
    uri = tracking_uri(home)
    check_store(uri)
    notes: list[str] = []
    if columns:
        runs, kind = read_experiment(uri, name, columns, notes.append, absent), "MLflow experiment"
    else:
        runs, kind = read_mlflow(uri, EXPERIMENT, name), "MLflow study"
    return Source(
        title=name,
        runs=runs,
        provenance={"command": f"oec report {MLFLOW_PREFIX}{name}", kind: name, **_environment()},
        notes=tuple(notes),
        left_out=tuple(notes),
        folder=home.report(name),
    )


def _from_csv(
    path: Path,
    home: Home,
    columns: Mapping[str, str] | None = None,
    absent: Callable[[str], None] | None = None,
) -> Source:
    notes: list[str] = []
    runs = read_csv(path, columns, notes.append, absent)
    command = f"oec report {NAME if path == RUNS_CSV else path.name}"
    return Source(
        title=csv_title(path),
        runs=runs,
        provenance={"command": command, "table": path.name, **_environment()},
        notes=tuple(notes),
        left_out=tuple(notes),
        folder=home.report(csv_title(path)),
    )


def load_each(names: Sequence[str], home: Home, columns: Mapping[str, str]) -> list[Source]:
    """Load several sources.

    Args:
        columns: see ``load``; applies to the sources that are not studies of a home. One that has our column need not
            have theirs, but at least one source must have it.

    Raises:
        InvalidInput: see ``load``; or no source has one of the columns.
    """
    foreign = [name.startswith(MLFLOW_PREFIX) or is_csv(Path(name)) for name in names]
    if columns and not any(foreign):
        raise InvalidInput("--column", ", ".join(names), "does not apply to studies of a home", "remove it")
    absent: list[str] = []
    sources = [
        load(name, home, columns if other else None, absent.append) for name, other in zip(names, foreign, strict=True)
    ]
    if unused := [ours for ours in columns if absent.count(ours) == sum(foreign)]:
        pair = f"{unused[0]}={columns[unused[0]]}"
        raise InvalidInput("--column", pair, "applies to none of the sources", "correct or remove it")
    return sources


def load_all(names: Sequence[str], home: Home, columns: Mapping[str, str]) -> Source:
    """Load one source, or several as one. In the combined table the titles of the sources name the studies.

    Args:
        columns: see ``load_each``.

    Raises:
        InvalidInput: see ``load_each``; a source is given twice, or two have different ``lr_factor``.
    """
    if len(names) == 1:
        return load(names[0], home, columns)
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InvalidInput("SOURCE", duplicates.pop(), "is given twice", "give each source once")
    sources = load_each(names, home, columns)
    axes = {axis: source for source in sources for axis in source.runs["lr_factor"].unique()}
    if len(axes) > 1:
        problem = f"are over different axes, {join_words(list(axes))}, so they have no curves to compare"
        raise InvalidInput("SOURCE", join_words(list(names)), problem, "report on them one by one")
    titles = [source.title for source in sources]
    # Studies of two homes may have the same name. Their sources as given are distinct.
    titles = [name if titles.count(title) > 1 else title for name, title in zip(names, titles, strict=True)]
    named = list(zip(titles, sources, strict=True))
    runs = pd.concat([_with_title(title, source.runs) for title, source in named], ignore_index=True)
    return Source(
        title=join_words(titles),
        runs=runs.assign(lr=merge_close_values(runs["lr"]), gamma=merge_close_values(runs["gamma"])),
        grid={title: grid for title, source in named if isinstance(grid := source.grid, Sequence)},
        provenance={f"{key}, {title}": text for title, source in named for key, text in source.provenance.items()},
        notes=tuple(f"{title}: {note}" for title, source in named for note in source.notes),
        folder=home.report("-and-".join(titles)),
        context=_merge_contexts([source.context for source in sources]),
    )


def _merge_contexts(contexts: Sequence[ReportContext]) -> ReportContext:
    """The context of several studies, without forecasts and analyses, and without cores if they differ."""
    cores = {context.cores for context in contexts}
    return ReportContext(
        steps={cell: columns for context in contexts for cell, columns in context.steps.items()},
        links={cell: link for context in contexts for cell, link in context.links.items()},
        cores=cores.pop() if len(cores) == 1 else None,
    )


def _with_title(title: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with ``title`` as their study; runs of several studies keep the study's name after the title."""
    names = studies(runs)
    return runs.assign(study=title if names.nunique() < 2 else title + " " + names)


def provenance(study: Study, runs: pd.DataFrame) -> dict[str, str]:
    """How the runs of a study were made, for its page. The PyTorch that trained them may differ from the installed
    one."""
    versions = sorted(set(runs["torch"].dropna()))
    return {
        "command": f"oec run {study.name}" if study.name in shipped() else "oec run on the study file below",
        "study": f"{study.name} ({study.hash})",
        **({"commit": commit} if (commit := _commit()) else {}),
        "seeds": ", ".join(str(seed) for seed in study.seeds),
        **({} if study.trainer else {"logits": study.training.logits_dtype}),
        **_environment(),
        "study file": study.to_yaml(),
        **({"trained with": f"torch {join_words(versions)}"} if versions else {}),
    }


def _environment() -> dict[str, str]:
    libraries = (f"{name} {importlib.metadata.version(name)}" for name in NAMED_LIBRARIES)
    return {
        "reported with": ", ".join([f"oec-sensitivity {__version__}", *libraries]),
        "reported on": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _commit() -> str:
    """The commit of the checkout that this package runs from, and whether files were changed; empty if installed."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return ""
    git = ["git", "-C", str(here), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, with changes"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or another user owns the checkout
        return ""
