"""Arguments in what a script prints for ``--help`` (argparse, click, typer, tyro, absl, fire) or Hydra's ``--cfg``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from search_spaces.script.argument import KINDS, Argument, Separator, kind_of

OPTION_LINE = re.compile(r"^\s{0,8}(?:\*\s*)?(-[\w-].*)$")
FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w.-]*")
METAVAR = re.compile(r"\{[^}]*\}|[^\s,]+")
DEFAULT = re.compile(r"[\[(](?:default|Default)(?: is|:|=)\s*(.*?)[\])](?:\s|$|\[|\()|^\s*Default: (.+)$", re.MULTILINE)
BOX = str.maketrans(dict.fromkeys("│┃|╭╮╰╯─", " "))


def from_help(text: str, separator: Separator = " ") -> tuple[Argument, ...]:
    """Every option of a help text, with its default where the help shows one."""
    found: dict[str, Argument] = {}
    for head, rest in _entries(text):
        argument = _argument(head, rest, separator)
        if argument and argument.key not in ("help", "version", "helpfull"):
            found.setdefault(argument.path, argument)
    return tuple(found.values())


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Each option's line from its first dash on, and everything up to the next option."""
    head = ""
    rest: list[str] = []
    for line in text.splitlines():
        line = line.translate(BOX)
        option = OPTION_LINE.match(line)
        if option:
            if head:
                yield head, "\n".join([head, *rest])
            head, rest = option[1], []
        elif line.strip():
            rest.append(line)
    if head:
        yield head, "\n".join([head, *rest])


def _argument(head: str, entry: str, separator: Separator) -> Argument | None:
    """One option. Its spellings and metavar end at the column of the help: two spaces, or absl's colon."""
    spelled, *columns = re.split(r"\s{2,}|:\s", head.replace("[no]", ""))
    if columns and columns[0].strip("[]<> ").split("|")[0].lower() in KINDS:  # typer's column of types
        spelled += f" {columns[0]}"
    flags = [flag for flag in FLAG.findall(spelled) if not flag.startswith("--no-")]
    if not flags:
        return None
    metavar = METAVAR.search(FLAG.sub("", spelled).replace("/", " "))
    word = metavar[0].strip("[]<>") if metavar else ""
    long = [flag for flag in flags if flag.startswith("--")] or flags
    shown = DEFAULT.search(entry)
    default = _value((shown[1] or shown[2]) if shown else None)
    kind = KINDS.get(word.split("|")[0].lower(), "unknown")
    return Argument(
        flag=next((flag for flag in long if "_" in flag), max(long, key=len)),
        default=default,
        kind=kind_of(default) if kind == "unknown" else kind,
        choices=tuple(word.strip("{}").split(",")) if word.startswith("{") else (),
        separator=separator,
        required="[required]" in entry or "(required)" in entry,
        is_switch=not word and separator == " ",
    )


def _value(text: str | None) -> Any:
    """``0.1`` for "0.1"; None for "None" and for what is not shown."""
    text = (text or "").split(";")[0].strip().strip("'\"`")
    if text in ("", "None", "null", "required"):
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return {"True": True, "False": False}.get(text, text)


def from_config(text: str) -> tuple[Argument, ...]:
    """The overrides of a Hydra application, from its composed configuration in YAML (``--cfg job``)."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return ()
    return tuple(overrides(config, "")) if isinstance(config, dict) else ()


def overrides(config: dict[Any, Any], prefix: str) -> Iterator[Argument]:
    """Every leaf of a configuration, with dots in its name."""
    for name, value in config.items():
        flag = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from overrides(value, f"{flag}.")
            continue
        if isinstance(value, str):
            value = _value(value)  # YAML 1.1 reads 3e-4 as text
        missing = value == "???"
        yield Argument(
            flag=flag, default=None if missing else value, kind=kind_of(value), separator="=", required=missing
        )
