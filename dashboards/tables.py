"""Tables of curves: one row a curve, the layout of the published tables, and how each is written down."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from dashboards.overheads import method_overheads
from dashboards.runs import OFF_CURVE
from dashboards.sensitivity import CurveFacts, in_order, labels, studies
from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES

TABLE_COLUMNS = (
    "study",
    "scale",
    "attention_norm",
    "method",
    "gamma",
    "LRS",
    "LRS_low",
    "LRS_high",
    "LRS_n",
    "best_loss",
    "best_lr",
    "highest_lr",
    "edge_low",
    "edge_high",
    "diverged",
    "cells",
    "overhead_percent",
    "note",
)
"""Columns of ``sensitivity_table``. ``LRS`` is divided by n - 1, ``LRS_n`` by n; losses and LRS are in nats;
``highest_lr`` and all smaller ones converged, and where none diverged it is a lower bound; ``cells`` counts those with
a result, ``diverged`` those of them that diverged."""

HEADINGS: dict[str, str] = {
    "attention_norm": "attention norm",
    "LRS_low": "LRS 2.5%",
    "LRS_high": "LRS 97.5%",
    "LRS_n": "LRS (n)",
    "best_loss": "best loss",
    "best_lr": "best lr",
    "highest_lr": "highest lr",
    "edge_low": "edge from",
    "edge_high": "edge to",
    "overhead_percent": "time %",
    "core_hours": "core-hours",
    "tokens_per_second": "tokens/s",
    "b_ratio": "B-ratio",
    "mu_norm": "|mu|",
    "ratio_norm": "|mu| / row norm",
    "e_mu_min": "e·mu min",
    "e_mu_max": "e·mu max",
    "row_norm_min": "row norm min",
    "row_norm_mean": "row norm mean",
    "row_norm_max": "row norm max",
    "singular_min": "singular min",
    "singular_max": "singular max",
    "val_loss": "own loss",
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
    "highest_lr": "g",
    "edge_low": "g",
    "edge_high": "g",
    "diverged": "d",
    "cells": "d",
    "overhead_percent": "+.1f",
    "hours": ".2f",
    "seconds": ".1f",
    "core_hours": ".2f",
    "tokens_per_second": ",.0f",
    "importance": ".2f",
    "lr": "g",
    "step": ".0f",
    "seed": ".0f",
    "b_ratio": ".2f",
    "mu_norm": ".3g",
    "ratio_norm": ".3f",
    "e_mu_min": ".3g",
    "e_mu_max": ".3g",
    "isotropy": ".2g",
    "row_norm_min": ".3g",
    "row_norm_mean": ".3g",
    "row_norm_max": ".3g",
    "singular_min": ".3g",
    "singular_max": ".3g",
    "loss": ".4f",
    "val_loss": ".4f",
    "tokens": ",.0f",
    "low": ".2f",
    "high": ".2f",
}
"""How each number is written for people; CSV keeps every digit."""

MISSING = "–"
"""What stands for a value that there is not."""


def sensitivity_table(curves: Iterable[CurveFacts]) -> pd.DataFrame:
    """One row a curve, columns ``TABLE_COLUMNS``; what can not be known is a missing value."""
    rows = [
        {
            "study": curve.study,
            "scale": curve.scale,
            "attention_norm": curve.attention_norm,
            "method": curve.method,
            "gamma": curve.gamma,
            "LRS": curve.LRS,
            "LRS_low": curve.interval[0] if curve.interval else None,
            "LRS_high": curve.interval[1] if curve.interval else None,
            "LRS_n": curve.LRS_n,
            "best_loss": curve.best_loss,
            "best_lr": curve.best_lr,
            "highest_lr": curve.highest_lr,
            "edge_low": curve.edge and curve.edge.low,
            "edge_high": curve.edge and curve.edge.high,
            "diverged": curve.diverged,
            "cells": len(curve.points),
            "overhead_percent": curve.overhead_percent,
            "note": "; ".join(curve.warnings),
        }
        for curve in curves
    ]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    forms = {column: form for column, form in FORMATS.items() if column in table}
    return table.astype({column: "int64" if form == "d" else "float64" for column, form in forms.items()})


COST_COLUMNS = (
    "study",
    "scale",
    "attention_norm",
    "method",
    "finished",
    "diverged",
    "crashed",
    "pruned",
    "waiting",
    "hours",
    "core_hours",
    "tokens_per_second",
    "overhead_percent",
)
"""Columns of ``cost_table``. ``waiting`` are planned and running cells; ``hours`` is the training time of all cells,
one after the other; ``tokens_per_second`` is the median over cells; ``overhead_percent`` is that of
``method_overheads``."""


def cost_table(runs: pd.DataFrame, curves: Sequence[CurveFacts], cores: int | None) -> pd.DataFrame:
    """One row a method of a scale and attention norm, columns ``COST_COLUMNS``, refinements and pruned cells among
    them; ``cores`` are those of a cell, if known."""
    keys = ["study", "scale", "attention_norm", "method"]
    overheads: dict[Any, float] = {**method_overheads(curves)}
    rows = []
    for key, cells in runs.assign(study=studies(runs)).groupby(keys, sort=False):
        states, hours = cells["state"].value_counts(), cells["train_seconds"].sum() / 3600
        rows.append(
            dict(zip(keys, key, strict=True))
            | {state: int(states.get(state, 0)) for state in ("finished", "diverged", "crashed", "pruned")}
            | {"waiting": int(states.get("planned", 0) + states.get("running", 0)), "hours": hours}
            | {"core_hours": None if cores is None else cores * hours}
            | {"tokens_per_second": cells["tokens_per_second"].median()}
            | {"overhead_percent": overheads.get(key)}
        )
    table = pd.DataFrame(rows, columns=list(COST_COLUMNS))
    return table.astype(dict.fromkeys(("core_hours", "tokens_per_second", "overhead_percent"), "float64"))


def published_layout(table: pd.DataFrame, value: str = "LRS") -> pd.DataFrame:
    """One column of ``sensitivity_table`` as the published tables have it: scales as rows, methods as columns."""
    labelled = table.assign(label=labels(table))
    wide = labelled.pivot(index="scale", columns="label", values=value)
    columns = labelled.sort_values(["attention_norm", "method", "gamma", "study"], key=_rank)["label"].unique()
    return wide.reindex(index=in_order(wide.index, SCALES), columns=columns).rename_axis(columns=None)


def b_ratio_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The B-ratio of the output embedding at the end of training in the layout of arXiv 2601.02031: a curve a row, a
    learning rate a column, mean over seeds. Empty where no run recorded it."""
    known = runs.assign(label=labels(runs)).dropna(subset="output_b_ratio")
    known = known[~known["origin"].isin(OFF_CURVE)]
    wide = known.pivot_table(index=["scale", "label"], columns="lr", values="output_b_ratio", sort=False)
    wide = wide.reindex(columns=sorted(wide.columns)).rename(columns=lambda lr: f"{lr:g}")
    return wide.rename_axis(columns=None).reset_index()


