"""The command line imports only what a command needs: ``oec --help`` must respond in a fraction of a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
sys.argv = ["oec", *sys.argv[1:]]
from service.cli.commands import main
try:
    main()
finally:
    print("IMPORTED", *{name.partition(".")[0] for name in sys.modules})
"""
HEAVY = {"altair", "fastapi", "mlflow", "numpy", "optuna", "pandas", "ray", "scipy", "sklearn", "torch", "vl_convert"}
MEDIUM = {"pydantic", "pydantic_core", "rich", "yaml", "tabulate", "filelock"}


def imported(*arguments: str | Path) -> set[str]:
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.partition("IMPORTED")[2].split())


@pytest.mark.parametrize("arguments", [("--help",), ("report", "--help"), ("token", "add", "--help")])
def test_help_imports_no_package_but_click(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & (HEAVY | MEDIUM), "import the package in the handler that needs it"


def test_status_and_plan_import_no_slow_package(tmp_path: Path) -> None:
    assert not imported("status", "--home", tmp_path) & HEAVY
    assert imported("plan", "smoke", "--home", tmp_path) & HEAVY <= {"numpy"}, (
        "only numpy, which maps the token files, may be imported"
    )


def test_a_driver_starts_without_the_packages_of_reports() -> None:
    code = "import service.sweep.run, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY - {"numpy"}, "import the package where it is needed"


def test_importances_are_estimated_without_pandas() -> None:
    """scikit-learn imports pandas if it can, which would cost every report half a second. Afterwards it can be imported
    normally."""
    code = """
import sys
from dashboards.processes import import_without
import_without("dashboards.evaluators", ("pandas",))
assert "pandas" not in sys.modules
import pandas
"""
    subprocess.run([sys.executable, "-c", code], check=True)
