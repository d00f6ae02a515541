"""Where a training script leaves its losses: one detector a stream, in the order in which they are preferred."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from search_spaces.script.source import Source, called, dotted, keyword, literal
from search_spaces.script.templates import call_pieces, names, pattern

Sources = tuple[Source, ...]
StreamKind = Literal["json lines", "csv", "trainer state", "tensorboard", "stdout", "wandb"]
STEP_KEYS = ("step", "iter", "iteration", "global_step", "steps", "it", "iter_num", "update", "_step", "epoch")
LOSS = re.compile(r"(?<![a-z])(loss|nll|bpb|cross_entropy|ce)(?![a-z])")
VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|eval|dev|held_out|heldout)(?![a-z])")
TEST = re.compile(r"(?<![a-z])test(?![a-z])")
PRINTERS = ("print", "info", "print0", "print_rank_0", "log", "write", "echo", "debug", "rank_zero_info")


@dataclass(frozen=True)
class Stream:
    """One stream of metrics.

    Attributes:
        where: the tail of its path in the output folder, or the regular expression over the standard output.
        val_loss: the name of the loss; that of training if the script computes no other.
        others: names of further metrics in it.
        line: where the script writes it.
    """

    kind: StreamKind
    where: str
    step: str | None
    val_loss: str | None
    others: tuple[str, ...] = ()
    line: str = ""
    in_folder: bool = True
    """Whether its file is in the output folder; a fixed path is shared by all runs."""
    switch: str | None = None
    """An option of the script without which this stream does not exist."""

    @property
    def is_validation(self) -> bool:
        return bool(self.val_loss and VALIDATION.search(self.val_loss.lower()))


def find_streams(sources: Sources) -> list[Stream]:
    """Every stream that the text shows; those with a validation loss first, then in the order of ``DETECTORS``."""
    found = [stream for detect in DETECTORS for stream in detect(sources)]
    return sorted(found, key=lambda stream: (not stream.is_validation, stream.val_loss is None))


def pick(keys: list[str]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The step, the loss and the others among the names of metrics."""
    step = next((key for name in STEP_KEYS for key in keys if key.lower() == name), None)
    losses = [key for key in keys if LOSS.search(key.lower())]
    loss = min(losses, key=lambda key: _preference(key.lower()), default=None)
    return step, loss, tuple(key for key in keys if key not in (step, loss))


def _preference(key: str) -> int:
    return 0 if VALIDATION.search(key) else 1 if TEST.search(key) else 2 if key == "loss" else 3


def _dictionaries(source: Source, *functions: str) -> Iterator[tuple[list[str], int]]:
    """The constant keys of a dictionary given to one of these functions, directly or through a variable."""
    named: dict[str, list[str]] = {}
    for node in source.walk(ast.Assign, ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and (keys := _keys(node.value)):
            named[target.id] = [*named.get(target.id, []), *keys]
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            key = literal(target.slice)
            if isinstance(key, str) and target.value.id in named:
                named[target.value.id].append(key)
    for node in source.walk(ast.Call):
        if called(node) in functions and node.args:
            for argument in node.args[:2]:
                keys = _keys(argument) or named.get(dotted(argument), [])
                if keys:
                    yield list(dict.fromkeys(keys)), node.lineno


def _keys(node: ast.expr | None) -> list[str]:
    """``["step", "loss"]`` for ``{"step": 1, "loss": 2}``, ``dict(step=1, loss=2)``, and unions of such."""
    if isinstance(node, ast.Dict):
        own = [value for key in node.keys if isinstance(value := literal(key), str)]
        return own + [
            key for name, value in zip(node.keys, node.values, strict=True) if name is None for key in _keys(value)
        ]
    if isinstance(node, ast.Call) and dotted(node.func) == "dict":
        return [given.arg for given in node.keywords if given.arg]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_keys(node.left), *_keys(node.right)]
    return []


def _file_names(source: Source, *suffixes: str) -> list[tuple[str, bool]]:
    """Constants that are names of files with one of these suffixes, and whether each is joined to a folder."""
    joined = {
        id(inner)
        for node in source.walk(ast.JoinedStr, ast.BinOp, ast.Call)
        if not isinstance(node, ast.Call) or called(node) in ("join", "joinpath")
        for inner in ast.walk(node)
    }
    found = []
    for node in source.walk(ast.Constant):
        if isinstance(node.value, str) and node.value.lower().endswith(suffixes) and " " not in node.value.strip():
            found.append((node.value.lstrip("/"), id(node) in joined))
    return sorted(found, key=lambda file: not file[1])


def _local_writers(source: Source, *functions: str) -> tuple[str, ...]:
    """Functions of the script that call one of ``functions``: what is given to them is what they write."""
    return tuple(
        node.name
        for node in source.walk(ast.FunctionDef)
        if any(isinstance(inner, ast.Call) and called(inner) in functions for inner in ast.walk(node))
        and node.name not in ("main", "train", "run", "evaluate")
    )


