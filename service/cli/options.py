"""Shared by all commands: the option ``--home``, errors on bad input, the console, and exiting.

The modules of the commands import at their top only what ``oec --help`` needs. What a command needs to do its work is
imported in its handler.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
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


class StudyName(click.types.StringParamType):
    """The name of a study in the home. The path of a study file is taken as the name in it."""

    name = "study"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if Path(value).suffix not in (".yaml", ".yml") or not Path(value).is_file():
            return value
        from search_spaces.study import Study

        return Study.load(value).name


STUDY_NAME = StudyName()


class BadInputExits(click.Group):
    """Prints ``InvalidInput`` of any command as one message and exits with code 2; Ctrl-C exits with code 75."""

    sections: Mapping[str, Sequence[click.Command]] = {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if printable(argument) != argument:  # it would reach reports, MLflow and Ray, which only take Unicode
                raise click.UsageError(f"{printable(argument)!r} is not valid UTF-8; rename the file or folder")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for each of ``sections``; click's own is one list in the order of the alphabet."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), command.short_help or "") for command in commands])

    def invoke(self, ctx: click.Context) -> Any:
        replace_unprintable()
        try:
            return super().invoke(ctx)
        except InvalidInput as error:
            plain_console(stderr=True).print(f"oec: {printable(error)}", soft_wrap=True)
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


def plain_console(*, stderr: bool = False) -> Console:
    """A console without markup, because paths and tracebacks contain square brackets. On a terminal, text that it
    prints with ``soft_wrap`` is broken between words."""
    from rich.console import Console

    class PlainConsole(Console):
        def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
            if soft_wrap and self.is_terminal:
                objects = tuple(wrap(one, self.width) if isinstance(one, str) else one for one in objects)
            super().print(*objects, soft_wrap=soft_wrap, **options)

    return PlainConsole(markup=False, highlight=False, stderr=stderr)


def wrap(text: str, width: int) -> str:
    """``text`` in lines of at most ``width``; a longer word, such as a path, stays whole so that it can be copied."""
    fill = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill(line) if len(line) > width else line for line in text.split("\n"))


def print_all(renderables: Iterable[RenderableType]) -> None:
    console = plain_console()
    for renderable in renderables:
        console.print(renderable, soft_wrap=True)
