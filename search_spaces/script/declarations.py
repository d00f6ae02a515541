"""Arguments that a script declares as dataclass fields or as the parameters of a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from search_spaces.script.argument import KINDS, Argument, Kind, Separator, kind_of
from search_spaces.script.source import Sources, called, dotted, keyword, literal

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Spelling:
    """How a library turns a Python name into a flag."""

    separator: Separator = " "
    dashes: bool = False
    """``--weight-decay`` for ``weight_decay``."""
    switches: bool = False
    """``--resume`` for ``resume: bool``, without a value."""

    def flag(self, name: str) -> str:
        return "--" + (name.replace("_", "-") if self.dashes else name)


def definitions(sources: Sources) -> dict[str, Definition]:
    """Classes and functions by name; the script's own go before those of its modules."""
    found: dict[str, Definition] = {}
    for source in sources:
        for node in source.walk(ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
            found.setdefault(node.name, node)
    return found


def declared(
    definition: Definition, known: dict[str, Definition], spelling: Spelling, prefix: str = "", depth: int = 0
) -> Iterator[Argument]:
    """The arguments of a dataclass (nested ones with a prefix: ``--optimizer.lr``) or of a function."""
    fields = _fields(definition, known) if isinstance(definition, ast.ClassDef) else _parameters(definition)
    for name, annotation, value in fields:
        annotation, option = _without_annotated(annotation)
        nested = known.get(dotted(annotation).rpartition(".")[2])
        if isinstance(nested, ast.ClassDef) and _is_config(nested) and depth < 4:
            yield from declared(nested, known, spelling, f"{prefix}{name}.", depth + 1)
            continue
        default, flags, required = _default(value, option)
        named = next((flag for flag in flags if flag.startswith("--")), None)
        flag = named or spelling.flag(prefix + name)
        kind = _kind(annotation)
        yield Argument(
            flag=flag,
            default=default,
            kind=kind_of(default) if kind == "unknown" else kind,
            separator=spelling.separator,
            choices=_choices(annotation),
            required=required,
            is_switch=spelling.switches and kind == "bool",
        )


def _is_config(definition: ast.ClassDef) -> bool:
    """Whether a class has annotated fields, as dataclasses, attrs, pydantic and NamedTuples do."""
    return any(isinstance(node, ast.AnnAssign) for node in definition.body)


def _fields(
    definition: ast.ClassDef, known: dict[str, Definition]
) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    for base in definition.bases:
        parent = known.get(dotted(base).rpartition(".")[2])
        if isinstance(parent, ast.ClassDef) and parent is not definition:
            yield from _fields(parent, known)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation, node.value


def _parameters(
    definition: ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    given = zip(
        [*positional, *arguments.kwonlyargs], [*defaults, *arguments.defaults, *arguments.kw_defaults], strict=True
    )
    for parameter, default in given:
        if parameter.arg not in ("self", "cls", "ctx"):
            yield parameter.arg, parameter.annotation, default


def _without_annotated(annotation: ast.expr | None) -> tuple[ast.expr | None, ast.Call | None]:
    """The type, and the call in it that describes the option, of ``Annotated[float, typer.Option("--lr")]``."""
    if isinstance(annotation, ast.Subscript) and dotted(annotation.value).endswith("Annotated"):
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return parts[0], next((part for part in parts[1:] if isinstance(part, ast.Call)), None)
    return annotation, None


def _default(value: ast.expr | None, option: ast.Call | None) -> tuple[Any, list[str], bool]:
    """The default, explicit flags, and whether a value is required."""
    flags = [text for node in (option.args if option else []) if isinstance(text := literal(node), str)]
    if isinstance(value, ast.Call) and called(value) in ("Option", "Argument"):  # typer's: the default comes first
        flags += [text for node in value.args[1:] if isinstance(text := literal(node), str)]
        first = value.args[0] if value.args else keyword(value, "default")
        return literal(first), flags, isinstance(first, ast.Constant) and first.value is ...
    if isinstance(value, ast.Call) and called(value) in ("field", "Field", "arg", "HfArg"):
        first = keyword(value, "default") or (value.args[0] if value.args and called(value) == "Field" else None)
        factory = keyword(value, "default_factory")
        made = factory.body if isinstance(factory, ast.Lambda) else None
        return literal(first or made), flags, first is None and factory is None
    return literal(value), flags, value is None


def _kind(annotation: ast.expr | None) -> Kind:
    """The kind of ``float``, ``float | None``, ``Optional[float]``; a postponed annotation is text."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return KINDS.get(annotation.value.lower(), "unknown")
    for node in ast.walk(annotation) if annotation else ():
        if isinstance(node, ast.Name | ast.Attribute) and (kind := KINDS.get(dotted(node).rpartition(".")[2].lower())):
            return kind
    return "unknown"


def _choices(annotation: ast.expr | None) -> tuple[Any, ...]:
    """The values of ``Literal["adamw", "muon"]``."""
    if isinstance(annotation, ast.Subscript) and dotted(annotation.value).endswith("Literal"):
        values = literal(annotation.slice)
        return values if isinstance(values, tuple) else (values,)
    return ()
