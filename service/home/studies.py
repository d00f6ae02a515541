"""The studies of a home: which there are, what their cells have reached, whether one runs, and claiming a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from search_spaces.cell import ForeignCell
from search_spaces.errors import InvalidInput
from search_spaces.record import Row
from search_spaces.study import NOT_HASHED, Study
from service.home.bucket_ledger import BucketLedger
from service.home.layout import Home
from service.home.ledger import Entry, Ledger
from service.home.writer import is_locked
from trainers.rows import read
from trainers.storage.files import write_atomically


def registered(home: Home) -> list[str]:
    """Names of the studies that have a study file here, started or not."""
    return sorted(path.parent.name for path in home.studies.glob("*/study.yaml"))


def with_ledger(home: Home) -> list[str]:
    """Names of the studies that have a ledger here."""
    return sorted(path.parent.name for path in home.studies.glob("*/ledger.jsonl"))


def require_study(home: Home, name: str) -> None:
    """Raise InvalidInput if no study of this name has a ledger here."""
    if name not in (names := with_ledger(home)):
        here = ", ".join(names) or "none yet"
        raise InvalidInput("STUDY", name, f"is not a study of {home}", f"studies here: {here}")


def read_ledger(home: Home, name: str) -> Ledger:
    """Open the ledger of a study for reading. Raises InvalidInput if it is damaged."""
    return Ledger(home.ledger(name), name)


def write_ledger(home: Home, name: str) -> Ledger:
    """
    Raises:
        InvalidInput: the ledger is damaged.
        LedgerLocked: another process writes it.
    """
    bucket_ledger = BucketLedger(home.bucket, name) if home.bucket else None
    return Ledger(home.ledger(name), name, write=True, bucket_ledger=bucket_ledger)


def all_entries(home: Home) -> Iterator[Entry]:
    """The cells of every study of the home. A cell that several studies share occurs several times."""
    for name in with_ledger(home):
        yield from read_ledger(home, name).entries.values()


def measured_speeds(entries: Iterable[Entry]) -> dict[str, float]:
    """The last measured tokens per second of a cell, by scale, or by name of a trainer, whose cells are one token."""
    return {entry.cell.scale: speed for entry in entries if (speed := _speed(entry))}


def _speed(entry: Entry) -> float | None:
    seconds = entry.result.train_seconds
    if isinstance(entry.cell, ForeignCell):
        return entry.cell.tokens / seconds if seconds and entry.state == "finished" else None
    return entry.result.tokens_per_second


class LiveRows:
    """The newest row of each running cell of a study; a file is read again only if its size changed."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study = home, study
        self._seen: dict[str, tuple[int, Row | None]] = {}

    def newest(self, cell_id: str) -> Row | None:
        """The last row with a validation loss; None before the first."""
        path = self._home.metrics(cell_id, self._study)
        size = path.stat().st_size if path.is_file() else 0
        if cell_id not in self._seen or self._seen[cell_id][0] != size:
            try:
                rows = [row for row in read(path) if row.val_loss is not None]
            except InvalidInput:  # over a network file system, a line can be read while it is being written
                rows = []
            self._seen[cell_id] = size, rows[-1] if rows else None
        return self._seen[cell_id][1]


def is_running(home: Home, name: str) -> bool:
    """Whether a driver holds the study's ledger; no if it has none yet."""
    if home.bucket:
        writer = BucketLedger(home.bucket, name).writer()
        return writer is not None and writer.seems_alive
    return is_locked(home.ledger(name))


def register_study(home: Home, study: Study) -> None:
    """Write the study's file, or check that the one in the home is the same study.

    Raises:
        InvalidInput: another study ran here under this name.
    """
    folder = home.study(study.name)
    if folder.resolve() != folder:  # the home itself is resolved
        problem = f"leads out of the home, to {folder.resolve()}"
        raise InvalidInput("name", study.name, problem, "remove the symbolic link, or choose another --home")
    path = folder / "study.yaml"
    if path.exists():
        before = Study.load(str(path))
        if before.hash != study.hash and _has_started(home, study.name):
            problem = f"is taken: a different study of this name ran in this home ({changes(before, study)})"
            remedy = "give the changed study another name (equal cells are not trained again), or another --home"
            raise InvalidInput("name", study.name, problem, remedy)
        if before.hash != study.hash:
            home.ledger(study.name).unlink(missing_ok=True)
            if home.bucket:
                BucketLedger(home.bucket, study.name).clear()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, study.to_yaml())
    if home.bucket:
        home.bucket.upload(f"ledgers/{study.name}/study.yaml", path)


def _has_started(home: Home, name: str) -> bool:
    """Whether a study got further than its plan; it did not if, for example, its cluster could not be reached."""
    return not (home.ledger(name).is_file() and set(read_ledger(home, name).counts()) <= {"planned"})


def changes(before: Study, after: Study) -> str:
    """The fields in which two studies differ, for a message."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    fields = [name for name in old if old[name] != new[name] and NOT_HASHED.get(name) is not True]
    return "changed: " + ", ".join(fields)
