"""Tables of curves: one row per curve, the layout of the published tables, and the formats that they are written in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dashboards.factors import by_name, curve_factors, display_names, factor_columns, on_axis, varied
from dashboards.overhead import Overhead, overhead
from dashboards.runs import OFF_CURVE
from dashboards.sensitivity import CurveFacts, labels, sort_by_registry, studies
from dashboards.valley_table import COLUMNS as VALLEY_COLUMNS
from dashboards.valley_table import ENDS, OPTIMUM, WIDTHS, valley_columns
from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.factors import to_json
from search_spaces.methods import FOREIGN_KINDS, METHODS
from search_spaces.scales import SCALES

CURVE_KEYS = ("study", "scale", "attention_norm", "method")
OVERHEAD = ("overhead_percent", "overhead_low", "overhead_high")
"""Extra training time over the baseline, with its 95% interval."""
TABLE_COLUMNS = (
    *(*CURVE_KEYS, "gamma", "factors", "lr_factor", "LRS", "LRS_low", "LRS_high", "LRS_n"),
    *("best_loss", "best_lr", "highest_lr", "edge_low", "edge_high", "diverged", "cells", *OVERHEAD),
    *VALLEY_COLUMNS,
    "note",
)
"""Columns of ``sensitivity_table``. ``factors`` are those that the cells of a curve share, as JSON; ``lr_factor`` is
on its axis, and takes the place of ``lr`` in the meaning of all other columns. ``LRS`` is divided by n - 1, ``LRS_n``
by n; losses and LRS are in nats.
``highest_lr`` and every smaller learning rate converged; it is a lower bound if none diverged. ``cells`` counts the
cells with a result, ``diverged`` those among them that diverged.
``overhead_percent`` is missing if it has no interval; see ``dashboards.overhead``."""

HEADINGS: dict[str, str] = {
    "LRS_low": "LRS 2.5%",
    "LRS_high": "LRS 97.5%",
    "LRS_n": "LRS (n)",
    "overhead_percent": "extra time %",
    "core_hours": "core-hours",
    "tokens_per_second": "tokens/s",
    "b_ratio": "B-ratio",
    "mu_norm": "|mu|",
    "ratio_norm": "|mu| / row norm",
    "e_mu_min": "e·mu min",
    "e_mu_max": "e·mu max",
    "optimum_low": "optimum 2.5%",
    "optimum_high": "optimum 97.5%",
    "drift_low": "drift 2.5%",
    "drift_high": "drift 97.5%",
    **{name: name.replace("_low", "_2.5%").replace("_high", "_97.5%").replace("_", " ") for name in WIDTHS},
}
"""Display headings that are not a column's name with spaces."""

_ENDS = ("min", "mean", "max")
_COLUMNS_BY_FORMAT: dict[str, tuple[str, ...]] = {
    "d": ("diverged", "cells"),
    "g": ("gamma", "lr", "best_lr", "highest_lr", "edge_low", "edge_high"),
    ".0f": ("step", "seed"),
    ",.0f": ("tokens", "tokens_per_second"),
    ".1f": ("seconds",),
    "+.1f": OVERHEAD,
    "+.2f": ("drift", "drift_low", "drift_high"),
    ".2f": ("hours", "core_hours", "importance", "low", "high", "b_ratio"),
    ".3f": ("LRS", "LRS_low", "LRS_high", "LRS_n", "best_loss", "ratio_norm"),
    ".4f": ("loss", "val_loss"),
    ".2g": ("isotropy", *OPTIMUM, *ENDS),
    ".4g": ("headroom", *WIDTHS),
    ".3g": (
        "mu_norm",
        *(f"{name}_{end}" for name in ("e_mu", "row_norm", "singular") for end in _ENDS),
    ),
}
FORMATS = {column: form for form, columns in _COLUMNS_BY_FORMAT.items() for column in columns}
"""The format of each number in displayed tables; CSV and Parquet keep every digit."""

MISSING = "–"
"""The placeholder for a missing value."""
MAX_HALF_WIDTH = 100.0
"""An overhead is displayed if its interval is at most ± this many percent."""


