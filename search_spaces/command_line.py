"""The command line of a trainer: a template of words, without a shell.

A string is split into words as a shell would (``shlex``) before the values of a cell are put in, so that no value can
add a word; a list is taken as it is. ``{name}`` stands for a value of the cell or of its place; ``{{name}}`` is a
literal ``{name}``, and any other brace is literal as well.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from search_spaces.errors import bad
from search_spaces.factors import CurveKey

PLACEHOLDER = re.compile(r"\{\{(\w+(?:\.\w+)*)\}\}|\{([A-Za-z_]\w*(?:\.\w+)*)\}")
"""A literal ``{{name}}``, or a placeholder."""
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
PLACEHOLDERS: dict[str, str] = {
    "lr": "the cell's learning rate",
    "seed": "the cell's seed",
    "folder": "the cell's own folder, for checkpoints and logs",
    "workers": "`resources.workers`",
    "nodes": "`trainer.nodes`",
    "node_rank": "the rank of this node",
    "master_addr": "address of the node of rank 0",
    "master_port": "a port that was free on that node",
}
"""Placeholders that every command may use, besides the names of the study's factors."""
Text = str | tuple[str, ...]
"""A command as a string, which is split, or as words."""


def require_placeholder(name: str) -> str:
    """``name`` if it can be a factor of a command.

    Raises:
        PydanticCustomError: it is not an identifier, or has a meaning of its own.
    """
    if not IDENTIFIER.fullmatch(name):
        raise bad(f"has the factor {name!r}, which cannot be a placeholder", "use letters, digits, _ and dots")
    if name in PLACEHOLDERS:
        raise bad(f"has the factor {name}, which already means {PLACEHOLDERS[name]}", "give it another name")
    if name in CurveKey._fields:
        raise bad(f"has the factor {name}, which means something else in exclude", "give it another name")
    return name


def split(text: Text) -> tuple[str, ...]:
    """The words of a command."""
    return tuple(shlex.split(text)) if isinstance(text, str) else text


def placeholders(words: Iterable[str]) -> set[str]:
    """The names that the words ask for."""
    return {match[2] for word in words for match in PLACEHOLDER.finditer(word) if match[2]}


def substitute(words: Iterable[str], values: Mapping[str, object]) -> list[str]:
    """The words with a value for every placeholder. A float is written as Python does, with every digit; ``true``,
    ``false`` and ``0.9,0.95`` are how booleans and tuples are written."""
    return [
        PLACEHOLDER.sub(lambda match: f"{{{match[1]}}}" if match[1] else as_text(values[match[2]]), word)
        for word in words
    ]


def as_text(value: object) -> str:
    """How a value is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(as_text(item) for item in value)
    return str(value)
