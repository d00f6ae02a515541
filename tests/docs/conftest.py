"""Makes a copy of the packages in which the tests follow docs/methods.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.docs.blocks import ROOT, blocks

ABOVE_FUNCTIONS = "def _functions("
END_OF_METHODS = "    )\n}\n"
END_OF_FORMULAS = "}\n\n\ndef formula("
COMMANDS = [line for block in blocks("methods.md", "console") for line in block.splitlines()]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies the packages and their tests, and adds the page's function, entry and study."""
    folder = tmp_path_factory.mktemp("method")
    for package in ("search_spaces", "trainers", "service", "dashboards", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    function, entry, formula = blocks("methods.md", "python")
    for file, block, place in (
        ("trainers/methods.py", f"{function}\n\n", ABOVE_FUNCTIONS),
        ("search_spaces/methods.py", indent(f"{entry.rstrip()},\n", " " * 8), END_OF_METHODS),
        ("tests/trainers/test_head.py", indent(formula, " " * 4), END_OF_FORMULAS),
    ):
        source = (folder / file).read_text()
        assert source.count(place) == 1, f"{file} has changed; update docs/methods.md to say where the block goes"
        (folder / file).write_text(source.replace(place, block + place))
    (study,) = blocks("methods.md", "yaml")
    (folder / "z-abs.yaml").write_text(study)
    return folder


def follow(copy: Path, start: str) -> str:
    """Runs the page's only command that begins with ``start`` in the copy, and returns its output."""
    (line,) = (line for line in COMMANDS if line.startswith(start))
    program, *arguments = line.split()
    command = ["-c", "from service.cli.commands import main; main()"] if program == "oec" else []
    environment = {**os.environ, "PYTHONPATH": str(copy), "OEC_HOME": str(copy / "home"), "COLUMNS": "200"}
    try:
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        error.add_note(f"{error.stdout}{error.stderr}")
        raise
    return done.stdout
