"""Commands that train studies and show where they stand. Handlers parse and call, nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from search_spaces.errors import InvalidInput
from search_spaces.shipped import SHIPPED, shipped
from service import exit_codes
from service.cli.options import STUDY_NAME, exit_now, home_option, plain_console, print_all

if TYPE_CHECKING:
    from rich.console import Console

    from search_spaces.study import Study
    from service.home.layout import Home


@click.command(short_help="Train what is missing of a study, and report.")
@click.argument("study")
@home_option
@click.option("--address", envvar="OEC_RAY_ADDRESS", help="Ray cluster to join; default: a local Ray cluster.")
@click.option("--retry-crashed", is_flag=True, help="Train crashed cells again, too.")
def run(study: str, home: str, address: str | None, retry_crashed: bool) -> None:
    """Train every cell of STUDY that has no result in the home, and write the report.

    Re-run the same command to resume.
    """
    from search_spaces.study import Study
    from service.home.location import open_home

    console = plain_console()
    spec, place = Study.load(study), open_home(home)
    try:
        crashed = _run(spec, place, address, retry_crashed, console)
    except KeyboardInterrupt:
        console.print("interrupted; re-run the same command to resume")
        exit_now(exit_codes.INTERRUPTED)
    if crashed:
        retry = f"run `oec run {study} --retry-crashed`" if study != "-" else "add --retry-crashed"
        console.print(
            f"{crashed} cells crashed; `oec status {spec.name}` shows why. To try them again, {retry}.", soft_wrap=True
        )
        sys.exit(exit_codes.CRASHED)


def _run(spec: Study, place: Home, address: str | None, retry_crashed: bool, console: Console) -> int:
    """Train the study, write its report and deliver it to MLflow; returns the number of crashed cells."""
    from service.sweep.run import run_study

    crashed = run_study(spec, place, address=address, retry_crashed=retry_crashed, console=console)
    from service.home import copies
    from service.home.studies import read_ledger
    from service.mlflow.address import tracking_uri
    from service.mlflow.sink import sync
    from service.report.report import report
    from service.report.sources import load

    page = report(load(spec.name, place), None, console)
    copies.upload(place, page.parent)
    try:
        sync(tracking_uri(place), place, spec, read_ledger(place, spec.name), page.parent)
    except InvalidInput as error:  # the results are safe in the home
        console.print(f"not in MLflow yet: {error}", soft_wrap=True)
    return crashed


@click.command(
    short_help="Show what a study will train, and how long it takes.",
    epilog=f"Shipped studies: {', '.join(shipped())}. Their files are in {SHIPPED}.",
)
@click.argument("study")
@home_option
@click.option(
    "--cluster",
    metavar="CLUSTER",
    help="Also estimate for other machines: CPU=64,GPU=8 is one node, 4xCPU=16,GPU=2 is four nodes, HOST:PORT is a Ray "
    "cluster.",
)
def plan(study: str, home: str, cluster: str | None) -> None:
    """Show what STUDY will train: curves, cells, tokens, and the estimated time. Trains nothing."""
    from search_spaces.plan import Plan
    from search_spaces.study import Study
    from service.cli.plan_view import cluster_line, plan_tables
    from service.cluster.connection import cluster_nodes
    from service.home.data import prepare_source
    from service.home.location import open_home
    from service.home.studies import all_entries, measured_speeds

    spec, place = Study.load(study), open_home(home)
    nodes = cluster_nodes(cluster) if cluster else None
    planned = Plan(spec, prepare_source(spec, place, plain_console().print)[0])
    entries = list(all_entries(place))
    speeds = measured_speeds(entries)
    print_all(plan_tables(planned, entries, speeds))
    if nodes:
        print_all([cluster_line(planned, speeds, nodes, can_grow="=" not in str(cluster))])


@click.command(short_help="Show the cells of studies by state.")
@click.argument("study", type=STUDY_NAME, required=False)
@home_option
@click.option("--cells", is_flag=True, help="Also list every cell.")
def status(study: str | None, home: str, cells: bool) -> None:
    """Show cells by state, for STUDY or for every study of the home, and why cells crashed."""
    from service.cli.watch import status_tables
    from service.home.location import open_home

    print_all(status_tables(open_home(home), study, cells))


@click.command(short_help="Follow a study while it runs.")
@click.argument("study", type=STUDY_NAME)
@home_option
@click.option("--once", is_flag=True, help="Show the current state and exit.")
@click.option("--page", is_flag=True, help="Also write the report's page, which reloads itself.")
def watch(study: str, home: str, once: bool, page: bool) -> None:
    """Watch STUDY while it runs: its curves as they grow, running cells, and the time left.

    This works on any machine that can read the home.
    """
    from service.cli.watch import watch as watch_study
    from service.home.location import open_home

    try:
        watch_study(open_home(home), study, plain_console(), once=once, page=page)
    except KeyboardInterrupt:
        sys.exit(0)  # Ctrl-C is the normal way to leave


@click.command(short_help="Train one cell in this process, without Ray.")
@click.argument("study")
@home_option
@click.option("--scale", help="Model scale; default: the first one of the study.")
@click.option("--attention-norm", help="Attention norm; default: the first one of the study.")
@click.option("--method", required=True, help="Output-head method.")
@click.option("--gamma", type=float, help="The method's gamma; default: that of `oec methods`.")
@click.option("--lr", type=float, required=True, help="Peak learning rate.")
@click.option("--seed", type=int, default=1, help="Random seed.")
def train(study: str, home: str, **choice: Any) -> None:
    """Train one cell of STUDY in this process, without Ray, with the same training loop."""
    from search_spaces.study import Study
    from service.cli.train_one import train_one
    from service.home.location import open_folder

    train_one(Study.load(study), choice, open_folder(home), plain_console())
