"""The folder of a cell that a command trains: what in it is the command's, and what it may resume from."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainers.command.output import NAME, PREVIOUS
from trainers.metric_streams.base import files
from trainers.metric_streams.mlflow_runs import SQLITE
from trainers.reported_run import METRICS

OWN_FILES = {METRICS, NAME, PREVIOUS}
"""What this program writes."""


def holds_start(folder: Path, resume_from: str, source: str) -> bool:
    """Whether the folder has a file that the command may resume from.

    Args:
        resume_from: a glob in the folder.
        source: the path of the metrics, which show no more than that the command began; empty for the output.
    """
    metrics = Path(source.removeprefix(SQLITE))
    of_metrics = set(files(source)) if source else set()
    found = (path for path in folder.glob(resume_from) if path.is_file() and path.name not in OWN_FILES)
    return any(path not in of_metrics and metrics not in (path, *path.parents) for path in found)


def clear(folder: Path) -> None:
    """Remove what an earlier start has left, except for its output."""
    for path in folder.iterdir():
        if path.name in (NAME, PREVIOUS):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
