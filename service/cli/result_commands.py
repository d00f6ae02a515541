"""Commands on the results of a home: reports, weights, MLflow. Handlers parse and call, nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from search_spaces.errors import InvalidInput
from service.cli.options import PATH, STUDY_NAME, home_option, plain_console, print_all, repeatable
from service.mlflow.address import UI_PORT, check_store, redact, tracking_uri


@click.command(short_help="Write page, tables and figures of studies or other runs.")
@click.argument("sources", type=STUDY_NAME, nargs=-1, required=True, metavar="SOURCE...")
@home_option
@click.option("--out", type=PATH, help="Folder for the page, tables and figures.")
@repeatable(
    "--format",
    "formats",
    help="html, csv, parquet, md or tex; png, svg or pdf for figures; repeatable; default: no figures.",
)
@repeatable("--only", metavar="GLOB", help="Names of figures and tables; repeatable; default: the page and all tables.")
@repeatable("--column", "columns", metavar="OURS=THEIRS", help="The name of a column in SOURCE; repeatable.")
def report(sources: tuple[str, ...], home: str, out: Path | None, columns: tuple[str, ...], **parts: Any) -> None:
    """Write one report on every SOURCE: a page and tables, and with --format or --only also figures.

    SOURCE is a study of the home, HOME:STUDY for another home, mlflow:STUDY, a CSV of runs (.csv, .tsv, .csv.gz), or
    "published" for the runs of the paper. With --column, SOURCE is a CSV or mlflow:EXPERIMENT of another project.
    OURS=THEIRS maps one of its columns, OURS==VALUE sets a column to the same value for all runs, and
    factors.NAME=THEIRS makes a factor of a column.
    """
    from dashboards.processes import beside

    # Imports for a second, while this process imports the rest. scikit-learn would import pandas, for half a second.
    with beside("dashboards.evaluators", without=("pandas",)) as submit:
        from dashboards.runs import parse_columns
        from service.home.location import open_home
        from service.report.report import report as write_report
        from service.report.sources import load_all

        source = load_all(sources, open_home(home), parse_columns(columns))
        write_report(source, out, plain_console(), submit=submit, **parts)


@click.command(short_help="Compare the curves of two studies.")
@click.argument("before", type=STUDY_NAME, metavar="A")
@click.argument("after", type=STUDY_NAME, metavar="B")
@home_option
@repeatable("--column", "columns", metavar="OURS=THEIRS", help="The name of a column in A or B; repeatable.")
def diff(before: str, after: str, home: str, columns: tuple[str, ...]) -> None:
    """Show which curves moved from A to B, by how much, and whether by more than noise.

    A and B are sources as in `oec report`.
    """
    from dashboards.runs import parse_columns
    from service.home.location import open_home
    from service.report.report import diff as compare
    from service.report.sources import load_each

    print_all(compare(*load_each((before, after), open_home(home), parse_columns(columns))))


@click.command(short_help="Forecast early whether a run will diverge.")
@click.argument("studies", type=STUDY_NAME, nargs=-1, metavar="[STUDY]...")
@home_option
@click.option("--cells", is_flag=True, help="Also list every run.")
def forecast(studies: tuple[str, ...], home: str, cells: bool) -> None:
    """Forecast from the first fifth of a run whether it will diverge, and show how accurate this is on ended runs."""
    from dashboards.forecast import forecast as fit_forecast
    from service.home.location import open_home
    from service.report.forecast import load_features, tables

    print_all(tables(fit_forecast(load_features(open_home(home), studies)), cells))


@click.command(short_help="Analyze output embeddings in kept weights.")
@click.argument("study", type=STUDY_NAME, required=False)
@home_option
@repeatable(
    "--cell", "cells", metavar="ID", help="Analyze only this cell; repeatable; default: all cells with kept weights."
)
@click.option("--shards", metavar="GLOB", help="Also evaluate the weights on these token files.")
@click.option("--data", metavar="NAME", help="Name of those tokens in tables; default: the glob.")
@click.option(
    "--sequences",
    type=click.IntRange(min=1),
    metavar="N",
    help="Evaluate on the first N sequences; default: as many as the run's validation.",
)
@repeatable("--weights", "files", type=PATH, metavar="FILE", help="A file of weights, in place of STUDY; repeatable.")
@click.option(
    "--embedding", metavar="NAME", help="Name of the output embedding in FILE; default: found by common names."
)
@click.option("--out", type=PATH, help="Folder for the tables and figures of FILE.")
def analyze(
    study: str | None, home: str, files: tuple[Path, ...], embedding: str | None, out: Path | None, **options: Any
) -> None:
    """Analyze the output embeddings in the weights that STUDY kept (B-ratio, isotropy, norms, spectrum), and with
    --shards their loss on other tokens. The study's report shows tables and figures of them.

    With --weights, analyze any .safetensors or .npy file with an output embedding.
    """
    from service.home.location import open_home
    from service.report import analysis

    of_study = {"--cell" if name == "cells" else f"--{name}": value for name, value in options.items()}
    of_files = {"--embedding": embedding, "--out": out}
    if bool(study) == bool(files):
        problem = "cannot be combined with --weights" if study else "is missing"
        raise InvalidInput("STUDY", study, problem, "give a study of the home, or --weights FILE")
    for option, value in (of_files if study else of_study).items():
        if value:
            remedy = "remove it" if study else "give a study of the home in place of --weights"
            raise InvalidInput(option, str(value), f"requires {'--weights' if study else 'a study'}", remedy)
    if (options["data"] or options["sequences"]) and not options["shards"]:
        raise InvalidInput("--shards", None, "is missing", "give token files, or remove --data and --sequences")
    if study:
        analysis.analyze(open_home(home), study, plain_console(), **options)
    else:
        analysis.analyze_files(files, embedding, out, plain_console())


@click.command(short_help="Show or remove files that are no longer needed.")
@click.argument("study", type=STUDY_NAME, required=False)
@home_option
@click.option("--weights", is_flag=True, help="Weights kept by keep_weights.")
@click.option(
    "--checkpoints", is_flag=True, help="Checkpoints of ended cells, and of cells that are no longer in the study."
)
@click.option("--yes", is_flag=True, help="Remove the files.")
def clean(study: str | None, home: str, yes: bool, **kinds: bool) -> None:
    """Show files that STUDY, or any study of the home, no longer needs, and their size. With --yes, remove them.

    Results, metrics and reports are kept.
    """
    from service.cli.clean import KINDS
    from service.cli.clean import clean as clean_home
    from service.home.location import open_home

    clean_home(open_home(home), study, [kind for kind in KINDS if kinds[kind]], yes, plain_console())


@click.command(short_help="Deliver to MLflow what it lacks of a study.")
@click.argument("study", type=STUDY_NAME)
@home_option
def sync(study: str, home: str) -> None:
    """Deliver to MLflow whatever it lacks of STUDY."""
    from search_spaces.study import Study
    from service.home.location import open_home
    from service.home.studies import read_ledger, require_study
    from service.mlflow.sink import sync as deliver
    from service.mlflow.store import view_address

    place = open_home(home)
    require_study(place, study)
    uri = tracking_uri(place)
    check_store(uri)
    folder = place.study(study)
    spec = Study.load(str(folder / "study.yaml"))
    cells = deliver(uri, place, spec, read_ledger(place, study), folder / "report", ask_store=True)
    click.echo(f"{cells} cells are in MLflow: {view_address(uri, place, spec)}")


@click.command(short_help="Open the MLflow UI.")
@home_option
@click.option("--port", type=int, default=UI_PORT, help="Port to listen on.")
def ui(home: str, port: int) -> None:
    """Start the MLflow UI for the runs of the home, on 127.0.0.1."""
    from service.home.location import open_home
    from service.mlflow.store import create_database

    uri = tracking_uri(open_home(home))
    if uri.startswith("http"):
        problem = "is a server, which has its own UI"
        raise InvalidInput("MLFLOW_TRACKING_URI", redact(uri), problem, "open it in a browser")
    create_database(uri)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # saves memory; we submit no jobs to it
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)
