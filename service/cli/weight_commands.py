"""The commands about weights that outlive their runs: ``oec analyze``, ``oec clean``."""

from __future__ import annotations

from pathlib import Path

import click

from search_spaces.errors import InvalidInput
from service.cli.options import bad_input_exits, home_option, plain
from service.home.location import open_home


@click.command()
@click.argument("study", required=False)
@home_option
@click.option("--cell", "cells", multiple=True, metavar="ID", help="A cell; all with kept weights by default.")
@click.option("--shards", metavar="GLOB", help="Token files to evaluate the weights on as well.")
@click.option("--data", metavar="NAME", help="What the tables call those tokens; the glob by default.")
@click.option("--sequences", type=click.IntRange(min=1), help="Of them, the first; as the run's validation by default.")
@click.option(
    "--weights", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="In place of STUDY."
)
@click.option("--embedding", metavar="NAME", help="Output embedding in FILE; found by usual names by default.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables and figures of FILE.")
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
    """Output embeddings of the weights that STUDY kept: B-ratio, isotropy, norms, spectrum; and their loss on other
    tokens. Tables and figures go into the study's report.

    With --weights, of any .safetensors or .npy file that has an output embedding; it may be repeated.
    """
    from service.report import analysis

    of_study = {"--cell": cells, "--shards": shards, "--data": data, "--sequences": sequences}
    of_files = {"--embedding": embedding, "--out": out}
    if bool(study) == bool(files):
        problem = "is given together with --weights" if study else "is missing"
        raise InvalidInput("STUDY", study, problem, "give a study of the home, or --weights FILE")
    for option, value in (of_files if study else of_study).items():
        if value:
            remedy = "leave it out" if study else "give a study of the home in place of --weights"
            raise InvalidInput(option, str(value), f"goes with {'--weights' if study else 'a study'} alone", remedy)
    if (data or sequences) and not shards:
        raise InvalidInput("--shards", None, "is missing", "say which tokens, or leave --data and --sequences out")
    if study:
        options = {"cells": cells, "shards": shards, "data": data, "sequences": sequences}
        analysis.analyze(open_home(home), study, plain(), **options)  # type: ignore[arg-type]
    else:
        analysis.analyze_files(files, embedding, out, plain())


@click.command()
@click.argument("study", required=False)
@home_option
@click.option("--weights", is_flag=True, help="The weights that keep_weights kept.")
@click.option("--checkpoints", is_flag=True, help="Checkpoints of cells that have ended, or are in no study any more.")
@click.option("--yes", is_flag=True, help="Remove them.")
@bad_input_exits
def clean(study: str | None, home: str, weights: bool, checkpoints: bool, yes: bool) -> None:
    """What STUDY, or every study of the home, no longer needs, and how much room it takes; with --yes, remove it.

    Results, metrics and reports stay.
    """
    from service.cli import clean as cleaning

    asked: dict[cleaning.Kind, bool] = {"weights": weights, "checkpoints": checkpoints}
    cleaning.clean(open_home(home), study, [kind for kind in asked if asked[kind]], yes, plain())
