"""What a study for a training script says, and what is missing, as far as the script's text and --help tell."""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from search_spaces.script import roles
from search_spaces.script.argument import Argument
from search_spaces.script.metrics import Stream, find_streams
from search_spaces.script.source import Source, called, dotted, literal
from search_spaces.script.styles import Style

Sources = tuple[Source, ...]
GRID = (0.1, 1 / 3, 1.0, 3.0, 10.0)
"""Learning rates to try, as multiples of the script's own."""
USUAL_LR = 1e-3
"""The middle of the grid for a script whose own learning rate is not known: AdamW's usual one."""
CHECKPOINT = re.compile(r"/?[\w.-]+\.(pt|pth|pth\.tar|ckpt|pkl|npz|msgpack|safetensors)")
LOG = re.compile(r"[\w.-]+\.(jsonl|ndjson|csv|tsv)")
INPUTS = ("load", "pretrained", "init", "input", "data", "tokenizer", "teacher")
"""Parts of the names of arguments whose files the script reads and does not write."""
FLOORS = ("min_lr", "lr_min", "min_learning_rate", "final_lr", "end_lr", "eta_min")
HYDRA_FOLDER = Argument(flag="hydra.run.dir", kind="str", separator="=")


class Missing(NamedTuple):
    """Something that a person has to decide or add."""

    what: str
    how: str
    blocks: bool
    """Whether the study cannot run without it."""


@dataclass(frozen=True)
class Findings:
    """What is known about a script; paths are relative to ``directory``, the folder that it is started in."""

    script: str
    directory: Path
    style: str
    arguments: tuple[Argument, ...]
    learning_rates: tuple[Argument, ...]
    """All arguments that are called a learning rate; the first is the one to sweep."""
    seed: Argument | None
    folder: Argument | None
    steps: Argument | None
    files: tuple[Argument, ...]
    """Arguments whose defaults are files that the script writes: they move to the folder of the run."""
    resume: str | None
    launcher: str
    stream: Stream | None
    identity: tuple[str, ...]
    factors: tuple[tuple[Argument, tuple[Any, ...]], ...]
    missing: tuple[Missing, ...]

    @property
    def required(self) -> tuple[Argument, ...]:
        """Arguments that the script requires and that a study does not set by itself."""
        own = (*self.learning_rates[:1], self.seed, self.folder)
        return tuple(argument for argument in self.arguments if argument.required and argument not in own)

    @property
    def command(self) -> str:
        """The command with its placeholders."""
        words = [self.launcher, self.script]
        words += [argument.with_value(f"{{{argument.key}}}") for argument in self.required]
        for argument, value in ((next(iter(self.learning_rates), None), "{lr}"), (self.seed, "{seed}")):
            words += [argument.with_value(value)] if argument else []
        words += [self.folder.with_value("{folder}")] if self.folder else []
        words += [argument.with_value(f"{{folder}}/{argument.default}") for argument in self.files]
        if self.stream and self.stream.switch:
            words.append(self.stream.switch)
        return " ".join(words)

    @property
    def lrs(self) -> tuple[float, ...]:
        """The grid around the script's own learning rate."""
        own = self.learning_rates[0].default if self.learning_rates else None
        return lr_grid(own if isinstance(own, int | float) and own > 0 else USUAL_LR)


def lr_grid(center: float) -> tuple[float, ...]:
    """Five learning rates, factors of about 3 apart, with one or two digits: 6e-5, 2e-4, 6e-4, 2e-3, 6e-3 for 6e-4."""
    return tuple(float(center) if factor == 1 else _rounded(center * factor) for factor in GRID)


def _rounded(value: float) -> float:
    digits = 1 if value / 10 ** math.floor(math.log10(value)) >= 1.75 else 2
    return float(f"{value:.{digits - 1}e}")


def find(sources: Sources, style: Style, arguments: tuple[Argument, ...], directory: Path) -> Findings:
    """
    Args:
        arguments: what the script takes, from its text and its ``--help``.
        directory: the folder that the script is started in.
    """
    folder = next(iter(roles.FOLDER.find(arguments)), HYDRA_FOLDER if style.name == "Hydra" else None)
    outputs = tuple(argument for argument in arguments if _is_output(argument))
    stream = _choose_stream(find_streams(sources), folder, outputs)
    resume, resume_hint = _resume(sources, arguments, outputs)
    code = [*(source.path for source in sources), *style.files(sources)]
    found = Findings(
        script=_relative(sources[0].path, directory),
        directory=directory,
        style=style.name,
        arguments=arguments,
        learning_rates=tuple(roles.LEARNING_RATE.find(arguments)),
        seed=next(iter(roles.SEED.find(arguments)), None),
        folder=folder,
        steps=next(iter(roles.STEPS.find(arguments)), None),
        files=outputs,
        resume=resume,
        launcher=_launcher(sources),
        stream=stream,
        identity=tuple(dict.fromkeys(_relative(path, directory) for path in code)),
        factors=tuple(_factors(arguments)),
        missing=(),
    )
    missing = [*_missing(found), *([resume_hint] if resume_hint else [])]
    return Findings(**{**vars(found), "missing": tuple(missing)})


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()


