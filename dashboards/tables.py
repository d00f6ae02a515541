"""Tables of curves: one row a curve, the layout of the published tables, and how each is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from dashboards.sensitivity import CurveFacts, in_order
from search_spaces.methods import METHODS, label
from search_spaces.scales import SCALES

TABLE_COLUMNS = (
    "scale",
    "method",
    "gamma",
    "LRS",
    "LRS_low",
    "LRS_high",
    "LRS_n",
    "best_loss",
    "best_lr",
    "diverged",
    "cells",
    "overhead_percent",
    "note",
)
"""Columns of ``sensitivity_table``. ``LRS`` is divided by n - 1, ``LRS_n`` by n; losses and LRS are in nats; ``cells``
counts those with a result, ``diverged`` those of them that diverged."""

HEADINGS: dict[str, str] = {
    "LRS_low": "LRS 2.5 %",
    "LRS_high": "LRS 97.5 %",
    "LRS_n": "LRS (n)",
    "best_loss": "best loss",
    "best_lr": "best lr",
    "overhead_percent": "time %",
}
"""What people read above a column; its own name for the others."""

FORMATS: dict[str, str] = {
    "gamma": "g",
    "LRS": ".3f",
    "LRS_low": ".3f",
    "LRS_high": ".3f",
    "LRS_n": ".3f",
    "best_loss": ".3f",
    "best_lr": "g",
    "diverged": "d",
    "cells": "d",
    "overhead_percent": "+.1f",
}
"""How each number is written for people; CSV keeps every digit."""

MISSING = "–"
"""What stands for a value that there is not."""


def sensitivity_table(curves: Iterable[CurveFacts]) -> pd.DataFrame:
    """One row a curve, columns ``TABLE_COLUMNS``; what can not be known is a missing value."""
    rows = [
        {
            "scale": curve.scale,
            "method": curve.method,
            "gamma": curve.gamma,
            "LRS": curve.LRS,
            "LRS_low": curve.interval[0] if curve.interval else None,
            "LRS_high": curve.interval[1] if curve.interval else None,
            "LRS_n": curve.LRS_n,
            "best_loss": curve.best_loss,
            "best_lr": curve.best_lr,
            "diverged": curve.diverged,
            "cells": len(curve.points),
            "overhead_percent": curve.overhead_percent,
            "note": "; ".join(curve.warnings),
        }
        for curve in curves
    ]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    return table.astype({column: "int64" if form == "d" else "float64" for column, form in FORMATS.items()})


def published_layout(table: pd.DataFrame, value: str = "LRS") -> pd.DataFrame:
    """One column of ``sensitivity_table`` as the published tables have it: scales as rows, methods as columns."""
    labels = [
        label(method, None if pd.isna(gamma) else gamma)
        for method, gamma in zip(table["method"], table["gamma"], strict=True)
    ]
    wide = table.assign(label=labels).pivot(index="scale", columns="label", values=value)
    by_strength = table.assign(label=labels).sort_values("gamma")
    columns = [
        name
        for method in in_order(table["method"].unique(), METHODS)
        for name in by_strength.loc[by_strength["method"] == method, "label"].unique()
    ]
    return wide.reindex(index=in_order(wide.index, SCALES), columns=columns).rename_axis(columns=None)


def shown(value: Any, column: str) -> str:
    """``value`` as people read it in ``column``."""
    return MISSING if pd.isna(value) else format(value, FORMATS.get(column, ""))


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """``sensitivity_table`` as people read it, without the columns that say nothing in any row."""
    written = {str(column): [shown(value, str(column)) for value in table[column]] for column in table}
    return pd.DataFrame({column: values for column, values in written.items() if not set(values) <= {MISSING, ""}})


def terminal_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """``sensitivity_table`` for a terminal of 80 columns, the notes below it."""
    noted = table[table["note"] != ""].to_dict("records")
    notes = [f"{row['scale']} {label(row['method'], _strength(row['gamma']))}: {row['note']}" for row in noted]
    drawn = Table(title=title, box=SIMPLE, padding=0, caption=Text("\n".join(notes)), caption_justify="left")
    written = texts(table.drop(columns=["LRS_n", "cells", "note"]))
    for column in map(str, written):
        drawn.add_column(
            HEADINGS.get(column, column).replace(" ", "\n", 1),
            justify="right" if column in FORMATS else "left",
        )
    for row in written.to_numpy():
        # As Text: names that come from a file are not to be read as markup.
        drawn.add_row(*(Text(value) for value in row))
    return drawn


def to_csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False))


def to_markdown(table: pd.DataFrame) -> str:
    written = texts(table).map(lambda text: text.replace("|", "\\|"))
    return str(written.to_markdown(index=False, disable_numparse=True)) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    written = texts(table)
    return str(
        written.to_latex(index=False, escape=True, column_format="".join("r" if c in FORMATS else "l" for c in written))
    )


RENDERERS: dict[str, Callable[[pd.DataFrame], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
"""How ``sensitivity_table`` is written to a file, by the file's extension."""


def _strength(gamma: float) -> float | None:
    return None if pd.isna(gamma) else gamma
