"""Commands of the HTTP service. Handlers parse and call, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
from rich.table import Table

from service.cli.options import bad_input_exits, home_option, plain
from service.home.location import open_folder


@click.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 for a free one.")
@click.option("--cluster", envvar="OEC_CLUSTER", show_envvar=True, help="Ray dashboard; a Ray of this machine without.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where studies may find data; HOME/data by default.")
@click.option("--max-active", type=int, help="Studies that are being run at once; 4 by default.")
@click.option("--max-cells", type=int, help="Cells of a study; 2,000 by default.")
@click.option(
    "--stop-ray", is_flag=True, help="End the Ray of this machine that an earlier service started, and leave."
)
@bad_input_exits
def serve(home: str, host: str, port: int, stop_ray: bool, **limits: Any) -> None:
    """Studies over HTTP: API, page and metrics. Needs tokens, see `oec token add`."""
    place = open_folder(home)
    if stop_ray:
        from service.cluster.local_head import stop_head

        click.echo("its Ray has ended" if stop_head(place) else "no Ray of this home runs")
        return
    from service.http.server import serve as listen
    from service.http.settings import Settings

    listen(place, host, port, Settings.from_options(limits), plain())


@click.group()
def token() -> None:
    """Who may use the HTTP service."""


@token.command("add")
@click.argument("name")
@home_option
@click.option("--role", type=click.Choice(["read", "run"]), default="read", show_default=True, help="run also changes.")
@click.option("--days", type=int, help="Until it expires; never by default.")
@bad_input_exits
def add_token(name: str, home: str, role: Literal["read", "run"], days: int | None) -> None:
    """Make a token and print it, once: the home keeps its hash alone."""
    from service.http.audit import COMMAND_LINE, Audit
    from service.http.tokens import TokenFile

    place = open_folder(home)
    with Audit(place.service).change(COMMAND_LINE, "token add", f"{name} ({role})"):
        click.echo(TokenFile(place).add(name, role, days))


@token.command("remove")
@click.argument("name")
@home_option
@bad_input_exits
def remove_token(name: str, home: str) -> None:
    """End a token, at once and in every service of the home."""
    from service.http.audit import COMMAND_LINE, Audit
    from service.http.tokens import TokenFile

    place = open_folder(home)
    with Audit(place.service).change(COMMAND_LINE, "token remove", name):
        TokenFile(place).remove(name)


@token.command("list")
@home_option
@bad_input_exits
def list_tokens(home: str) -> None:
    """Names, roles and lifetimes."""
    from service.http.tokens import TokenFile

    table = Table("name", "role", "created", "expires")
    for one in TokenFile(open_folder(home)).all():
        expires = one.expires.date().isoformat() if one.expires else "never"
        table.add_row(one.name, one.role, one.created.date().isoformat(), f"{expires}{' (over)' * one.is_expired}")
    plain().print(table)