def sensitivity_table(curves: Iterable[CurveFacts]) -> pd.DataFrame:
    """One row per curve, columns ``TABLE_COLUMNS``; a value that cannot be determined is missing."""
    rows = [
        {column: getattr(curve, column, None) for column in TABLE_COLUMNS}
        | {"factors": to_json(dict(curve.factors))}
        | dict(zip(("LRS_low", "LRS_high"), curve.interval or (None, None), strict=True))
        | {"edge_low": curve.edge and curve.edge.low, "edge_high": curve.edge and curve.edge.high}
        | overhead_columns(curve.overhead)
        | {"cells": len(curve.points), "note": "; ".join(curve.warnings)}
        | valley_columns(curve)
        for curve in curves
    ]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    forms = {column: form for column, form in FORMATS.items() if column in table}
    return table.astype({column: "int64" if form == "d" else "float64" for column, form in forms.items()})


COUNTED = ("finished", "diverged", "crashed", "pruned")
COST_COLUMNS = (
    *(*CURVE_KEYS, *COUNTED, "waiting"),
    *("hours", "core_hours", "tokens_per_second", *OVERHEAD),
)
"""Columns of ``cost_table``. ``waiting`` counts planned and running cells; ``hours`` is the total training time of all
cells; ``tokens_per_second`` is the median over cells; the ``OVERHEAD`` comes from ``method_overheads``."""


def cost_table(runs: pd.DataFrame, curves: Sequence[CurveFacts], cores: int | None) -> pd.DataFrame:
    """One row per scale, attention norm and method, columns ``COST_COLUMNS``; includes refinements and pruned cells.

    ``cores`` is the number of cores per cell, if known.
    """
    overheads: dict[Any, Overhead] = {**method_overheads(curves)}
    rows = []
    for key, cells in runs.assign(study=studies(runs)).groupby([*CURVE_KEYS], sort=False):
        states, hours = cells["state"].value_counts(), cells["train_seconds"].sum() / 3600
        rows.append(
            dict(zip(CURVE_KEYS, key, strict=True))
            | {state: int(states.get(state, 0)) for state in COUNTED}
            | {"waiting": int(states.get("planned", 0) + states.get("running", 0)), "hours": hours}
            | {"core_hours": None if cores is None else cores * hours}
            | {"tokens_per_second": cells["tokens_per_second"].median()}
            | overhead_columns(overheads.get(key))
        )
    table = pd.DataFrame(rows, columns=list(COST_COLUMNS))
    return table.astype(dict.fromkeys(("core_hours", "tokens_per_second", *OVERHEAD), "float64"))


def method_overheads(curves: Iterable[CurveFacts]) -> dict[tuple[str, str, str, str], Overhead]:
    """Extra training time of each method over the baseline, by study, scale, attention norm and method.

    This is the mean over the method's gammas, the rule of the tables of arXiv 2601.02031: they average over the
    learning rates of each gamma, then over the gammas. A method without an interval is left out.
    """
    by_method: dict[tuple[str, str, str, str], dict[float | None, dict[Hashable, float]]] = {}
    for curve in curves:
        by_gamma = by_method.setdefault((curve.study, curve.scale, curve.attention_norm, curve.method), {})
        seconds = by_gamma.setdefault(curve.gamma, {})
        seconds |= {(curve.factors, *pair): value for pair, value in curve.finished_seconds.items()}
    found = {}
    for (study, scale, norm, method), by_gamma in by_method.items():
        baseline = by_method.get((study, scale, norm, "baseline"), {}).get(None)
        if method != "baseline" and baseline and (extra := overhead(list(by_gamma.values()), baseline)):
            found[study, scale, norm, method] = extra
    return found


def overhead_columns(extra: Overhead | None) -> dict[str, float | None]:
    values = (extra.percent, *extra.interval) if extra else (None, None, None)
    return dict(zip(OVERHEAD, values, strict=True))


def published_layout(table: pd.DataFrame, value: str = "LRS") -> pd.DataFrame:
    """A column of ``sensitivity_table`` in the layout of the published tables: scales as rows, methods as columns."""
    labeled = table.assign(label=labels(table))
    wide = labeled.pivot(index="scale", columns="label", values=value)
    by = ["attention_norm", "method", "gamma", "study"]
    columns = labeled.sort_values(by, key=_sort_key, kind="stable")["label"].unique()
    return wide.reindex(index=sort_by_registry(wide.index, SCALES), columns=columns).rename_axis(columns=None)


