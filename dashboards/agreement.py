"""What the published runs give, beside what was published: the tables of arXiv 2601.02031 from their raw runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from dashboards import published
from dashboards.overheads import method_overheads
from dashboards.runs import read_csv
from dashboards.sensitivity import CurveFacts, studies
from dashboards.tables import HEADINGS, MISSING, Sheet, listed, shown
from search_spaces.attention_norms import DEFAULT
from search_spaces.methods import label

NUMBERS = {"LRS": ".3f", "best_loss": ".2f", "best_lr": "g", "overhead_percent": ".1f"}
"""Columns that are compared, with the digits that were published."""
WORDS = {
    "LRS": "LRS",
    "best_loss": "best losses",
    "best_lr": "best learning rates",
    "overhead_percent": "extra training times",
}
PUBLISHED = "_published"
"""What the name of a column of published numbers ends in."""
DIFFERS = "≠"
"""Stands before a published number that the runs do not give."""
_TABLES = {"LRS": published.LRS, "best_loss": published.BEST_LOSS, "best_lr": published.BEST_LR}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Numbers that were computed from published runs, each beside the published one, in a column ``NAME_published``."""

    curves: pd.DataFrame
    """One row a curve: study, scale, method, gamma, then LRS, best_loss and best_lr."""
    overheads: pd.DataFrame
    """One row a method of a scale whose strengths are all there: study, scale, method, then overhead_percent."""

    @property
    def sentence(self) -> str:
        """How many numbers agree, and which do not."""
        counts, wrong = [], []
        for table in (self.curves, self.overheads):
            for number in (column for column in NUMBERS if column in table and not table.empty):
                right = _agrees(table, number)
                counts.append(f"{int(right.sum())} of {len(table)} {WORDS[number]}")
                wrong += [f"{HEADINGS.get(number, number)} of {_name(row)}" for row in table[~right].to_dict("records")]
        text = f"Computed from these runs, {listed(counts)} agree with the published ones to the last published digit."
        return f"{text} These differ: {listed(wrong)}." if wrong else text


def agreement(curves: Iterable[CurveFacts]) -> Agreement | None:
    """``curves`` are those of published runs; None if no published curve is among them.

    The published extra training time of a method is a mean over all of its strengths: it is compared where all are
    there.
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
                there = {gamma for key, at, name, gamma in by_name if (key, at, name) == (study, scale, method)}
                found = overheads.get((study, scale, DEFAULT, method))
                if needed == there and found is not None:
                    row = {"study": study, "scale": scale, "method": method}
                    of_methods.append(row | {"overhead_percent": found, "overhead_percent" + PUBLISHED: percent})
    if not of_curves:
        return None
    return Agreement(
        curves=pd.DataFrame(of_curves).astype({"gamma": "float64", **dict.fromkeys(_TABLES, "float64")}),
        overheads=pd.DataFrame(
            of_methods, columns=["study", "scale", "method", "overhead_percent", "overhead_percent" + PUBLISHED]
        ),
    )


def published_studies(runs: pd.DataFrame) -> frozenset[str]:
    """The studies of ``runs`` all of whose runs are published ones, whatever file they are from.

    A run is known by what was tried and by its training time, to a tenth of a second; its results are not asked, as
    they are what an agreement looks at.
    """
    of = studies(runs)
    # Most studies are told apart without a look at each run.
    alike = runs["scale"].isin(published.SCALES) & (runs["attention_norm"] == DEFAULT) & runs["train_seconds"].notna()
    candidates = set(of) - set(of[~alike])
    return frozenset(name for name in candidates if _identities(runs[of == name]) <= _known_runs())


@cache
def _known_runs() -> frozenset[tuple[object, ...]]:
    return _identities(read_csv(published.RUNS_CSV))


def _identities(runs: pd.DataFrame) -> frozenset[tuple[object, ...]]:
    columns = runs[["scale", "method", "gamma", "lr", "seed", "train_seconds"]].fillna({"gamma": 0.0})
    return frozenset(columns.itertuples(index=False, name=None))


def sheets(found: Agreement) -> list[Sheet]:
    """Both tables, to be written to files."""
    return [
        Sheet(name=name, values=table, texts=_texts(table))
        for name, table in (("published", found.curves), ("published_overhead", found.overheads))
        if not table.empty
    ]


def terminal_tables(found: Agreement) -> list[Table]:
    """The curves, and the extra training times with a method a column, for a terminal of 80 columns."""
    several = found.curves["study"].nunique() > 1
    head = ["study", "scale"] if several else ["scale"]
    pairs = [name for number in _TABLES for name in (number, number + PUBLISHED)]
    drawn = [_table("Beside the published tables", _texts(found.curves)[[*head, "method", "gamma", *pairs]])]
    wide: dict[tuple[str, ...], dict[str, str]] = {}
    for row in _texts(found.overheads).to_dict("records"):
        of_scale = wide.setdefault(tuple(row[name] for name in head), {name: row[name] for name in head})
        of_scale[row["method"]] = row["overhead_percent"]
        of_scale[row["method"] + PUBLISHED] = row["overhead_percent" + PUBLISHED]
    if wide:
        drawn.append(_table("Extra training time over the baseline, %", pd.DataFrame(wide.values()).fillna(MISSING)))
    return drawn


def _table(title: str, texts: pd.DataFrame) -> Table:
    drawn = Table(title=title, box=SIMPLE, padding=0)
    for column in map(str, texts):
        heading = "published" if column.endswith(PUBLISHED) else HEADINGS.get(column, column).replace(" ", "\n", 1)
        drawn.add_column(heading, justify="left" if column in ("study", "scale", "method") else "right")
    for row in texts.to_numpy():
        # As Text: names that come from a file are not to be read as markup.
        drawn.add_row(*(Text(value) for value in row))
    return drawn


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it, each pair with the published digits."""
    written = {str(column): [shown(value, str(column)) for value in table[column]] for column in table}
    for number in (column for column in NUMBERS if column in table):
        right, theirs = _agrees(table, number), _digits(table[number + PUBLISHED], number)
        written[number] = _digits(table[number], number)
        written[number + PUBLISHED] = [
            text if agrees else f"{DIFFERS} {text}" for text, agrees in zip(theirs, right, strict=True)
        ]
    return pd.DataFrame(written)


def _agrees(table: pd.DataFrame, number: str) -> pd.Series[bool]:
    pairs = zip(*(_digits(table[column], number) for column in (number, number + PUBLISHED)), strict=True)
    return pd.Series([ours == theirs for ours, theirs in pairs], index=table.index, dtype=bool)


def _digits(values: Iterable[float], number: str) -> list[str]:
    return [MISSING if pd.isna(value) else format(value, NUMBERS[number]) for value in values]


def _name(row: Mapping[Hashable, Any]) -> str:
    gamma = row.get("gamma")
    return f"{row['scale']} {label(row['method'], None if pd.isna(gamma) else gamma)}"
