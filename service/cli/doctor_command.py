"""The command that examines a machine or a cluster before a study does. Handlers parse and call, nothing else."""

from __future__ import annotations

import json
import sys

import click

from service.cli.options import cluster_option, home_option, plain_console

EXIT_PROBLEM = 1
"""At least one check found a problem."""


@click.command(short_help="Check a machine or a cluster before the first study.")
@home_option
@cluster_option(help="Ray cluster, as http://HOST:8265 or HOST:6379; default: this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(home: str, cluster: str | None, as_json: bool) -> None:
    """Show in a few lines what a study would meet: versions, devices, memory, folders, MLflow, tokenizer and data.

    On a cluster, every node is asked, even if it lacks this package. Exit code 1 means that there is a problem.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from service.cluster.doctor import as_json as content
    from service.cluster.doctor import diagnose, has_problem
    from service.home.location import open_home

    is_given = click.get_current_context().get_parameter_source("home") is not click.core.ParameterSource.DEFAULT
    place = None if cluster else open_home(home)
    checks = diagnose(place, home if is_given else None, cluster)
    if as_json:
        click.echo(json.dumps(content(checks), indent=2))
    else:
        table = Table.grid("status", "name", Column(overflow="fold"), padding=(0, 2))
        for check in checks:
            text = f"{check.text}; {check.remedy}" if check.remedy else check.text
            table.add_row(Text(check.status, COLORS[check.status]), check.name, Text(text))
        plain_console().print(table)
    if has_problem(checks):
        sys.exit(EXIT_PROBLEM)


COLORS = {"ok": "green", "warning": "yellow", "problem": "bold red"}
