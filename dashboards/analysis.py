"""What ``oec analyze`` found of kept weights: its tables, as files and back, and the figures that are drawn of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import CellFigure, Figure, by_name, chart_of, layered, spec_of, tooltip
from dashboards.embeddings import MEASURES, Embedding, histogram
from dashboards.files import save_sheet
from dashboards.runs import records
from dashboards.tables import Sheet, sheet
from dashboards.views import GREY, color_of
from search_spaces.errors import InvalidInput
from search_spaces.methods import label

CELL_COLUMNS = ("cell", "scale", "attention_norm", "method", "gamma", "lr", "seed", "state", "step")
"""Of a file of weights: the cell that it is of, and the steps after which it was kept. A file from elsewhere has its
name in place of a cell, and nothing else."""
TABLES: dict[str, tuple[str, ...]] = {
    "embeddings": (*CELL_COLUMNS, "embedding", *MEASURES),
    "histograms": ("cell", "step", "what", "low", "high", "rows"),
    "spectra": ("cell", "step", "number", "singular_value"),
    "losses": (*CELL_COLUMNS, "data", "digest", "tokens", "loss", "val_loss"),
}
"""Columns of the tables. Histograms and spectra are of the output embedding; ``val_loss`` is the one of the run's own
validation tokens, where the run was evaluated at that step."""
OUTPUT, INPUT = "output", "input"
HISTOGRAMS = {"e_mu": "Dot product of each row with mu", "row_norm": "Norm of each row"}
FOLDER = "analysis"

BAR, MEAN, BOUND = "#56b4e9", "#d55e00", "#009e73"
MARKS = {"zero": GREY, "|mu|², the mean": MEAN, "smallest and largest": BOUND}
B_RATIO_STEP = 0.05
"""Width of a bin of B-ratios, each around a multiple of it: that of centered weights is 1, but for rounding."""
NOT_FLUSH = alt.Axis(labelFlush=False, labelOverlap=True)
TEXT = {"cell", "scale", "attention_norm", "method", "state", "embedding", "what", "data", "digest"}
"""Columns that hold no numbers."""
MAX_POINTS = 100
"""Singular values of one spectrum that are drawn."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The tables of ``TABLES``, by name."""

    embeddings: pd.DataFrame
    histograms: pd.DataFrame
    spectra: pd.DataFrame
    losses: pd.DataFrame

    @classmethod
    def of(cls, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Analysis:
        """From a mapping a row; a column that a row lacks is a missing value."""
        return cls(
            **{
                name: _numbers(pd.DataFrame(list(rows.get(name, ())), columns=list(columns)))
                for name, columns in TABLES.items()
            }
        )

    @classmethod
    def read(cls, folder: Path) -> Analysis | None:
        """What ``write`` has left in ``folder``; None if that is nothing.

        Raises:
            InvalidInput: a file is no such table.
        """
        if not (folder / "embeddings.csv").is_file():
            return None
        return cls(**{name: _read(folder / f"{name}.csv", columns) for name, columns in TABLES.items()})

    def write(self, folder: Path) -> None:
        for name in TABLES:
            table: pd.DataFrame = getattr(self, name)
            save_sheet(Sheet(name=name, values=table, texts=table), folder, ["csv"])

    def last(self) -> pd.DataFrame:
        """Of ``embeddings``, the output embedding of each cell after its last step."""
        output = self.embeddings[self.embeddings["embedding"] == OUTPUT]
        return output[~output.duplicated("cell", keep="last")]

    def sheets(self) -> list[Sheet]:
        """The tables that a person reads."""
        found = [sheet("embeddings", self.embeddings)]
        return found if self.losses.empty else [*found, sheet("losses", self.losses)]


def rows_of(cell: Mapping[str, Any], embeddings: Mapping[str, Embedding]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one file of weights, by table.

    Args:
        cell: its ``CELL_COLUMNS``.
        embeddings: ``OUTPUT``, and ``INPUT`` if that is another matrix.
    """
    output, which = embeddings[OUTPUT], {"cell": cell["cell"], "step": cell.get("step")}
    values = {"e_mu": output.e_mu_V, "row_norm": output.row_norm_V}
    return {
        "embeddings": [{**cell, "embedding": name, **found.measures} for name, found in embeddings.items()],
        "histograms": [
            {**which, "what": what, "low": low, "high": high, "rows": rows}
            for what in HISTOGRAMS
            for low, high, rows in histogram(values[what])
        ],
        "spectra": [
            {**which, "number": number, "singular_value": value}
            for number, value in enumerate(output.singular_D.tolist(), start=1)
        ],
    }


def labels(cells: pd.DataFrame) -> list[str]:
    """What a person calls the cells of a table: that of a file from elsewhere is its name."""
    return [
        label(row["method"], None if pd.isna(row["gamma"]) else row["gamma"], row["attention_norm"])
        if isinstance(row["method"], str)
        else str(row["cell"])
        for row in cells.to_dict("records")
    ]


def b_ratio_figures(found: Analysis) -> list[Figure]:
    """How many cells have which B-ratio, as arXiv 2601.02031 draws it of its baselines; none without one."""
    known = found.last().dropna(subset="b_ratio")
    if known.empty:
        return []
    known = known.assign(label=labels(known))
    names = {name: color_of(str(method)) for name, method in zip(known["label"], known["method"], strict=True)}
    low = (known["b_ratio"] / B_RATIO_STEP).round() * B_RATIO_STEP - B_RATIO_STEP / 2
    facts = known.assign(low=low.round(3), high=(low + B_RATIO_STEP).round(3))
    facts = facts.groupby(["label", "low", "high"], sort=False).size().rename("cells").reset_index()
    largest = max(1.2, float(facts["high"].max()))
    x = alt.X("low:Q", bin="binned", title="B-ratio", scale=alt.Scale(domain=[0, largest], nice=False), axis=NOT_FLUSH)
    y = alt.Y("cells:Q", title="cells", stack="zero", axis=alt.Axis(tickMinStep=1, format="d"))
    color = alt.Color("label:N", title=None, scale=by_name(names))
    bars = chart_of("facts").mark_bar(opacity=0.9).encode(x=x, x2="high:Q", y=y, color=color)
    one = pd.DataFrame({"one": [1.0], "text": ["centering changes nothing"]})
    layers = [
        bars.encode(tooltip=tooltip("label:N", low=".3f", high=".3f", cells="d")),
        chart_of("one").mark_rule(strokeDash=[4, 4], color=GREY, strokeWidth=1.5).encode(x="one:Q"),
        chart_of("one")
        .mark_text(baseline="bottom", dy=-5, color=GREY)
        .encode(x="one:Q", y=alt.value(0), text="text:N"),
    ]
    return [
        Figure(
            name="b-ratio",
            title="B-ratio of the output embedding",
            caption="The bound on the logits along mu after centering over the bound before it: below 1, centering "
            f"tightens it. The last kept weights of {len(known)} cells.",
            view=None,
            section="why",
            spec=spec_of(layers, {"facts": facts, "one": one}),
        )
    ]


def cell_figures(found: Analysis) -> list[CellFigure]:
    """The figures of one cell, each with the data of all: rows along mu, norms of the rows, singular values."""
    last = found.last()
    step = dict(zip(last["cell"], last["step"], strict=True))
    histograms = _of_steps(found.histograms, step)
    along, norms = (_by_cell(histograms[histograms["what"] == what]) for what in HISTOGRAMS)
    spectra = _by_cell(_of_steps(found.spectra, step))
    facts = {str(row["cell"]): row for row in records(last.assign(label=labels(last)))}
    about = {cell: pd.DataFrame({"text": [_about(fact)]}) for cell, fact in facts.items()}
    drawn = [
        CellFigure(
            name="e-mu",
            title="Rows of the output embedding along mu",
            caption="Dot product of each row with mu, the mean row. Centering moves the orange line to zero; the bound "
            "on the logits along mu is then the larger of its distances to the green lines, and before it is that of "
            "zero.",
            spec=layered([_bars("e · mu"), _lines(), _words()]),
            data={
                cell: {"bins": _bins(rows), "marks": _marks(facts[cell]), "about": about[cell]}
                for cell, rows in along.items()
            },
        ),
        CellFigure(
            name="row-norms",
            title="Norms of the rows of the output embedding",
            caption="How many rows have which L2 norm.",
            spec=layered([_bars("norm of a row"), _words()]),
            data={cell: {"bins": _bins(rows), "about": about[cell]} for cell, rows in norms.items()},
        ),
        CellFigure(
            name="singular-values",
            title="Singular values of the output embedding",
            caption="With a large mu the first stands apart: it belongs to the direction that the rows have in common.",
            spec=layered([_spectrum(), _words()]),
            data={cell: {"values": _thinned(rows), "about": about[cell]} for cell, rows in spectra.items()},
        ),
    ]
    return [figure for figure in drawn if figure.data]


def representative(found: Analysis) -> dict[str, str]:
    """The cells whose figures become files, and what these are named by: of each scale, of its first curve the largest
    learning rate that did not diverge; each file from elsewhere."""
    last = found.last()
    chosen = {str(cell): str(cell) for cell in last.loc[last["method"].isna(), "cell"]}
    for scale, cells in last.dropna(subset="method").assign(label=lambda of: labels(of)).groupby("scale", sort=False):
        first = cells[cells["label"] == cells["label"].iloc[0]]
        converged = first[first["state"] == "finished"]
        at_best = (first if converged.empty else converged).sort_values("lr", kind="stable", ascending=False)
        chosen[str(at_best["cell"].iloc[0])] = str(scale)
    return chosen


def _by_cell(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(cell): rows for cell, rows in table.groupby("cell", sort=False)}


def _lines() -> alt.Chart:
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)
    color = alt.Color("what:N", title=None, scale=by_name(MARKS), legend=legend)
    rules: alt.Chart = chart_of("marks").mark_rule(strokeWidth=1.5, strokeDash=[6, 3])
    return rules.encode(x="value:Q", color=color, tooltip=tooltip("what:N", value=".4~g"))


def _words() -> alt.Chart:
    """Which cell it is, above the frame."""
    text: alt.Chart = chart_of("about").mark_text(align="right", baseline="bottom", dy=-5, color=GREY)
    return text.encode(x=alt.value("width"), y=alt.value(0), text="text:N")


def _bars(title: str) -> alt.Chart:
    x = alt.X("low:Q", bin="binned", title=title, scale=alt.Scale(zero=False, nice=True), axis=NOT_FLUSH)
    y = alt.Y("rows:Q", title="rows", axis=alt.Axis(format="~s"))
    bars: alt.Chart = chart_of("bins").mark_bar(color=BAR, binSpacing=0.5)
    return bars.encode(x=x, x2="high:Q", y=y, tooltip=tooltip(low=".4~g", high=".4~g", rows="d"))


def _spectrum() -> alt.Chart:
    x = alt.X("number:Q", title="index", scale=alt.Scale(nice=False))
    y = alt.Y("singular_value:Q", title="singular value", scale=alt.Scale(type="log", nice=False, padding=8))
    lines: alt.Chart = chart_of("values").mark_line(color=BAR, point=alt.OverlayMarkDef(size=14, color=BAR))
    return lines.encode(x=x, y=y, tooltip=tooltip("number:Q", singular_value=".4~g"))


def _of_steps(table: pd.DataFrame, step: Mapping[str, Any]) -> pd.DataFrame:
    """Those rows that are of the given step of their cell; files from elsewhere have none."""
    wanted = table["cell"].map(step)
    return table[(table["step"] == wanted) | (table["step"].isna() & wanted.isna())]


def _bins(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["low", "high", "rows"]].map(_digits)


def _marks(fact: Mapping[Hashable, Any]) -> pd.DataFrame:
    zero, mean, bound = MARKS
    values = ((zero, 0.0), (mean, fact["mu_norm"] ** 2), (bound, fact["e_mu_min"]), (bound, fact["e_mu_max"]))
    return pd.DataFrame([{"what": what, "value": _digits(value)} for what, value in values])


def _about(fact: Mapping[Hashable, Any]) -> str:
    """A cell and what its figures show, in words."""
    what = f"{fact['label']}, lr {fact['lr']:g}, seed {fact['seed']:g}" if pd.notna(fact["lr"]) else fact["label"]
    return f"{what}: B-ratio {fact['b_ratio']:.2f}, |mu| {fact['mu_norm']:.3g}"


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most ``MAX_POINTS`` of a spectrum, the first and the last among them; none that is zero, as the axis is
    logarithmic."""
    kept = np.unique(np.linspace(0, len(rows) - 1, min(MAX_POINTS, len(rows))).round().astype(int))
    values = rows.iloc[kept][["number", "singular_value"]]
    return values[values["singular_value"] > 0].map(_digits)


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with a missing number as NaN, as a file gives it back; None makes a column of objects."""
    objects = table.select_dtypes("object").columns
    return table.astype({name: "float64" for name in objects if name not in TEXT})


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={name: "object" if name in TEXT else "float64" for name in columns})
        if list(table) != list(columns):
            raise ValueError(f"has the columns {', '.join(map(str, table))}")
    except (OSError, ValueError) as error:
        remedy = "remove its folder, and `oec analyze` makes it again"
        raise InvalidInput("analysis", str(path), f"is no table of an analysis ({error})", remedy) from error
    return table.replace([math.inf, -math.inf], math.nan)
