"""MLflow's embedded database, made whole or not at all.

MLflow makes it in dozens of migrations, each committed for itself. A process that is killed meanwhile, or a second one
that begins before the first is through, leaves a file that no client of MLflow opens ever again.
"""

from __future__ import annotations

import fcntl
from pathlib import Path


def prepare(uri: str) -> None:
    """See that the file of a ``sqlite:///`` address is there: made beside its place by one process, the others wait.

    Raises:
        OSError: the file can not be written.
    """
    kind, _, place = uri.partition(":///")
    path = Path(place)
    if kind != "sqlite" or path.exists():
        return
    from mlflow import MlflowClient  # seconds

    new = path.with_name(f".{path.name}-new")
    with path.with_name(f".{path.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        for left in path.parent.glob(f"{new.name}*"):  # of a killed process, and SQLite's journal of it
            left.unlink()
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        new.replace(path)
