"""The home: the folder that holds everything a set of studies knows.

::

    data/<key>/              token files of a study's text, made once
    data/<name>/             token files that ``oec data prepare`` made of another source
    studies/<name>/          study.yaml, ledger.jsonl, optuna.journal and mlflow.json (views), report/
    studies/<name>/analysis/ tables of what ``oec analyze`` found of kept weights
    studies/<name>/stop/     requests of ``oec stop``
    studies/<name>/cells/<cell id>/   metrics.jsonl; checkpoints while the cell is not done; weights where they are kept
    cells/<cell id>/         the same of a cell that ``oec train`` trained
    mlflow.db, mlflow/       MLflow's runs and artifacts by default (a view of the ledgers)
    ray/                     what Ray Tune and Ray Train write
    service/                 of ``oec serve``: tokens.json, audit.jsonl, ray.json; for this user alone

A home in a bucket has the same names, with its ledgers as ``service.home.bucket_ledger`` describes. Every machine
works in a folder of its own: the driver and readers keep there what they downloaded from the bucket, and workers, under
``work/``, what they are about to upload. Views (Optuna's journal, MLflow's own store) stay in the driver's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from search_spaces.cell import digest
from search_spaces.errors import InvalidInput
from search_spaces.study import HASHED_WITHOUT, NAME, Study
from service.home import shared_storage as storage
from service.home.bucket_ledger import Journal
from service.home.ledger import Ledger
from service.home.signals import InBucket, InFolder, Texts
from trainers.storage.bucket import Bucket, Mirror, at_once, is_bucket, refresh
from trainers.storage.files import write_atomically


@dataclass(frozen=True)
class Home:
    """Paths of a home; ``open`` makes one that can be written to."""

    path: Path
    bucket: Bucket | None = None
    """Where the home is, if ``path`` is but this machine's part of it."""

    @classmethod
    def open(cls, given: str | Path) -> Home:
        """A home at a path, or a ``file:`` URL, made if needed, or at the URL of a bucket, with its studies and their
        ledgers as they are there now. Paths in it are absolute: Ray runs its processes elsewhere.

        Raises:
            InvalidInput: the folder can not be made or written to, or the bucket can not be read; see also
                ``storage.local``.
        """
        if is_bucket(str(given)):
            home = cls._of(Bucket.open(str(given)))
            home.pull()
            return home
        return cls.folder(given)

    @classmethod
    def folder(cls, given: str | Path) -> Home:
        """As ``open``, for what a bucket can not be."""
        home = cls(storage.local(str(given)).expanduser().resolve())
        try:
            home.studies.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=home.path):
                pass
        except OSError as error:
            raise InvalidInput(
                "--home", str(given), f"is not writable ({error.strerror})", "choose a folder that is, or make it so"
            ) from error
        return home

    @classmethod
    def _of(cls, bucket: Bucket) -> Home:
        scratch = storage.scratch()
        home = cls(scratch / f"{bucket.url.rpartition('/')[2]}-{digest(bucket.url)[:12]}", bucket)
        home.studies.mkdir(parents=True, exist_ok=True)
        return home

    def __str__(self) -> str:
        return self.bucket.url if self.bucket else str(self.path)

    def pull(self, *names: str) -> None:
        """Bring the studies of a bucket and their ledgers, all of them or these; nothing where the home is a folder.

        A study that this machine is running is as new here as there.
        """
        if self.bucket:
            there = names or (self.bucket / "ledgers").folders()
            at_once(self._pull, (name for name in there if NAME.fullmatch(name) and ".." not in name))

    def _pull(self, name: str) -> None:
        assert self.bucket
        refresh(self.study(name) / "study.yaml", self.bucket, f"ledgers/{name}/study.yaml")
        self.study(name).mkdir(exist_ok=True)
        seen = self.ledger(name).read_bytes() if self.ledger(name).is_file() else b""
        content = Journal(self.bucket, name).content(seen)
        with self.ledger(name).open("a+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            file.seek(0)
            before = file.read()
            if not content.startswith(before):
                file.truncate(0)
                before = b""
            file.write(content[len(before) :])

    @property
    def studies(self) -> Path:
        return self.path / "studies"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    def metrics(self, cell_id: str, study: str | None = None) -> Path:
        """The rows of a cell, as ``trainers.rows`` reads them; see ``bring``."""
        return self.cell(cell_id, study) / "metrics.jsonl"

    def bring(self, cells: Iterable[tuple[str, str]]) -> None:
        """See that the metrics of these cells, each with its study, are here as they are in the bucket; nothing where
        the home is a folder."""
        if bucket := self.bucket:
            names = [f"studies/{study}/cells/{cell_id}/metrics.jsonl" for cell_id, study in cells]
            at_once(lambda name: refresh(self.path / name, bucket, name), names)

    @property
    def service(self) -> Path:
        """What the HTTP service keeps; made here, for this user alone."""
        path = self.path / "service"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    @property
    def micro_batches(self) -> Path:
        return self.path / "micro_batches.json"

    @property
    def verified(self) -> Path:
        return self.path / "data" / "verified.json"

    @property
    def tracking_uri(self) -> str:
        """``MLFLOW_TRACKING_URI``, or the home's own SQLite store."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path / 'mlflow.db'}"

    def cell(self, cell_id: str, study: str | None = None) -> Path:
        """The folder of a cell: each study trains in its own, so that two at once never write to one."""
        return (self.study(study) if study else self.path) / "cells" / cell_id

    def workplace(self, cell_id: str, study: str) -> Path:
        """Where a worker writes the cell: its folder, or one on the way to the bucket."""
        return self.path / "work" / study / cell_id if self.bucket else self.cell(cell_id, study)

    def mirror(self, folder: Path, of: Path | None = None, archive: str | None = None) -> Mirror | None:
        """A folder of this machine and what the home has of it in its bucket; None where the home is a folder.

        Args:
            of: the path in the home that it is the form of, if not ``folder``.
            archive: see ``Mirror``.
        """
        if not self.bucket:
            return None
        return Mirror(folder, self.bucket / (of or folder).relative_to(self.path).as_posix(), archive)

    def fetch(self, folder: Path, last: str) -> bool:
        """Bring a folder of which ``last`` is written last, and never again, from the bucket; whether it is here."""
        mirror = self.mirror(folder)
        return mirror is not None and mirror.fetch(last)

    def keep(self, folder: Path, last: str | None = None) -> None:
        """Put what is new in a folder into the bucket, too; nothing where the home is a folder.

        Args:
            last: a file of it that is written last, and never again: nothing is new once the bucket has it.
        """
        mirror = self.mirror(folder)
        if mirror and not (last and mirror.bucket.stamp(last)):
            mirror.push()

    def bring_below(self, folder: str, ending: str = "") -> None:
        """See that the files below a folder of the home whose names end so are here as they are in the bucket; nothing
        where the home is a folder."""
        if bucket := self.bucket:
            below = (
                name for name in (bucket / folder).names() if name.endswith(ending) and ".." not in name.split("/")
            )
            at_once(lambda name: refresh(self.path / name, bucket, name), [f"{folder}/{name}" for name in below])

    def files(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder of the home, by its name in the home.

        Raises:
            InvalidInput: the folder leads out of the home.
        """
        if self.bucket:
            return {f"{folder}/{name}": stamp.bytes for name, stamp in (self.bucket / folder).names().items()}
        root = self.path / folder
        if root.resolve() != root:  # the home itself is resolved
            problem = f"leads out of the home, to {root.resolve()}"
            raise InvalidInput("--home", str(root), problem, "remove the symbolic link, or choose another --home")
        paths = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in sorted(paths)}

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, as ``files`` names them, and the folders that they leave empty; a description before what it
        makes valid."""
        names = sorted(names)
        if self.bucket:
            self.bucket.remove(names)
        for path in (self.path / name for name in names):  # of a bucket, too, what was brought here
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def study(self, name: str) -> Path:
        return self.studies / name

    def ledger(self, name: str) -> Path:
        return self.study(name) / "ledger.jsonl"

    def mlflow_runs(self, name: str) -> Path:
        """Which run of MLflow each cell of a study has, as last delivered."""
        return self.study(name) / "mlflow.json"

    def optuna(self, name: str) -> Path:
        return self.study(name) / "optuna.journal"

    def journal(self, name: str) -> Journal | None:
        """The form of a ledger in a bucket; None where the home is a folder."""
        return Journal(self.bucket, name) if self.bucket else None

    def stops(self, name: str) -> Texts:
        """Where ``oec stop`` leaves its requests."""
        return self.texts(f"studies/{name}/stop")

    def texts(self, name: str) -> Texts:
        """Texts that every machine that sees the home sees."""
        return InBucket(self.bucket / name) if self.bucket else InFolder(self.path / name)

    def claimed(self) -> list[str]:
        """Names of the studies that have a file here, begun or not."""
        return sorted(path.parent.name for path in self.studies.glob("*/study.yaml"))

    def known(self) -> list[str]:
        """Names of the studies that have a ledger here."""
        return sorted(path.parent.name for path in self.studies.glob("*/ledger.jsonl"))

    def require(self, name: str) -> None:
        """
        Raises:
            InvalidInput: no study of this name has a ledger here.
        """
        if name not in (known := self.known()):
            here = ", ".join(known) or "none yet"
            raise InvalidInput("STUDY", name, "has no ledger in this home", f"studies here: {here}")

    def claim(self, study: Study) -> None:
        """Write the study's file, or check that the one there is the same study.

        Raises:
            InvalidInput: another study ran here under this name.
        """
        folder = self.study(study.name)
        if folder.resolve() != folder:  # the home itself is resolved
            problem = f"leads out of the home, to {folder.resolve()}"
            raise InvalidInput("name", study.name, problem, "remove the symbolic link, or choose another --home")
        path = folder / "study.yaml"
        if path.exists():
            before = Study.load(str(path))
            if before.hash != study.hash and not self._untouched(study.name):
                raise InvalidInput(
                    "name",
                    study.name,
                    f"is taken: a different study of this name ran in this home ({changes(before, study)})",
                    "give the changed study another name (equal cells are not trained again), or another --home",
                )
            if before.hash != study.hash:
                self.ledger(study.name).unlink(missing_ok=True)
                if journal := self.journal(study.name):
                    journal.forget()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, study.to_yaml())
        if self.bucket:
            self.bucket.upload(f"ledgers/{study.name}/study.yaml", path)

    def _untouched(self, name: str) -> bool:
        """Whether a study was planned here and never begun, as when its cluster was not to be had."""
        ledger = self.ledger(name)
        return ledger.is_file() and set(Ledger(ledger, name).counts()) <= {"planned"}


def changes(before: Study, after: Study) -> str:
    """The fields in which two studies differ, for a message."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    fields = [name for name in old if old[name] != new[name] and HASHED_WITHOUT.get(name) is not True]
    return "changed: " + ", ".join(fields)
