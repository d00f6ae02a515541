"""The layout of a home: the folder, or the prefix of a bucket, that holds everything a set of studies knows.

::

    data/<key>/                       token files of a study's text, made once
    data/<name>/                      token files that ``oec data prepare`` made of another source
    studies/<name>/                   study.yaml and ledger.jsonl; optuna.journal, mlflow.json and report/ are views
    reports/<name>/                   reports on sources that are not a single study of the home
    studies/<name>/analysis/          tables of ``oec analyze``
    studies/<name>/stop/              requests of ``oec stop``
    studies/<name>/cells/<cell id>/   metrics.jsonl; checkpoints until the cell ends; weights where they are kept
    cells/<cell id>/                  the same for a cell that ``oec train`` trained
    mlflow.db, mlflow/                MLflow's default runs and artifacts (a view of the ledgers)
    ray/                              what Ray Tune and Ray Train write
    service/                          of ``oec serve``: tokens.json, audit.jsonl, ray.json; readable by this user only

A home in a bucket has the same names; ``service.home.bucket_ledger`` describes its ledgers. Every machine works in a
local copy: the driver and readers keep there what they downloaded, workers, under ``work/``, what they are about to
upload. Views (Optuna's journal, MLflow's own store) stay in the driver's copy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trainers.storage.bucket import Bucket


@dataclass(frozen=True)
class Home:
    """Absolute paths of a home, because Ray runs processes elsewhere. See ``service.home.location.open_home``."""

    path: Path
    bucket: Bucket | None = None
    """Where the home is, if ``path`` is only this machine's copy."""

    def __str__(self) -> str:
        return self.bucket.url if self.bucket else str(self.path)

    @property
    def studies(self) -> Path:
        return self.path / "studies"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def micro_batches(self) -> Path:
        """The micro batch that fits each shape and device, remembered over studies."""
        return self.path / "micro_batches.json"

    @property
    def service(self) -> Path:
        """The HTTP service's own folder, created for this user alone."""
        path = self.path / "service"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def study(self, name: str) -> Path:
        return self.studies / name

    def report(self, title: str) -> Path:
        """The folder of a report on other sources. ``title`` may be any text; nothing in it leads out of the home."""
        return self.path / "reports" / (re.sub(r"[^\w.-]+", "-", title).lstrip(".") or "report")

    def ledger(self, name: str) -> Path:
        return self.study(name) / "ledger.jsonl"

    def cell(self, cell_id: str, study: str | None = None) -> Path:
        """The folder of a cell: each study trains in its own, so that two running studies never write to one."""
        return (self.study(study) if study else self.path) / "cells" / cell_id

    def metrics(self, cell_id: str, study: str | None = None) -> Path:
        """The rows of a cell, for ``trainers.rows``; in a bucket, see ``copies.download_metrics``."""
        return self.cell(cell_id, study) / "metrics.jsonl"

    def workplace(self, cell_id: str, study: str) -> Path:
        """Where a worker writes the cell: its folder, or one that is mirrored to the bucket."""
        return self.path / "work" / study / cell_id if self.bucket else self.cell(cell_id, study)
