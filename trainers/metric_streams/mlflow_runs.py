"""What a command logs to MLflow: into a folder of files, or into a SQLite database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from search_spaces.metrics_spec import MetricsSpec
from trainers.metric_streams.base import Record, Tail, files, group_by_step, keys_seen

SQLITE = "sqlite:///"


class MlflowRuns:
    """The metrics of every run in a store that belongs to one cell."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        self._reader = _Database(spec, path) if path.startswith(SQLITE) else _Folder(path)

    def read(self, *, ended: bool = False) -> list[Record]:
        return group_by_step(self._reader.read())

    def seen(self) -> str:
        return self._reader.seen()


class _Folder:
    """``EXPERIMENT/RUN/metrics/KEY``, each with lines of ``time value step``."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}
        self._keys: set[str] = set()

    def read(self) -> Iterator[tuple[str, int, float]]:
        for path in files(f"{self._folder}/*/*/metrics/**/*"):
            run = next(folder for folder in path.parents if folder.name == "metrics")
            key = path.relative_to(run).as_posix()
            self._keys.add(key)
            for line in self._tails.setdefault(path, Tail(str(path))).lines():
                _, value, step = line.split()
                yield key, int(step), float(value)

    def seen(self) -> str:
        exists = "exists" if Path(self._folder).is_dir() else "does not exist"
        return f"{self._folder} {exists}; {keys_seen(self._keys)}"


class _Database:
    """Asks MLflow's client, which takes seconds to import, and only for what has changed."""

    def __init__(self, spec: MetricsSpec, uri: str) -> None:
        self._uri, self._path = uri, Path(uri.removeprefix(SQLITE))
        self._wanted = [key for key in (spec.val_loss, spec.train_loss, *spec.others) if key]
        self._changed: tuple[float, int] | None = None
        self._read: dict[tuple[str, str], int] = defaultdict(int)
        self._keys: set[str] = set()

    def read(self) -> Iterator[tuple[str, int, float]]:
        if not self._path.is_file():
            return
        status = self._path.stat()
        if (changed := (status.st_mtime, status.st_size)) == self._changed:
            return
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        client = MlflowClient(self._uri)
        try:
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            for run in client.search_runs(experiments) if experiments else []:
                self._keys |= set(run.data.metrics)
                for key in self._wanted:
                    history = client.get_metric_history(run.info.run_id, key) if key in run.data.metrics else []
                    for point in history[self._read[run.info.run_id, key] :]:
                        yield key, point.step, point.value
                    self._read[run.info.run_id, key] = len(history)
        except (MlflowException, SQLAlchemyError):  # the command is creating it, or holds its lock
            return
        self._changed = changed

    def seen(self) -> str:
        exists = "exists" if self._path.is_file() else "does not exist"
        return f"{self._path} {exists}; {keys_seen(self._keys)}"