def b_ratio_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The B-ratio of the output embedding at the end of training, in the layout of arXiv 2601.02031.

    One row per curve, one column per learning rate, averaged over seeds; empty if no run recorded a B-ratio.
    """
    measured = on_axis(runs).assign(label=labels(runs)).dropna(subset="output_b_ratio")
    measured = measured[~measured["origin"].isin(OFF_CURVE)]
    wide = measured.pivot_table(index=["scale", "label"], columns="lr", values="output_b_ratio", sort=False)
    wide = wide.reindex(columns=sorted(wide.columns)).rename(columns=lambda lr: f"{lr:g}")
    return wide.rename_axis(columns=None).reset_index()


def heading_of(column: str) -> str:
    return HEADINGS.get(column, column.replace("_", " "))


def format_value(value: Any, column: str) -> str:
    return MISSING if pd.isna(value) else format(value, FORMATS.get(column, ""))


def format_values(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({str(name): [format_value(value, str(name)) for value in table[name]] for name in table})


def format_highest_lr(lr: float | None, diverged: int) -> str:
    """``highest_lr`` as displayed: a lower bound if no cell of the curve diverged."""
    return format_value(lr, "highest_lr") if diverged or pd.isna(lr) else f"≥ {format_value(lr, 'highest_lr')}"


def format_overhead(percent: float | None, low: float | None) -> str:
    """``overhead_percent`` as displayed, with half the width of its interval, which begins at ``low``. Nothing if the
    interval is so wide that the number says nothing."""
    if percent is None or low is None or pd.isna(percent) or percent - low > MAX_HALF_WIDTH:
        return MISSING
    return f"{format_value(percent, 'overhead_percent')} ± {percent - low:.1f}"


def merge_overheads(texts: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """``texts`` of a table with ``OVERHEAD``, with one column in place of these three."""
    pairs = zip(table["overhead_percent"], table["overhead_low"], strict=True)
    merged = texts.assign(overhead_percent=[format_overhead(*pair) for pair in pairs])
    return merged.drop(columns=["overhead_low", "overhead_high"])


def format_columns(table: pd.DataFrame) -> pd.DataFrame:
    """``sensitivity_table`` as displayed, without the columns that carry no information in any row."""
    texts = format_values(table)
    names = varied(curve_factors(table))
    headings, place = display_names(names, taken=set(map(str, texts))), list(texts).index("factors")
    for i, (name, column) in enumerate(factor_columns(table, names).items(), place):
        texts.insert(i, headings[name], column)
    texts = texts.drop(columns=["factors", "lr_factor"])
    pairs = zip(table["highest_lr"], table["diverged"], strict=True)
    texts["highest_lr"] = [format_highest_lr(*pair) for pair in pairs]
    bounded = (table["diverged"] > 0) | table["edge_high"].notna() | table["headroom"].isna()
    texts["headroom"] = [text if known else f"≥ {text}" for text, known in zip(texts["headroom"], bounded, strict=True)]
    texts = merge_overheads(texts, table)
    trivial = {"attention_norm": {DEFAULT}, "study": set(texts["study"][:1])}
    trivial["method"] = set(FOREIGN_KINDS)
    return texts[[name for name in texts if not set(texts[name]) <= trivial.get(str(name), {MISSING, ""})]]


def make_sheet(name: str, table: pd.DataFrame) -> Sheet:
    return Sheet(name=name, values=table, texts=format_values(table))


MAX_EXCEPTIONS = 3
"""A sentence about most curves names up to this many exceptions; if there are more, it gives counts."""


def name_curves(names: Sequence[str], everyone: Sequence[str]) -> str:
    """A phrase for the curves ``names`` among ``everyone``; if they are a majority, it names the exceptions instead."""
    if len(names) == len(everyone) > 1:
        return "every curve"
    others = [name for name in everyone if name not in names]
    if len(names) <= max(MAX_EXCEPTIONS, len(others)):
        return join_words(names)
    if len(others) <= MAX_EXCEPTIONS:
        return f"every curve but {join_words(others)}"
    return f"{len(names)} of {len(everyone)} curves"


def merge_notes(notes_by_name: Mapping[str, Sequence[str]], everyone: Sequence[str]) -> list[str]:
    """Each distinct note once, after the curves that it is about."""
    names_by_note: dict[str, list[str]] = {}
    for name, notes in notes_by_name.items():
        for note in notes:
            names_by_note.setdefault(note, []).append(name)
    return [f"{name_curves(names, everyone)}: {note}" for note, names in names_by_note.items()]


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


COLUMNS = 80
"""The width of a terminal."""


def terminal_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """``sensitivity_table`` for an 80-column terminal, with the notes below it."""
    everyone = [f"{scale} {name}" for scale, name in zip(table["scale"], labels(table), strict=True)]
    notes = merge_notes({name: [note] for name, note in zip(everyone, table["note"], strict=True) if note}, everyone)
    texts = format_columns(table).drop(columns=["LRS_n", "cells", *VALLEY_COLUMNS, "note"], errors="ignore")
    terminal = rich_table(title, texts)
    for column in ("overhead_percent", "diverged"):  # the page and the files have all columns
        if column in texts and Console(width=2 * COLUMNS).measure(terminal).maximum > COLUMNS:
            texts = texts.drop(columns=column)
            terminal = rich_table(title, texts)
    terminal.caption, terminal.caption_justify = Text("\n".join(notes)), "left"
    return terminal


def rich_table(title: str | None, texts: pd.DataFrame, headings: Mapping[str, str] | None = None) -> Table:
    """``texts`` as a narrow table with two-line headings: ``headings``, or else those of the columns."""
    table = Table(title=title, box=SIMPLE, padding=0)
    for column in map(str, texts):
        heading = (headings or {}).get(column) or heading_of(column).replace(" ", "\n", 1)
        table.add_column(heading, justify="left" if column in CURVE_KEYS else "right")
    for row in texts.to_numpy():
        # Text, because Rich would interpret markup in names that come from a file.
        table.add_row(*map(Text, row))
    return table


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A named table, as values and as displayed text."""

    name: str
    """The stem of its files."""
    values: pd.DataFrame
    texts: pd.DataFrame
    """The columns worth displaying, as text."""


