"""docker/compose.yaml as data, as Compose would read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "docker"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<rest>[^}]*)\}")


def load(**variables: str) -> dict[str, Any]:
    """The file with its ``${NAME:-default}`` and ``${NAME:?message}`` filled in.

    Raises:
        KeyError: a variable without a default is not among ``variables``.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        return variables.get(name, rest) if kind == ":-" else variables[name]

    text = VARIABLE.sub(value, (FOLDER / "compose.yaml").read_text())
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def image_variables() -> dict[str, str]:
    """What the ENV instructions of the Dockerfile's last stage set."""
    last = (FOLDER / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    lines = re.findall(r"^ENV (.*)$", last, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())
