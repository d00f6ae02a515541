"""Finds code blocks and tables in the Markdown files of docs/."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """Returns the code blocks of ``docs/<page>`` in one language, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [match["text"] for match in FENCE.finditer(text) if match["language"] == language]


def section(page: str, title: str) -> str:
    """Returns the text below a heading of ``docs/<page>``, up to the next heading of any level."""
    text = FENCE.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def rows(page: str, title: str) -> list[list[list[str]]]:
    """Returns the words in backticks of a section's tables, cell by cell; skips rows whose first cell has none."""
    lines = [line.strip("|").split("|") for line in section(page, title).splitlines() if line.startswith("|")]
    found = [[re.findall(r"`([^`]+)`", cell) for cell in line] for line in lines]
    return [row for row in found if row[0]]


def names(page: str, title: str) -> list[str]:
    """Returns the words in backticks in the first column of a section's tables."""
    return [name for row in rows(page, title) for name in row[0]]
