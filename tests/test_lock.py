"""The lock files pin every dependency of pyproject.toml to an allowed version, by hash, and contain nothing else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"requirements.lock": ("buckets", "postgres"), "requirements-dev.lock": ("buckets", "dev", "postgres")}
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    found = {canonicalize_name(entry[1]): entry[2] for entry in ENTRY.finditer(text)}
    assert ENTRY.sub("", text).strip() == "", f"{name}: a line is not a pinned package with hashes"
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_satisfies_the_project(name: str) -> None:
    versions = locked(name)
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in LOCKS[name] for line in PROJECT["optional-dependencies"][extra]),
    ]
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            continue
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}: {name} has {version}, run `make lock`"
        for extra in requirement.extras:
            assert set(needed_by(requirement.name, extra)) <= set(versions), f"{line}: run `make lock`"


def needed_by(package: str, extra: str) -> Iterator[str]:
    """Yields the dependencies that an installed package has only with an extra."""
    for requirement in map(Requirement, requires(package) or ()):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_of_the_image(name: str) -> None:
    versions = locked(name)
    for line in (ROOT / "docker" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert pin.specifier.contains(versions[canonicalize_name(pin.name)]), line
