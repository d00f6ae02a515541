"""The field ``trainer.metrics`` of a study: where the metrics of a command are found."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from search_spaces.command_line import placeholders
from search_spaces.errors import bad
from search_spaces.frozen import Frozen

SOURCES: dict[str, str] = {
    "file": "JSON lines",
    "csv": "a CSV file with a header",
    "stdout": "regular expressions over the command's output",
    "tensorboard": "a folder of TensorBoard event files",
    "mlflow": "a folder of MLflow's files, or the URI of its SQLite database",
}
"""Where a command's metrics may come from: names of fields of ``MetricsSpec``."""

OWN_FILES = ("metrics.jsonl", "output.log", "output.log.1")
"""What this program writes into a cell's folder beside the command."""


class MetricsSpec(Frozen):
    """Where a command's metrics are found. Exactly one source; ``step``, ``val_loss`` and the others are keys in it."""

    file: str | None = Field(
        default=None,
        description="JSON lines: a path with {folder}, or a glob, whose newest file is followed. Nested keys are "
        "written with dots or slashes.",
    )
    csv: str | None = Field(default=None, description="A CSV file with a header: a path with {folder}, or a glob.")
    stdout: tuple[str, ...] = Field(
        default=(),
        description="Regular expressions that are searched for in each line of the command's output. Their named "
        "groups are the keys: step, val_loss, train_loss, and any others.",
    )
    tensorboard: str | None = Field(
        default=None, description="A folder with {folder}, in which TensorBoard event files are found; keys are tags."
    )
    mlflow: str | None = Field(
        default=None,
        description="A tracking folder of MLflow with {folder}, or sqlite:///{folder}/mlflow.db; keys are metrics.",
    )
    step: str | None = Field(
        default=None,
        description="Key of the step. Default: the source's own step, the key step, or the number of the evaluation.",
    )
    val_loss: str = Field(default="val_loss", description="Key of the loss that the study is about.")
    train_loss: str | None = Field(default=None, description="Key of the training loss; NaN ends the cell as well.")
    others: tuple[str, ...] = Field(default=(), description="Further keys to record with every evaluation.")

    @field_validator("stdout", mode="before")
    @classmethod
    def _one_expression(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stdout")
    @classmethod
    def _valid_expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                re.compile(text)
            except re.error as error:
                raise bad(f"has an expression that is not valid: {error}", "see the syntax of Python's re") from error
        return value

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, content: Any) -> Any:
        if isinstance(content, dict) and "wandb" in content:
            raise bad(
                "asks for wandb, whose offline files have no public reader",
                "have the script also write JSON lines, CSV or TensorBoard events, or match its output with stdout",
            )
        return content

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise bad(f"has {' and '.join(given) or 'no source'}", f"give exactly one of {', '.join(SOURCES)}")
        if self.stdout:
            if not any("val_loss" in re.compile(text).groupindex for text in self.stdout):
                raise bad("has no expression with a group val_loss", r"write (?P<val_loss>\S+) where the loss is")
            if self.step or self.val_loss != "val_loss" or self.train_loss or self.others:
                raise bad("has stdout and keys", "with stdout, the names of the groups are the keys; remove the others")
        elif "folder" not in placeholders([self.path]):
            raise bad(
                f"has the path {self.path!r} without {{folder}}, so that concurrent cells would share it",
                "have the command write into {folder}, and give that path",
            )
        elif file := next(filter(self._may_be, OWN_FILES), None):
            raise bad(
                f"has the path {self.path!r}, which may be {{folder}}/{file}, a file of this program",
                "have the command write into a folder of its own, for example {folder}/run, and give that path",
            )
        return self

    def _may_be(self, file: str) -> bool:
        """Whether the path, or the glob, leads to a file right in the cell's folder."""
        within = self.path.removeprefix("{folder}").lstrip("/")
        while within.startswith(("./", "**/")):
            within = within.partition("/")[2]
        return self.source in ("file", "csv") and fnmatchcase(file, within) and "/" not in within

    @property
    def source(self) -> str:
        """One of ``SOURCES``."""
        return next(name for name in SOURCES if getattr(self, name))

    @property
    def path(self) -> str:
        """The path of a source that has one."""
        return str(getattr(self, self.source))

    @property
    def wanted(self) -> str:
        """What is looked for, for a message."""
        if self.stdout:
            return " or ".join(repr(text) for text in self.stdout)
        return ", ".join(repr(key) for key in (self.step, self.val_loss, self.train_loss, *self.others) if key)
