"""From a study to its curves and cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter

from search_spaces.cell import Cell, CurveKey
from search_spaces.edge import max_cells
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.study import Study

NOMINAL_FLOPS_PER_WORKER = 2e10
"""FLOP/s assumed for a worker before anything has been measured: about one CPU core."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The cells of one (scale, attention norm, method, gamma) over learning rates and seeds."""

    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    cells: tuple[Cell, ...]

    @property
    def key(self) -> CurveKey:
        return self.scale, self.attention_norm, self.method, self.gamma


@dataclass(frozen=True)
class Plan:
    """A study with its tokens: every cell to run, before anything runs."""

    study: Study
    data: str
    """Digest of the tokens."""

    def cell(self, scale: str, attention_norm: str, method: str, gamma: float | None, lr: float, seed: int) -> Cell:
        return Cell(
            scale=scale,
            attention_norm=attention_norm,
            method=method,
            gamma=gamma,
            lr=lr,
            seed=seed,
            data=self.data,
            V=self.study.data.V,
            model=self.study.model,
            training=self.study.training,
        )

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Scale by scale, the largest first, so that a sweep does not end with its longest cells."""
        scales = sorted(self.study.scales, key=lambda s: -SCALES[s].parameters(self.study.data.V))
        return tuple(
            Curve(
                scale=scale,
                attention_norm=attention_norm,
                method=choice.method,
                gamma=gamma,
                cells=tuple(
                    self.cell(scale, attention_norm, choice.method, gamma, lr, seed)
                    for lr in self.study.lrs
                    for seed in self.study.seeds
                ),
            )
            for scale in scales
            for attention_norm in self.study.attention_norms
            for choice in self.study.methods
            for gamma in choice.gammas
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The grid in the order in which to run it. Within a scale, cells are ordered by learning rate over all curves,
        so that all curves grow at the same pace."""
        return tuple(
            cell
            for _, curves in groupby(self.curves, attrgetter("scale"))
            for column in zip(*(curve.cells for curve in curves), strict=True)
            for cell in column
        )

    @property
    def trials(self) -> dict[tuple[str, str, str], int]:
        """The number of Optuna trials that follow the grid, by scale, attention norm and method."""
        return {(c.scale, c.attention_norm, c.method): self.study.refine.trials for c in self.curves}

    @cached_property
    def refinement_cells(self) -> dict[str, int]:
        """Maximum number of cells off the grid, by scale."""
        refine = self.study.refine
        wanted: Counter[str] = Counter()
        for (scale, *_), trials in self.trials.items():
            wanted[scale] += trials
        for curve in self.curves:
            wanted[curve.scale] += max_cells(self.study.lrs, self.study.seeds, refine.edge) if refine.edge else 0
        return limit_to_budget(wanted, refine.budget.cells or math.inf)

    @property
    def cell_count(self) -> int:
        """Maximum number of cells, on and off the grid."""
        return len(self.cells) + sum(self.refinement_cells.values())

    @property
    def tokens(self) -> int:
        """Maximum number of tokens that the whole study trains on."""
        return self.cell_count * self.cells[0].tokens  # the same for every cell

    def seconds(self, tokens_per_second: Mapping[str, float], concurrency: int) -> float:
        """Estimated wall seconds to train the study with ``concurrency`` cells in parallel.

        Args:
            tokens_per_second: measured speed of a cell, by scale; other scales are estimated from FLOPs and
                ``NOMINAL_FLOPS_PER_WORKER``.
        """
        nominal = NOMINAL_FLOPS_PER_WORKER * self.study.resources.workers
        speeds = {c.scale: nominal * c.tokens / c.flops for c in self.cells} | dict(tokens_per_second)
        seconds = {cell.scale: cell.tokens / speeds[cell.scale] for cell in self.cells}
        refinement = sum(seconds[scale] * cells for scale, cells in self.refinement_cells.items())
        minutes = self.study.refine.budget.minutes or math.inf
        return (sum(seconds[cell.scale] for cell in self.cells) + min(refinement, 60 * minutes)) / concurrency


def limit_to_budget(wanted: Mapping[str, int], budget: float) -> dict[str, int]:
    """Upper bound of the cells by scale under a budget of cells: as if the first scales, the largest, used it first."""
    allowed = {}
    for scale, cells in wanted.items():
        allowed[scale] = int(min(cells, budget))
        budget -= allowed[scale]
    return allowed


def refinement_space(method: str, study: Study) -> dict[str, tuple[float, float]]:
    """The box in which refinement searches, on a log scale: ``lr`` within the grid, ``gamma`` within the method's
    range, extended to every value in the study."""
    space = {"lr": (study.lrs[0], study.lrs[-1])}
    if spec := METHODS[method].gamma:
        tried = [gamma for choice in study.methods if choice.method == method for gamma in choice.gammas]
        values = [spec.low, spec.high, *(gamma for gamma in tried if gamma is not None)]
        space["gamma"] = (min(values), max(values))
    return space
