"""The results of ``oec analyze`` on kept weights: tables that are written and read back, and figures of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import CellFigure, Figure, categories, chart_of, five_digits, spec_of, tooltip
from dashboards.embeddings import MEASURES, Embedding, histogram
from dashboards.files import save_sheet
from dashboards.runs import records
from dashboards.tables import Sheet, make_sheet
from dashboards.views import GREY, color_of
from search_spaces.errors import InvalidInput
from search_spaces.methods import label

CELL_COLUMNS = ("cell", "scale", "attention_norm", "method", "gamma", "lr", "seed", "state", "step")
"""The cell that a weights file belongs to, and the step at which it was saved. For a file from outside a study,
``cell`` is the name of the file and the other columns are missing."""
TABLES: dict[str, tuple[str, ...]] = {
    "embeddings": (*CELL_COLUMNS, "embedding", *MEASURES),
    "histograms": ("cell", "step", "what", "low", "high", "rows"),
    "spectra": ("cell", "step", "number", "singular_value"),
    "losses": (*CELL_COLUMNS, "data", "digest", "tokens", "loss", "val_loss"),
}
"""Columns of the tables. Histograms and spectra describe the output embedding. ``val_loss`` is the loss on the
validation tokens of the run, if the run was evaluated at that step."""
OUTPUT, INPUT = "output", "input"
HISTOGRAMS = {"e_mu": "Dot product of each row with mu", "row_norm": "Norm of each row"}
FOLDER = "analysis"

BAR, MEAN, BOUND = "#56b4e9", "#d55e00", "#009e73"
MARKS = {"zero": GREY, "|mu|², the mean": MEAN, "minimum and maximum": BOUND}
B_RATIO_STEP = 0.05
"""Width of a bin of B-ratios. Bins are centered on its multiples, because centered weights have a ratio of about 1."""
NOT_FLUSH = alt.Axis(labelFlush=False, labelOverlap=True)
TEXT = {"cell", "scale", "attention_norm", "method", "state", "embedding", "what", "data", "digest"}
"""Columns of text."""
MAX_POINTS = 100
"""At most this many singular values of a spectrum are drawn."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The tables of ``TABLES``."""

    embeddings: pd.DataFrame
    histograms: pd.DataFrame
    spectra: pd.DataFrame
    losses: pd.DataFrame

    @classmethod
    def from_rows(cls, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Analysis:
        """An analysis from the rows of each table; a column that a row lacks is missing."""
        return cls(
            **{
                name: _with_float_columns(pd.DataFrame(list(rows.get(name, ())), columns=list(columns)))
                for name, columns in TABLES.items()
            }
        )

    @classmethod
    def read(cls, folder: Path) -> Analysis | None:
        """The analysis that ``write`` left in ``folder``; None if there is none.

        Raises:
            InvalidInput: a file is damaged.
        """
        if not (folder / "embeddings.csv").is_file():
            return None
        return cls(**{name: _read(folder / f"{name}.csv", columns) for name, columns in TABLES.items()})

    def write(self, folder: Path) -> None:
        for name in TABLES:
            table: pd.DataFrame = getattr(self, name)
            save_sheet(Sheet(name=name, values=table, texts=table), folder, ["csv"])

    def last_outputs(self) -> pd.DataFrame:
        """The rows of ``embeddings`` for the output embedding of each cell at its last step."""
        output = self.embeddings[self.embeddings["embedding"] == OUTPUT]
        return output[~output.duplicated("cell", keep="last")]

    def sheets(self) -> list[Sheet]:
        sheets = [make_sheet("embeddings", self.embeddings)]
        return sheets if self.losses.empty else [*sheets, make_sheet("losses", self.losses)]


def table_rows(cell: Mapping[str, Any], embeddings: Mapping[str, Embedding]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one weights file, by table.

    Args:
        cell: its ``CELL_COLUMNS``.
        embeddings: ``OUTPUT``, and ``INPUT`` unless the embeddings are tied.
    """
    output, key = embeddings[OUTPUT], {"cell": cell["cell"], "step": cell.get("step")}
    values = {"e_mu": output.e_mu_V, "row_norm": output.row_norm_V}
    return {
        "embeddings": [{**cell, "embedding": name, **embedding.measures} for name, embedding in embeddings.items()],
        "histograms": [
            {**key, "what": what, "low": low, "high": high, "rows": rows}
            for what in HISTOGRAMS
            for low, high, rows in histogram(values[what])
        ],
        "spectra": [
            {**key, "number": number, "singular_value": value}
            for number, value in enumerate(output.singular_D.tolist(), start=1)
        ],
    }


def cell_labels(cells: pd.DataFrame) -> list[str]:
    """The display name of each cell of a table; for a file from outside a study, its name."""
    return [
        label(row["method"], None if pd.isna(row["gamma"]) else row["gamma"], row["attention_norm"])
        if isinstance(row["method"], str)
        else str(row["cell"])
        for row in cells.to_dict("records")
    ]


def b_ratio_figures(analysis: Analysis) -> Iterator[Figure]:
    """A histogram of B-ratios over cells, like that of the baselines in arXiv 2601.02031; none without B-ratios."""
    cells = analysis.last_outputs().dropna(subset="b_ratio")
    if cells.empty:
        return
    cells = cells.assign(label=cell_labels(cells))
    color_by_label = {name: color_of(str(method)) for name, method in zip(cells["label"], cells["method"], strict=True)}
    low = (cells["b_ratio"] / B_RATIO_STEP).round() * B_RATIO_STEP - B_RATIO_STEP / 2
    facts = cells.assign(low=low.round(3), high=(low + B_RATIO_STEP).round(3))
    facts = facts.groupby(["label", "low", "high"], sort=False).size().rename("cells").reset_index()
    largest = max(1.2, float(facts["high"].max()))
    x = alt.X("low:Q", bin="binned", title="B-ratio", scale=alt.Scale(domain=[0, largest], nice=False), axis=NOT_FLUSH)
    y = alt.Y("cells:Q", title="cells", stack="zero", axis=alt.Axis(tickMinStep=1, format="d"))
    color = categories(alt.Color, "label", color_by_label)
    bars = chart_of("facts").mark_bar(opacity=0.9).encode(x=x, x2="high:Q", y=y, color=color)
    one = pd.DataFrame({"one": [1.0], "text": ["centering has no effect"]})
    rule = chart_of("one").encode(x="one:Q")
    layers = [
        bars.encode(tooltip=tooltip("label:N", low=".3f", high=".3f", cells="d")),
        rule.mark_rule(strokeDash=[4, 4], color=GREY, strokeWidth=1.5),
        rule.mark_text(baseline="bottom", dy=-5, color=GREY).encode(y=alt.value(0), text="text:N"),
    ]
    yield Figure(
        name="b-ratio",
        title="B-ratio of the output embedding",
        caption="Bound on the logits along mu after centering, divided by the bound before; below 1, centering "
        f"tightens the bound. Computed from the last kept weights of {len(cells)} cells.",
        view=None,
        section="why",
        spec=spec_of(layers, {"facts": facts, "one": one}),
    )


def cell_figures(analysis: Analysis) -> list[CellFigure]:
    """The figures of a single cell, with the data of every cell: rows along mu, row norms, singular values."""
    last = analysis.last_outputs()
    step = dict(zip(last["cell"], last["step"], strict=True))
    histograms = _at_step(analysis.histograms, step)
    along, norms = (_by_cell(histograms[histograms["what"] == what], ["low", "high", "rows"]) for what in HISTOGRAMS)
    spectra = _by_cell(_at_step(analysis.spectra, step), ["number", "singular_value"])
    facts = {str(row["cell"]): row for row in records(last.assign(label=cell_labels(last)))}
    about = {cell: pd.DataFrame({"text": [_describe(fact)]}) for cell, fact in facts.items()}
    figures = [
        CellFigure(
            name="e-mu",
            title="Rows of the output embedding along mu",
            caption="Dot product of each row with mu, the mean row. Centering moves the orange line to zero. The bound "
            "on the logits along mu is the larger distance to a green line: from zero before centering, from the "
            "orange line after.",
            spec=spec_of([_bars("e · mu"), _mark_lines(), _heading()]),
            data={
                cell: {"bins": rows, "marks": _marks(facts[cell]), "about": about[cell]} for cell, rows in along.items()
            },
        ),
        CellFigure(
            name="row-norms",
            title="Norms of the rows of the output embedding",
            caption="Histogram of the L2 norms of the rows.",
            spec=spec_of([_bars("norm of a row"), _heading()]),
            data={cell: {"bins": rows, "about": about[cell]} for cell, rows in norms.items()},
        ),
        CellFigure(
            name="singular-values",
            title="Singular values of the output embedding",
            caption="If mu is large, the first value stands out: it belongs to the direction that all rows share.",
            spec=spec_of([_spectrum(), _heading()]),
            data={cell: {"values": _thinned(rows), "about": about[cell]} for cell, rows in spectra.items()},
        ),
    ]
    return [figure for figure in figures if figure.data]


def representative_cells(analysis: Analysis) -> dict[str, str]:
    """The cells whose figures are written to files, with the name for their files.

    For each scale, this is the cell of its first curve at the largest learning rate that did not diverge. Every file
    from outside a study is included.
    """
    last = analysis.last_outputs()
    names = {str(cell): str(cell) for cell in last.loc[last["method"].isna(), "cell"]}
    of_studies = last.dropna(subset="method")
    for scale, cells in of_studies.assign(label=cell_labels(of_studies)).groupby("scale", sort=False):
        first = cells[cells["label"] == cells["label"].iloc[0]]
        converged = first[first["state"] == "finished"]
        by_lr = (first if converged.empty else converged).sort_values("lr", kind="stable", ascending=False)
        names[str(by_lr["cell"].iloc[0])] = str(scale)
    return names


def _by_cell(table: pd.DataFrame, columns: list[str]) -> dict[str, pd.DataFrame]:
    return {str(cell): rows[columns].map(five_digits) for cell, rows in table.groupby("cell", sort=False)}


def _mark_lines() -> alt.Chart:
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)
    color = categories(alt.Color, "what", MARKS, legend=legend)
    rules: alt.Chart = chart_of("marks").mark_rule(strokeWidth=1.5, strokeDash=[6, 3])
    return rules.encode(x="value:Q", color=color, tooltip=tooltip("what:N", value=".4~g"))


def _heading() -> alt.Chart:
    """The description of the cell, above the frame."""
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


def _at_step(table: pd.DataFrame, step: Mapping[str, Any]) -> pd.DataFrame:
    """The rows at the given step of their cell; rows without a step match a missing step."""
    wanted = table["cell"].map(step)
    return table[(table["step"] == wanted) | (table["step"].isna() & wanted.isna())]


def _marks(fact: Mapping[Hashable, Any]) -> pd.DataFrame:
    zero, mean, bound = MARKS
    values = ((zero, 0.0), (mean, fact["mu_norm"] ** 2), (bound, fact["e_mu_min"]), (bound, fact["e_mu_max"]))
    return pd.DataFrame([{"what": what, "value": five_digits(value)} for what, value in values])


def _describe(fact: Mapping[Hashable, Any]) -> str:
    name = f"{fact['label']}, lr {fact['lr']:g}, seed {fact['seed']:g}" if pd.notna(fact["lr"]) else fact["label"]
    return f"{name}: B-ratio {fact['b_ratio']:.2f}, |mu| {fact['mu_norm']:.3g}"


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most ``MAX_POINTS`` values of a spectrum, including the ends; zeros are dropped for the logarithmic axis."""
    kept = np.unique(np.linspace(0, len(rows) - 1, min(MAX_POINTS, len(rows))).round().astype(int))
    return rows.iloc[kept].query("singular_value > 0")


def _with_float_columns(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with missing numbers as NaN, as if read from a file; with None, a column would have dtype object."""
    objects = table.select_dtypes("object").columns
    return table.astype({name: "float64" for name in objects if name not in TEXT})


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={name: "object" if name in TEXT else "float64" for name in columns})
        if list(table) != list(columns):
            raise ValueError(f"has the columns {', '.join(map(str, table))}")
    except (OSError, ValueError) as error:
        remedy = "delete its folder and run `oec analyze` again"
        raise InvalidInput("analysis", str(path), f"is not a valid analysis table ({error})", remedy) from error
    return table.replace([math.inf, -math.inf], math.nan)
