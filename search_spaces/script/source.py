"""The text of a training script and of the local modules that it imports. Nothing is executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search_spaces.errors import InvalidInput, reason

MAX_MODULES = 200
"""A script that imports more local modules than this is a whole project: only the first are read."""
OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class Source:
    """One file of Python."""

    path: Path
    text: str
    tree: ast.Module

    def walk(self, *kinds: type[ast.AST]) -> Iterator[Any]:
        """The nodes of these kinds, in the order of the text."""
        return (node for node in self._nodes if isinstance(node, kinds))

    @cached_property
    def _nodes(self) -> list[ast.AST]:
        return sorted(ast.walk(self.tree), key=lambda n: (getattr(n, "lineno", 0), getattr(n, "col_offset", 0)))

    @property
    def imports(self) -> set[str]:
        """Full names of what is imported: ``torch.nn`` and ``torch.nn.Linear`` for ``from torch.nn import Linear``."""
        names: set[str] = set()
        for node in self.walk(ast.Import, ast.ImportFrom):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif node.module:
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
        return names

    def line(self, node: ast.expr) -> str:
        """Where a node is: ``train.py:120``."""
        return f"{self.path.name}:{node.lineno}"


Sources = tuple[Source, ...]
"""A script, and after it the local modules that it imports."""


def calls(sources: Sources, *names: str) -> Iterator[tuple[Source, ast.Call]]:
    """Every call of the sources, or those of functions with these names, each with its source."""
    for source in sources:
        yield from ((source, node) for node in source.walk(ast.Call) if not names or called(node) in names)


def read_script(script: Path, directory: Path) -> Sources:
    """The script, then the local modules that it imports, directly or through each other, and files that it executes.

    Args:
        directory: the folder that the script is started in; modules are looked up beside the script, then here.

    Raises:
        InvalidInput: the script does not exist, or is not Python.
    """
    sources: dict[Path, Source] = {}
    waiting = [script.resolve()]
    while waiting and len(sources) < MAX_MODULES:
        path = waiting.pop(0)
        if path in sources:
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            sources[path] = Source(path, text, ast.parse(text, str(path)))
        except (OSError, ValueError, SyntaxError, RecursionError) as error:
            if not sources:  # a broken module that an optional import names does not stop the script either
                raise _unreadable(script, error) from error
            continue
        waiting += _local_files(sources[path], (script.resolve().parent, directory.resolve()))
    return tuple(sources.values())


def start_directory(sources: Sources, directory: Path) -> Path:
    """The folder to start the script in: its own if it is not below ``directory``, or if it executes a file that is
    beside it alone, as nanoGPT does."""
    own = sources[0].path.parent
    executed = [file for node in sources[0].walk(ast.Call) if (file := executed_file(node))]
    beside = any((own / file).is_file() and not (directory / file).is_file() for file in executed)
    return own if beside or not own.is_relative_to(directory.resolve()) else directory


def _unreadable(script: Path, error: Exception) -> InvalidInput:
    if isinstance(error, SyntaxError):
        return InvalidInput(
            "script",
            str(script),
            f"is not Python: line {error.lineno}: {error.msg}",
            "give the Python script that starts the training; for any other program, write the study by hand "
            "(docs/your-training.md)",
        )
    what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason(error)})"
    return InvalidInput("script", str(script), what, "give the path of a Python training script")


def _local_files(source: Source, roots: tuple[Path, ...]) -> list[Path]:
    """Files of local modules that a source imports, and files that it executes with ``exec(open(...).read())``."""
    found: list[Path] = []
    for node in source.walk(ast.Import, ast.ImportFrom, ast.Call):
        if isinstance(node, ast.Import):
            found += [path for alias in node.names for path in _module_files(alias.name.split("."), roots)]
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            package = source.path.parent
            for _ in range(node.level - 1):
                package = package.parent
            where = (package,) if node.level else roots
            found += _module_files(parts, where)
            found += [path for alias in node.names for path in _module_files([*parts, alias.name], where)]
        elif executed := executed_file(node):
            found += [root / executed for root in roots]
    return [path for path in dict.fromkeys(path.resolve() for path in found) if path.is_file()]


def _module_files(parts: list[str], roots: tuple[Path, ...]) -> list[Path]:
    """The file of a module in the first root that has it, with the ``__init__.py`` of its packages."""
    for root in roots:
        target = root.joinpath(*parts)
        file = next((f for f in (target.with_suffix(".py"), target / "__init__.py") if parts and f.is_file()), None)
        if file:
            packages = [root.joinpath(*parts[:n]) / "__init__.py" for n in range(1, len(parts))]
            return [*(package for package in packages if package.is_file()), file]
    return []


def executed_file(node: ast.Call) -> str | None:
    """``configurator.py`` for ``exec(open('configurator.py').read())``."""
    if not (isinstance(node.func, ast.Name) and node.func.id == "exec"):
        return None
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "open" and inner.args:
            value = literal(inner.args[0])
            return value if isinstance(value, str) else None
    return None


def literal(node: ast.AST | None) -> Any:
    """The value of a constant expression, arithmetic such as ``5 * 8`` included; None for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = literal(node.left), literal(node.right)
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            return None
        try:
            return OPERATIONS[type(node.op)](left, right)
        except ArithmeticError:
            return None
    try:
        return ast.literal_eval(node) if node else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def dotted(node: ast.AST | None) -> str:
    """``torch.distributed.init_process_group`` for that expression; empty for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else node.attr
    return ""


def called(node: ast.Call) -> str:
    """The last part of the name of what is called: ``add_argument``."""
    return dotted(node.func).rpartition(".")[2]


def keyword(node: ast.Call, name: str) -> ast.expr | None:
    """The expression given to a keyword."""
    return next((given.value for given in node.keywords if given.arg == name), None)
