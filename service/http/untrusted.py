"""A study from a stranger's bytes: what may be in it, and where its data may lie."""

from __future__ import annotations

import glob
import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from search_spaces.errors import InvalidInput
from search_spaces.study import DataSpec, Study

LARGEST = 2**53
"""Of whole numbers: the largest that JSON's readers agree on."""


class Plain(yaml.SafeLoader):
    """YAML without aliases, by which a few bytes become a document that fills the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def study_of(body: bytes, media_type: str, data_root: Path) -> Study:
    """The study in a request: JSON where ``media_type`` says so, or else YAML. Its paths come out absolute.

    Raises:
        InvalidInput: it is no study, or reaches for data outside ``data_root``.
    """
    is_json = "json" in media_type
    try:
        text = body.decode()
        content = json.loads(text) if is_json else Plain(text).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if is_json else "YAML, or has aliases or tags of Python"
        raise InvalidInput("study", "(the request)", f"is no {kind}", "see GET /api/v1/schema for its form") from error
    if not isinstance(content, dict):
        raise InvalidInput("study", "(the request)", "is not a mapping of fields", "see GET /api/v1/schema")
    check_plain(content, "study")
    study = Study.validate_fields(content)
    return study.model_copy(update={"data": within(study.data, data_root)})


def check_plain(value: Any, field: str) -> None:
    """See that there is nothing but what JSON can say and what a file can hold.

    Raises:
        InvalidInput: a number that is no finite double, text that is no Unicode, a date, a set, bytes.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            check_plain(key, field)
            check_plain(inner, f"{field}.{key}" if field != "study" else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            check_plain(inner, f"{field}.{i}")
    elif isinstance(value, str):
        if any(not c.isprintable() and c not in "\n\t" for c in value):
            raise InvalidInput(field, ascii(value[:80]), "holds a character that can not be printed", "leave it out")
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise InvalidInput(field, f"a number of {value.bit_length()} bits", "is too large", "give at most 2^53")
    elif not isinstance(value, float):
        raise InvalidInput(field, type(value).__name__, "is no value of a study", "write it as text, in quotes")
    elif not math.isfinite(value):
        raise InvalidInput(field, str(value), "is no number", "give a finite number")


def within(data: DataSpec, root: Path) -> DataSpec:
    """``data`` with its paths below ``root``, absolute: they are read on other machines and from other folders.

    Raises:
        InvalidInput: a path leads elsewhere, or nothing is there.
    """
    found = {name: str(below(root, f"data.{name}", path)) for name, path in paths(data).items()}
    return data.model_copy(update=found)


def paths(data: DataSpec) -> dict[str, str]:
    return {name: path for name in ("path", "validation") if (path := getattr(data, name)) is not None}


def below(root: Path, field: str, path: str) -> Path:
    """``path``, a file, folder or glob, where it lies below ``root``.

    Links within ``root`` that lead out of it are those of its owner; nothing that comes over HTTP can make one.
    """
    root, inner = root.resolve(), Path(path)
    try:
        if inner.is_absolute():
            inner = inner.relative_to(root)
        fixed = root.joinpath(*takewhile(lambda part: not glob.has_magic(part), inner.parts))
        inside = ".." not in inner.parts and fixed.resolve().is_relative_to(root)
        there = inside and (fixed.exists() if fixed == root / inner else next(root.glob(str(inner)), None) is not None)
    except (ValueError, OSError, RuntimeError):  # another root, no pattern, too long a name, links in a circle
        there = False
    if not there:
        remedy = "give a path below the folder of data that this service was started with"
        raise InvalidInput(field, path, "is no data that this service may read", remedy)
    return root / inner
