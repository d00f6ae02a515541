"""The folder of a cell that a command trains: what in it is the command's, and what it may resume from."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

from search_spaces.metrics_spec import OWN_FILES
from trainers.command.output import NAME, PREVIOUS
from trainers.storage.bucket import SET_ASIDE


def holds_start(folder: Path, resume_from: str, metrics: Collection[Path]) -> bool:
    """Whether the folder has a file that the command may resume from.

    Args:
        resume_from: a glob in the folder.
        metrics: files that do not count as one, even if the glob matches them.
    """
    return any(
        path.is_file()
        and path.name not in OWN_FILES
        and path not in metrics
        and not path.relative_to(folder).parts[0].startswith(SET_ASIDE)
        for path in folder.glob(resume_from)
    )


def clear(folder: Path) -> None:
    """Remove what an earlier start has left, except for its output."""
    for path in left_by_command(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def set_aside(folder: Path) -> None:
    """Move what an earlier start has left, except for its output, into a folder of its own."""
    aside = next(path for i in count(1) if not (path := folder / f"{SET_ASIDE}{i}").exists())
    left = list(left_by_command(folder))
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)


def left_by_command(folder: Path) -> Iterator[Path]:
    """Files and folders of an earlier start, and its rows."""
    return (p for p in folder.iterdir() if p.name not in (NAME, PREVIOUS) and not p.name.startswith(SET_ASIDE))
