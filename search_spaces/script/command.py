"""A study whose trainer is a command, drafted from the script's text and its ``--help``."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.script import roles
from search_spaces.script.argument import Argument
from search_spaces.script.draft import USUAL_LR, Draft, Found, Missing, Suggestion, inside, lr_grid, relative
from search_spaces.script.metrics import Stream, find_streams
from search_spaces.script.source import Sources, called, calls, dotted, keyword, literal
from search_spaces.script.styles import Style, subcommands

CHECKPOINT = re.compile(r"/?[\w.-]+\.(pt|pth|pth\.tar|ckpt|pkl|npz|msgpack|safetensors)")
LOG = re.compile(r"[\w.-]+\.(jsonl|ndjson|csv|tsv)")
INPUTS = ("load", "pretrained", "init", "input", "data", "tokenizer", "teacher")
"""Parts of the names of arguments whose files the script reads and does not write."""
WRITERS = ("save", "save_checkpoint", "save_pretrained", "write_text", "to_csv", "savez", "SummaryWriter", "CSVLogger")
FLOORS = ("min_lr", "lr_min", "min_learning_rate", "final_lr", "end_lr", "eta_min")
HYDRA_FOLDER = Argument(flag="hydra.run.dir", kind="str", separator="=")
TORCHRUN = "torchrun --standalone --nproc-per-node {workers}"


@dataclass(frozen=True)
class Parts:
    """The arguments of a script by their roles, and what else its command needs."""

    arguments: tuple[Argument, ...]
    learning_rates: tuple[Argument, ...]
    """All arguments that are called a learning rate; the first is the one to sweep."""
    seed: Argument | None
    folder: Argument | None
    outputs: tuple[Argument, ...]
    """Arguments whose defaults are files that the script writes: they move to the folder of the run."""
    stream: Stream | None

    @property
    def run_folder(self) -> str:
        """The value of the output folder."""
        return self.stream.folder if self.stream else "{folder}"

    @property
    def required(self) -> tuple[Argument, ...]:
        """Arguments that the script requires and that a study does not set by itself."""
        own = (*self.learning_rates[:1], self.seed, self.folder)
        return tuple(argument for argument in self.arguments if argument.required and argument not in own)

    def words(self) -> Iterator[str]:
        """What follows the script in the command."""
        yield from (argument.with_value(f"{{{argument.key}}}") for argument in self.required)
        yield from (argument.with_value("{lr}") for argument in self.learning_rates[:1])
        for argument, value in ((self.seed, "{seed}"), (self.folder, self.run_folder)):
            if argument:
                yield argument.with_value(value)
        yield from (argument.with_value(f"{{folder}}/{argument.default}") for argument in self.outputs)
        yield from self.stream.words if self.stream else ()


def draft_command(sources: Sources, style: Style, arguments: tuple[Argument, ...], directory: Path) -> Draft:
    """
    Args:
        arguments: what the script takes, from its text and its ``--help``.
        directory: the folder that the script is started in.
    """
    folder = roles.FOLDER.first(arguments) or (HYDRA_FOLDER if style.name == "Hydra" else None)
    outputs = tuple(argument for argument in arguments if _is_output(argument))
    parts = Parts(
        arguments=arguments,
        learning_rates=tuple(roles.LEARNING_RATE.find(arguments)),
        seed=roles.SEED.first(arguments),
        folder=folder,
        outputs=outputs,
        stream=_choose_stream(find_streams(sources), folder, outputs),
    )
    resume, no_resume = _resume(sources, parts)
    script = shlex.quote(relative(sources[0].path, directory))
    code = [*(source.path for source in sources), *style.files(sources)]
    trainer: dict[str, Any] = {
        "command": " ".join(filter(None, [_launcher(sources), script, style.subcommand, *parts.words()])),
        "identity": inside(code, directory),
        "metrics": parts.stream.as_spec() if parts.stream else None,
        "resume": resume,
    }
    own = next((argument.default for argument in parts.learning_rates), None)
    own_lr = float(own) if isinstance(own, int | float) and own > 0 else None
    suggestions = tuple(_suggestions(arguments))
    return Draft(
        directory=directory,
        trainer=trainer,
        lrs=lr_grid(own_lr or USUAL_LR),
        own_lr=own_lr,
        seeds=3 if parts.seed else 1,
        found=tuple(_found(parts, style, trainer, suggestions)),
        missing=(*_missing(parts, sources, own_lr), *([no_resume] if no_resume else [])),
        suggestions=suggestions,
    )


def _launcher(sources: Sources) -> str:
    """torchrun for a script that reads the rank that torchrun gives it; not for one that starts its ranks itself."""
    constants = {node.value for source in sources for node in source.walk(ast.Constant) if isinstance(node.value, str)}
    called_names = (dotted(node.func) for _, node in calls(sources, "spawn", "start_processes"))
    spawns = any(name.endswith(("mp.spawn", "multiprocessing.spawn", "start_processes")) for name in called_names)
    return TORCHRUN if not spawns and constants & {"RANK", "LOCAL_RANK"} else "python"


def _is_output(argument: Argument) -> bool:
    """Whether the script writes to the file that an argument names: a checkpoint or a log, not in a folder."""
    name = argument.default
    if not isinstance(name, str) or any(part in argument.key for part in INPUTS):
        return False
    return CHECKPOINT.fullmatch(name) is not None or LOG.fullmatch(name) is not None


def _choose_stream(streams: list[Stream], folder: Argument | None, outputs: tuple[Argument, ...]) -> Stream | None:
    """The best stream that is a run's own: printed, or in a file that the study can put into the run's folder."""
    named = {argument.default for argument in outputs}
    for stream in (stream for stream in streams if stream.kind != "wandb"):
        if stream.kind == "stdout" or stream.where in named or (folder and stream.in_folder):
            return stream
    return None


def _resume(sources: Sources, parts: Parts) -> tuple[str | None, Missing | None]:
    """What to add to the command of a cell that was interrupted, or how a person finds out."""
    if parts.folder and any(_resumes_by_itself(node) for _, node in calls(sources)):
        return parts.folder.with_value(parts.run_folder), None  # the argument once more, which changes nothing
    compared = _compared_with(sources, "resume")
    for argument in roles.RESUME.find(parts.arguments):
        if argument.is_switch:
            return argument.flag, None
        if "resume" in argument.choices or argument.key in compared:
            return argument.with_value("resume"), None
        if argument.kind == "bool":
            return argument.with_value("True"), None
        if argument in parts.outputs:  # a snapshot, which the script loads if it exists: the same argument once more
            return argument.with_value(f"{{folder}}/{argument.default}"), None
        if parts.folder and ("resume" in argument.key or argument.key in ("ckpt_path", "snapshot_path")):
            file = next(_checkpoint_names(sources), "CHECKPOINT")
            option = argument.with_value(f"{{folder}}/{file}")
            how = f"an interrupted run starts again from step 0; to resume, set trainer.resume, e.g. {option}"
            return None, Missing("resume", how)
    return None, Missing("resume", "no option for it was recognized: an interrupted run starts again from step 0")


def _resumes_by_itself(node: ast.Call) -> bool:
    """transformers' ``get_last_checkpoint()``, and Lightning's ``trainer.fit(..., ckpt_path="last")``."""
    return called(node) == "get_last_checkpoint" or (
        called(node) == "fit" and literal(keyword(node, "ckpt_path")) in ("last", "hpc")
    )


def _writing(sources: Sources) -> Iterator[str]:
    """Calls that write a file, as ``train.py:120``."""
    for source, node in calls(sources, "open", *WRITERS):
        modes = [literal(argument) for argument in (*node.args, keyword(node, "mode"))]
        if called(node) != "open" or any(mode in ("w", "a", "x", "wb", "ab", "xb", "wt") for mode in modes):
            yield source.line(node)


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
            if isinstance(node.value, str) and CHECKPOINT.fullmatch(node.value):
                yield node.value.lstrip("/")


def _suggestions(arguments: tuple[Argument, ...]) -> Iterator[Suggestion]:
    """Arguments that are worth a try as factors, with values."""
    for factor in roles.FACTORS:
        for argument in factor.role.find(arguments)[:1]:
            values = argument.choices or factor.around(argument.default)
            if len(values) > 1:
                yield Suggestion(argument.key, values[:3], argument.with_value(f"{{{argument.key}}}"))


def _found(parts: Parts, style: Style, trainer: dict[str, Any], suggestions: tuple[Suggestion, ...]) -> Iterator[Found]:
    yield Found("arguments", str(len(parts.arguments)), style.name)
    steps = roles.STEPS.first(parts.arguments)
    roles_found = (("learning rate", next(iter(parts.learning_rates), None)), ("seed", parts.seed),
                   ("output folder", parts.folder), ("steps", steps))  # fmt: skip
    for what, argument in roles_found:
        if argument:
            yield Found(what, argument.flag, "" if argument.default is None else f"default {argument.default}")
    if len(parts.learning_rates) > 1:
        yield Found("not swept", ", ".join(argument.flag for argument in parts.learning_rates[1:4]))
    if parts.stream:
        stream = parts.stream
        where = "the standard output" if stream.kind == "stdout" else f"{stream.kind} {stream.where}".strip()
        yield Found("metrics", f"{stream.keys.val_loss} in {where}", stream.line)
    if trainer["resume"]:
        yield Found("resume", str(trainer["resume"]))
    yield Found("launcher", str(trainer["command"]).partition(" ")[0])
    yield Found("code", ", ".join(trainer["identity"]))
    if suggestions:
        yield Found("factors to try", ", ".join(suggestion.name for suggestion in suggestions), "comments in the study")


def _missing(parts: Parts, sources: Sources, own_lr: float | None) -> Iterator[Missing]:
    commands = subcommands(sources)
    if len(commands) > 1:
        how = f"the script has several commands: put the one that trains behind its name ({', '.join(commands)})"
        yield Missing("subcommand", how, blocks=True)
    for argument in parts.required:
        yield Missing(argument.key, f"the script requires it: replace {{{argument.key}}} in the command", blocks=True)
    if not parts.learning_rates:
        how = "no argument looks like one: put {lr} in the command where the script takes it"
        if not parts.arguments:
            how = (
                "the script takes no arguments: have it read the learning rate from one, or from an environment "
                "variable (command: env LR={lr} ...)"
            )
        yield Missing("learning rate", how, blocks=True)
    elif own_lr is None:
        yield Missing("lrs", "the script's own learning rate is not known: check the grid")
    for argument in parts.arguments:
        if argument.key in FLOORS and argument.default:
            yield Missing(argument.key, f"it stays at {argument.default} while the learning rate varies")
    if parts.stream is None:
        how = (
            "neither a file of metrics in the output folder nor a printed loss was recognized (nothing reads W&B's "
            "files): give trainer.metrics a file or a regular expression, see docs/your-training.md"
        )
        yield Missing("metrics", how, blocks=True)
    elif not parts.stream.has_validation:
        yield Missing("validation loss", "the study reads the training loss; check trainer.metrics")
    if parts.stream and parts.stream.starts_late:
        how = "the first evaluation follows the first steps: give the loss of an untrained model, e.g. ln(vocabulary)"
        yield Missing("l_init", how)
    if parts.seed is None:
        yield Missing("seed", "no argument looks like one: all seeds would be the same run, so seeds is 1")
    writes = next(_writing(sources), None)
    if parts.folder is None and not parts.outputs and writes:
        how = f"no argument looks like one, and {writes} writes a file: runs in parallel may overwrite it"
        yield Missing("output folder", how)
