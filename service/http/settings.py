"""What an operator decides about a service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput


class Settings(Frozen):
    """Of one service. Limits are those of one process; what is about studies holds over all services of a home."""

    cluster: str | None = Field(default=None, description="Ray's dashboard, http://HOST:8265; one of our own without.")
    data_root: Path | None = Field(default=None, description="Where studies may find texts and shards; HOME/data.")
    max_body: int = Field(default=65_536, gt=0, description="Bytes of a request.")
    max_cells: int = Field(default=2_000, gt=0, description="Cells of a study, refinement included.")
    max_tokens: int = Field(default=10**13, gt=0, description="Tokens that a study trains on.")
    max_active: int = Field(default=4, gt=0, description="Studies at once: each has a driver process on the cluster.")
    max_watchers: int = Field(default=200, gt=0, description="Event streams at once.")
    rate: float = Field(default=10.0, gt=0, description="Requests a second that a token may make.")
    burst: int = Field(default=40, gt=0, description="Requests that it may make at once after a pause.")

    @classmethod
    def given(cls, options: Mapping[str, Any]) -> Self:
        """Those of a command line; what is None there is the default.

        Raises:
            InvalidInput: one is out of range.
        """
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise InvalidInput(option, first["input"], f"is no limit ({first['msg']})", "see `oec serve -h`") from error
