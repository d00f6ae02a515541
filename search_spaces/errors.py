"""The one error for bad input. It names the field, its value, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
        super().__init__(f"{field}: {value!r} {problem}; {remedy}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.problem, self.remedy)


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
