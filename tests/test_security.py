"""A study file, a name or an address cannot reach outside of the home, write control characters to the terminal, or
reveal a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from tests.service.oec import invoked, oec

OUTSIDE = (
    "..",
    "../x",
    "a/../../x",
    "/tmp/x",
    "a/b",
    "a\x00b",
    "a\nb",
    "a\x1b[31m",
    "A",
    "",
    ".x",
    "x" * 64,
    "é",
    "a b",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_study_name_cannot_leave_the_home(name: str) -> None:
    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": name}
    with pytest.raises(InvalidInput, match=r"^name: "):
        Study.validate_fields(content)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("status", name) for name in ("../x", "/etc", "a/b", "..", "smoke\x1b[31m")),
        *((command, name) for command in ("stop", "sync", "report") for name in ("../x", "smoke\x1b[31m")),
    ],
)
def test_a_name_on_the_command_line_cannot_leave_the_home(command: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "ledger.jsonl").touch()
    done = invoked(command, name, home=tmp_path / "home")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "\x1b" not in done.stderr, "a control character was printed to the terminal"
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["ledger.jsonl"]


def test_a_cell_to_stop_cannot_be_a_path(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    study = Study.load("smoke")
    register_study(home, study)
    with Ledger(home.ledger("smoke"), "smoke", write=True):
        done = oec("stop", "smoke", "--cell", "../../../x", home=home.path)
    assert done.returncode == 2
    assert "is not a cell of smoke" in done.stderr
    assert not list(tmp_path.glob("**/x"))


def test_a_study_folder_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    (home.studies / "smoke").symlink_to(tmp_path / "elsewhere")
    done = oec("run", "smoke", home=home.path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "name: 'smoke' leads out of the home" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())


def test_mlflow_sends_no_telemetry() -> None:
    program = """
from service.cli.commands import main
main(["methods"], standalone_mode=False)
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled())
"""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run([sys.executable, "-c", program], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_a_password_reaches_no_output_and_no_file(tmp_path: Path) -> None:
    uri = "http://somebody:hunter2secret@127.0.0.1:9/"  # nothing listens on this port
    done = oec("run", "smoke", home=tmp_path / "home", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert "hunter2secret" not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter2secret" not in path.read_bytes(), path
