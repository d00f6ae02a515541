"""The factors of runs and curves: which curve a run belongs to, and where on its axis it lies."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InvalidInput
from search_spaces.factors import LR, format_factor, from_json, short_name

if TYPE_CHECKING:
    import pandas as pd

Shared = tuple[tuple[str, Any], ...]
"""Name and value of each factor that the cells of a curve share."""


@lru_cache(maxsize=10_000)
def _parse(text: str) -> Mapping[str, Any]:
    try:
        return from_json(text)
    except ValueError as error:
        raise InvalidInput(
            "factors", text, "is not a JSON object", "give factors by name, as runs.csv has them"
        ) from error


def factors_of(rows: pd.DataFrame) -> list[Mapping[str, Any]]:
    """The factors of each row, from its column ``factors``.

    Raises:
        InvalidInput: a value is not a JSON object.
    """
    return [_parse(text if isinstance(text, str) else "") for text in rows["factors"]]


def curve_factors(rows: pd.DataFrame) -> list[Shared]:
    """The factors that each row shares with the others of its curve: all but the one on the axis.

    The learning rate is one of them if it is not the axis itself.

    Args:
        rows: columns ``factors``, ``lr_factor`` and, unless its factors already have it, ``lr``.
    """
    if rows["factors"].isna().all():
        return [()] * len(rows)
    shared = []
    lrs = rows["lr"] if "lr" in rows else [None] * len(rows)
    for values, axis, lr in zip(factors_of(rows), rows["lr_factor"], lrs, strict=True):
        others = tuple((name, value) for name, value in values.items() if name != axis)
        shared.append(others if axis == LR or LR in values else (*others, (LR, lr)))
    return shared


def on_axis(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with the column ``curve_factors``, and ``lr`` replaced by the place on the axis of the run's curve.

    Raises:
        InvalidInput: a run has no value of its ``lr_factor``.
    """
    runs = runs.assign(curve_factors=_series(curve_factors(runs), runs.index, object))
    if (runs["lr_factor"] == LR).all():
        return runs
    xs = []
    for values, axis, lr in zip(factors_of(runs), runs["lr_factor"], runs["lr"], strict=True):
        x = lr if axis == LR else values.get(axis)
        if isinstance(x, bool) or not isinstance(x, int | float) or x <= 0:
            raise InvalidInput("lr_factor", axis, f"is not a positive number in a run ({x!r})", "give every run one")
        xs.append(float(x))
    return runs.assign(lr=xs)


def by_name(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with a column for each factor, after its column ``factors``, for people and other programs."""
    tables, place = factors_of(table), table.columns.get_loc("factors")
    table = table.copy()
    for name in reversed(dict.fromkeys(name for factors in tables for name in factors)):
        values = [factors.get(name) for factors in tables]
        if any(isinstance(value, tuple) for value in values):
            values = [None if value is None else format_factor(value) for value in values]
        column = name if name not in table else f"factors.{name}"
        table.insert(int(str(place)) + 1, column, _series(values, table.index))
    return table


def varied(curves: Iterable[Shared]) -> tuple[str, ...]:
    """The names of the factors that differ between curves, in order of appearance."""
    tables = [dict(shared) for shared in curves]
    names = dict.fromkeys(name for table in tables for name in table)
    return tuple(name for name in names if len({table.get(name) for table in tables}) > 1)


def display_names(names: Sequence[str], taken: Container[str] = ()) -> dict[str, str]:
    """A short heading for each factor, which is not in ``taken``; the full name where two would be the same."""
    short = [short_name(name) for name in names]
    headings = {}
    for name, text in zip(names, short, strict=True):
        choices = (*([text] if short.count(text) == 1 else []), name, f"factors.{name}")
        headings[name] = next(choice for choice in choices if choice not in taken)
    return headings


def factor_columns(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, list[str]]:
    """A column of text for each of ``names``; empty where a row lacks the factor."""
    values = factors_of(rows)
    return {name: [format_factor(of[name]) if name in of else "" for of in values] for name in names}


def as_hyperparameters(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """``runs`` with a column for each factor: numbers for the one on the axis, else texts; and the columns' names.

    A factor that does not differ between curves has none.
    """
    lr, runs = runs["lr"], on_axis(runs)
    axis = runs["lr_factor"].iloc[0] if len(runs) else LR
    tables = [dict(shared) for shared in runs["curve_factors"]]
    names = [name for name in (*varied(runs["curve_factors"]), *([axis] if axis != LR else [])) if name != LR]
    headings = display_names(names, taken=(*runs.columns, "loss"))
    on_the_axis = [headings.pop(axis)] if axis != LR else []
    for heading in on_the_axis:
        runs = runs.assign(**{heading: runs["lr"], "lr": lr})
    for name, heading in headings.items():
        texts = [format_factor(table[name]) if name in table else "" for table in tables]
        runs = runs.assign(**{heading: _series(texts, runs.index, object)})
    return runs, [*headings.values(), *on_the_axis]


def axis_title(lr_factor: str) -> str:
    """The title of an axis over learning rates, or over the factor in their place."""
    return "learning rate" if lr_factor == LR else short_name(lr_factor).replace("_", " ")


def _series(values: Sequence[Any], index: pd.Index, dtype: type | None = None) -> pd.Series[Any]:
    import pandas as pd  # here, because `oec plan` needs the names of factors and no table

    return pd.Series(values, index=index, dtype=dtype)
