"""The packages never read data in a way that can run code: homes, checkpoints and study files may come from anyone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("search_spaces", "trainers", "service", "dashboards") for path in ROOT.glob(f"{name}/**/*.py")
)
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "eval", "exec"}


def code_readers(source: str) -> list[tuple[int, str]]:
    """Returns line and name of every import and call in ``source`` that can run code while it reads data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]} & MODULES
        elif isinstance(node, ast.Call):
            names = {ast.unparse(node.func)} & CALLS
        else:
            continue
        found += [(node.lineno, name) for name in names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_reader(path: Path) -> None:
    found = code_readers(path.read_text())
    assert not found, f"{path.name} uses {found}: read JSON, YAML by safe_load, safetensors or raw arrays"


@pytest.mark.parametrize("module", sorted(MODULES))
@pytest.mark.parametrize("statement", ["import {}", "import {}.a as b", "from {} import load", "from {}.a import b"])
def test_an_import_of_an_unsafe_reader_is_found(statement: str, module: str) -> None:
    assert code_readers(f"x = 1\n{statement.format(module)}\n") == [(2, module)]


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_of_an_unsafe_reader_is_found(call: str) -> None:
    assert code_readers(f"def read(path):\n    return {call}(path)\n") == [(2, call)]


def test_safe_readers_and_all_packages_are_covered() -> None:
    assert code_readers("import json\nyaml.safe_load(x)\nmodel.eval()\nsafetensors.torch.load_file(x)\n") == []
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {
        "search_spaces",
        "trainers",
        "service",
        "dashboards",
    }
