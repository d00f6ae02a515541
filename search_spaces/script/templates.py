r"""From the text that a script prints to the regular expression that reads it back.

``print(f"step {i}: val loss {loss:.4f}")`` becomes ``step (?P<step>\d+): val loss (?P<val_loss>[-+.\w]+)``.
"""

from __future__ import annotations

import ast
import re
import string
from dataclasses import dataclass

from search_spaces.script.source import called, literal

PERCENT = re.compile(r"%[-+ #0]*(\d*)(?:\.\d+)?[diouxXeEfFgGcrsa]")
WIDTH = re.compile(r"^(?:.?[<>=^])?[-+ ]?#?0?[1-9]")
STEP_WORDS = ("step", "steps", "iter", "iteration", "it", "update")
VALIDATION_WORDS = ("val", "valid", "validation", "eval", "dev", "test", "held")
PLAIN = "_,:;/%<>=-\"'# "
"""Punctuation that means nothing in a regular expression."""


@dataclass(frozen=True)
class Value:
    """A value inserted into a text; blanks may precede it if it is padded to a width."""

    padded: bool = False


Pieces = list[str | Value]


def pieces(node: ast.expr) -> Pieces:
    """The text and the values of an f-string, ``"...".format()``, ``"..." % x``, a sum of such, or a constant."""
    if isinstance(node, ast.JoinedStr):
        return [_of_f_string(part) for part in node.values]
    if isinstance(node, ast.Call) and called(node) == "format" and isinstance(node.func, ast.Attribute):
        template = literal(node.func.value)
        return _of_format(template) if isinstance(template, str) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        template = literal(node.left)
        return _of_percent(template) if isinstance(template, str) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*pieces(node.left), *pieces(node.right)]
    value = literal(node)
    return [value] if isinstance(value, str) else [Value()]


def _of_f_string(part: ast.expr) -> str | Value:
    if isinstance(part, ast.Constant):
        return str(part.value)
    spec = pieces(part.format_spec) if isinstance(part, ast.FormattedValue) and part.format_spec else [""]
    return Value(padded=WIDTH.match(str(spec[0])) is not None if spec else False)


def _of_format(template: str) -> Pieces:
    found: Pieces = []
    try:
        for text, name, spec, _ in string.Formatter().parse(template):
            found += [text] if name is None else [text, Value(WIDTH.match(spec or "") is not None)]
    except ValueError:
        return []  # not a format after all
    return found


def _of_percent(template: str) -> Pieces:
    found: Pieces = []
    end = 0
    for match in PERCENT.finditer(template):
        found += [template[end : match.start()], Value(padded=bool(match[1]))]
        end = match.end()
    return [*found, template[end:]]


def call_pieces(node: ast.Call) -> Pieces:
    """What ``print(...)`` writes: its arguments, separated by spaces."""
    template = literal(node.args[0]) if called(node) in ("info", "debug", "warning") and len(node.args) > 1 else None
    if isinstance(template, str):
        return _of_percent(template)  # logging inserts its further arguments into the first
    joined: Pieces = []
    for argument in node.args:
        joined += [*([" "] if joined else []), *pieces(argument)]
    return joined


def names(found: Pieces) -> list[str]:
    """A name for each inserted value, from the words before it: ``val_loss`` for ``val loss {}``."""
    named: list[str] = []
    before = ""
    for piece in found:
        if isinstance(piece, str):
            before += piece
            continue
        words = [word.lower() for word in re.findall(r"[A-Za-z]+", before)[-4:]]
        before = ""
        last = words[-1] if words else ""
        if last in ("loss", "nll", "bpb"):
            named.append("val_loss" if any(word in VALIDATION_WORDS for word in words[:-1]) else "train_loss")
        elif last in STEP_WORDS:
            named.append("step")
        else:
            named.append(last)
    return named


def pattern(found: Pieces) -> str | None:
    """The regular expression with the groups ``step`` and ``val_loss``; None for a text without a loss.

    ``val_loss`` stands for the training loss if the text has no other, and an epoch for a step. The expression ends
    after the last of the groups.
    """
    named = names(found)
    loss = "val_loss" if "val_loss" in named else "train_loss"
    step = "step" if "step" in named else "epoch"
    if loss not in named:
        return None
    groups = {step: "step", loss: "val_loss"} if step in named else {loss: "val_loss"}
    built: list[str] = []
    values = iter(named)
    for piece in found:
        if isinstance(piece, str):
            built.append("".join(_escape(char) for char in piece))
            continue
        group = groups.pop(next(values), None)
        inside = r"\d+" if group == "step" else r"[-+.\w]+"
        built.append((r"\s*" if piece.padded else "") + (f"(?P<{group}>{inside})" if group else r"\S+"))
        if not groups:
            break
    return re.sub(r"^(\\[nrt]|\s)+", "", "".join(built))


def _escape(char: str) -> str:
    r"""One character; a tab and a newline as ``\t`` and ``\n``."""
    if char in "\t\n\r":
        return repr(char)[1:-1]
    return char if char.isalnum() or char in PLAIN else f"\\{char}"
