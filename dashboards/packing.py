"""Stores the tables of a page as deduplicated columns.

Ten charts of the same cells share their cells, labels, learning rates and seeds, and most columns have few distinct
values. As JSON objects, row by row and chart by chart, 10,000 cells would take some 25 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
"""Created once, because ``json.dumps`` creates an encoder per call and a page has some 20,000 columns."""
MIN_REPEATS = 4
"""A column whose values each occur this often on average is stored as distinct values and an index per row."""


class ColumnStore:
    """The columns of any number of tables, each distinct column stored once."""

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}

    def add_table(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """The index of each column, by name; every row must have the keys of the first."""
        return {name: self.add_column([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def add_column(self, values: Sequence[Any]) -> int:
        return self._indices.setdefault(_encode_column(values), len(self._indices))

    def json(self) -> str:
        """A list of columns, each a list of values or ``{"values": values, "indices": indices}``."""
        return f"[{','.join(self._indices)}]"


def _encode_column(values: Sequence[Any]) -> str:
    keys = list(zip(map(type, values), values, strict=True))  # 1 and True differ
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if len(index) * MIN_REPEATS > len(values):
        return _encode(list(values))
    return _encode({"values": [value for _, value in index], "indices": [index[key] for key in keys]})
