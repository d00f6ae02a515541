"""One setting that a training script takes on its command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from search_spaces.frozen import Frozen

Separator = Literal[" ", "=", ""]
Kind = Literal["float", "int", "str", "bool", "unknown"]
KINDS: dict[str, Kind] = {
    "float": "float", "double": "float", "int": "int", "integer": "int", "str": "str", "text": "str", "string": "str",
    "bool": "bool", "boolean": "bool", "path": "str", "file": "str", "directory": "str", "filename": "str",
}  # fmt: skip
"""By the lowercase name of a type, in Python or in a help text."""


class Argument(Frozen):
    """An option, a positional argument, or a ``key=value`` override."""

    flag: str = Field(description="As written on the command line: --lr, optimizer.lr, or the name of a positional.")
    default: Any = Field(default=None, description="The script's own value; None if it has none or it is not known.")
    kind: Kind = Field(default="unknown")
    separator: Separator = Field(
        default=" ", description="What stands between the flag and the value; empty for a positional argument."
    )
    choices: tuple[Any, ...] = Field(default=())
    required: bool = Field(default=False, description="The script does not start without it.")
    is_switch: bool = Field(default=False, description="The flag takes no value.")

    @property
    def path(self) -> str:
        """The name with dots, as the script's code writes it: ``optimizer.weight_decay``."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def key(self) -> str:
        """The last part of the name, in lowercase: ``weight_decay``."""
        return self.path.rpartition(".")[2].lower()

    def with_value(self, value: str) -> str:
        """How to set it on the command line: ``--lr 0.1``, ``optimizer.lr=0.1``."""
        if self.is_switch:
            return self.flag
        return f"{self.flag}{self.separator}{value}" if self.separator else value


def kind_of(value: Any) -> Kind:
    """The kind of a default value."""
    return KINDS.get(type(value).__name__, "unknown")


def merge(from_text: Iterable[Argument], from_help: Iterable[Argument]) -> tuple[Argument, ...]:
    """What ``--help`` lists is what exists; the text adds defaults and kinds that ``--help`` does not show.

    Positional arguments are the text's: ``--help`` does not list them in a form that can be told from prose.
    """
    in_help = {argument.path: argument for argument in from_help}
    in_text = {argument.path: argument for argument in from_text}
    if not in_help:
        return tuple(in_text.values())
    merged = [argument for argument in in_text.values() if argument.separator == "" and not argument.is_switch]
    for path, shown in in_help.items():
        read = in_text.get(path)
        if read is None:
            merged.append(shown)
            continue
        default = shown.default if read.default is None else read.default
        kind = shown.kind if read.kind == "unknown" else read.kind
        update = {"flag": shown.flag, "default": default, "kind": kind, "is_switch": shown.is_switch}
        merged.append(read.model_copy(update=update))
    return tuple(merged)
