"""The tables of a page as columns that are kept once.

Ten charts of the same cells share cells, labels, learning rates and seeds, and most columns take few values: written as
JSON objects, row by row and chart by chart, 10,000 cells would be some 25 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_text = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
"""Made once: ``json.dumps`` makes an encoder a call, and a page has some 20,000 columns."""
FEW = 4
"""A column whose values occur so many times on average is kept as its values and a place among them a row."""


class Columns:
    """The columns of any number of tables, equal ones once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def table(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """By name, the place of each column among all; the keys of all rows are those of the first."""
        return {name: self.place([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def place(self, values: Sequence[Any]) -> int:
        """Of a column among all."""
        return self._places.setdefault(_column(values), len(self._places))

    def json(self) -> str:
        """A list: each column its values, or ``{"of": values, "at": places}``."""
        return f"[{','.join(self._places)}]"


def _column(values: Sequence[Any]) -> str:
    places: dict[tuple[type, Any], int] = {}
    at = [places.setdefault((type(value), value), len(places)) for value in values]  # by type: 1 is not True
    if len(places) * FEW > len(values):
        return _text(list(values))
    return _text({"of": [value for _, value in places], "at": at})
