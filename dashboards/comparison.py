"""Compares two studies curve by curve: what changed, by how much, and whether that exceeds the noise between seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from scipy.special import stdtr, stdtrit

from dashboards.published import MAX_L_INIT_DIFFERENCE
from dashboards.sensitivity import CurveFacts, Floats
from dashboards.tables import MISSING, format_value, join_words
from search_spaces.methods import label
from search_spaces.tolerance import match_value, same_value

COLUMNS = ("curve", "measure", "before", "after", "change", "low", "high", "p", "verdict")
MEASURES = {"LRS": "LRS", "best_loss": "best loss", "best_lr": "best lr", "highest_lr": "highest lr"}
TESTED = ("LRS", "best_loss")
"""The measures in nats, which have a value for each seed; the others are learning rates."""
ALPHA = 0.05
"""The chance that at least one verdict of a table mistakes noise for a change."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of ``compare``."""

    rows: pd.DataFrame
    """Columns ``COLUMNS``, one row per measure for each curve in both studies. ``change`` is a difference in nats or,
    for a learning rate, a factor. ``low`` to ``high`` is the 95% interval of a difference by Welch's t, without a
    correction for the number of rows; ``p`` is from Welch's test with Holm's correction over the table. All three are
    NaN if the measure cannot be tested."""
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    notes: tuple[str, ...]


