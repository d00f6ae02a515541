"""Two studies, curve by curve: what moved, by how much, and whether it is more than the seeds' noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from scipy.special import stdtr

from dashboards.published import OTHER_START
from dashboards.sensitivity import CurveFacts, Floats, nearest
from dashboards.tables import listed, shown
from search_spaces.methods import label

COLUMNS = ("curve", "measure", "before", "after", "change", "p", "verdict")
MEASURES = {"LRS": "LRS", "best_loss": "best loss", "best_lr": "best lr", "highest_lr": "highest lr"}
ALPHA = 0.05
"""Chance that one or more of a table's verdicts calls noise a move."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``compare`` found."""

    rows: pd.DataFrame
    """Columns ``COLUMNS``: four rows a curve of both studies, one a measure. ``change`` is a difference in nats, or the
    factor of a learning rate; ``p`` is that of Welch's test, by Holm over the table, NaN for what can not be tested."""
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    notes: tuple[str, ...]


def compare(before: Sequence[CurveFacts], after: Sequence[CurveFacts]) -> Comparison:
    """Two studies' curves of the same scale, attention norm, method and gamma, over the learning rates of both.

    LRS and best loss are tested by Welch's t over seeds, at the learning rate that is best on average.
    """
    ours, theirs = ({_name(curve): curve for curve in curves} for curves in (before, after))
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    for name in ours:
        if name in theirs:
            a, b = ours[name], theirs[name]
            on_a, on_b = _over(a, b.lr), _over(b, a.lr)
            rows += _rows(name, on_a, on_b) if on_a.lr else ()
            notes += [f"{name}: {note}" for note in _notes(a, b, on_a, on_b)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["p"] = holm(table["p"].to_numpy(dtype=float))
    table.loc[table["p"] < ALPHA, "verdict"] = "moved"
    table.loc[table["p"] >= ALPHA, "verdict"] = "within noise"
    return Comparison(
        rows=table,
        only_before=tuple(name for name in ours if name not in theirs),
        only_after=tuple(name for name in theirs if name not in ours),
        notes=tuple(notes),
    )


def tables(found: Comparison, before: str, after: str) -> Iterator[RenderableType]:
    """What a person reads: a table of the curves that are not equal, then what moved, and what is in one study only."""
    rows = found.rows
    drawn = Table(
        "curve", "", before, after, "change", "", title=f"{before} to {after}", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    equal = []
    for name, of_curve in rows.groupby("curve", sort=False):
        if (of_curve["verdict"] == "equal").all():
            equal.append(str(name))
            continue
        for i, row in enumerate(of_curve.to_dict("records")):
            change = "–" if pd.isna(row["change"]) else f"x {row['change']:.3g}"
            if row["measure"] in ("LRS", "best_loss") and not pd.isna(row["change"]):
                change = f"{row['change']:+.3f}"
            verdict = row["verdict"] if pd.isna(row["p"]) else f"{row['verdict']} (p {row['p']:.2g})"
            values = (shown(row[side], row["measure"]) for side in ("before", "after"))
            cells = ("" if i else name, MEASURES[row["measure"]], *values, change, verdict)
            drawn.add_row(*(Text(str(cell)) for cell in cells))
    if drawn.row_count:
        yield drawn
    if rows.empty:
        yield f"No curve of {before} is also in {after}: nothing to compare."
    for measure in ("LRS", "best_loss"):
        moved = rows.loc[(rows["verdict"] == "moved") & (rows["measure"] == measure), "curve"]
        if len(moved):
            yield f"{MEASURES[measure]} moved by more than noise: {listed(list(moved))}"
    if rows["p"].notna().any() and not (rows["verdict"] == "moved").any():
        yield "No LRS and no best loss moved by more than noise."
    if (rows["verdict"] == "noise unknown").any():
        yield "Noise unknown: one of the two has one seed, so that a change can not be told from noise."
    for what, names in (
        ("Equal", equal),
        (f"Only in {before}", found.only_before),
        (f"Only in {after}", found.only_after),
    ):
        if names:
            yield f"{what}: {listed(names)}"
    yield from found.notes


def _name(curve: CurveFacts) -> str:
    return f"{curve.scale} {label(curve.method, curve.gamma, curve.attention_norm)}"


def _over(curve: CurveFacts, lrs: Sequence[float]) -> CurveFacts:
    """``curve`` on those learning rates of its grid that ``lrs`` has too; its LRS stays that of its own grid."""
    kept = [i for i, lr in enumerate(curve.lr) if not math.isnan(nearest(tuple(lrs), lr))]
    grid = tuple(curve.lr[i] for i in kept)
    mean = tuple(curve.mean[i] for i in kept)
    return replace(
        curve,
        lr=grid,
        mean=mean,
        points=tuple(point for point in curve.points if point.lr in grid),
        missing=curve.missing if any(map(math.isnan, mean)) else (),
    )


def of_seeds(curve: CurveFacts) -> dict[str, Floats]:
    """LRS and best loss of each seed, whose means are those of the mean curve; empty where there is no LRS."""
    if curve.missing or len(curve.lr) < 2:
        return {}
    losses = np.asarray([[point.loss for point in curve.points if point.lr == lr] for lr in curve.lr])
    best = losses[int(np.argmin(curve.mean))]
    return {"LRS": (losses - best).sum(axis=0) / (len(losses) - 1), "best_loss": best}


def _rows(name: str, before: CurveFacts, after: CurveFacts) -> Iterator[dict[str, object]]:
    seeds = of_seeds(before), of_seeds(after)
    for measure in MEASURES:
        row: dict[str, object] = {"curve": name, "measure": measure, "p": math.nan}
        if measure in ("LRS", "best_loss"):
            x, y = (of.get(measure, np.asarray([math.nan])) for of in seeds)
            a, b = float(x.mean()), float(y.mean())
            few = min(x.size, y.size) < 2
            row |= {"change": b - a, "verdict": "noise unknown" if few else ""}
            if not (few or _same(a, b)):
                row["p"] = welch(x, y)
        else:
            a, b = (math.nan if lr is None else lr for lr in (getattr(before, measure), getattr(after, measure)))
            row |= {"change": b / a, "verdict": ""}
        if math.isnan(a) or math.isnan(b):
            neither = measure == "highest_lr" and math.isnan(a) and math.isnan(b)
            row["verdict"] = "equal" if neither and not (before.missing or after.missing) else "unknown"
        elif _same(a, b):
            row["verdict"] = "equal"
        yield row | {"before": a, "after": b}


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9)


def welch(x: Floats, y: Floats) -> float:
    """Two-sided p of Welch's test. 0 where neither varies over its seeds, as the means differ."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = x.var(ddof=1) / x.size, y.var(ddof=1) / y.size
        t = (x.mean() - y.mean()) / np.sqrt(a + b)
        degrees = (a + b) ** 2 / (a**2 / (x.size - 1) + b**2 / (y.size - 1))
    return two_sided(t, np.nan_to_num(degrees, nan=1.0))


def two_sided(t: float, degrees: float) -> float:
    """p of Student's t."""
    return float(2 * stdtr(degrees, -abs(t)))


def holm(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The p of each test such that ``p < ALPHA`` is wrong in any of them with a chance of at most ``ALPHA``."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    adjusted = p.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)))
    return adjusted


def _notes(a: CurveFacts, b: CurveFacts, on_a: CurveFacts, on_b: CurveFacts) -> Iterator[str]:
    if len(on_a.lr) < max(len(a.lr), len(b.lr)):
        grid = ", ".join(f"{lr:g}" for lr in on_a.lr) or "none"
        yield f"the grids differ, compared over the learning rates of both: {grid}"
    for of, curve in (("the first", on_a), ("the second", on_b)):
        if curve.missing:
            yield f"{of} is not complete, without a result: {', '.join(curve.missing)}"
    bounds = [bool(curve.lr) and curve.highest_lr == curve.lr[-1] for curve in (on_a, on_b)]
    if any(bounds) and not all(bounds):
        yield f"every lr converges in {'the first' if bounds[0] else 'the second'}, so its highest lr is a lower bound"
    if abs(a.l_init - b.l_init) > OTHER_START:
        yield (
            f"the loss before training is {a.l_init:.2f} and {b.l_init:.2f} nats; losses of other texts or "
            "vocabularies do not compare"
        )