def _launcher(sources: Sources) -> str:
    """torchrun for a script that reads the rank that torchrun gives it; not for one that starts its ranks itself."""
    constants = {node.value for source in sources for node in source.walk(ast.Constant) if isinstance(node.value, str)}
    calls = {dotted(node.func) for source in sources for node in source.walk(ast.Call)}
    spawns = any(name.endswith(("mp.spawn", "multiprocessing.spawn", "start_processes")) for name in calls)
    if not spawns and constants & {"RANK", "LOCAL_RANK"}:
        return "torchrun --standalone --nproc-per-node {workers}"
    return "python"


def _is_output(argument: Argument) -> bool:
    """Whether the script writes to the file that an argument names: a checkpoint or a log, not in a folder."""
    name = argument.default
    if not isinstance(name, str) or any(part in argument.key for part in INPUTS):
        return False
    return CHECKPOINT.fullmatch(name) is not None or LOG.fullmatch(name) is not None


def _choose_stream(streams: list[Stream], folder: Argument | None, outputs: tuple[Argument, ...]) -> Stream | None:
    """The best stream that is a run's own: printed, or in a file that the study can put into the run's folder."""
    named = {argument.default for argument in outputs}
    for stream in streams:
        if stream.kind == "stdout" or stream.where in named or (folder and stream.in_folder):
            return stream
    return None


def _resume(
    sources: Sources, arguments: tuple[Argument, ...], outputs: tuple[Argument, ...]
) -> tuple[str | None, Missing | None]:
    """What to add to the command of a cell that was interrupted, or how a person finds out."""
    compared = _compared_with(sources, "resume")
    for argument in roles.RESUME.find(arguments):
        if argument.is_switch:
            return argument.flag, None
        if "resume" in argument.choices or argument.key in compared:
            return argument.with_value("resume"), None
        if argument.kind == "bool":
            return argument.with_value("True"), None
        if argument in outputs:  # a snapshot that the script loads if it exists
            return "", None
        if "resume" in argument.key or argument.key in ("ckpt_path", "snapshot_path"):
            file = next(_checkpoint_names(sources), "CHECKPOINT")
            option = argument.with_value(f"{{folder}}/{file}")
            how = f"an interrupted run starts again from step 0; to resume, set trainer.resume, e.g. {option}"
            return None, Missing("resume", how, False)
    if any(called(node) == "get_last_checkpoint" for source in sources for node in source.walk(ast.Call)):
        return "", None
    return None, Missing(
        "resume", "the script has no option for it: an interrupted run starts again from step 0", False
    )


def _compared_with(sources: Sources, value: str) -> set[str]:
    """Names that the script compares with a text: ``init_from`` for ``if args.init_from == "resume"``."""
    return {
        dotted(node.left).rpartition(".")[2].lower()
        for source in sources
        for node in source.walk(ast.Compare)
        if literal(node.comparators[0]) == value
    }


def _checkpoint_names(sources: Sources) -> Iterator[str]:
    for source in sources:
        for node in source.walk(ast.Constant):
            if isinstance(node.value, str) and re.fullmatch(
                r"/?[\w.-]+\.(pt|pth|ckpt|pkl|msgpack|safetensors)", node.value
            ):
                yield node.value.lstrip("/")


def _factors(arguments: tuple[Argument, ...]) -> Iterator[tuple[Argument, tuple[Any, ...]]]:
    """Arguments that are worth a try as factors, with values."""
    for suggestion in roles.SUGGESTIONS:
        for argument in suggestion.role.find(arguments)[:1]:
            values = argument.choices or suggestion.around(argument.default)
            if len(values) > 1:
                yield argument, values[:3]


def _missing(found: Findings) -> Iterator[Missing]:
    for argument in found.required:
        yield Missing(argument.key, f"the script requires it: replace {{{argument.key}}} in the command", True)
    if not found.learning_rates:
        how = "no argument looks like one: put {lr} in the command where the script takes it"
        if found.style == "no command line":
            how = (
                "the script takes no arguments: read the learning rate from one, or from an environment variable "
                "(command: env LR={lr} ...)"
            )
        yield Missing("learning rate", how, True)
    elif not isinstance(found.learning_rates[0].default, int | float):
        yield Missing("lrs", "the script's own learning rate is not known: check the grid", False)
    for argument in found.arguments:
        if argument.key in FLOORS and argument.default:
            how = f"it stays at {argument.default} while the learning rate varies"
            yield Missing(argument.key, how, False)
    if found.stream is None:
        how = (
            "no file of metrics and no printed loss was recognized: give trainer.metrics a file or a regular "
            "expression (docs/your-training.md)"
        )
        yield Missing("metrics", how, True)
    elif not found.stream.is_validation:
        yield Missing("validation loss", "the study reads the training loss; check trainer.metrics.val_loss", False)
    if found.seed is None:
        yield Missing("seed", "no argument looks like one: all seeds would be the same run, so seeds is 1", False)
    if found.folder is None:
        how = "no argument looks like one: runs in parallel may overwrite each other's files"
        yield Missing("output folder", how, False)
