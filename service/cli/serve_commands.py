"""Commands of the HTTP service. Handlers parse and call, nothing else."""

from __future__ import annotations

from typing import Any, Literal

import click

from service.cli.options import PATH, cluster_option, home_option, plain_console


@click.command(short_help="Serve studies over HTTP: API, web page and metrics.")
@home_option
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, help="Port to listen on; 0 picks a free one.")
@cluster_option(help="Dashboard of a Ray cluster; default: a local Ray cluster.")
@click.option("--data-root", type=PATH, help="Folder that studies may read data from; default: HOME/data.")
@click.option("--max-active", type=click.IntRange(1), help="Studies that may run at the same time; default: 4.")
@click.option("--max-cells", type=click.IntRange(1), help="Maximum number of cells in a study; default: 2,000.")
@click.option("--stop-ray", is_flag=True, help="Stop the local Ray cluster that an earlier service started, and exit.")
def serve(home: str, host: str, port: int, stop_ray: bool, **limits: Any) -> None:
    """Serve studies over HTTP: API, web page and metrics. Requires tokens, see `oec token add`."""
    from service.home.location import open_folder

    place = open_folder(home)
    if stop_ray:
        from service.cluster.local_head import stop_head

        click.echo("the local Ray cluster has stopped" if stop_head(place) else "this home has no running Ray cluster")
        return
    from service.http.models import Settings
    from service.http.server import serve as listen

    settings = Settings(**{name: value for name, value in limits.items() if value is not None})
    try:
        listen(place, host, port, settings, plain_console())
    except KeyboardInterrupt:
        from service.cluster.local_head import read_head

        if (head := read_head(place)) and head.is_alive:
            click.echo("its Ray cluster keeps running, with the studies on it; `oec serve --stop-ray` stops it")
        raise


@click.group(short_help="Manage access tokens of the HTTP service.")
def token() -> None:
    """Manage access tokens of the HTTP service."""


@token.command("add")
@click.argument("name")
@home_option
@click.option(
    "--role", type=click.Choice(["read", "run"]), default="read", help="read may only look; run may also change."
)
@click.option("--days", type=int, help="Days until the token expires; default: never.")
def add_token(name: str, home: str, role: Literal["read", "run"], days: int | None) -> None:
    """Create a token and print it. It is shown only once, because the home stores only its hash."""
    from service.home.location import open_folder
    from service.http.audit import COMMAND_LINE, Audit
    from service.http.tokens import TokenFile

    place = open_folder(home)
    with Audit(place.service).change(COMMAND_LINE, "token add", f"{name} ({role})"):
        click.echo(TokenFile(place).add(name, role, days))


@token.command("remove")
@click.argument("name")
@home_option
def remove_token(name: str, home: str) -> None:
    """Revoke a token, immediately and for every service of the home."""
    from service.home.location import open_folder
    from service.http.audit import COMMAND_LINE, Audit
    from service.http.tokens import TokenFile

    place = open_folder(home)
    with Audit(place.service).change(COMMAND_LINE, "token remove", name):
        TokenFile(place).remove(name)


@token.command("list")
@home_option
def list_tokens(home: str) -> None:
    """List tokens with name, role, and expiration date."""
    from rich.table import Table

    from service.home.location import open_folder
    from service.http.tokens import TokenFile

    tokens = TokenFile(open_folder(home)).all()
    if not tokens:
        click.echo("no tokens yet")
        return
    table = Table("name", "role", "created", "expires")
    for one in tokens:
        expires = one.expires.date().isoformat() if one.expires else "never"
        table.add_row(one.name, one.role, one.created.date().isoformat(), f"{expires}{' (expired)' * one.is_expired}")
    plain_console().print(table)
