"""The settings of a service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput


class Settings(Frozen):
    """The settings of one service. Limits on studies count those of all services of a home; others are per process."""

    cluster: str | None = Field(default=None, description="Ray's dashboard, http://HOST:8265; default: a local Ray.")
    data_root: Path | None = Field(
        default=None, description="Folder with the data that studies may use; default: HOME/data."
    )
    max_body: int = Field(default=65_536, gt=0, description="Maximum bytes of a request body.")
    max_cells: int = Field(default=2_000, gt=0, description="Maximum cells of a study, including refinement.")
    max_tokens: int = Field(default=10**13, gt=0, description="Maximum tokens of a study over all its cells.")
    max_active: int = Field(default=4, gt=0, description="Maximum running studies; each has a driver process.")
    max_watchers: int = Field(default=200, gt=0, description="Maximum open event streams.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build the settings from command-line options; None means the default.

        Raises:
            InvalidInput: an option is out of range.
        """
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise InvalidInput(
                option, first["input"], f"is not a valid limit ({first['msg']})", "see `oec serve -h`"
            ) from error
