"""From runs to curves: final loss over learning rate, and learning-rate sensitivity (LRS) as one number a curve.

LRS is that of arXiv 2309.14322, section 2: the mean over a grid of learning rates of ``min(l(lr), l_init) - l_best``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from dashboards.edges import edge_of
from dashboards.overheads import overhead_percent
from dashboards.runs import OFF_CURVE, records
from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.edge import Edge
from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS, label
from search_spaces.scales import SCALES

Floats = npt.NDArray[np.float64]
Divisor = Literal["published", "definition"]
Grid = Sequence[float] | Mapping[str, Sequence[float]] | None

NOT_PLANNED: dict[Hashable, Any] = {"state": "not planned"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of a curve that has a result."""

    cell: str
    lr: float
    seed: int
    loss: float
    """Final validation loss in nats, ``l_init`` for a diverged cell."""
    diverged: bool
    run: Mapping[Hashable, Any] = field(compare=False)
    """Its row in the table of runs; not compared, as one NaN in it would make a point unequal to itself."""


@dataclass(frozen=True, kw_only=True)
class CurveFacts:
    """What is known of one (scale, attention norm, method, gamma) of a study over the grid of learning rates."""

    study: str
    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    label: str
    """What people read, see ``labels``."""
    lr: tuple[float, ...]
    """The grid, ascending."""
    points: tuple[Point, ...]
    """The cells with a result, by learning rate and seed."""
    missing: tuple[str, ...]
    """The cells without one, each with its state, e.g. ``lr=0.1 seed=2 (crashed)``."""
    l_init: float
    """Loss at initialisation in nats, mean over the curve; NaN if no run recorded it."""
    mean: tuple[float, ...]
    """Mean loss over the seeds at each learning rate of the grid; NaN where a cell is missing."""
    LRS: float | None = None
    """Divided by n - 1, as published. None if a cell is missing, or for a grid of one learning rate."""
    LRS_n: float | None = None
    """Divided by n, as defined."""
    interval: tuple[float, float] | None = None
    """95 % interval of ``LRS`` over seeds, see ``_interval``; None with one seed."""
    edge: Edge | None = None
    """Where it stops to converge, between two learning rates of the grid; None if that was not searched for."""
    overhead_percent: float | None = None
    """Extra training time over the baseline of the same scale and attention norm; see ``dashboards.overheads``."""

    @property
    def seeds(self) -> int:
        return len({point.seed for point in self.points})

    @property
    def band(self) -> tuple[tuple[float, float] | None, ...]:
        """95 % interval of ``mean`` at each learning rate, at most ``l_init``; None where there are not two seeds."""
        losses = [[point.loss for point in self.points if point.lr == lr] for lr in self.lr]
        intervals = [mean_interval(at_lr) if len(at_lr) > 1 else None for at_lr in losses]
        return tuple(found and (found[0], min(found[1], self.l_init)) for found in intervals)

    @property
    def diverged(self) -> int:
        return sum(point.diverged for point in self.points)

    @property
    def torch_versions(self) -> list[str]:
        """Versions of PyTorch that the cells were trained with, where they were recorded."""
        versions = {point.run.get("torch") for point in self.points}
        return sorted(version for version in versions if isinstance(version, str))

    @property
    def best_loss(self) -> float | None:
        """Smallest mean loss on the grid; None if any cell is missing, as the best may be the missing one."""
        return None if self.missing else min(self.mean)

    @property
    def best_lr(self) -> float | None:
        return None if self.missing else self.lr[int(np.argmin(self.mean))]

    @property
    def highest_lr(self) -> float | None:
        """The measure of arXiv 2410.16682, see ``highest_converging``; at an lr where any seed diverged, it did not."""
        diverged = {point.lr for point in self.points if point.diverged}
        flags = [
            False if lr in diverged else None if math.isnan(mean) else True
            for lr, mean in zip(self.lr, self.mean, strict=True)
        ]
        return highest_converging(self.lr, flags)

    @property
    def at_edge(self) -> bool:
        """The best learning rate is the first or last of the grid: a better one may lie outside."""
        return self.best_lr in (self.lr[0], self.lr[-1])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before using the numbers, in full sentences but for the full stop."""
        found = []
        if len(self.torch_versions) > 1:
            versions = " and ".join(self.torch_versions)
            found.append(
                f"its cells were trained with PyTorch {versions}; a part of their differences may be due to that"
            )
        if self.missing:
            found.append(f"no LRS, without a result: {', '.join(self.missing)}")
        elif len(self.lr) == 1:
            found.append("no LRS from one learning rate")
        if self.at_edge:
            side = "smallest" if self.best_lr == self.lr[0] else "largest"
            found.append(f"best lr {self.best_lr:g} is the {side} of the grid; the window may have to slide")
        if self.highest_lr == self.lr[-1]:
            found.append(f"every lr of the grid converges, so the highest lr is at least {self.lr[-1]:g}")
        elif self.highest_lr is None and not self.missing:
            found.append(f"no highest lr, as the smallest of the grid, {self.lr[0]:g}, diverges")
        return tuple(found)


def lrs(losses: npt.ArrayLike, l_init: float, divisor: Divisor = "published") -> float:
    """Learning-rate sensitivity in nats of one curve.

    Args:
        losses: final loss at each learning rate, shape ``(n,)``; NaN, infinity or above ``l_init`` is a diverged
            run and counts as ``l_init``.
        l_init: loss at initialisation.
        divisor: ``published`` divides by n - 1, as the tables of arXiv 2601.02031 do; ``definition`` by n, as
            arXiv 2309.14322 defines it.

    Raises:
        InvalidInput: ``l_init`` is not finite, or too few losses for the divisor.
    """
    curve = np.asarray(losses, dtype=np.float64)
    if not math.isfinite(l_init):
        raise InvalidInput("l_init", l_init, "is not a loss", "give the loss at initialisation, about ln V")
    needed = 2 if divisor == "published" else 1
    if curve.ndim != 1 or curve.size < needed:
        raise InvalidInput("losses", curve.shape, "is too short a curve", f"give at least {needed} losses in a row")
    return float(_lrs(clipped(curve, l_init), divisor))


def highest_converging(lrs: Iterable[float], converged: Iterable[bool | None]) -> float | None:
    """The largest learning rate such that it and every smaller one converged, a measure of arXiv 2410.16682.

    Args:
        lrs: learning rates, ascending.
        converged: whether each did; None where that is not known.

    Returns:
        None if the smallest did not converge, or an unknown one comes before the first that did not. If all
        converged, the largest, which then is a lower bound.
    """
    highest = None
    for lr, flag in zip(lrs, converged, strict=True):
        if flag is None:
            return None
        if not flag:
            break
        highest = lr
    return highest


def clipped(losses: Floats, l_init: float) -> Floats:
    """``losses`` with those of diverged runs (NaN, infinite, above ``l_init``) at ``l_init``; any shape."""
    return np.where(np.isfinite(losses) & (losses <= l_init), losses, l_init)


def curves(runs: pd.DataFrame, grid: Grid = None) -> list[CurveFacts]:
    """The curves of a table of runs, by study, then by scale, attention norm and method in the order of the registries,
    and strength.

    Pruned runs are left out of everything, runs off the grid and refinements out of the curves. A curve without any
    run on the grid, a strength that only refinement tried, is none. A run diverged if its state says so.

    Args:
        runs: columns ``RUN_COLUMNS``.
        grid: the learning rates of every study, or of each by name; None for all that occur in it at a scale.

    Raises:
        InvalidInput: one cell stands twice in a curve.
    """
    runs = runs.assign(label=labels(runs), study=studies(runs))
    return [
        curve
        for study, of_study in runs.groupby("study", sort=False)
        for curve in _curves(of_study, str(study), grid.get(str(study)) if isinstance(grid, Mapping) else grid)
    ]


def studies(rows: pd.DataFrame) -> pd.Series[str]:
    """The study of each row; where at most one is named, all are of that one."""
    named = rows["study"].dropna().unique()
    return rows["study"].fillna(named[0] if len(named) == 1 else "").astype(str)


def _curves(runs: pd.DataFrame, study: str, grid: Sequence[float] | None) -> list[CurveFacts]:
    """The curves of one study, of runs with their ``label``."""
    everything = runs if (runs["origin"] == "edge").any() else runs.head(0)
    runs = runs[(runs["state"] != "pruned") & ~runs["origin"].isin(OFF_CURVE)]
    found = []
    for scale in in_order(runs["scale"].unique(), SCALES):
        at_scale = runs[runs["scale"] == scale]
        lrs_of_grid = tuple(sorted(float(lr) for lr in (at_scale["lr"].unique() if grid is None else grid)))
        on_grid = {lr: nearest(lrs_of_grid, lr) for lr in at_scale["lr"].unique()}
        at_scale = at_scale.assign(lr=at_scale["lr"].map(on_grid)).dropna(subset="lr")
        for attention_norm in in_order(at_scale["attention_norm"].unique(), ATTENTION_NORMS):
            of_norm = at_scale[at_scale["attention_norm"] == attention_norm]
            together = [
                _curve(group, study, scale, attention_norm, method, gamma, lrs_of_grid)
                for method, gamma, group in _groups(of_norm)
            ]
            baseline = next((curve for curve in together if curve.method == "baseline"), None)
            for curve in together:
                curve = replace(curve, edge=_edge(everything, curve))
                if baseline is not None and curve.method != "baseline":
                    curve = replace(curve, overhead_percent=overhead_percent(curve, baseline))
                found.append(curve)
    return found


def labels(rows: pd.DataFrame) -> list[str]:
    """What people read for the study, method, gamma and attention norm of each row; one study, or the default norm
    where all have it, go without saying."""
    of = studies(rows)
    several = of.nunique() > 1
    said = bool((rows["attention_norm"] != DEFAULT).any())
    return [
        (f"{study}: " if several else "")
        + label(method, None if pd.isna(gamma) else gamma)
        + (f" + {norm}" if said else "")
        for study, method, gamma, norm in zip(of, rows["method"], rows["gamma"], rows["attention_norm"], strict=True)
    ]


def _edge(runs: pd.DataFrame, curve: CurveFacts) -> Edge | None:
    strength = runs["gamma"].isna() if curve.gamma is None else runs["gamma"] == curve.gamma
    names = ("scale", "attention_norm", "method")
    same = np.logical_and.reduce([runs[name] == getattr(curve, name) for name in names])
    runs = runs[same & strength]
    return edge_of(runs) if (runs["origin"] == "edge").any() else None


def in_order(names: Iterable[str], registry: Iterable[str]) -> list[str]:
    """``names`` in the order of ``registry``; those that it does not know last, by alphabet."""
    known = list(registry)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _groups(runs: pd.DataFrame) -> Iterator[tuple[str, float | None, pd.DataFrame]]:
    for method in in_order(runs["method"].unique(), METHODS):
        of_method = runs[runs["method"] == method]
        for gamma, group in of_method.groupby("gamma", dropna=False, sort=True):
            strength = float(str(gamma))
            yield method, None if math.isnan(strength) else strength, group


def _curve(
    group: pd.DataFrame,
    study: str,
    scale: str,
    attention_norm: str,
    method: str,
    gamma: float | None,
    grid: tuple[float, ...],
) -> CurveFacts:
    name = f"{scale} {group['label'].iloc[0]}"
    l_init = float(group["l_init"].mean())
    cells: dict[tuple[float, int], dict[Hashable, Any]] = {}
    for run in records(group):
        place = run["lr"], run["seed"]
        if place in cells:
            raise InvalidInput(
                "runs", f"{name} lr={place[0]:g} seed={place[1]}", "stands twice", "keep one row for each cell"
            )
        cells[place] = run
    seeds = sorted({seed for _, seed in cells})
    points, missing = [], []
    losses = np.full((len(grid), len(seeds)), np.nan)
    for i, lr in enumerate(grid):
        for j, seed in enumerate(seeds):
            run = cells.get((lr, seed), NOT_PLANNED)
            diverged = run["state"] == "diverged"
            if not diverged and run["state"] != "finished":
                missing.append(f"lr={lr:g} seed={seed} ({run['state']})")
                continue
            if diverged and math.isnan(l_init):
                missing.append(f"lr={lr:g} seed={seed} (diverged, and no run of the curve has an l_init)")
                continue
            losses[i, j] = l_init if diverged else np.fmin(run["val_loss"], l_init)
            points.append(
                Point(
                    cell=run["cell"] or f"{name} lr={lr:g} seed={seed}",
                    lr=lr,
                    seed=seed,
                    loss=float(losses[i, j]),
                    diverged=diverged,
                    run=run,
                )
            )
    facts = CurveFacts(
        study=study,
        scale=scale,
        attention_norm=attention_norm,
        method=method,
        gamma=gamma,
        label=group["label"].iloc[0],
        lr=grid,
        points=tuple(points),
        missing=tuple(missing),
        l_init=l_init,
        mean=tuple(losses.mean(axis=1).tolist()),
    )
    if missing or len(grid) == 1:
        return facts
    return replace(
        facts,
        LRS=float(_lrs(losses.mean(axis=1), "published")),
        LRS_n=float(_lrs(losses.mean(axis=1), "definition")),
        interval=_interval(losses) if len(seeds) > 1 else None,
    )


def _lrs(curves: Floats, divisor: Divisor) -> Floats:
    """LRS of clipped curves ``(..., n)``, shape ``(...)``."""
    n = curves.shape[-1] - (divisor == "published")
    return np.asarray((curves - curves.min(axis=-1, keepdims=True)).sum(axis=-1) / n)


def _interval(losses: Floats) -> tuple[float, float]:
    """95 % interval of the LRS of the mean curve; ``losses`` is ``(lr, seed)``.

    At the best learning rate of the mean curve LRS is a mean over seeds, of each seed's height above its own loss
    there, so Student's t holds for it; LRS is not negative. A percentile bootstrap over few seeds promises more than
    it keeps: it never leaves the range of the seeds, which holds the truth in at most 1 - 2^(1 - seeds) of cases.
    Simulated with noise that grows towards a last learning rate, it covered 73 % with 3 seeds, 84 % with 5 and 91 %
    with 10, this interval 95 to 96 %. Neither keeps its promise where a learning rate diverges with some seeds and
    not with others (with 3 seeds, 77 % both).
    """
    best = losses.mean(axis=1).argmin()
    low, high = mean_interval((losses - losses[best]).sum(axis=0) / (len(losses) - 1))
    return max(0.0, low), high


def mean_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean, by Student's t; ``values`` are those of the seeds, two or more."""
    sample = np.asarray(values, dtype=np.float64)
    half = stdtrit(sample.size - 1, 0.975) * sample.std(ddof=1) / math.sqrt(sample.size)
    return float(sample.mean() - half), float(sample.mean() + half)


def nearest(grid: tuple[float, ...], lr: float) -> float:
    """The learning rate of the grid that ``lr`` is, but for the digits lost in a text file; NaN off the grid."""
    return next((on_grid for on_grid in grid if math.isclose(lr, on_grid, rel_tol=1e-6)), math.nan)