def shown(value: Any, column: str) -> str:
    """``value`` as people read it in ``column``."""
    return MISSING if pd.isna(value) else format(value, FORMATS.get(column, ""))


def highest(lr: float | None, diverged: int) -> str:
    """``highest_lr`` as people read it, of a curve of which so many cells diverged."""
    return shown(lr, "highest_lr") if diverged or pd.isna(lr) else f"≥ {shown(lr, 'highest_lr')}"


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """``sensitivity_table`` as people read it, without the columns that say nothing in any row."""
    written = {str(column): [shown(value, str(column)) for value in table[column]] for column in table}
    written["highest_lr"] = [highest(*pair) for pair in zip(table["highest_lr"], table["diverged"], strict=True)]
    silent = {"attention_norm": {DEFAULT}, "study": set(written["study"][:1])}
    return pd.DataFrame(
        {name: values for name, values in written.items() if not set(values) <= silent.get(name, {MISSING, ""})}
    )


def sheet(name: str, table: pd.DataFrame) -> Sheet:
    """Any table, as people read it by ``FORMATS``."""
    written = {str(column): [shown(value, str(column)) for value in table[column]] for column in table}
    return Sheet(name=name, values=table, texts=pd.DataFrame(written))


MAX_EXCEPTIONS = 3
"""Curves that a sentence about most of them names as exceptions; more are counted."""