def compare(before: Sequence[CurveFacts], after: Sequence[CurveFacts]) -> Comparison:
    """Compare the curves that match in scale, attention norm, method and gamma, over the learning rates of both.

    LRS and best loss are tested by Welch's t over seeds, at the learning rate that is best on average.
    """
    ours, theirs = ({_name(curve): curve for curve in curves} for curves in (before, after))
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    for name in ours:
        if name in theirs:
            a, b = ours[name], theirs[name]
            on_a, on_b = _restrict(a, b.lr), _restrict(b, a.lr)
            rows += _rows(name, on_a, on_b) if on_a.lr else ()
            notes += [f"{name}: {note}" for note in _notes(a, b, on_a, on_b)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["p"] = holm_adjust(table["p"].to_numpy(dtype=float))
    table.loc[table["p"] < ALPHA, "verdict"] = "changed"
    table.loc[table["p"] >= ALPHA, "verdict"] = "within noise"
    return Comparison(
        rows=table,
        only_before=tuple(name for name in ours if name not in theirs),
        only_after=tuple(name for name in theirs if name not in ours),
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True)
class RowTexts:
    """A row of a comparison as displayed."""

    curve: str
    measure: str
    before: str
    after: str
    change: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class ComparisonTexts:
    """The display of a comparison."""

    rows: tuple[RowTexts, ...]
    """The rows of the curves that differ."""
    sentences: tuple[str, ...]
    """What changed significantly, which curves are equal or in only one study, and notes."""


def comparison_texts(comparison: Comparison, before: str, after: str) -> ComparisonTexts:
    """The display of a comparison of the studies ``before`` and ``after``."""
    rows, texts, equal = comparison.rows, [], []
    for name, of_curve in rows.groupby("curve", sort=False):
        if (of_curve["verdict"] == "equal").all():
            equal.append(str(name))
            continue
        for row in of_curve.to_dict("records"):
            verdict = str(row["verdict"])
            texts.append(
                RowTexts(
                    curve=str(name),
                    measure=MEASURES[row["measure"]],
                    before=format_value(row["before"], row["measure"]),
                    after=format_value(row["after"], row["measure"]),
                    change=_format_change(row),
                    verdict=verdict if pd.isna(row["p"]) else f"{verdict} (p {row['p']:.2g})",
                )
            )
    return ComparisonTexts(rows=tuple(texts), sentences=tuple(_sentences(comparison, equal, before, after)))


def _format_change(row: Mapping[Hashable, Any]) -> str:
    if pd.isna(row["change"]):
        return MISSING
    if row["measure"] not in TESTED:
        return f"x {row['change']:.3g}"
    interval = "" if pd.isna(row["low"]) else f" ± {(row['high'] - row['low']) / 2:.3f}"
    return f"{row['change']:+.3f}{interval}"


def _sentences(comparison: Comparison, equal: Sequence[str], before: str, after: str) -> Iterator[str]:
    rows = comparison.rows
    if rows.empty:
        yield f"{before} and {after} have no curve in common."
    for measure in TESTED:
        changed = rows.loc[(rows["verdict"] == "changed") & (rows["measure"] == measure), "curve"]
        if len(changed):
            yield f"{MEASURES[measure]} changed significantly: {join_words(list(changed))}"
    if rows["p"].notna().any() and not (rows["verdict"] == "changed").any():
        yield "No LRS and no best loss changed significantly."
    if (rows["verdict"] == "noise unknown").any():
        yield "Noise unknown: with one seed in either study, a change cannot be told from noise."
    for heading, names in (
        ("Equal", equal),
        (f"Only in {before}", comparison.only_before),
        (f"Only in {after}", comparison.only_after),
    ):
        if names:
            yield f"{heading}: {join_words(names)}"
    yield from comparison.notes


def comparison_tables(comparison: Comparison, before: str, after: str) -> Iterator[RenderableType]:
    """The display of a comparison on a terminal: a table of the curves that differ, then the sentences."""
    texts = comparison_texts(comparison, before, after)
    title = f"{before} to {after}"
    table = Table("curve", "", before, after, "change", "", title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    last = ""
    for row in texts.rows:
        name, last = "" if row.curve == last else row.curve, row.curve
        table.add_row(*map(Text, (name, row.measure, row.before, row.after, row.change, row.verdict)))
    if table.row_count:
        yield table
    yield from texts.sentences


def _name(curve: CurveFacts) -> str:
    return f"{curve.scale} {label(curve.method, curve.gamma, curve.attention_norm, dict(curve.factors))}"


def _restrict(curve: CurveFacts, lrs: Sequence[float]) -> CurveFacts:
    """``curve`` restricted to the learning rates that are also in ``lrs``; its LRS remains that of its full grid."""
    kept = [i for i, lr in enumerate(curve.lr) if not math.isnan(match_value(lrs, lr))]
    grid = tuple(curve.lr[i] for i in kept)
    mean = tuple(curve.mean[i] for i in kept)
    return replace(
        curve,
        lr=grid,
        mean=mean,
        points=tuple(point for point in curve.points if point.lr in grid),
        missing=curve.missing if any(map(math.isnan, mean)) else (),
    )


def seed_samples(curve: CurveFacts) -> dict[str, Floats]:
    """LRS and best loss of each seed, which average to those of the mean curve; empty if the curve has no LRS."""
    if curve.missing or len(curve.lr) < 2:
        return {}
    best = curve.losses[int(np.argmin(curve.mean))]
    return {"LRS": (curve.losses - best).sum(axis=0) / (len(curve.lr) - 1), "best_loss": best}


def _rows(name: str, before: CurveFacts, after: CurveFacts) -> Iterator[dict[str, object]]:
    samples = seed_samples(before), seed_samples(after)
    for measure in MEASURES:
        row: dict[str, object] = {"curve": name, "measure": measure, **dict.fromkeys(("low", "high", "p"), math.nan)}
        if measure in TESTED:
            x, y = (sample.get(measure, np.asarray([math.nan])) for sample in samples)
            a, b = float(x.mean()), float(y.mean())
            few = min(x.size, y.size) < 2
            row |= {"change": b - a, "verdict": "noise unknown" if few else ""}
            if not (few or _equal(a, b)):
                low, high = welch_interval(x, y)
                row |= {"p": welch_p(x, y), "low": low, "high": high}
        else:
            a, b = (math.nan if lr is None else lr for lr in (getattr(before, measure), getattr(after, measure)))
            row |= {"change": b / a, "verdict": ""}
        if math.isnan(a) or math.isnan(b):
            neither = measure == "highest_lr" and math.isnan(a) and math.isnan(b)
            row["verdict"] = "equal" if neither and not (before.missing or after.missing) else "unknown"
        elif same_value(a, b) if measure.endswith("lr") else _equal(a, b):
            row["verdict"] = "equal"
        yield row | {"before": a, "after": b}


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9)


def _welch(x: Floats, y: Floats) -> tuple[float, float]:
    """The standard error of the difference of two means, and its degrees of freedom, which are 1 without variance."""
    a, b = x.var(ddof=1) / x.size, y.var(ddof=1) / y.size
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = (a + b) ** 2 / (a**2 / (x.size - 1) + b**2 / (y.size - 1))
    return float(np.sqrt(a + b)), float(np.nan_to_num(degrees, nan=1.0))


def welch_p(x: Floats, y: Floats) -> float:
    """Two-sided p value of Welch's test; 0 if neither sample varies, because the means then differ for certain."""
    error, degrees = _welch(x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (x.mean() - y.mean()) / np.float64(error)
    return two_sided_p(t, degrees)


def welch_interval(x: Floats, y: Floats) -> tuple[float, float]:
    """95% interval of the mean of ``y`` minus that of ``x``, by Welch's t."""
    error, degrees = _welch(x, y)
    change, half = float(y.mean() - x.mean()), float(stdtrit(degrees, 0.975)) * error
    return change - half, change + half


def two_sided_p(t: float, degrees: float) -> float:
    return float(2 * stdtr(degrees, -abs(t)))


def holm_adjust(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Holm-adjusted p values: the chance that any test with ``p < ALPHA`` is wrong is at most ``ALPHA``."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    adjusted = p.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)))
    return adjusted


def _notes(a: CurveFacts, b: CurveFacts, on_a: CurveFacts, on_b: CurveFacts) -> Iterator[str]:
    if len(on_a.lr) < max(len(a.lr), len(b.lr)):
        grid = ", ".join(f"{lr:g}" for lr in on_a.lr) or "none"
        yield f"the grids differ; compared over the learning rates that both have: {grid}"
    for study, curve in (("the first", on_a), ("the second", on_b)):
        if curve.missing:
            yield f"{study} is incomplete; cells without a result: {', '.join(curve.missing)}"
    bounds = [bool(curve.lr) and curve.highest_lr == curve.lr[-1] for curve in (on_a, on_b)]
    if any(bounds) and not all(bounds):
        study = "the first" if bounds[0] else "the second"
        yield f"every lr converges in {study}, so its highest lr is a lower bound"
    if abs(a.l_init - b.l_init) > MAX_L_INIT_DIFFERENCE:
        yield (
            f"the loss before training is {a.l_init:.2f} and {b.l_init:.2f} nats; losses on different texts or "
            "vocabularies are not comparable"
        )
