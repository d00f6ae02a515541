"""The structure that ARCHITECTURE.md promises: which folders import which, and no circular imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainers", "dashboards", "service")
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
ALLOWED = {
    "search_spaces": {"search_spaces"},
    "trainers": {"trainers", "search_spaces"},
    "dashboards": {"dashboards", "search_spaces"},
    "service": set(PACKAGES),
}
RAY_FILE = "trainers.ray_worker"


def imports(path: Path) -> Iterator[str]:
    """Yields every module that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


def own_imports(module: str) -> set[str]:
    return {name for name in imports(FILES[module]) if name in FILES and name != module}


def check_order(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_no_two_files_import_each_other() -> None:
    assert len(FILES) > 100
    check_order({module: own_imports(module) for module in FILES})


def test_no_two_folders_of_service_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        folder = ".".join(module.split(".")[:2])
        if module.startswith("service."):
            found = {".".join(name.split(".")[:2]) for name in own_imports(module) if name.startswith("service.")}
            graph.setdefault(folder, set()).update(found - {folder})
    assert len(graph) >= 7
    check_order(graph)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module: str) -> None:
    package = module.partition(".")[0]
    found = {name.partition(".")[0] for name in imports(FILES[module])}
    assert found & set(PACKAGES) <= ALLOWED[package], f"{module} may only import {sorted(ALLOWED[package])}"
    if package in ("search_spaces", "dashboards"):
        assert not found & {"torch", "ray"}, f"{module} must not import torch or ray, which take seconds to import"
    if package == "trainers" and module != RAY_FILE:
        assert "ray" not in found, f"only {RAY_FILE} may import ray"
