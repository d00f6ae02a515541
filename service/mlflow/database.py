"""MLflow's embedded database, created completely or not at all.

MLflow creates it in dozens of migrations and commits each one. A process that is killed in between, or a second one
that starts before the first is through, leaves a file that no MLflow client can open again.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock


def create_database(uri: str) -> None:
    """Create the file of a ``sqlite:///`` address if it does not exist, under another name first; others wait.

    Raises:
        OSError: the file cannot be written.
    """
    kind, _, place = uri.partition(":///")
    path = Path(place)
    if kind != "sqlite" or path.exists():
        return
    from mlflow import MlflowClient  # takes seconds

    new = path.with_name(f".{path.name}-new")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        for leftover in path.parent.glob(f"{new.name}*"):  # a killed process's file, and SQLite's journal of it
            leftover.unlink()
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        new.replace(path)
