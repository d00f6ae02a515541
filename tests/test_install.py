"""An installed copy of the packages, as created by ``pip install``, instead of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from search_spaces.shipped import SHIPPED
from tests.conftest import another_project

ROOT = Path(__file__).parents[1]
PACKAGES = {"search_spaces", "trainers", "service", "dashboards"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates a virtual environment with a copy of the packages; their dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder)
    install = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run(install, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
def test_it_installs_the_four_packages_and_their_data_only(environment: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    folders = {path.name for path in site.iterdir() if path.is_dir()}
    installed = {name for name in folders if not name.endswith(".dist-info")} - {"__pycache__"}
    assert (site / "oec_sensitivity.py").is_file()
    assert installed == PACKAGES, "a folder such as tests would be importable as `tests` in every user's environment"
    assert {path.name for path in (site / "search_spaces" / "studies").iterdir()} == {
        path.name for path in SHIPPED.iterdir()
    }
    assert (site / "dashboards" / "report.html.j2").is_file()
    assert (site / "service" / "http" / "page" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("on_path", [False, True], ids=["where a study starts", "in PYTHONPATH"])
def test_packages_of_the_same_names_do_not_replace_ours(environment: Path, tmp_path: Path, on_path: bool) -> None:
    here = another_project(tmp_path / "repository")
    command = [str(environment / "bin" / "oec"), "run", "one.yaml", "--home", str(tmp_path / "home")]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PYTHONPATH": str(here)} if on_path else {}
    done = subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 cells" in done.stdout