def whose(names: Sequence[str], everyone: Sequence[str]) -> str:
    """Curves by name, for a sentence; ``everyone`` is all of them. Of more than half, the exceptions are named."""
    if len(names) == len(everyone) > 1:
        return "every curve"
    others = [name for name in everyone if name not in names]
    if len(names) <= max(MAX_EXCEPTIONS, len(others)):
        return listed(names)
    if len(others) <= MAX_EXCEPTIONS:
        return f"every curve but {listed(others)}"
    return f"{len(names)} of {len(everyone)} curves"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def terminal_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """``sensitivity_table`` for a terminal of 80 columns, the notes below it."""
    everyone = [f"{scale} {name}" for scale, name in zip(table["scale"], labels(table), strict=True)]
    noted: dict[str, list[str]] = {}
    for name, note in zip(everyone, table["note"], strict=True):
        if note:
            noted.setdefault(note, []).append(name)
    notes = [f"{whose(names, everyone)}: {note}" for note, names in noted.items()]
    drawn = Table(title=title, box=SIMPLE, padding=0, caption=Text("\n".join(notes)), caption_justify="left")
    written = texts(table).drop(columns=["LRS_n", "cells", "note"], errors="ignore")
    if {"study", "attention_norm"} & set(written):  # each takes the room of two
        written = written.drop(columns=["diverged", "overhead_percent"], errors="ignore")
    for column in map(str, written):
        drawn.add_column(
            HEADINGS.get(column, column).replace(" ", "\n", 1),
            justify="right" if column in FORMATS else "left",
        )
    for row in written.to_numpy():
        # As Text: names that come from a file are not to be read as markup.
        drawn.add_row(*(Text(value) for value in row))
    return drawn


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table with a name, as numbers and as people read it."""

    name: str
    """Names its files."""
    values: pd.DataFrame
    texts: pd.DataFrame
    """Its columns that say something, as text."""


LAYOUTS = ("LRS", "best_loss", "best_lr", "overhead_percent")
"""Columns of ``sensitivity_table`` that get a sheet in the published layout."""


def sheets(table: pd.DataFrame) -> list[Sheet]:
    """``sensitivity_table``, and ``LAYOUTS``."""
    found = [Sheet(name="sensitivity", values=table, texts=texts(table))]
    for name in LAYOUTS:
        wide = published_layout(table, name).rename_axis(index="scale").reset_index()
        written = {
            column: [shown(value, name if column != "scale" else "") for value in wide[column]] for column in wide
        }
        found.append(Sheet(name=name, values=wide, texts=pd.DataFrame(written)))
    return found


def to_csv(sheet: Sheet) -> bytes:
    return sheet.values.to_csv(index=False).encode()


def to_parquet(sheet: Sheet) -> bytes:
    buffer = io.BytesIO()
    sheet.values.to_parquet(buffer, index=False)
    return buffer.getvalue()


def to_markdown(sheet: Sheet) -> bytes:
    written = sheet.texts.map(_in_markdown).rename(columns=_in_markdown)
    return f"{written.to_markdown(index=False, disable_numparse=True)}\n".encode()


def to_latex(sheet: Sheet) -> bytes:
    numeric = map(pd.api.types.is_numeric_dtype, (sheet.values[column] for column in sheet.texts))
    columns = "".join("r" if is_number else "l" for is_number in numeric)
    written = sheet.texts.to_latex(index=False, escape=True, column_format=columns)
    return written.replace("≥", r"$\geq$").encode()


RENDERERS: dict[str, Callable[[Sheet], bytes]] = {
    "csv": to_csv,
    "parquet": to_parquet,
    "md": to_markdown,
    "tex": to_latex,
}
"""How a sheet is written to a file, by the file's extension: the first two keep every digit."""


def _in_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def _rank(column: pd.Series[Any]) -> pd.Series[Any]:
    """What a column of ``sensitivity_table`` is sorted by: names by their registry."""
    registries: dict[Hashable, Iterable[str]] = {"attention_norm": ATTENTION_NORMS, "method": METHODS}
    if column.name not in registries:
        return column
    return column.map(in_order(column.unique(), registries[column.name]).index)
