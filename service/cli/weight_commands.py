"""Commands on the weights and checkpoints of past runs. Handlers parse and call, nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from search_spaces.errors import InvalidInput
from service.cli.options import bad_input_exits, home_option, plain_console
from service.home.location import open_home


@click.command()
@click.argument("study", required=False)
@home_option
@click.option(
    "--cell",
    "cells",
    multiple=True,
    metavar="ID",
    help="Analyze only this cell; repeatable; default: all cells with kept weights.",
)
@click.option("--shards", metavar="GLOB", help="Also evaluate the weights on these token files.")
@click.option("--data", metavar="NAME", help="Name of those tokens in tables; default: the glob.")
@click.option(
    "--sequences",
    type=click.IntRange(min=1),
    metavar="N",
    help="Evaluate on the first N sequences; default: as many as the run's validation.",
)
@click.option(
    "--weights",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of weights, in place of STUDY; repeatable.",
)
@click.option(
    "--embedding", metavar="NAME", help="Name of the output embedding in FILE; default: found by common names."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tables and figures of FILE.")
@bad_input_exits
def analyze(
    study: str | None,
    home: str,
    cells: tuple[str, ...],
    shards: str | None,
    data: str | None,
    sequences: int | None,
    files: tuple[Path, ...],
    embedding: str | None,
    out: Path | None,
) -> None:
    """Analyze the output embeddings in the weights that STUDY kept (B-ratio, isotropy, norms, spectrum), and with
    --shards their loss on other tokens. Tables and figures go into the study's report.

    With --weights, analyze any .safetensors or .npy file with an output embedding.
    """
    from service.report import analysis

    of_study = {"--cell": cells, "--shards": shards, "--data": data, "--sequences": sequences}
    of_files = {"--embedding": embedding, "--out": out}
    if bool(study) == bool(files):
        problem = "cannot be combined with --weights" if study else "is missing"
        raise InvalidInput("STUDY", study, problem, "give a study of the home, or --weights FILE")
    for option, value in (of_files if study else of_study).items():
        if value:
            remedy = "remove it" if study else "give a study of the home in place of --weights"
            raise InvalidInput(option, str(value), f"requires {'--weights' if study else 'a study'}", remedy)
    if (data or sequences) and not shards:
        raise InvalidInput("--shards", None, "is missing", "give token files, or remove --data and --sequences")
    if study:
        options = {"cells": cells, "shards": shards, "data": data, "sequences": sequences}
        analysis.analyze(open_home(home), study, plain_console(), **options)  # type: ignore[arg-type]
    else:
        analysis.analyze_files(files, embedding, out, plain_console())


@click.command()
@click.argument("study", required=False)
@home_option
@click.option("--weights", is_flag=True, help="Weights kept by keep_weights.")
@click.option(
    "--checkpoints", is_flag=True, help="Checkpoints of ended cells, and of cells that are no longer in the study."
)
@click.option("--yes", is_flag=True, help="Remove the files.")
@bad_input_exits
def clean(study: str | None, home: str, weights: bool, checkpoints: bool, yes: bool) -> None:
    """Show files that STUDY, or any study of the home, no longer needs, and their size. With --yes, remove them.

    Results, metrics and reports are kept.
    """
    from service.cli.clean import Kind
    from service.cli.clean import clean as clean_home

    given: dict[Kind, bool] = {"weights": weights, "checkpoints": checkpoints}
    clean_home(open_home(home), study, [kind for kind in given if given[kind]], yes, plain_console())
