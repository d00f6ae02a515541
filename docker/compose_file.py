"""Reads compose.yaml and the Dockerfile as data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")


def load(**variables: str) -> dict[str, Any]:
    """Returns compose.yaml, with each ``${NAME:-default}`` replaced by the given variable or its default."""
    text = VARIABLE.sub(lambda match: variables.get(match["name"], match["default"]), _read("compose.yaml"))
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def image_variables() -> dict[str, str]:
    """Returns the variables that the last stage of the Dockerfile sets with ENV."""
    last = _read("Dockerfile").rpartition("\nFROM ")[2].replace("\\\n", " ")
    lines = re.findall(r"^ENV (.*)$", last, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
