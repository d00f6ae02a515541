"""Tables packed as deduplicated columns."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dashboards.packing import ColumnStore

VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 0.5]), st.text(max_size=2))


def read(columns: ColumnStore, table: dict[str, int]) -> list[dict[str, Any]]:
    """Unpacks rows like the page's script."""
    kept = json.loads(columns.json())
    found = {name: kept[place] for name, place in table.items()}
    values = {
        name: one if isinstance(one, list) else [one["values"][i] for i in one["indices"]]
        for name, one in found.items()
    }
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


@given(st.lists(st.fixed_dictionaries({"a": VALUES, "b": VALUES}), max_size=40))
def test_rows_read_back_as_written(rows: list[dict[str, Any]]) -> None:
    columns = ColumnStore()
    found = read(columns, columns.add_table(rows))
    assert json.dumps(found, sort_keys=True) == json.dumps(rows, sort_keys=True), (
        "values must keep their type: 1 is not true"
    )


def test_equal_columns_are_stored_once_and_few_values_as_indices() -> None:
    columns = ColumnStore()
    first = columns.add_table([{"cell": i, "label": "a" * 100} for i in range(50)])
    second = columns.add_table([{"cell": i, "loss": i / 7} for i in range(50)])
    assert first["cell"] == second["cell"]
    assert len(json.loads(columns.json())) == 3
    assert columns.json().count("a" * 100) == 1
