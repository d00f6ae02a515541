"""The home: the folder that holds everything a set of studies knows.

::

    data/<key>/              token files of a study's text, made once
    data/<name>/             token files that ``oec data prepare`` made of another source
    studies/<name>/          study.yaml, ledger.jsonl, optuna.journal and mlflow.json (views), report/
    studies/<name>/stop/     requests of ``oec stop``
    studies/<name>/cells/<cell id>/   metrics.jsonl, and checkpoints while the cell is not done
    cells/<cell id>/         the same of a cell that ``oec train`` trained
    mlflow.db, mlflow/       MLflow's runs and artifacts by default (a view of the ledgers)
    ray/                     what Ray Tune and Ray Train write
    service/                 of ``oec serve``: tokens.json, audit.jsonl, ray.json; for this user alone
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service import storage
from service.ledger import Ledger
from trainers.files import write_atomically


@dataclass(frozen=True)
class Home:
    """Paths of a home; ``open`` makes one that can be written to."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Home:
        """A home at ``path``, or a ``file:`` URL, made if needed. Paths in it are absolute: Ray runs its processes
        elsewhere.

        Raises:
            InvalidInput: the folder can not be made or written to; see also ``storage.local``.
        """
        home = cls(storage.local(str(path)).expanduser().resolve())
        try:
            home.studies.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=home.path):
                pass
        except OSError as error:
            raise InvalidInput(
                "--home", str(path), f"is not writable ({error.strerror})", "choose a folder that is, or make it so"
            ) from error
        return home

    @property
    def studies(self) -> Path:
        return self.path / "studies"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    def metrics(self, cell_id: str, study: str | None = None) -> Path:
        """The rows of a cell, as ``trainers.rows`` reads them."""
        return self.cell(cell_id, study) / "metrics.jsonl"

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

    def study(self, name: str) -> Path:
        return self.studies / name

    def ledger(self, name: str) -> Path:
        return self.study(name) / "ledger.jsonl"

    def mlflow_runs(self, name: str) -> Path:
        """Which run of MLflow each cell of a study has, as last delivered."""
        return self.study(name) / "mlflow.json"

    def optuna(self, name: str) -> Path:
        return self.study(name) / "optuna.journal"

    def stop(self, name: str) -> Path:
        """Where ``oec stop`` leaves its requests."""
        return self.study(name) / "stop"

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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, study.to_yaml())

    def _untouched(self, name: str) -> bool:
        """Whether a study was planned here and never begun, as when its cluster was not to be had."""
        ledger = self.ledger(name)
        return ledger.is_file() and set(Ledger(ledger, name).counts()) <= {"planned"}


def changes(before: Study, after: Study) -> str:
    """The fields in which two studies differ, for a message."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    fields = [name for name in old if old[name] != new[name] and name not in ("description", "intervals", "resources")]
    return "changed: " + ", ".join(fields)
