"""The command line. Handlers parse and call, nothing else.

Exit codes: 0 done; 1 cells crashed, perhaps all of the first; 2 bad input; 75 interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS
from search_spaces.study import Study
from search_spaces.study_file import shipped
from service import exit_codes
from service.cli.job_commands import jobs, logs, stop, submit
from service.cli.options import (
    bad_input_exits,
    home_option,
    leave,
    plain,
    study_argument,
)
from service.cli.serve_commands import serve, token
from service.cli.weight_commands import analyze, clean
from service.home import copies
from service.home.layout import Home
from service.home.location import open_folder, open_home
from service.home.studies import read_ledger, require_study
from service.mlflow.address import UI_PORT, check_store, redact, tracking_uri


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="oec-sensitivity")
def main() -> None:
    """How sensitive is the final loss to the learning rate, per stabilization method?

    STUDY is the path of a study file, the name of a shipped study (oec plan -h lists them), or - for standard input.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before its import; a study is nobody else's business


@main.command()
@study_argument
@home_option
@click.option("--address", envvar="OEC_RAY_ADDRESS", help="Ray cluster to join; an embedded one by default.")
@click.option("--retry-crashed", is_flag=True, help="Also try the crashed cells again.")
@bad_input_exits
def run(study: str, home: str, address: str | None, retry_crashed: bool) -> None:
    """Train every cell of STUDY that the home does not know, and report."""
    console = plain()
    spec, place = Study.load(study), open_home(home)
    try:
        crashed = _run(spec, place, address, retry_crashed, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on with the missing cells")
        leave(exit_codes.INTERRUPTED)
    if crashed:
        again = f"`oec run {study} --retry-crashed` tries again" if study != "-" else "--retry-crashed tries again"
        console.print(f"{crashed} cells crashed: `oec status {spec.name}` says why, {again}", soft_wrap=True)
        sys.exit(exit_codes.CRASHED)


def _run(spec: Study, place: Home, address: str | None, retry_crashed: bool, console: Console) -> int:
    """Train, report and deliver; returns how many cells crashed."""
    from service.sweep.run import run_study

    crashed = run_study(spec, place, address=address, retry_crashed=retry_crashed, console=console)
    from service.mlflow.sink import sync
    from service.report.report import load, report

    page = report(load(spec.name, place), None, console)
    copies.upload(place, page.parent)
    try:
        sync(tracking_uri(place), place, spec, read_ledger(place, spec.name), page.parent)
    except InvalidInput as error:  # the results are in the home
        console.print(f"not in MLflow yet: {error}", soft_wrap=True)
    return crashed


@main.command(epilog=f"Shipped studies: {', '.join(shipped())}.")
@study_argument
@home_option
@click.option(
    "--cluster",
    metavar="CLUSTER",
    help="Also what it takes on a node CPU=64,GPU=8, on four 4xCPU=16,GPU=2, or on the cluster at HOST:PORT.",
)
@bad_input_exits
def plan(study: str, home: str, cluster: str | None) -> None:
    """What STUDY will train: curves, cells, tokens and the estimated time; trains nothing."""
    from search_spaces.plan import Plan
    from service.cli.plan_view import cluster_line, plan_tables
    from service.cluster.connection import nodes_of
    from service.home.data import prepare_tokens

    console = plain()
    spec, place = Study.load(study), open_home(home)
    nodes = nodes_of(cluster) if cluster else None
    planned = Plan(spec, prepare_tokens(spec, place, console.print).digest)
    for renderable in plan_tables(planned, place):
        console.print(renderable, soft_wrap=True)
    if nodes:
        console.print(cluster_line(planned, place, nodes, can_grow="=" not in str(cluster)), soft_wrap=True)


@main.command()
@click.argument("study", required=False)
@home_option
@click.option("--cells", is_flag=True, help="A line for every cell.")
@bad_input_exits
def status(study: str | None, home: str, cells: bool) -> None:
    """Cells by state, of STUDY or of every study of the home, and why cells crashed."""
    from service.cli.status import status_tables

    console = plain()
    for renderable in status_tables(open_home(home), study, cells):
        console.print(renderable, soft_wrap=True)


@main.command()
@click.argument("study")
@home_option
@click.option("--once", is_flag=True, help="Print where it stands, and end.")
@click.option("--page", is_flag=True, help="Also write the report's page, which loads itself again.")
@bad_input_exits
def watch(study: str, home: str, once: bool, page: bool) -> None:
    """STUDY while it runs: curves as they grow, what trains, time left. From any machine that sees the home."""
    from service.cli.watch import watch as watch_study

    try:
        watch_study(open_home(home), study, plain(), once=once, page=page)
    except KeyboardInterrupt:
        sys.exit(0)  # that is how one leaves


for command in (submit, jobs, logs, stop, serve, token, analyze, clean):
    main.add_command(command)


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@home_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for page, figures and tables.")
@click.option(
    "--format", "formats", multiple=True, help="html, png, svg, pdf, csv, parquet, md or tex; all by default."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Names of figures and tables; all by default.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="What a column is called in SOURCE.")
@bad_input_exits
def report(
    sources: tuple[str, ...],
    home: str,
    out: Path | None,
    formats: tuple[str, ...],
    only: tuple[str, ...],
    columns: tuple[str, ...],
) -> None:
    """Table, page and figures of each SOURCE, in one report.

    SOURCE is a study of the home, HOME:STUDY of another one, mlflow:STUDY, a CSV of runs, or "published" for the runs
    of the paper. With --column, which may be repeated, it is a CSV or mlflow:EXPERIMENT that something else wrote;
    OURS==VALUE is the same for all its runs.
    """
    from dashboards.elsewhere import mapping
    from service.report.report import load_all
    from service.report.report import report as write

    write(load_all(sources, open_home(home), mapping(columns)), out, plain(), formats, only)


@main.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@home_option
@bad_input_exits
def diff(before: str, after: str, home: str) -> None:
    """Which curves moved from A to B, by how much, and whether by more than noise. A and B are as for report."""
    from service.report.report import diff as show
    from service.report.report import load

    place = open_home(home)
    show(load(before, place), load(after, place), plain())


@main.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@home_option
@click.option("--cells", is_flag=True, help="A line for every run.")
@bad_input_exits
def forecast(studies: tuple[str, ...], home: str, cells: bool) -> None:
    """Probability that a run ends diverged, from its first fifth, and how good that is on the runs of the home."""
    from dashboards.forecast import forecast as forecast_of
    from service.report.forecast import beginnings, tables

    console = plain()
    for renderable in tables(forecast_of(beginnings(open_home(home), studies)), cells):
        console.print(renderable, soft_wrap=True)


@main.command()
@study_argument
@home_option
@click.option("--scale", help="Model scale; the study's first by default.")
@click.option("--attention-norm", help="Attention and norm variant; the study's first by default.")
@click.option("--method", required=True, help="Head method.")
@click.option("--gamma", type=float, help="The method's gamma.  [default: the method's]")
@click.option("--lr", type=float, required=True, help="Peak learning rate.")
@click.option("--seed", type=int, default=1, show_default=True)
@bad_input_exits
def train(
    study: str,
    home: str,
    scale: str | None,
    attention_norm: str | None,
    method: str,
    gamma: float | None,
    lr: float,
    seed: int,
) -> None:
    """Train one cell of STUDY in this process, without Ray, by the same loop."""
    from service.cli.train_one import train_one

    train_one(Study.load(study), open_folder(home), scale, attention_norm, method, gamma, lr, seed, plain())


@main.group()
def data() -> None:
    """Token files."""


@data.command()
@click.argument("source")
@home_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the token files; HOME/data/NAME by default.")
@click.option("--config", help="Configuration of a data set of the Hub; sample-10BT for fineweb.")
@click.option("--split", help="Split of the data set; train by default.")
@click.option("--column", help="Column that holds the text; text by default.")
@click.option("--tokenizer", help="gpt2 (the default) or bytes.")
@click.option("--shard-tokens", type=int, help="Tokens of a file; 100,000,000 by default.")
@click.option("--val-tokens", type=int, help="Tokens of the validation file, the first ones; a shard by default.")
@click.option("--tokens", type=int, help="Tokens of all files; the whole source by default.")
@click.option("--workers", type=int, help="Threads that encode; all cores by default.")
@bad_input_exits
def prepare(source: str, home: str, out: Path | None, workers: int | None, **settings: Any) -> None:
    """Make token files of SOURCE, or check those that are there. The same command goes on after an interruption.

    SOURCE is fineweb, another data set of the Hub (OWNER/NAME), or a file, folder or glob of this machine: parquet,
    JSON lines, or any other file as one text. Or it is a study, whose text is tokenized into the home.
    """
    from service.cli.prepare import prepare as make

    console = plain()
    try:
        make(source, open_home(home), out, workers, settings, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on behind the last finished file")
        sys.exit(exit_codes.INTERRUPTED)


@main.command()
def methods() -> None:
    """The head methods and the attention norms, any of which go together: what they do, their source."""
    table = Table("method", "acts on", "definition", "gamma", "default", "source")
    for method in METHODS.values():
        gamma = method.gamma
        range_ = f"{gamma.symbol} in {gamma.low:g} .. {gamma.high:g}" if gamma else ""
        default = f"{gamma.default:g}" if gamma else ""
        table.add_row(method.name, method.acts_on, method.summary, range_, default, method.source)
    norms = Table("attention norm", "definition", "source")
    for variant in ATTENTION_NORMS.values():
        norms.add_row(variant.name, variant.summary, variant.source)
    plain().print(table, norms)


@main.command()
def schema() -> None:
    """The JSON schema of a study file."""
    click.echo(json.dumps(Study.model_json_schema(), indent=2))


@main.command()
@study_argument
@home_option
@bad_input_exits
def sync(study: str, home: str) -> None:
    """Deliver to MLflow what it lacks of STUDY."""
    from service.mlflow.sink import sync as deliver

    place = open_home(home)
    require_study(place, study)
    uri = tracking_uri(place)
    check_store(uri)
    folder = place.study(study)
    spec = Study.load(str(folder / "study.yaml"))
    cells = deliver(uri, place, spec, read_ledger(place, study), folder / "report", ask_store=True)
    click.echo(f"{cells} cells are in MLflow")


@main.command()
@home_option
@click.option("--port", type=int, default=UI_PORT, show_default=True)
@bad_input_exits
def ui(home: str, port: int) -> None:
    """The MLflow UI on the home's store, on loopback."""
    from service.mlflow.database import create_database

    uri = tracking_uri(open_home(home))
    if uri.startswith("http"):
        raise InvalidInput(
            "MLFLOW_TRACKING_URI", redact(uri), "is a server that has its own UI", "open it in a browser"
        )
    create_database(uri)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # less memory; we submit no jobs to it
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)
