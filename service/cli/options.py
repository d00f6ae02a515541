"""What the commands share: exit codes, the option of the home, bad input as one message, the console."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import click
from rich.console import Console

from search_spaces.errors import InvalidInput
from service import exit_codes

home_option = click.option(
    "--home",
    default="oec-home",
    envvar="OEC_HOME",
    show_default=True,
    show_envvar=True,
    help="Folder that holds studies, cells and data; or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX.",
)
study_argument = click.argument("study", metavar="STUDY")


def bad_input_exits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn ``InvalidInput`` into one message and exit code 2."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except InvalidInput as error:
            click.echo(f"oec: {error}", err=True)
            sys.exit(exit_codes.BAD_INPUT)

    return wrapper


def leave(code: int) -> NoReturn:
    """End this process with its exit functions, but without the interpreter's own end, which the threads of a library
    that was interrupted anywhere can crash, and the exit code with it."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def plain() -> Console:
    """A console that prints what it is given: paths and tracebacks hold square brackets, which are no markup."""
    return Console(markup=False, highlight=False)
