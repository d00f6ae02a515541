"""Commands that report on runs. Handlers parse and call, nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.options import bad_input_exits, home_option, plain_console
from service.home.location import open_home


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@home_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the page, figures and tables.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    help="html, png, svg, pdf, csv, parquet, md or tex; repeatable; default: all.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Names of figures and tables; repeatable; default: all.")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="The name of a column in SOURCE; repeatable."
)
@bad_input_exits
def report(
    sources: tuple[str, ...],
    home: str,
    out: Path | None,
    formats: tuple[str, ...],
    only: tuple[str, ...],
    columns: tuple[str, ...],
) -> None:
    """Write one report on every SOURCE: tables, figures and a page.

    SOURCE is a study of the home, HOME:STUDY for another home, mlflow:STUDY, a CSV of runs, or "published" for the runs
    of the paper. With --column, SOURCE is a CSV or mlflow:EXPERIMENT of another project. OURS=THEIRS maps one of its
    columns, and OURS==VALUE sets a column to the same value for all runs.
    """
    from dashboards.external_runs import parse_columns
    from service.report.report import report as write_report
    from service.report.sources import load_all

    write_report(load_all(sources, open_home(home), parse_columns(columns)), out, plain_console(), formats, only)


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@home_option
@bad_input_exits
def diff(before: str, after: str, home: str) -> None:
    """Show which curves moved from A to B, by how much, and whether by more than noise.

    A and B are sources as in `oec report`.
    """
    from service.report.report import diff as print_diff
    from service.report.sources import load

    place = open_home(home)
    print_diff(load(before, place), load(after, place), plain_console())


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@home_option
@click.option("--cells", is_flag=True, help="Also list every run.")
@bad_input_exits
def forecast(studies: tuple[str, ...], home: str, cells: bool) -> None:
    """Forecast from the first fifth of a run whether it will diverge, and show how accurate this is on ended runs."""
    from dashboards.forecast import forecast as fit_forecast
    from service.report.forecast import load_features, tables

    console = plain_console()
    for renderable in tables(fit_forecast(load_features(open_home(home), studies)), cells):
        console.print(renderable, soft_wrap=True)
