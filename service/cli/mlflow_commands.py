"""Commands for the MLflow store of a home. Handlers parse and call, nothing else."""

from __future__ import annotations

import os
import sys

import click

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.cli.options import bad_input_exits, home_option, study_argument
from service.home.location import open_home
from service.home.studies import read_ledger, require_study
from service.mlflow.address import UI_PORT, check_store, redact, tracking_uri


@click.command()
@study_argument
@home_option
@bad_input_exits
def sync(study: str, home: str) -> None:
    """Deliver to MLflow whatever it lacks of STUDY."""
    from service.mlflow.sink import sync as deliver

    place = open_home(home)
    require_study(place, study)
    uri = tracking_uri(place)
    check_store(uri)
    folder = place.study(study)
    spec = Study.load(str(folder / "study.yaml"))
    cells = deliver(uri, place, spec, read_ledger(place, study), folder / "report", ask_store=True)
    click.echo(f"{cells} cells are in MLflow")


@click.command()
@home_option
@click.option("--port", type=int, default=UI_PORT, show_default=True, help="Port to listen on.")
@bad_input_exits
def ui(home: str, port: int) -> None:
    """Start the MLflow UI for the runs of the home, on 127.0.0.1."""
    from service.mlflow.database import create_database

    uri = tracking_uri(open_home(home))
    if uri.startswith("http"):
        raise InvalidInput(
            "MLFLOW_TRACKING_URI", redact(uri), "is a server, which has its own UI", "open it in a browser"
        )
    create_database(uri)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # saves memory; we submit no jobs to it
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)
