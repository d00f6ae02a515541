"""Reading and writing a study file: YAML and the validated model, with errors that name field, value and remedy."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from search_spaces import study_yaml
from search_spaces.errors import InvalidInput, reason
from search_spaces.frozen import Frozen
from search_spaces.shipped import SHIPPED, shipped

FOLDER = "folder"
"""Key of the validation context: the folder that relative directories refer to."""


class StudyFile(Frozen):
    """A model that is read from YAML and written to it."""

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """Read a shipped study by name, or a study file by path; ``-`` is standard input.

        Raises:
            InvalidInput: the study does not exist or cannot be read, or see ``parse``.
        """
        if name_or_path == "-":
            return cls.parse(sys.stdin.buffer.read().decode(errors="replace"), "standard input")
        path = SHIPPED / f"{name_or_path}.yaml" if name_or_path in shipped() else Path(name_or_path)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), name_or_path, folder=path.parent)
        except FileNotFoundError as error:
            close = difflib.get_close_matches(name_or_path, shipped(), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            remedy = f"{hint}the shipped studies are {', '.join(shipped())}"
            raise InvalidInput("study", name_or_path, "is neither a file nor a shipped study", remedy) from error
        except (OSError, UnicodeDecodeError) as error:
            problem = f"cannot be read ({reason(error)})"
            raise InvalidInput("study", name_or_path, problem, "give a study file") from error

    @classmethod
    def parse(cls, text: str, origin: str = "study", folder: Path | None = None) -> Self:
        """
        Args:
            origin: where the text comes from, for errors.
            folder: the folder that relative directories refer to; default: the working directory.

        Raises:
            InvalidInput: the text is not YAML or not a mapping, or see ``validate_fields``.
        """
        try:
            fields = study_yaml.read(text)
        except study_yaml.DuplicateKey as error:
            raise InvalidInput("study", origin, str(error.problem), "remove one of them") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number with too many digits
            where, why = (getattr(error, name, None) for name in ("problem_mark", "problem"))
            at = f" at line {where.line + 1}{f' ({why})' if why else ''}" if where else ""
            raise InvalidInput("study", origin, f"is not YAML{at}", "correct it") from error
        if not isinstance(fields, dict):
            raise InvalidInput("study", origin, "is not a mapping of fields", "start from a shipped study")
        return cls.validate_fields(fields, folder)

    @classmethod
    def validate_fields(cls, fields: dict[str, Any], folder: Path | None = None) -> Self:
        """
        Args:
            folder: as for ``parse``.

        Raises:
            InvalidInput: a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(fields, context={FOLDER: folder or Path.cwd()})
        except ValidationError as error:
            raise _all_invalid_inputs(cls, error)[0] from error

    @classmethod
    def problems(cls, fields: dict[str, Any]) -> list[InvalidInput]:
        """All that is wrong with ``fields``; the first is what ``validate_fields`` raises."""
        try:
            cls.model_validate(fields, context={FOLDER: Path.cwd()})
        except ValidationError as error:
            return _all_invalid_inputs(cls, error)
        return []

    def to_yaml(self) -> str:
        """The study as YAML, which ``parse`` reads back as an equal study."""
        return self.written()

    def written(self, exclude: Iterable[str] = ()) -> str:
        """The study as YAML, without the fields ``exclude``."""
        return study_yaml.write(self.model_dump(mode="json", exclude_none=True, exclude=set(exclude)))


def _all_invalid_inputs(model: type[BaseModel], error: ValidationError) -> list[InvalidInput]:
    """Misspelled fields first, because one may be why another one is missing."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    return [_invalid_input(model, one) for one in errors]


def _invalid_input(model: type[BaseModel], error: ErrorDetails) -> InvalidInput:
    """The first error of a validation as one message with field, value and remedy."""
    field = ".".join(str(part) for part in error["loc"]) or "study"
    value = error["input"]
    if error["type"] == "oec":
        problem, remedy = error["ctx"]["problem"], error["ctx"]["remedy"]
        if isinstance(value, dict):
            value = next((value[key] for key in ("name", "source", "method") if key in value), value)
    elif error["type"] == "extra_forbidden":
        names = list(_model_at(model, error["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), names, n=1)
        problem = "is not a field of a study"
        remedy = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
    elif error["type"] == "missing":
        value, problem, remedy = None, "is missing", f"add {field.split('.')[-1]}, which every study needs"
    else:
        problem, remedy = "is not allowed", error["msg"][0].lower() + error["msg"][1:]
    return InvalidInput(field, value, problem, remedy)


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the innermost field on the way to ``loc`` that is a model."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type annotation such as ``tuple[Annotated[MethodChoice, ...], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
