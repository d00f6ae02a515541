"""docs/operators.md: what it calls a view can be deleted, its backup restored, and the exit codes are those."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service import cli
from service.ledger import FORMAT
from tests.docs.blocks import blocks, section
from tests.docs.conftest import follow, oec
from tests.faults.invariants import agree, ledger_of, runs_of

VIEWS = ("mlflow.db", "mlflow", "studies/z-abs/report", "studies/z-abs/optuna.journal", "studies/z-abs/mlflow.json")
"""``delivered`` stays: it says of the deleted store that it has everything."""


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files(home: Path) -> set[str]:
    """Those of the study's report."""
    report = home / "studies" / "z-abs" / "report"
    return {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}


def test_views_are_made_anew_from_the_ledger(trained: Path, copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    for view in VIEWS:
        remove(home / view)
    oec(copy, home, "report", "z-abs")
    assert oec(copy, home, "sync", "z-abs") == "9 cells are in MLflow\n"
    agree(home, "z-abs")
    assert files(home) == files(trained)
    (parent,), children = runs_of(home, "z-abs")
    assert len(children) == 9
    assert parent.info.status == "FINISHED"


def test_a_backup_is_a_home(trained: Path, copy: Path, tmp_path: Path) -> None:
    """The same command trains nothing there, and makes the views."""
    archive, home = tmp_path / "backup.tar", tmp_path / "home"
    (script,) = blocks("operators.md", "sh")
    environment = {**os.environ, "OEC_HOME": str(trained), "BACKUP": str(archive)}
    subprocess.run(["sh", "-eu", "-c", script], env=environment, check=True)
    home.mkdir()
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", home], check=True)
    assert not [path for path in home.rglob("*") if path.name in ("delivered", "ledger.owner", "report.html")]
    assert "9 cells, 0 to train" in follow(copy, "oec run", home)
    assert ledger_of(home, "z-abs").path.read_bytes() == ledger_of(trained, "z-abs").path.read_bytes()
    agree(home, "z-abs")
    assert files(home) == files(trained)


def test_a_home_of_another_format_is_refused_by_name(trained: Path, copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    ledger = home / "studies" / "z-abs" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(f'"format":{FORMAT}', f'"format":{FORMAT + 1}', 1))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        oec(copy, home, "status", "z-abs")
    assert refused.value.returncode == cli.EXIT_BAD_INPUT
    assert f"format {FORMAT + 1} is not {FORMAT}" in refused.value.stderr


def test_exit_codes() -> None:
    documented = re.findall(r"^\| (\d+) \|", section("operators.md", "Monitoring"), re.MULTILINE)
    assert list(map(int, documented)) == [0, cli.EXIT_CRASHED, cli.EXIT_BAD_INPUT, cli.EXIT_INTERRUPTED]
