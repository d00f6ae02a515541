"""Shared by all commands: the option ``--home``, errors on bad input, the console, and exiting.

The modules of the commands import at their top only what ``oec --help`` needs. What a command needs to do its work is
imported in its handler.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from search_spaces.errors import InvalidInput
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
    """Prints ``InvalidInput`` of any command as one message and exits with code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InvalidInput as error:
            click.echo(f"oec: {error}", err=True)
            sys.exit(exit_codes.BAD_INPUT)


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
