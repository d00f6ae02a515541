"""Turns runs into curves of final loss over learning rate, and each curve into its learning-rate sensitivity (LRS).

arXiv 2309.14322, section 2, defines LRS as the mean of ``min(l(lr), l_init) - l_best`` over a grid of learning rates.
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

from dashboards.factors import Shared, axis_title, curve_factors, on_axis, varied
from dashboards.overhead import Overhead, overhead
from dashboards.runs import NO_LOSS, OFF_CURVE, merge_close_values, records
from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.edge import Edge, bracket
from search_spaces.errors import InvalidInput
from search_spaces.factors import LR, short_name
from search_spaces.methods import METHODS, label, with_factors
from search_spaces.record import Outcome, Verdict, aggregate_seeds
from search_spaces.scales import SCALES
from search_spaces.tolerance import match_value

Floats = npt.NDArray[np.float64]
Divisor = Literal["published", "definition"]
Grid = Sequence[float] | Mapping[str, Sequence[float]] | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A cell of a curve that ended with a result."""

    cell: str
    lr: float
    seed: int
    loss: float
    """Final validation loss in nats, ``l_init`` for a diverged cell."""
    diverged: bool
    run: Mapping[Hashable, Any] = field(compare=False)
    """Its row in the table of runs. Excluded from comparison, because a NaN would make a point unequal to itself."""


@dataclass(frozen=True, kw_only=True)
class CurveFacts:
    """One (scale, attention norm, method, gamma, factors) of a study, over the grid of learning rates."""

    study: str
    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    factors: Shared = ()
    """The further factors that its cells share, by name and value."""
    lr_factor: str = LR
    """What is on the axis of the curve: the learning rate, or the factor in its place."""
    label: str
    """The display name; see ``labels``."""
    lr: tuple[float, ...]
    """The grid in ascending order: learning rates, or values of ``lr_factor``."""
    points: tuple[Point, ...]
    """The cells with a result, sorted by learning rate and seed."""
    missing: tuple[str, ...]
    """The cells without a result, each with its state, e.g. ``lr=0.1 seed=2 (crashed)``."""
    l_init: float
    """Loss at initialization in nats, averaged over the curve; NaN if no run recorded it."""
    mean: tuple[float, ...]
    """Mean loss over seeds at each learning rate of the grid; NaN where a cell is missing."""
    LRS: float | None = None
    """Divided by n - 1, as published. None if a cell is missing or the grid has only one learning rate."""
    LRS_n: float | None = None
    """Divided by n, as in the definition."""
    interval: tuple[float, float] | None = None
    """95% interval of ``LRS`` over seeds (see ``_interval``); None with one seed."""
    edge: Edge | None = None
    """Where training stops converging, between two learning rates of the grid; None if no search looked for it."""
    overhead: Overhead | None = None
    """Extra training time over the baseline of the same scale, attention norm and factors; None for the baseline."""

    @property
    def seeds(self) -> int:
        return len({point.seed for point in self.points})

    @property
    def band(self) -> tuple[tuple[float, float] | None, ...]:
        """95% interval of ``mean`` at each learning rate, capped at ``l_init``; None with fewer than two seeds."""
        losses = [[point.loss for point in self.points if point.lr == lr] for lr in self.lr]
        intervals = [t_interval(at_lr) if len(at_lr) > 1 else None for at_lr in losses]
        return tuple(interval and (interval[0], min(interval[1], self.l_init)) for interval in intervals)

    @property
    def losses(self) -> Floats:
        """The losses of the points, shape ``(lr, seed)``; defined only if no cell is missing."""
        return np.array([point.loss for point in self.points], dtype=np.float64).reshape(len(self.lr), -1)

    @property
    def diverged(self) -> int:
        return sum(point.diverged for point in self.points)

    @property
    def torch_versions(self) -> list[str]:
        """The PyTorch versions that the cells were trained with, where recorded."""
        versions = {point.run.get("torch") for point in self.points}
        return sorted(version for version in versions if isinstance(version, str))

    @property
    def best_loss(self) -> float | None:
        """Lowest mean loss on the grid; None if any cell is missing, because the missing one might be the best."""
        return None if self.missing else min(self.mean)

    @property
    def best_lr(self) -> float | None:
        return None if self.missing else self.lr[int(np.argmin(self.mean))]

    @property
    def highest_lr(self) -> float | None:
        """The measure of arXiv 2410.16682 (see ``highest_converging``); an lr converges only if every seed does."""
        diverged = {point.lr for point in self.points if point.diverged}
        pairs = zip(self.lr, self.mean, strict=True)
        flags = [False if lr in diverged else None if math.isnan(mean) else True for lr, mean in pairs]
        return highest_converging(self.lr, flags)

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate is the first or last of the grid, so that a better one may lie outside."""
        return self.best_lr in (self.lr[0], self.lr[-1])

    @property
    def overhead_percent(self) -> float | None:
        return None if self.overhead is None else self.overhead.percent

    @property
    def finished_seconds(self) -> dict[tuple[float, int], float]:
        return {
            (point.lr, point.seed): point.run["train_seconds"]
            for point in self.points
            if not point.diverged and math.isfinite(point.run["train_seconds"])
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before relying on the numbers, as sentences without their period."""
        warnings, axis, several = [], short_name(self.lr_factor), len(self.lr) > 1
        if len(self.torch_versions) > 1:
            versions = " and ".join(self.torch_versions)
            warnings.append(f"cells were trained with PyTorch {versions}, which may explain some of the differences")
        if self.missing:
            warnings.append(f"no LRS because these cells have no result: {', '.join(self.missing)}")
        elif len(self.lr) == 1:
            warnings.append(f"no LRS because the grid has only one {axis_title(self.lr_factor)}")
        if several and self.at_edge:
            side = "smallest" if self.best_lr == self.lr[0] else "largest"
            warnings.append(f"best {axis} {self.best_lr:g} is the {side} of the grid; consider shifting the grid")
        if several and self.highest_lr == self.lr[-1]:
            warnings.append(f"every {axis} of the grid converges, so the highest {axis} is at least {self.lr[-1]:g}")
        elif self.highest_lr is None and not self.missing:
            smallest = f"the smallest {axis} of the grid, {self.lr[0]:g}"
            warnings.append(f"no highest {axis} because even {smallest}, diverges")
        return tuple(warnings)


