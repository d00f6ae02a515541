"""From a study to its curves and cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from search_spaces.cell import Cell, CurveKey
from search_spaces.edge import max_cells
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.study import Study

NOMINAL_FLOPS_PER_WORKER = 2e10
"""FLOP/s assumed of a worker before anything has been measured: about one core of a processor."""


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
    """A study with its data: everything that is to be run, before anything runs."""

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
        """Scale by scale, the largest first, so that no long cell is left for the end of a sweep."""
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
        """The grid, in the order to run it: within a scale, learning rate by learning rate over all curves, so
        that every curve grows at the same pace."""
        curves_of: dict[str, list[Curve]] = {}
        for curve in self.curves:
            curves_of.setdefault(curve.scale, []).append(curve)
        return tuple(
            cell
            for curves in curves_of.values()
            for column in zip(*(curve.cells for curve in curves), strict=True)
            for cell in column
        )

    @property
    def refinements(self) -> Iterator[tuple[str, str, str, int]]:
        """``(scale, attention norm, method, trials)`` of the Optuna trials that follow the grid."""
        for key in dict.fromkeys((curve.scale, curve.attention_norm, curve.method) for curve in self.curves):
            yield *key, self.study.refine.trials

    @cached_property
    def refinement_cells(self) -> dict[str, int]:
        """Cells beside the grid by scale, at most."""
        refine = self.study.refine
        wanted: Counter[str] = Counter()
        for scale, *_, trials in self.refinements:
            wanted[scale] += trials
        for curve in self.curves:
            wanted[curve.scale] += max_cells(self.study.lrs, self.study.seeds, refine.edge) if refine.edge else 0
        return within(wanted, refine.budget.cells or math.inf)

    @property
    def cell_count(self) -> int:
        """Cells of the grid and beside it, at most."""
        return len(self.cells) + sum(self.refinement_cells.values())

    @property
    def tokens(self) -> int:
        """Tokens trained on by the whole study, at most."""
        return self.cell_count * self.cells[0].tokens  # a cell's are the same at every scale

    def seconds(self, tokens_per_second: Mapping[str, float], concurrency: int) -> float:
        """Estimated wall seconds of the study's training, ``concurrency`` cells at once.

        Args:
            tokens_per_second: measured rate a cell, by scale; other scales are estimated from FLOPs at
                ``NOMINAL_FLOPS_PER_WORKER``.
        """
        nominal = NOMINAL_FLOPS_PER_WORKER * self.study.resources.workers
        seconds = {
            cell.scale: cell.tokens / tokens_per_second[cell.scale]
            if cell.scale in tokens_per_second
            else cell.flops / nominal
            for cell in self.cells
        }
        refinement = sum(seconds[scale] * cells for scale, cells in self.refinement_cells.items())
        minutes = self.study.refine.budget.minutes or math.inf
        return (sum(seconds[cell.scale] for cell in self.cells) + min(refinement, 60 * minutes)) / concurrency


def within(wanted: Mapping[str, int], budget: float) -> dict[str, int]:
    """Cells by scale that a budget of cells allows at most: as if it were spent on the first scales, the largest."""
    allowed = {}
    for scale, cells in wanted.items():
        allowed[scale] = int(min(cells, budget))
        budget -= allowed[scale]
    return allowed


def refinement_space(method: str, study: Study) -> dict[str, tuple[float, float]]:
    """The box that refinement searches, on a log scale: ``lr`` over the grid's span, ``gamma`` over the method's range
    and whatever the study tries beyond it."""
    space = {"lr": (study.lrs[0], study.lrs[-1])}
    if spec := METHODS[method].gamma:
        tried = [gamma for choice in study.methods if choice.method == method for gamma in choice.gammas]
        values = [spec.low, spec.high, *(gamma for gamma in tried if gamma is not None)]
        space["gamma"] = (min(values), max(values))
    return space
