"""The field ``trainer`` of a study: a command, or a Python object, that trains the cells instead of our own model."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from search_spaces.command_line import PLACEHOLDERS, Text, placeholders, split
from search_spaces.errors import InvalidInput, bad
from search_spaces.factors import LR
from search_spaces.frozen import Frozen, digest
from search_spaces.metrics_spec import SOURCES, MetricsSpec
from search_spaces.resources import ResourceSpec
from search_spaces.study_file import FOLDER

MODULE_OBJECT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
SCRIPTS = {".py", ".sh", ".jl", ".R"}
"""Suffixes of a script that a command runs, for its name."""


class TrainerSpec(Frozen):
    """What trains the cells of a study: ``command`` or ``python``."""

    command: Text | None = Field(
        default=None,
        description="A command that trains one cell, without a shell. Placeholders in braces: lr, seed, folder, "
        "workers, nodes, node_rank, master_addr, master_port, and the names of the study's factors.",
    )
    python: str | None = Field(
        default=None, description="module:Name of a class with setup and train, see trainers/protocol.py."
    )
    directory: str = Field(
        default=".",
        validate_default=True,
        description="Working directory of the command, or the folder to import from: the same path on every node. A "
        "relative one is relative to the study file.",
    )
    identity: tuple[str, ...] | None = Field(
        default=None,
        description="Files, or globs, in directory whose contents are part of a cell's id. Default: the files that "
        "the command names, or the file of the Python module.",
    )
    metrics: MetricsSpec | None = Field(default=None, description="Where the command's metrics are found.")
    resume: Text | None = Field(
        default=None,
        description="Arguments to add if the cell's folder holds an earlier start; [] for a command that finds it by "
        "itself. Without it, an interrupted cell starts over, in an empty folder.",
    )
    resume_from: str = Field(
        default="**/*",
        description="Glob in the cell's folder that shows whether it holds an earlier start; default: any file that "
        "the command has left there, apart from its metrics.",
    )
    l_init: float | None = Field(
        default=None, description="Loss of a model that has learned nothing. Default: the first val_loss."
    )
    silence_s: float = Field(
        default=1800, gt=0, description="Seconds without output or a metric after which a command has crashed."
    )
    grace_s: float = Field(
        default=10, ge=0, description="Seconds between SIGTERM and SIGKILL when a command has to end."
    )
    nodes: int = Field(
        default=1,
        gt=0,
        description="Nodes of a cell. The command starts once on each, with resources.workers / nodes of the cell's "
        "workers.",
    )
    options: dict[str, Any] = Field(default={}, description="For a Python trainer: context.options. Part of the id.")

    @field_validator("directory")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        base = (info.context or {}).get(FOLDER, Path.cwd())
        return str(Path(base, value).resolve())

    @field_validator("command", "resume")
    @classmethod
    def _splits(cls, value: Text | None, info: ValidationInfo) -> Text | None:
        try:
            words = split(value) if value is not None else None
        except ValueError as error:
            raise bad(f"cannot be split into words ({error})", "balance the quotes, or give a list of words") from error
        if words == () and info.field_name == "command":
            raise bad("is empty", "give a command")
        return value

    @field_validator("python")
    @classmethod
    def _names_an_object(cls, value: str | None) -> str | None:
        if value is not None and not MODULE_OBJECT.fullmatch(value):
            raise bad("does not name an object", "write module:Name, for example my_package.my_module:Trial")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.command is None) == (self.python is None):
            raise bad("has both command and python" if self.command else "has neither command nor python", "give one")
        if self.command is not None and self.metrics is None:
            raise bad("has no metrics", f"say where the loss is found: metrics with one of {', '.join(SOURCES)}")
        foreign = ("metrics", "resume", "nodes") if self.python else ("options",)
        for name in foreign:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                kind = "python" if self.python else "command"
                raise bad(f"has {name}, which does not apply to {kind}", f"remove {name}")
        return self

    @property
    def kind(self) -> Literal["command", "python"]:
        return "command" if self.command is not None else "python"

    @property
    def words(self) -> tuple[str, ...]:
        """The command's template, word by word."""
        return split(self.command) if self.command is not None else ()

    @property
    def resume_words(self) -> tuple[str, ...]:
        return split(self.resume) if self.resume is not None else ()

    @property
    def name(self) -> str:
        """What it trains, for people: the script of a command, or else its first word; the module of an object."""
        if self.python is not None:
            return self.python.partition(":")[0].rpartition(".")[2]
        scripts = (word for word in self.words if Path(word).suffix in SCRIPTS and not placeholders([word]))
        return Path(next(scripts, self.words[0])).name

    def group_resources(self, resources: ResourceSpec) -> ResourceSpec:
        """What Ray reserves for a cell: for a command, one worker per node with the cores and devices of all the
        processes that it starts there."""
        if self.command is None:
            return resources
        each = resources.workers // self.nodes
        update = {
            "cpus_per_worker": each * resources.cpus_per_worker,
            "gpus_per_worker": each * resources.gpus_per_worker,
        }
        return resources.model_copy(update={"workers": self.nodes, **update})

    def check_placeholders(self, factors: Sequence[str], *, several_seeds: bool, lr: bool) -> None:
        """Check that a command uses what the study varies, and nothing else.

        Args:
            factors: names of the study's factors.
            several_seeds: whether the study has more than one seed.
            lr: whether the study varies the learning rate.

        Raises:
            PydanticCustomError: a placeholder has no value, or a value has no placeholder.
        """
        if self.command is None:
            return
        known = {*PLACEHOLDERS, *factors}
        for name in sorted(placeholders((*self.words, *self.resume_words)) - known):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {{{close[0]}}}? " if close else ""
            remedy = f"{hint}use {', '.join(sorted(known))}, or write {{{{{name}}}}} for literal braces"
            raise bad(f"has the placeholder {{{name}}} in trainer.command, for which there is no value", remedy)
        for name in (*([LR] if lr else []), *factors, *(["seed"] if several_seeds else [])):
            if name not in placeholders(self.words):
                remedy = f"add an argument with {{{name}}} to the command, or do not vary it"
                raise bad(f"varies {name}, which trainer.command does not use", remedy)

    def digest(self, workers: int) -> str:
        """SHA-256 over what determines a cell's result apart from its learning rate, seed and factors.

        Args:
            workers: ``resources.workers``, which counts if the command uses it.

        Raises:
            InvalidInput: an identity file does not exist.
        """
        used = placeholders(self.words)
        metrics = self.metrics.model_dump(mode="json", exclude={"others"}) if self.metrics else None
        content = {
            "command": list(self.words),
            "python": self.python,
            "options": self.options,
            "metrics": metrics,
            "l_init": self.l_init,
            "identity": {name: _sha256(Path(self.directory, name)) for name in self.identity_files()},
            "workers": workers if "workers" in used or self.python else None,
            "nodes": self.nodes if used & {"nodes", "node_rank"} else None,
        }
        return digest(content)

    def identity_files(self) -> list[str]:
        """The files whose contents are part of a cell's id, relative to ``directory``.

        Raises:
            InvalidInput: the directory does not exist, a pattern matches no file, or no file could be guessed.
        """
        root = Path(self.directory)
        if not root.is_dir():
            raise InvalidInput("trainer.directory", self.directory, "is not a folder", "give the folder of the code")
        if self.identity is None:
            found = self._named_files(root)
            if not found:
                problem = f"is missing, and no file in {root} is named by the {self.kind}"
                remedy = "list the files that determine the result, or [] if there are none"
                raise InvalidInput("trainer.identity", None, problem, remedy)
            return sorted(found)
        files: set[str] = set()
        for pattern in self.identity:
            matches = {p.relative_to(root).as_posix() for p in root.glob(pattern) if p.is_file()} if pattern else set()
            if not matches:
                remedy = f"give files or globs relative to {root}"
                raise InvalidInput("trainer.identity", pattern, "matches no file", remedy)
            files |= matches
        return sorted(files)

    def _named_files(self, root: Path) -> set[str]:
        """The files in ``root`` that the command or the Python trainer names."""
        if self.python:
            modules, words = [self.python.partition(":")[0]], []
        else:
            words = [word.rpartition("=")[2] for word in self.words if not placeholders([word])]
            modules = [after for word, after in pairwise(words) if word == "-m"]
        for module in modules:
            path = module.replace(".", "/")
            words += [f"{path}.py", f"{path}/__main__.py" if not self.python else f"{path}/__init__.py"]
        inside = (
            Path(word) for word in words if word and not Path(word).is_absolute() and ".." not in Path(word).parts
        )
        return {path.as_posix() for path in inside if (root / path).is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
