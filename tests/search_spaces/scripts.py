"""Writes training scripts to a folder, and drafts studies from them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from search_spaces.script.command import draft_command
from search_spaces.script.draft import Draft
from search_spaces.script.source import read_script
from search_spaces.script.styles import style_of


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def draft(script: Path) -> Draft:
    sources = read_script(script, script.parent)
    style = style_of(sources)
    return draft_command(sources, style, style.read(sources), script.parent)
