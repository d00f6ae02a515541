"""A study whose trainer is a Python object: a class with the methods of ``trainers.protocol.Trial``."""

from __future__ import annotations

import ast
from pathlib import Path

from search_spaces.script.draft import USUAL_LR, Draft, Found, Missing, inside, lr_grid, relative
from search_spaces.script.source import Sources, dotted, literal


def draft_trial(sources: Sources, directory: Path) -> Draft | None:
    """A draft for the first class of the file with ``setup(context)`` and ``train(cell, report, checkpoint)``; None
    if it has none."""
    for node in sources[0].walk(ast.ClassDef):
        methods = {part.name: len(part.args.args) for part in node.body if isinstance(part, ast.FunctionDef)}
        if methods.get("setup") == 2 and methods.get("train") == 4:
            return _draft(sources, node, directory)
    return None


def _draft(sources: Sources, trial: ast.ClassDef, directory: Path) -> Draft:
    module = relative(sources[0].path, directory).removesuffix(".py").replace("/", ".")
    identity = inside([source.path for source in sources], directory)
    factors = dict.fromkeys(
        name
        for node in ast.walk(trial)
        if isinstance(node, ast.Subscript) and dotted(node.value).endswith(".factors")
        if isinstance(name := literal(node.slice), str)
    )
    missing = [Missing(name, "the class reads this factor: give its values", blocks=True) for name in factors]
    if not any(isinstance(node, ast.Attribute) and node.attr == "lr" for node in ast.walk(trial)):
        missing.append(Missing("learning rate", "the class does not read cell.lr", blocks=True))
    missing.append(Missing("lrs", "the class does not say what its learning rate usually is: check the grid"))
    return Draft(
        directory=directory,
        trainer={"python": f"{module}:{trial.name}", "identity": identity},
        lrs=lr_grid(USUAL_LR),
        seeds=3,
        found=(
            Found("trainer", f"{module}:{trial.name}", "Python object"),
            *([Found("factors", ", ".join(factors))] if factors else []),
            Found("code", ", ".join(identity)),
        ),
        missing=tuple(missing),
        required_factors=tuple(factors),
    )
