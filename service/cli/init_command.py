"""The command that starts a study from a training script. Handlers parse and call, nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.options import PATH, plain_console


@click.command(short_help="Write a study of your own training script.")
@click.argument("script", type=PATH)
@click.option("--name", help="Name of the study; default: that of the script or of its folder.")
@click.option("--out", type=PATH, default="study.yaml", help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def init(script: Path, name: str | None, out: Path, force: bool) -> None:
    """Write a study that sweeps the learning rate of your training script, SCRIPT, without changing it.

    Call it in the folder that you start the script in. It reads the script and its --help, prints what it found and
    what is left to you, and does not train.
    """
    from service.cli.init import init_study

    init_study(script, name, out, force, plain_console())