def ended_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that finished or diverged and recorded ``l_init``, with a column ``loss`` from ``Outcome``."""
    ended = runs[runs["state"].isin(["finished", "diverged"])].dropna(subset=["l_init"])
    rows = zip(ended["state"], ended["val_loss"], ended["l_init"], strict=True)
    return ended.assign(loss=np.array([Outcome.of(*row).loss for row in rows], dtype=np.float64))


def lrs(losses: npt.ArrayLike, l_init: float = math.inf, divisor: Divisor = "published") -> float:
    """Learning-rate sensitivity of one curve, in nats.

    Args:
        losses: final loss at each learning rate, shape ``(n,)``; NaN, infinity or a loss above ``l_init`` counts as
            ``l_init``.
        l_init: loss at initialization; infinite if no loss exceeds it.
        divisor: ``published`` divides by n - 1, as the tables of arXiv 2601.02031 do; ``definition`` divides by n,
            as arXiv 2309.14322 defines it.
    """
    curve = np.nan_to_num(np.asarray(losses, dtype=np.float64), nan=l_init, posinf=l_init).clip(max=l_init)
    return float((curve - curve.min()).sum() / (curve.size - (divisor == "published")))


def highest_converging(lrs: Iterable[float], converged: Iterable[bool | None]) -> float | None:
    """The largest learning rate at and below which every learning rate converged, the measure of arXiv 2410.16682.

    Args:
        lrs: learning rates in ascending order.
        converged: whether each one converged; None where that is unknown.

    Returns:
        None if the smallest did not converge, or if an unknown one precedes the first that did not. If all of them
        converged, the largest, which is then only a lower bound.
    """
    highest = None
    for lr, flag in zip(lrs, converged, strict=True):
        if flag is None:
            return None
        if not flag:
            break
        highest = lr
    return highest


def curves(runs: pd.DataFrame, grid: Grid = None) -> list[CurveFacts]:
    """The curves in a table of runs, sorted by study, scale, attention norm, method, gamma and factors.

    Scales, attention norms and methods follow the order of their registries, factors that of the table. Pruned runs,
    refinements and runs off the grid are excluded, so a gamma that only a refinement tried has no curve. A run diverged
    if its state says so.

    Args:
        runs: columns ``RUN_COLUMNS``.
        grid: the learning rates of every study, or a mapping by study name; None takes all that a scale was run at.

    Raises:
        InvalidInput: a curve has two rows for one cell.
    """
    runs = on_axis(runs.assign(lr=merge_close_values(runs["lr"]), gamma=merge_close_values(runs["gamma"])))
    runs = runs.assign(lr=merge_close_values(runs["lr"]), label=labels(runs), study=studies(runs))
    return [
        curve
        for study, of_study in runs.groupby("study", sort=False)
        for curve in _curves(of_study, str(study), grid.get(str(study)) if isinstance(grid, Mapping) else grid)
    ]


def studies(rows: pd.DataFrame) -> pd.Series[str]:
    """The study of each row. If only one study is named, rows without a name belong to it."""
    names = rows["study"].dropna().unique()
    return rows["study"].fillna(names[0] if len(names) == 1 else "").astype(str)


def _curves(runs: pd.DataFrame, study: str, grid: Sequence[float] | None) -> list[CurveFacts]:
    """The curves of one study; ``runs`` has a column ``label`` and those of ``on_axis``."""
    by_curve = runs.groupby(["scale", "label"])
    edges = {key: edge_of(group) for key, group in by_curve if (group["origin"] == "edge").any()}
    runs = runs[(runs["state"] != "pruned") & ~runs["origin"].isin(OFF_CURVE)]
    curves = []
    for scale in sort_by_registry(runs["scale"].unique(), SCALES):
        at_scale = runs[runs["scale"] == scale]
        lrs_of_grid = tuple(sorted(float(lr) for lr in (at_scale["lr"].unique() if grid is None else grid)))
        on_grid = {lr: match_value(lrs_of_grid, lr) for lr in at_scale["lr"].unique()}
        at_scale = at_scale.assign(lr=at_scale["lr"].map(on_grid)).dropna(subset="lr")
        for attention_norm in sort_by_registry(at_scale["attention_norm"].unique(), ATTENTION_NORMS):
            of_norm = at_scale[at_scale["attention_norm"] == attention_norm]
            same_norm = [
                _curve(group, lrs_of_grid, study=study, scale=scale, attention_norm=attention_norm, **of_curve)
                for of_curve, group in _groups(of_norm)
            ]
            baselines = {curve.factors: curve for curve in reversed(same_norm) if curve.method == "baseline"}
            for curve in same_norm:
                baseline = baselines.get(curve.factors)
                other = baseline if curve is not baseline else None
                extra = overhead([curve.finished_seconds], other.finished_seconds) if other else None
                curves.append(replace(curve, edge=edges.get((scale, curve.label)), overhead=extra))
    return curves


def labels(rows: pd.DataFrame) -> list[str]:
    """The display name of each row's curve: study, method, gamma, attention norm and factors.

    The study is omitted if there is only one, the attention norm if every row has the default, and a factor if all rows
    have the same value.
    """
    names, shared = studies(rows), rows["curve_factors"] if "curve_factors" in rows else curve_factors(rows)
    shown = varied(shared)
    show_study = names.nunique() > 1
    show_norm = bool((rows["attention_norm"] != DEFAULT).any())
    return [
        (f"{study}: " if show_study else "")
        + with_factors(
            label(method, None if pd.isna(gamma) else gamma) + (f" + {norm}" if show_norm else ""),
            method,
            {name: value for name, value in factors if name in shown},
        )
        for study, method, gamma, norm, factors in zip(
            names, rows["method"], rows["gamma"], rows["attention_norm"], shared, strict=True
        )
    ]


def edge_of(runs: pd.DataFrame) -> Edge:
    """The edge of one curve, from its grid and from the runs that searched for it.

    A learning rate converged if it did with every seed of the grid. One off the grid of which some seeds were never
    run, as when a budget ended, says nothing unless one of them diverged.

    Args:
        runs: columns ``RUN_COLUMNS``, of one (scale, attention norm, method, gamma).
    """
    runs = runs[runs["origin"] != "refine"]
    on_grid = set(runs.loc[runs["origin"] != "edge", "lr"])
    seeds = runs["seed"].unique()
    verdicts: dict[float, Verdict] = {}
    for lr, at_lr in runs.groupby("lr"):
        columns = zip(at_lr["seed"], at_lr["state"], at_lr["val_loss"], at_lr["l_init"], strict=True)
        by_seed = {seed: Outcome.of(state, val_loss, l_init).verdict for seed, state, val_loss, l_init in columns}
        verdict = aggregate_seeds(by_seed.get(seed) for seed in seeds)
        if verdict is not None or lr in on_grid:
            verdicts[float(str(lr))] = verdict or "running"
    return bracket(verdicts)


def sort_by_registry(names: Iterable[str], registry: Iterable[str]) -> list[str]:
    """``names`` in the order of ``registry``, then those that it does not have, alphabetically."""
    order = list(registry)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _groups(runs: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    for method in sort_by_registry(runs["method"].unique(), METHODS):
        of_method = runs[runs["method"] == method]
        for gamma, of_gamma in of_method.groupby("gamma", dropna=False, sort=True):
            value = float(str(gamma))
            names = {"method": method, "gamma": None if math.isnan(value) else value}
            for shared, group in of_gamma.groupby("curve_factors", sort=False):
                yield names | {"factors": shared, "lr_factor": group["lr_factor"].iloc[0]}, group


def _curve(group: pd.DataFrame, grid: tuple[float, ...], **names: Any) -> CurveFacts:
    """The curve of a group of runs; ``names`` are the fields that all of them share."""
    label = group["label"].iloc[0]
    name, axis = f"{names['scale']} {label}", short_name(names["lr_factor"])
    l_init = float(group["l_init"].mean())
    cells: dict[tuple[float, int], dict[Hashable, Any]] = {}
    for run in records(group):
        place = run["lr"], run["seed"]
        if place in cells:
            cell = f"{name} {axis}={place[0]:g} seed={place[1]}"
            raise InvalidInput("runs", cell, "occurs twice", "keep one row per cell")
        cells[place] = run
    seeds = sorted({seed for _, seed in cells})
    points, missing = [], []
    losses = np.full((len(grid), len(seeds)), np.nan)
    for i, lr in enumerate(grid):
        for j, seed in enumerate(seeds):
            if (lr, seed) not in cells:
                missing.append(f"{axis}={lr:g} seed={seed} (not planned)")
                continue
            run = cells[lr, seed]
            loss = Outcome.of(run["state"], run["val_loss"], l_init).loss
            if loss is None:
                reason = "no loss recorded" if run["reason"] == NO_LOSS else run["state"]
                reason += ", and no run of the curve recorded l_init" if reason == "diverged" else ""
                missing.append(f"{axis}={lr:g} seed={seed} ({reason})")
                continue
            losses[i, j] = loss
            cell, diverged = run["cell"] or f"{name} {axis}={lr:g} seed={seed}", run["state"] == "diverged"
            points.append(Point(cell=cell, lr=lr, seed=seed, loss=loss, diverged=diverged, run=run))
    facts = CurveFacts(
        **names,
        label=label,
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
        LRS=lrs(losses.mean(axis=1)),
        LRS_n=lrs(losses.mean(axis=1), divisor="definition"),
        interval=_interval(losses) if len(seeds) > 1 else None,
    )


def _interval(losses: Floats) -> tuple[float, float]:
    """95% interval of the LRS of the mean curve; ``losses`` has shape ``(lr, seed)``.

    Relative to the best learning rate of the mean curve, LRS is a mean over seeds of each seed's height above its own
    loss there, so Student's t applies; the lower bound is cut at 0. A percentile bootstrap over few seeds is too
    narrow: it never leaves the range of the seeds, which contains the truth at most 1 - 2^(1 - seeds) of the time. In
    simulations with noise that grows toward the last learning rate, the bootstrap covered the truth 73% of the time
    with 3 seeds, 84% with 5 and 91% with 10; this interval covered it 95 to 96% of the time. Both fall short if a
    learning rate diverges for some seeds only (77% with 3 seeds).
    """
    best = losses.mean(axis=1).argmin()
    low, high = t_interval((losses - losses[best]).sum(axis=0) / (len(losses) - 1))
    return max(0.0, low), high


def t_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """95% interval of the mean of ``values``, one per seed and at least two, by Student's t."""
    sample = np.asarray(values, dtype=np.float64)
    half = t_half_width(sample)
    return float(sample.mean() - half), float(sample.mean() + half)


def t_half_width(values: Floats) -> Floats:
    """Half the width of ``t_interval`` over the last axis, shape ``(..., seed)``."""
    seeds = values.shape[-1]
    return np.asarray(stdtrit(seeds - 1, 0.975) * values.std(axis=-1, ddof=1) / math.sqrt(seeds))
