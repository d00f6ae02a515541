"""The command line: the group ``oec`` and its small commands. Handlers parse and call, nothing else.

Exit codes: 0 success; 1 some cells crashed; 2 bad input; 75 interrupted, re-run the same command to resume.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from service import __version__, exit_codes
from service.cli.doctor_command import doctor
from service.cli.init_command import init
from service.cli.job_commands import jobs, logs, stop, submit
from service.cli.options import PATH, BadInputExits, exit_now, home_option, plain_console
from service.cli.result_commands import analyze, clean, diff, forecast, report, sync, ui
from service.cli.run_commands import plan, run, status, train, watch
from service.cli.serve_commands import serve, token

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


@click.group(cls=BadInputExits, context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """How sensitive is the final loss to the learning rate, for each stabilization method?

    To start, run `oec run demo`. STUDY is the path of a study file, the name of a shipped study (`oec plan -h` lists
    them), or - for standard input.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported; studies are private


@main.group(short_help="Prepare token files.")
def data() -> None:
    """Prepare token files."""


@data.command()
@click.argument("source")
@home_option
@click.option("--out", type=PATH, help="Folder for the token files; default: HOME/data/NAME.")
@click.option("--config", help="Configuration of a Hugging Face data set; default for fineweb: sample-10BT.")
@click.option("--split", help="Split of the data set; default: train.")
@click.option("--column", help="Column with the text; default: text.")
@click.option("--tokenizer", help="gpt2 or bytes; default: gpt2.")
@click.option("--shard-tokens", type=int, help="Tokens per file; default: 100,000,000.")
@click.option("--val-tokens", type=int, help="Tokens of the validation file, taken from the start; default: one file.")
@click.option("--tokens", type=int, help="Total number of tokens; default: the whole source.")
@click.option("--workers", type=int, help="Encoding threads; default: one per core.")
def prepare(source: str, home: str, out: Path | None, workers: int | None, **settings: Any) -> None:
    """Create token files from SOURCE, or verify existing ones. Re-run the same command to resume.

    SOURCE is fineweb, another data set of the Hugging Face Hub (OWNER/NAME), or a local file, folder or glob of
    parquet, JSON lines, or plain text (one document per file). SOURCE can also be a study, whose text is then tokenized
    into the home.
    """
    from service.cli.prepare import prepare as prepare_source
    from service.home.location import open_home

    console = plain_console()
    try:
        prepare_source(source, open_home(home), out, workers, settings, console)
    except KeyboardInterrupt:
        console.print("interrupted; re-run the same command to resume after the last complete file")
        exit_now(exit_codes.INTERRUPTED)


@main.command(short_help="List the methods and attention norms.")
def methods() -> None:
    """List the output-head methods and the attention norms, which combine freely, with their sources."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    from search_spaces.attention_norms import ATTENTION_NORMS
    from search_spaces.methods import METHODS

    definition = Column("definition", ratio=1, overflow="fold")
    table = Table("method", "acts on", definition, "gamma", "source", box=SIMPLE_HEAD, pad_edge=False)
    for method in METHODS.values():
        gamma = method.gamma
        values = f"{gamma.symbol} {gamma.default:g}, in {gamma.low:g} .. {gamma.high:g}" if gamma else ""
        table.add_row(method.name, method.acts_on, method.summary, values, method.source)
    norms = Table("attention norm", "definition", "source", box=SIMPLE_HEAD, pad_edge=False)
    for variant in ATTENTION_NORMS.values():
        norms.add_row(variant.name, variant.summary, variant.source)
    plain_console().print(table, norms)


@main.command(short_help="Print the JSON schema of a study file.")
def schema() -> None:
    """Print the JSON schema of a study file."""
    from search_spaces.study import Study

    click.echo(json.dumps(Study.model_json_schema(), indent=2))


main.sections = {
    "Studies": (plan, run, watch, status, stop, train, init),
    "Results": (report, diff, analyze, forecast, ui, sync, clean),
    "Data and reference": (data, methods, schema),
    "Clusters and teams": (doctor, submit, jobs, logs, serve, token),
}
for commands in main.sections.values():
    for command in commands:
        main.add_command(command)