LAYOUTS = ("LRS", "best_loss", "best_lr", "overhead_percent")
"""Columns of ``sensitivity_table`` that get their own sheet in the published layout."""


def sheets(table: pd.DataFrame) -> list[Sheet]:
    """The sheet of ``sensitivity_table``, and one for each of ``LAYOUTS``."""
    sheets = [Sheet(name="sensitivity", values=by_name(table), texts=format_columns(table))]
    for name in LAYOUTS:
        wide = published_layout(table, name).rename_axis(index="scale")
        texts = wide.map(format_value, column=name)
        sheets.append(Sheet(name=name, values=wide.reset_index(), texts=texts.reset_index()))
    return sheets


def to_markdown(sheet: Sheet) -> bytes:
    texts = sheet.texts.replace(r"\|", r"\\|", regex=True).rename(columns=lambda name: name.replace("|", "\\|"))
    return f"{texts.to_markdown(index=False, disable_numparse=True)}\n".encode()


def to_latex(sheet: Sheet) -> bytes:
    numeric = (column in sheet.values and is_numeric_dtype(sheet.values[column]) for column in sheet.texts)
    columns = "".join("r" if is_number else "l" for is_number in numeric)
    latex = sheet.texts.to_latex(index=False, escape=True, column_format=columns)
    return latex.replace("≥", r"$\geq$").replace("±", r"$\pm$").encode()


RENDERERS: dict[str, Callable[[Sheet], bytes]] = {
    "csv": lambda sheet: sheet.values.to_csv(index=False).encode(),
    "parquet": lambda sheet: sheet.values.to_parquet(index=False),
    "md": to_markdown,
    "tex": to_latex,
}
"""The function that writes a sheet, by file extension; CSV and Parquet keep every digit."""


def _sort_key(column: pd.Series[Any]) -> pd.Series[Any]:
    """The sort key of a column of ``sensitivity_table``: a name sorts by its position in its registry."""
    registries: dict[Hashable, Iterable[str]] = {"attention_norm": ATTENTION_NORMS, "method": METHODS}
    if column.name not in registries:
        return column
    return column.map(sort_by_registry(column.unique(), registries[column.name]).index)
