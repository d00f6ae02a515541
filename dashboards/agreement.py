"""Recomputes the tables of arXiv 2601.02031 from the published runs and compares them with the published numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
from rich.table import Table

from dashboards import published
from dashboards.runs import read_csv
from dashboards.sensitivity import CurveFacts, studies
from dashboards.tables import (
    MISSING,
    Sheet,
    format_values,
    heading_of,
    join_words,
    method_overheads,
    rich_table,
)
from search_spaces.attention_norms import DEFAULT
from search_spaces.methods import label

DIGITS = {"LRS": ".3f", "best_loss": ".2f", "best_lr": "g", "overhead_percent": ".1f"}
"""The columns that are compared, with the number format of the published tables."""
PLURALS = {
    "LRS": "LRS",
    "best_loss": "best losses",
    "best_lr": "best learning rates",
    "overhead_percent": "extra training times",
}
PUBLISHED = "_published"
"""The suffix of a column of published numbers."""
DIFFERS = "≠"
"""Marks a published number that the runs do not reproduce."""
_TABLES = {"LRS": published.LRS, "best_loss": published.BEST_LOSS, "best_lr": published.BEST_LR}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Numbers computed from published runs, each next to a column ``NAME_published`` with the published number."""

    curves: pd.DataFrame
    """One row per curve: study, scale, method, gamma, then LRS, best_loss and best_lr."""
    overheads: pd.DataFrame
    """One row per scale and method with all published gammas: study, scale, method, then overhead_percent."""

    @property
    def sentence(self) -> str:
        """How many numbers agree, and which differ."""
        counts, wrong = [], []
        for table in (self.curves, self.overheads):
            for number in (column for column in DIGITS if column in table and not table.empty):
                right = _matches(table, number)
                counts.append(f"{int(right.sum())} of {len(table)} {PLURALS[number]}")
                wrong += [f"{heading_of(number)} of {_name(row)}" for row in table[~right].to_dict("records")]
        text = f"Recomputed from these runs, {join_words(counts)} match the published numbers to the last digit."
        return f"{text} These differ: {join_words(wrong)}." if wrong else text


def agreement(curves: Iterable[CurveFacts]) -> Agreement | None:
    """The comparison for ``curves`` of published runs; None if no published curve is among them.

    The published extra training time of a method is a mean over all of its gammas, so it is compared only if all of
    them are present.
    """
    by_name = {(curve.study, curve.scale, curve.method, curve.gamma): curve for curve in curves}
    names = list(dict.fromkeys(study for study, *_ in by_name))
    overheads = method_overheads(by_name.values())
    of_curves, of_methods = [], []
    for study in names:
        for scale in published.SCALES:
            for place, (method, gamma) in enumerate(published.CURVES):
                if curve := by_name.get((study, scale, method, gamma)):
                    row = {"study": study, "scale": scale, "method": method, "gamma": gamma}
                    for number, tables in _TABLES.items():
                        row |= {number: getattr(curve, number), number + PUBLISHED: tables[scale][place]}
                    of_curves.append(row)
            for method, percent in zip(published.METHODS[1:], published.OVERHEAD_PERCENT[scale], strict=True):
                needed = {gamma for name, gamma in published.CURVES if name == method}
                present = {curve[3] for curve in by_name if curve[:3] == (study, scale, method)}
                extra = overheads.get((study, scale, DEFAULT, method))
                if needed == present and extra is not None:
                    row = {"study": study, "scale": scale, "method": method}
                    of_methods.append(
                        row | {"overhead_percent": extra.percent, "overhead_percent" + PUBLISHED: percent}
                    )
    if not of_curves:
        return None
    columns = ["study", "scale", "method", "overhead_percent", "overhead_percent" + PUBLISHED]
    return Agreement(
        curves=pd.DataFrame(of_curves).astype(dict.fromkeys(["gamma", *_TABLES], "float64")),
        overheads=pd.DataFrame(of_methods, columns=columns),
    )


def published_studies(runs: pd.DataFrame) -> frozenset[str]:
    """The studies in ``runs`` that consist of published runs only, whichever file they come from.

    A run is identified by its hyperparameters and its training time, which was recorded to a tenth of a second. Its
    results are not compared, because they are what an agreement checks.
    """
    names = studies(runs)
    return frozenset(name for name in set(names) if _identities(runs[names == name]) <= _published_identities())


@cache
def _published_identities() -> frozenset[tuple[object, ...]]:
    return _identities(read_csv(published.RUNS_CSV))


def _identities(runs: pd.DataFrame) -> frozenset[tuple[object, ...]]:
    columns = runs[["scale", "attention_norm", "method", "gamma", "lr", "seed", "train_seconds"]].fillna({"gamma": 0.0})
    for name in ("gamma", "lr", "train_seconds"):  # the published ones have fewer digits than single precision
        columns[name] = columns[name].map("{:.6g}".format)
    return frozenset(columns.itertuples(index=False, name=None))


def sheets(agreement: Agreement) -> list[Sheet]:
    """The tables that have rows, ready to be written to files."""
    return [
        Sheet(name=name, values=table, texts=_texts(table))
        for name, table in (("published", agreement.curves), ("published_overhead", agreement.overheads))
        if not table.empty
    ]


def terminal_tables(agreement: Agreement) -> list[Table]:
    """The curves, and the extra training times with one column per method, for an 80-column terminal."""
    several = agreement.curves["study"].nunique() > 1
    head = ["study", "scale"] if several else ["scale"]
    pairs = [name for number in _TABLES for name in (number, number + PUBLISHED)]
    texts = _texts(agreement.curves)[[*head, "method", "gamma", *pairs]]
    tables = [rich_table("Recomputed and published results", texts, dict.fromkeys(pairs[1::2], "published"))]
    wide: dict[tuple[str, ...], dict[str, str]] = {}
    for row in _texts(agreement.overheads).to_dict("records"):
        of_scale = wide.setdefault(tuple(row[name] for name in head), {name: row[name] for name in head})
        of_scale[row["method"]] = row["overhead_percent"]
        of_scale[row["method"] + PUBLISHED] = row["overhead_percent" + PUBLISHED]
    if wide:
        texts = pd.DataFrame(wide.values()).fillna(MISSING)
        headings = {name: "published" for name in map(str, texts) if name.endswith(PUBLISHED)}
        tables.append(rich_table("Extra training time over the baseline, %", texts, headings))
    return tables


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` as displayed, with each pair of numbers in the published format."""
    texts = format_values(table)
    for number in (column for column in DIGITS if column in table):
        right, theirs = _matches(table, number), _digits(table[number + PUBLISHED], number)
        texts[number] = _digits(table[number], number)
        texts[number + PUBLISHED] = [
            text if agrees else f"{DIFFERS} {text}" for text, agrees in zip(theirs, right, strict=True)
        ]
    return texts


def _matches(table: pd.DataFrame, number: str) -> pd.Series[bool]:
    pairs = zip(*(_digits(table[column], number) for column in (number, number + PUBLISHED)), strict=True)
    return pd.Series([ours == theirs for ours, theirs in pairs], index=table.index, dtype=bool)


def _digits(values: Iterable[float], number: str) -> list[str]:
    return [MISSING if pd.isna(value) else format(value, DIGITS[number]) for value in values]


def _name(row: Mapping[Hashable, Any]) -> str:
    gamma = row.get("gamma")
    return f"{row['scale']} {label(row['method'], None if pd.isna(gamma) else gamma)}"