def _json_lines(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        files = [file for file in _file_names(source, ".jsonl", ".ndjson", ".json") if "config" not in file[0]]
        lines = [file for file in files if not file[0].endswith(".json")] or files
        writers = ("dumps", "dump", *_local_writers(source, "dumps", "dump"))
        for keys, line in _dictionaries(source, *writers) if lines else ():
            step, loss, others = pick(keys)
            if loss:
                name, in_folder = lines[0]
                yield Stream("json lines", name, step, loss, others, f"{source.path.name}:{line}", in_folder)


def _csv(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        files = _file_names(source, ".csv", ".tsv")
        rows = [
            ([value for part in node.elts if isinstance(value := literal(part), str)], node.lineno)
            for node in source.walk(ast.List, ast.Tuple)
        ]
        for keys, line in (row for row in rows if files and len(row[0]) > 1):
            step, loss, others = pick(keys)
            if step and loss:
                name, in_folder = files[0]
                yield Stream("csv", name, step, loss, others, f"{source.path.name}:{line}", in_folder)
        if not any(called(node) == "CSVLogger" for node in source.walk(ast.Call)):
            continue
        node = next(node for node in source.walk(ast.Call) if called(node) == "CSVLogger")
        logger_name, version = literal(keyword(node, "name")), literal(keyword(node, "version"))
        if logger_name is None and not keyword(node, "name"):
            logger_name = "lightning_logs"
        folder = "version_0" if version is None else f"version_{version}" if isinstance(version, int) else version
        where = "/".join(part for part in (logger_name, folder, "metrics.csv") if part)
        step, loss, others = pick(["step", *_logged(sources)])
        save_dir = node.args[0] if node.args else keyword(node, "save_dir")
        in_folder = save_dir is not None and literal(save_dir) is None
        yield Stream("csv", where, step, loss, others, f"{source.path.name}:{node.lineno}", in_folder)


def _logged(sources: Sources) -> list[str]:
    """Names that Lightning modules give to ``self.log`` and ``self.log_dict``."""
    keys: list[str] = []
    for source in sources:
        for node in source.walk(ast.Call):
            if dotted(node.func) in ("self.log", "self.log_dict") and node.args:
                value = literal(node.args[0])
                keys += [value] if isinstance(value, str) else _keys(node.args[0])
    return list(dict.fromkeys(keys))


def _trainer_state(sources: Sources) -> Iterator[Stream]:
    """transformers.Trainer and TRL's trainers keep their history in trainer_state.json."""
    imported = {name for source in sources for name in source.imports}
    if not any(re.fullmatch(r"(transformers|trl)(\.\w+)*\.\w*Trainer", name) for name in imported):
        return
    for source in sources:
        for node in source.walk(ast.Call):
            if called(node).endswith("Trainer") and (keyword(node, "args") or len(node.args) > 1):
                yield Stream(
                    "trainer state", "trainer_state.json", "step", "eval_loss", ("loss", "grad_norm"),
                    f"{source.path.name}:{node.lineno}",
                )  # fmt: skip
                return


def _tensorboard(sources: Sources) -> Iterator[Stream]:
    tags: list[str] = []
    line = ""
    for source in sources:
        for node in source.walk(ast.Call):
            if called(node) == "add_scalar" and node.args and isinstance(tag := literal(node.args[0]), str):
                tags.append(tag)
                line = line or f"{source.path.name}:{node.lineno}"
            elif called(node) == "TensorBoardLogger":
                tags += _logged(sources)
                line = line or f"{source.path.name}:{node.lineno}"
    _, loss, others = pick(list(dict.fromkeys(tags)))
    if line:
        yield Stream("tensorboard", "", None, loss, others, line)


def _stdout(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        for node in source.walk(ast.Call):
            if called(node) not in PRINTERS:
                continue
            pieces = call_pieces(node)
            if expression := pattern(pieces):
                named = names(pieces)
                loss = "val_loss" if "val_loss" in named else "train_loss"
                step = "step" if "(?P<step>" in expression else None
                yield Stream("stdout", expression, step, loss, (), f"{source.path.name}:{node.lineno}")


def _wandb(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        if not any(name == "wandb" for name in source.imports):
            continue
        for keys, line in _dictionaries(source, "log"):
            step, loss, others = pick(keys)
            if loss:
                yield Stream("wandb", "wandb", step, loss, others, f"{source.path.name}:{line}")


DETECTORS: tuple[Callable[[Sources], Iterator[Stream]], ...] = (
    _json_lines, _csv, _trainer_state, _tensorboard, _stdout, _wandb,
)  # fmt: skip
