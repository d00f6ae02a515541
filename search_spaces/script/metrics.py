"""Where a training script leaves its losses: one detector per stream, in order of preference."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from search_spaces.metrics_spec import OWN_FILES
from search_spaces.script.source import Source, Sources, called, calls, dotted, keyword, literal
from search_spaces.script.templates import call_pieces, names, pattern, pieces

StreamKind = Literal["file", "csv", "tensorboard", "stdout", "wandb"]
"""Names of fields of ``trainer.metrics``, and wandb, whose files nothing can read."""
STEP_KEYS = ("step", "iter", "iteration", "global_step", "steps", "it", "iter_num", "update", "_step", "epoch")
LOSS = re.compile(r"(?<![a-z])(loss|nll|bpb|cross_entropy|ce)(?![a-z])")
VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|eval|dev|held_out|heldout)(?![a-z])")
TEST = re.compile(r"(?<![a-z])test(?![a-z])")
WORTH_KEEPING = ("grad_norm", "param_norm", "weight_norm", "accuracy", "acc", "perplexity", "z_loss", "logit_max")
HF_EVALUATION = r"eval_loss\W+(?P<val_loss>[-+.\w]+)"
HF_TRAINING = r"\{\Wloss\W+(?P<train_loss>[-+.\w]+)"
PRINTERS = ("print", "info", "print0", "print_rank_0", "log", "write", "echo", "debug", "rank_zero_info")


@dataclass(frozen=True)
class Keys:
    """The names of metrics, by what they are."""

    step: str | None = None
    val_loss: str | None = None
    """That of the training loss if the script logs no other."""
    train_loss: str | None = None
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> Keys:
        """Tell names such as ``iter``, ``val/loss``, ``train/loss`` and ``grad_norm`` apart."""
        found = list(dict.fromkeys(names))
        step = next((key for name in STEP_KEYS for key in found if key.lower() == name), None)
        losses = sorted((key for key in found if LOSS.search(key.lower())), key=lambda key: _preference(key.lower()))
        train = next((key for key in losses[1:] if not is_validation(key) and not TEST.search(key.lower())), None)
        others = [key for key in found if key.lower().rpartition("/")[2] in WORTH_KEEPING]
        return cls(step, losses[0] if losses else None, train, tuple(others))


@dataclass(frozen=True)
class Stream:
    """One stream of metrics."""

    kind: StreamKind
    where: str
    """The tail of its path in the output folder; for stdout, the regular expression."""
    keys: Keys
    line: str
    """Where the script writes it: ``train.py:120``."""
    in_folder: bool = True
    """Whether its file is in the output folder; a fixed path is shared by all runs."""
    more: tuple[str, ...] = ()
    """For stdout, further regular expressions."""
    starts_late: bool = False
    """Whether the first evaluation comes after training has begun, as in Lightning and transformers."""
    words: tuple[str, ...] = ()
    """Options of the script without which this stream does not exist."""

    @property
    def has_validation(self) -> bool:
        return self.keys.val_loss is not None and is_validation(self.keys.val_loss)

    @property
    def folder(self) -> str:
        """Where the script writes: below a cell's folder if the name of its file is taken there."""
        return "{folder}/run" if self.where in OWN_FILES else "{folder}"

    def as_spec(self) -> dict[str, Any]:
        """``trainer.metrics`` of a study."""
        if self.kind == "stdout":
            return {"stdout": [self.where, *self.more] if self.more else self.where}
        names = {"step": self.keys.step, "val_loss": self.keys.val_loss, "train_loss": self.keys.train_loss}
        return {
            self.kind: f"{self.folder}/{self.where}".rstrip("/"),
            **{name: key for name, key in names.items() if key},
            **({"others": list(self.keys.others)} if self.keys.others else {}),
        }


def is_validation(key: str) -> bool:
    """Whether a name is that of a metric over other data than the training's."""
    return VALIDATION.search(key.lower()) is not None


def find_streams(sources: Sources) -> list[Stream]:
    """Every stream that the text shows; those with a validation loss first, then in the order of ``DETECTORS``."""
    found = [stream for detect in DETECTORS for stream in detect(sources) if stream.keys.val_loss]
    return sorted(found, key=lambda stream: not stream.has_validation)


def _preference(key: str) -> int:
    return 0 if is_validation(key) else 1 if TEST.search(key) else 2 if key == "loss" else 3


def _dictionaries(source: Source, *functions: str) -> Iterator[tuple[list[str], ast.Call]]:
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
    for _, node in calls((source,), *functions):
        for argument in node.args[:2]:
            if keys := _keys(argument) or named.get(dotted(argument), []):
                yield list(dict.fromkeys(keys)), node


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
        for keys, node in _dictionaries(source, *writers) if lines else ():
            if Keys.of(keys).val_loss:
                name, in_folder = lines[0]
                yield Stream("file", name, Keys.of(keys), source.line(node), in_folder)


