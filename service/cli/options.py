"""Shared by all commands: the option ``--home``, errors on bad input, the console, and exiting.

The modules of the commands import at their top only what ``oec --help`` needs. What a command needs to do its work is
imported in its handler.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from search_spaces.errors import InvalidInput, printable
from service import exit_codes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PATH = click.Path(path_type=Path)
repeatable = partial(click.option, multiple=True)
cluster_option = partial(click.option, "--cluster", metavar="URL", envvar="OEC_CLUSTER", show_envvar=True)
home_option = click.option(
    "--home",
    default="oec-home",
    envvar="OEC_HOME",
    show_envvar=True,
    help="Folder with studies, cells and data, or a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.",
)


class BadInputExits(click.Group):
    """Prints ``InvalidInput`` of any command as one message and exits with code 2; Ctrl-C exits with code 75."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if printable(argument) != argument:  # it would reach reports, MLflow and Ray, which only take Unicode
                raise click.UsageError(f"{printable(argument)!r} is not valid UTF-8; rename the file or folder")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        replace_unprintable()
        try:
            return super().invoke(ctx)
        except InvalidInput as error:
            click.echo(f"oec: {printable(error)}", err=True)
            sys.exit(exit_codes.BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            exit_now(exit_codes.INTERRUPTED)


def replace_unprintable() -> None:
    """Print ``?`` for a character that the encoding of standard output lacks, such as ≥ in Latin-1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def exit_now(code: int) -> NoReturn:
    """Run the exit handlers, then end the process without the interpreter's shutdown. A library that was interrupted
    may have threads that crash during the shutdown, which would change the exit code."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def plain_console() -> Console:
    """A console without markup: paths and tracebacks contain square brackets."""
    from rich.console import Console

    return Console(markup=False, highlight=False)


def print_all(renderables: Iterable[RenderableType]) -> None:
    console = plain_console()
    for renderable in renderables:
        console.print(renderable, soft_wrap=True)
