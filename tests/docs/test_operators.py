"""Checks docs/operators.md: views can be deleted, the backup can be restored, and the exit codes are correct."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.invariants import agree, ledger_of, runs_of
from service import exit_codes
from service.home.ledger import FORMAT
from tests.docs.blocks import blocks, section
from tests.service.oec import oec

VIEWS = ("mlflow.db", "mlflow", "studies/first/report", "studies/first/optuna.journal", "studies/first/mlflow.json")
"""``delivered`` is not deleted: it still says that the deleted store has every run."""


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files(home: Path) -> set[str]:
    """Lists the files of the study's report."""
    report = home / "studies" / "first" / "report"
    return {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}


def test_views_are_recreated_from_the_ledger(trained: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    for view in VIEWS:
        remove(home / view)
    assert oec("report", "first", home=home).returncode == 0
    assert oec("sync", "first", home=home).stdout.startswith("12 cells are in MLflow: ")
    agree(home, "first")
    assert files(home) == files(trained)
    (parent,), children = runs_of(home, "first")
    assert len(children) == 12
    assert parent.info.status == "FINISHED"


def test_a_backup_can_be_restored(trained: Path, first: Path, tmp_path: Path) -> None:
    """In the restored home, ``oec run`` trains nothing and recreates the views."""
    archive, home = tmp_path / "backup.tar", tmp_path / "home"
    (script,) = blocks("operators.md", "sh")
    environment = {**os.environ, "OEC_HOME": str(trained), "BACKUP": str(archive)}
    subprocess.run(["sh", "-eu", "-c", script], env=environment, check=True)
    home.mkdir()
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", home], check=True)
    assert not [path for path in home.rglob("*") if path.name in ("delivered", "ledger.owner", "report.html")]
    again = oec("run", first, home=home)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "12 cells, 0 to train" in again.stdout
    assert ledger_of(home, "first").path.read_bytes() == ledger_of(trained, "first").path.read_bytes()
    agree(home, "first")
    assert files(home) == files(trained)


def test_a_home_of_another_format_is_refused(trained: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    ledger = home / "studies" / "first" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(f'"format":{FORMAT}', f'"format":{FORMAT + 1}', 1))
    refused = oec("status", "first", home=home)
    assert refused.returncode == exit_codes.BAD_INPUT
    assert f"format {FORMAT + 1} is not {FORMAT}" in refused.stderr


def test_exit_codes() -> None:
    documented = re.findall(r"^\| (\d+) \|", section("operators.md", "Monitoring"), re.MULTILINE)
    assert list(map(int, documented)) == [0, exit_codes.CRASHED, exit_codes.BAD_INPUT, exit_codes.INTERRUPTED]
