"""compose.yaml and the Dockerfile as data, as Compose and the image would have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")


def load(**variables: str) -> dict[str, Any]:
    """The file with its ``${NAME:-default}`` filled in."""
    text = VARIABLE.sub(lambda match: variables.get(match["name"], match["default"]), _read("compose.yaml"))
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def image_variables() -> dict[str, str]:
    """What the ENV instructions of the Dockerfile's last stage set."""
    last = _read("Dockerfile").rpartition("\nFROM ")[2].replace("\\\n", " ")
    lines = re.findall(r"^ENV (.*)$", last, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
