"""The configuration of a Hydra application, read from its YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from search_spaces.script.argument import Argument
from search_spaces.script.help_text import overrides
from search_spaces.script.source import Sources, calls, dotted, keyword, literal


def _main(sources: Sources) -> tuple[Path, str] | None:
    """The folder and the name of the primary configuration, from ``@hydra.main(config_path=..., config_name=...)``."""
    for source, node in calls(sources, "main"):
        name, folder = literal(keyword(node, "config_name")), literal(keyword(node, "config_path"))
        if dotted(node.func) == "hydra.main" and isinstance(name, str):
            return source.path.parent / (folder or "."), name.removesuffix(".yaml")
    return None


def compose(sources: Sources) -> tuple[Argument, ...]:
    """Every value of the primary configuration and of the groups in its defaults list, as an override."""
    main = _main(sources)
    return tuple(overrides(_load(*main)[0], "")) if main else ()


def config_files(sources: Sources) -> tuple[Path, ...]:
    """The files that ``compose`` reads."""
    main = _main(sources)
    return tuple(_load(*main)[1]) if main else ()


def _load(folder: Path, name: str) -> tuple[dict[str, Any], list[Path]]:
    """A configuration with its defaults merged below it, and the files that it came from."""
    path = folder / f"{name}.yaml"
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}, []
    if not isinstance(own, dict):
        return {}, []
    merged: dict[str, Any] = {}
    files = [path]
    for entry in own.pop("defaults", []):
        for group, choice in entry.items() if isinstance(entry, dict) else [("", entry)]:
            group = str(group).removeprefix("override ").removeprefix("optional ").split("@")[0]
            if isinstance(choice, str) and choice != "_self_" and not group.startswith("hydra/"):
                values, more = _load(folder / group, choice)
                for part in reversed(group.split("/") if group else []):
                    values = {part: values}
                merged, files = _merge(merged, values), [*files, *more]
    own.pop("hydra", None)
    return _merge(merged, own), files


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
