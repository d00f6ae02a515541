"""Parsing a study from an untrusted request: which values it may contain, and where its data may be."""

from __future__ import annotations

import glob
import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from search_spaces import study_yaml
from search_spaces.errors import InvalidInput
from search_spaces.study import Study

SCHEMA_REMEDY = "see GET /api/v1/schema"


class NoAliasLoader(study_yaml.Loader):
    """Loads YAML without aliases: with them, a few bytes can expand to a document that fills the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def parse_study(body: bytes, media_type: str, data_root: Path) -> Study:
    """The study in a request. Raises what ``parse_fields`` and ``validate_study`` raise."""
    return validate_study(parse_fields(body, media_type), data_root)


def parse_fields(body: bytes, media_type: str) -> dict[str, Any]:
    """Parse the fields in a request: JSON if ``media_type`` says so, otherwise YAML.

    Raises:
        InvalidInput: the body is neither, is not a mapping, or has a value that ``check_values`` refuses.
    """
    is_json = "json" in media_type
    try:
        text = body.decode()
        if is_json:
            content = json.loads(text, object_pairs_hook=_without_duplicates)
        else:
            content = NoAliasLoader(text).get_single_data()
        if isinstance(content, dict):
            check_values(content, "study")
    except study_yaml.DuplicateKey as error:
        raise InvalidInput("study", "(request body)", str(error.problem), "remove one of them") from error
    except InvalidInput:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if is_json else "YAML, or has aliases or Python tags"
        raise InvalidInput("study", "(request body)", f"is not valid {kind}", SCHEMA_REMEDY) from error
    if not isinstance(content, dict):
        raise InvalidInput("study", "(request body)", "is not a mapping of fields", SCHEMA_REMEDY)
    return content


def validate_study(content: dict[str, Any], data_root: Path) -> Study:
    """The study that the fields describe. Its data paths become absolute, because other machines read them from other
    working directories.

    Raises:
        InvalidInput: the fields are not a valid study, it has a trainer of its own, or a data path leads outside
            ``data_root``.
    """
    return confine_data(validate_fields(content), data_root)


def validate_fields(content: dict[str, Any]) -> Study:
    """The study that the fields describe, with the data paths that they give.

    Raises:
        InvalidInput: as ``validate_study``, except for the data paths.
    """
    check_trainer(content)
    return Study.validate_fields(content)


def confine_data(study: Study, data_root: Path) -> Study:
    """The study with absolute data paths; raises InvalidInput if one leads outside ``data_root``."""
    paths = {name: path for name in ("path", "validation") if (path := getattr(study.data, name)) is not None}
    resolved = {name: str(resolve(data_root, f"data.{name}", path)) for name, path in paths.items()}
    return study.model_copy(update={"data": study.data.model_copy(update=resolved)})


def check_trainer(content: dict[str, Any]) -> None:
    """Raise InvalidInput if there is a trainer. It must be called before the fields are validated: the service must
    neither run nor read what a request says."""
    if content.get("trainer") is not None:
        remedy = "start it with `oec run` or `oec submit`; this service shows it"
        raise InvalidInput("trainer", "(request body)", "is not taken by this service", remedy)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise study_yaml.DuplicateKey(problem=f"has the key {repeated!r} twice")
    return dict(pairs)


def check_values(value: Any, field: str) -> None:
    """Check that all values can be written as JSON and into a file.

    Raises:
        InvalidInput: there is a number that is not a finite double, unprintable text, a date, a set, or bytes.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            check_values(key, field)
            check_values(inner, f"{field}.{key}" if field != "study" else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            check_values(inner, f"{field}.{i}")
    elif isinstance(value, str):
        if any(not c.isprintable() and c not in "\n\t" for c in value):
            raise InvalidInput(field, ascii(value[:80]), "contains an unprintable character", "remove it")
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) > 2**53:  # JSON parsers agree on integers up to this one
            raise InvalidInput(field, f"a number of {value.bit_length()} bits", "is too large", "use at most 2^53")
    elif not isinstance(value, float):
        problem, remedy = "is not a type that a study may contain", "write the value as text, in quotes"
        raise InvalidInput(field, type(value).__name__, problem, remedy)
    elif not math.isfinite(value):
        raise InvalidInput(field, str(value), "is not a finite number", "use a finite number")


def resolve(root: Path, field: str, path: str) -> Path:
    """The absolute form of ``path``, a file, a folder or a glob pattern in ``root``.

    A fixed path must not leave ``root`` through a symbolic link. A glob may follow links that the owner of ``root`` has
    made there; no request can create one.

    Raises:
        InvalidInput: the path leads outside ``root``, or does not exist.
    """
    root, inner = root.resolve(), Path(path)
    try:
        if inner.is_absolute():
            inner = inner.relative_to(root)
        fixed = root.joinpath(*takewhile(lambda part: not glob.has_magic(part), inner.parts))
        inside = ".." not in inner.parts and fixed.resolve().is_relative_to(root)
        exists = inside and (fixed.exists() if fixed == root / inner else next(root.glob(str(inner)), None) is not None)
    except (ValueError, OSError, RuntimeError):  # another root, a bad pattern, a name that is too long, a loop of links
        exists = False
    if not exists:
        remedy = "use a path inside the data folder of this service (oec serve --data-root)"
        raise InvalidInput(field, path, "is not data that this service may read", remedy)
    return root / inner
