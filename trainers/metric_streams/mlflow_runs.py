"""What a command logs to MLflow: into a folder of files, or into a SQLite database."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from search_spaces.metrics_spec import MetricsSpec
from trainers.metric_streams.base import Record, Tail, files, group_by_step, keys_seen, unescape

SQLITE = "sqlite:///"
METRICS = "*/*/metrics/**/*"
FILES = (METRICS, "*/*/params/**/*", "*/*/tags/**/*", "*/*/meta.yaml", "*/meta.yaml")
"""What MLflow writes into a folder about a run, apart from its artifacts."""


class MlflowRuns:
    """The metrics of every run in a store that belongs to one cell."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        self._reader = _Database(path) if path.startswith(SQLITE) else _Folder(path)

    def own_files(self) -> set[Path]:
        return self._reader.own_files()

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

    def own_files(self) -> set[Path]:
        return {file for name in FILES for file in files(f"{self._folder}/{name}")}

    def read(self) -> Iterator[tuple[str, int, float]]:
        for path in files(f"{self._folder}/{METRICS}"):
            run = next(folder for folder in path.parents if folder.name == "metrics")
            key = path.relative_to(run).as_posix()
            self._keys.add(key)
            for line in self._tails.setdefault(path, Tail(str(path))).lines():
                _, value, step = line.split()
                yield key, int(step), float(value)

    def seen(self) -> str:
        folder = unescape(self._folder)
        exists = "exists" if Path(folder).is_dir() else "does not exist"
        return f"{folder} {exists}; {keys_seen(self._keys)}"


class _Database:
    """Reads the table of metrics itself: MLflow's client would create and migrate tables in a file that the command is
    creating, and one of the two would fail."""

    def __init__(self, uri: str) -> None:
        self._path = Path(uri.removeprefix(SQLITE)).absolute()
        self._last = 0
        """The last row that was read; SQLite numbers rows as they are inserted."""
        self._keys: set[str] = set()

    def own_files(self) -> set[Path]:
        return {self._path.with_name(self._path.name + suffix) for suffix in ("", "-journal", "-wal", "-shm")}

    def read(self) -> Iterator[tuple[str, int, float]]:
        query = "SELECT rowid, key, step, value, is_nan FROM metrics WHERE rowid > ? ORDER BY rowid"
        try:
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=0)) as store:
                rows = store.execute(query, [self._last]).fetchall()
        except sqlite3.Error:  # the command is creating it, or holds its lock
            return
        for self._last, key, step, value, is_nan in rows:
            self._keys.add(key)
            yield key, step, math.nan if is_nan else value

    def seen(self) -> str:
        exists = "exists" if self._path.is_file() else "does not exist"
        return f"{self._path} {exists}; {keys_seen(self._keys)}"
