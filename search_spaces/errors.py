"""The one error for bad input. It names the field, its value, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import PydanticCustomError


class InvalidInput(ValueError):
    """Input that cannot be used; the command line exits with code 2.

    Args:
        field: what the user wrote or should have written, e.g. ``training.batch_size``.
        value: its value.
        problem: what is wrong with the value, as a clause that continues it.
        remedy: what to do instead.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        shown = field if not value and problem.startswith("is missing") else f"{field}: {value!r}"
        super().__init__(f"{shown} {problem}; {remedy}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.problem, self.remedy)


def printable(name: object) -> str:
    """``name`` as valid Unicode: the name of a file need not be, and then Python holds its bytes as surrogates."""
    return str(name).encode(errors="backslashreplace").decode()


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def expand(path: str, field: str) -> Path:
    """``path`` as an absolute path, with the home of a user in place of ``~``.

    Raises:
        InvalidInput: there is no such user, or no file can have this name.
    """
    try:
        expanded = Path(path).expanduser().absolute()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.lstat()
    except (ValueError, RuntimeError, OSError) as error:
        raise InvalidInput(field, path, f"is not a valid path ({error})", "correct it") from error
    return expanded


def bad(problem: str, remedy: str) -> PydanticCustomError:
    """An error for a validator to raise; ``StudyFile.validate_fields`` adds the field and the value."""
    from pydantic_core import PydanticCustomError  # here, so that `oec --help` need not wait for it

    return PydanticCustomError("oec", "{problem}\n{remedy}", {"problem": problem, "remedy": remedy})


def require_known(kind: str, name: object, names: Iterable[str]) -> str:
    """``name`` if it is one of ``names``; otherwise an error with the closest match."""
    names = list(names)
    if name in names:
        return str(name)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise bad(f"is not a known {kind}", f"{hint}choose from {', '.join(names)}")