def _csv(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        files = _file_names(source, ".csv", ".tsv")
        rows = [
            ([value for part in node.elts if isinstance(value := literal(part), str)], node)
            for node in source.walk(ast.List, ast.Tuple)
        ]
        for keys, node in (row for row in rows if files and len(row[0]) > 1):
            if Keys.of(keys).step and Keys.of(keys).val_loss:
                name, in_folder = files[0]
                yield Stream("csv", name, Keys.of(keys), source.line(node), in_folder)
        logger = next((node for _, node in calls((source,), "CSVLogger")), None)
        if logger is None:
            continue
        logger_name, version = literal(keyword(logger, "name")), literal(keyword(logger, "version"))
        if logger_name is None and not keyword(logger, "name"):
            logger_name = "lightning_logs"
        folder = "version_*" if version is None else f"version_{version}" if isinstance(version, int) else version
        where = "/".join(part for part in (logger_name, folder, "metrics.csv") if part)
        save_dir = logger.args[0] if logger.args else keyword(logger, "save_dir")
        in_folder = save_dir is not None and literal(save_dir) is None
        logged = Keys.of(["step", *_logged(sources)])
        yield Stream("csv", where, logged, source.line(logger), in_folder, starts_late=True)


def _logged(sources: Sources) -> list[str]:
    """Names that Lightning modules give to ``self.log`` and ``self.log_dict``."""
    keys: list[str] = []
    for source, node in calls(sources, "log", "log_dict"):
        if dotted(node.func) in ("self.log", "self.log_dict") and node.args:
            value = literal(node.args[0])
            keys += [value] if isinstance(value, str) else _keys(node.args[0]) or _of_stages(node.args[0], source)
    return list(dict.fromkeys(keys))


def _of_stages(name: ast.expr, source: Source) -> list[str]:
    """``val_loss`` and ``train_loss`` for ``f"{stage}_loss"`` in a file that has the texts "val" and "train"."""
    found = pieces(name)
    if len(found) != 2 or not isinstance(found[1], str):
        return []
    texts = {node.value for node in source.walk(ast.Constant) if isinstance(node.value, str)}
    return [f"{stage}{found[1]}" for stage in ("val", "valid", "validation", "eval", "train") if stage in texts]


def _lightning_cli(sources: Sources) -> Iterator[Stream]:
    """A LightningCLI takes its logger from the command line."""
    for source, node in calls(sources, "LightningCLI"):
        words = ("--trainer.logger CSVLogger", "--trainer.logger.save_dir {folder}")
        where, keys = "lightning_logs/version_*/metrics.csv", Keys.of(["step", *_logged(sources)])
        yield Stream("csv", where, keys, source.line(node), starts_late=True, words=words)


def _transformers(sources: Sources) -> Iterator[Stream]:
    """transformers.Trainer and TRL's trainers print a dictionary at every evaluation, whose values may be quoted."""
    imported = {name for source in sources for name in source.imports}
    if not any(re.fullmatch(r"(transformers|trl)(\.\w+)*\.\w*Trainer", name) for name in imported):
        return
    attributes = {node.attr for source in sources for node in source.walk(ast.Attribute)}
    words = [f"--{name}" for name in ("do_train", "do_eval") if name in attributes]
    given = {part.arg for _, node in calls(sources) for part in node.keywords}
    given |= {dotted(node.target) for source in sources for node in source.walk(ast.AnnAssign)}
    if not given & {"eval_strategy", "evaluation_strategy"}:
        words.append("--eval_strategy steps")
    for source, node in calls(sources):
        if called(node).endswith("Trainer") and (keyword(node, "args") or len(node.args) > 1):
            yield Stream(
                "stdout",
                HF_EVALUATION,
                Keys(val_loss="eval_loss", train_loss="loss"),
                source.line(node),
                more=(HF_TRAINING,),
                starts_late="eval_on_start" not in given,
                words=tuple(words),
            )
            return


def _tensorboard(sources: Sources) -> Iterator[Stream]:
    tags: list[str] = []
    line = ""
    for source, node in calls(sources, "add_scalar", "TensorBoardLogger"):
        if called(node) == "TensorBoardLogger":
            tags += _logged(sources)
        elif node.args and isinstance(tag := literal(node.args[0]), str):
            tags.append(tag)
        else:
            continue
        line = line or source.line(node)
    if line and Keys.of(tags).val_loss:
        yield Stream("tensorboard", "", replace(Keys.of(tags), step=None), line)


def _stdout(sources: Sources) -> Iterator[Stream]:
    for source, node in calls(sources, *PRINTERS):
        found = call_pieces(node)
        if dotted(node.func) != "self.log" and (expression := pattern(found)):
            loss = "val_loss" if "val_loss" in names(found) else "train_loss"
            step = "step" if "(?P<step>" in expression else None
            yield Stream("stdout", expression, Keys(step, loss), source.line(node))


def _wandb(sources: Sources) -> Iterator[Stream]:
    for source in sources:
        if not any(name == "wandb" for name in source.imports):
            continue
        for keys, node in _dictionaries(source, "log"):
            if Keys.of(keys).val_loss:
                yield Stream("wandb", "", Keys.of(keys), source.line(node))


DETECTORS: tuple[Callable[[Sources], Iterator[Stream]], ...] = (
    _json_lines, _csv, _lightning_cli, _transformers, _tensorboard, _stdout, _wandb,
)  # fmt: skip
