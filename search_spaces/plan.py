"""From a study to its curves and cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import Any

from search_spaces.cell import AnyCell, Cell, ForeignCell
from search_spaces.edge import max_cells
from search_spaces.factors import LR, CurveKey
from search_spaces.methods import METHODS, label
from search_spaces.study import Study
from search_spaces.training_spec import ModelSpec, TrainingSpec
from search_spaces.variants import apply_factors

NOMINAL_FLOPS_PER_WORKER = 2e10
"""FLOP/s assumed for a worker before anything has been measured: about one CPU core."""
NOMINAL_SECONDS_PER_STEP = 1e-3
"""What a step is assumed to take in addition to its FLOPs, which is most of it for the smallest models."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The cells that share a ``CurveKey``, over learning rates (or the study's ``lr_factor``) and seeds."""

    key: CurveKey
    cells: tuple[AnyCell, ...]

    @property
    def scale(self) -> str:
        return self.key.scale

    @property
    def label(self) -> str:
        key = self.key
        return label(key.method, key.gamma, key.attention_norm, dict(key.factors))

    @property
    def tokens(self) -> int:
        """The most tokens that a cell of the curve trains on."""
        return max(cell.tokens for cell in self.cells)


@dataclass(frozen=True)
class Plan:
    """A study with its tokens: every cell to run, before anything runs."""

    study: Study
    data: str
    """Digest of the tokens, or of the study's trainer."""

    def cell(self, key: CurveKey, x: float, seed: int) -> AnyCell:
        """The cell of a curve at ``x``: a learning rate, or a value of the study's ``lr_factor``."""
        study, shared = self.study, dict(key.factors)
        lr = x if study.lr_factor == LR else shared[LR]
        values = shared if study.lr_factor == LR else shared | {study.lr_factor: study.axis_value(x)}
        factors = {name: values[name] for name in study.factors}
        if trainer := study.trainer:
            return ForeignCell(
                trainer=self.data,
                name=trainer.name,
                kind=trainer.kind,
                lr=lr,
                seed=seed,
                factors=factors,
                lr_factor=study.lr_factor,
            )
        model, training = self._specs(tuple(factors.items()))
        return Cell(
            scale=key.scale,
            attention_norm=key.attention_norm,
            method=key.method,
            gamma=key.gamma,
            lr=lr,
            seed=seed,
            factors=factors,
            lr_factor=study.lr_factor,
            data=self.data,
            V=study.data.V,
            model=model,
            training=training,
        )

    def _specs(self, factors: tuple[tuple[str, Any], ...]) -> tuple[ModelSpec, TrainingSpec]:
        """The model and training of a combination of factors; equal ones are one object, because plans can be long."""
        known = self.__dict__.setdefault("_known_specs", {})
        if factors not in known:
            known[factors] = apply_factors(self.study.model, self.study.training, dict(factors))
        return known[factors]  # type: ignore[no-any-return]

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """In the order of ``Study.curve_keys``."""
        study = self.study
        return tuple(
            Curve(key=key, cells=tuple(self.cell(key, x, seed) for x in study.grid for seed in study.seeds))
            for key in study.curve_keys
        )

    @cached_property
    def cells(self) -> tuple[AnyCell, ...]:
        """The grid in the order in which to run it. Within a scale, cells are ordered by learning rate over all curves,
        so that all curves grow at the same pace."""
        return tuple(
            cell
            for _, curves in groupby(self.curves, attrgetter("scale"))
            for column in zip(*(curve.cells for curve in curves), strict=True)
            for cell in column
        )

    @property
    def trials(self) -> dict[CurveKey, int]:
        """The number of Optuna trials that follow the grid, by ``CurveKey.group``."""
        return {curve.key.group: self.study.refine.trials for curve in self.curves}

    @cached_property
    def refinement_cells(self) -> dict[str, int]:
        """Maximum number of cells off the grid, by scale."""
        refine = self.study.refine
        wanted: Counter[str] = Counter()
        for group, trials in self.trials.items():
            wanted[group.scale] += trials
        for curve in self.curves:
            wanted[curve.scale] += max_cells(self.study.grid, self.study.seeds, refine.edge) if refine.edge else 0
        return limit_to_budget(wanted, refine.budget.cells or math.inf)

    @property
    def cell_count(self) -> int:
        """Maximum number of cells, on and off the grid."""
        return len(self.cells) + sum(self.refinement_cells.values())

    @property
    def tokens(self) -> int:
        """Maximum number of tokens that the whole study trains on."""
        off_grid = sum(cells * self._longest[scale].tokens for scale, cells in self.refinement_cells.items())
        return sum(cell.tokens for cell in self.cells) + off_grid

    @cached_property
    def _longest(self) -> dict[str, AnyCell]:
        """The longest cell of each scale; they differ if factors do."""
        return {cell.scale: cell for cell in sorted(self.cells, key=lambda cell: cell.flops)}

    def seconds(self, tokens_per_second: Mapping[str, float], concurrency: int) -> float:
        """Estimated wall seconds to train the study with ``concurrency`` cells in parallel.

        Args:
            tokens_per_second: measured speed of a cell, by scale; other scales are estimated from FLOPs and
                ``NOMINAL_FLOPS_PER_WORKER``.
        """
        flops_per_second = NOMINAL_FLOPS_PER_WORKER * self.study.resources.workers
        nominal = {cell.scale: cell.flops / flops_per_second + _step_overhead(cell) for cell in self.cells}
        speeds = {cell.scale: cell.tokens / nominal[cell.scale] for cell in self.cells} | dict(tokens_per_second)
        longest = {scale: cell.tokens / speeds[scale] for scale, cell in self._longest.items()}
        refinement = sum(longest[scale] * cells for scale, cells in self.refinement_cells.items())
        minutes = self.study.refine.budget.minutes or math.inf
        grid = sum(cell.tokens / speeds[cell.scale] for cell in self.cells)
        return (grid + min(refinement, 60 * minutes)) / concurrency


def _step_overhead(cell: AnyCell) -> float:
    return NOMINAL_SECONDS_PER_STEP * (cell.steps or 0)


def limit_to_budget(wanted: Mapping[str, int], budget: float) -> dict[str, int]:
    """Upper bound of the cells by scale under a budget of cells: as if the first scales, the largest, used it first."""
    allowed = {}
    for scale, cells in wanted.items():
        allowed[scale] = int(min(cells, budget))
        budget -= allowed[scale]
    return allowed


def refinement_space(method: str, study: Study) -> dict[str, tuple[float, float]]:
    """The box in which refinement searches, on a log scale: ``lr``, or the study's ``lr_factor``, within the grid, and
    ``gamma`` within the method's range, extended to every value in the study."""
    space = {study.lr_factor: (study.grid[0], study.grid[-1])}
    if method in METHODS and (spec := METHODS[method].gamma):
        tried = [gamma for choice in study.methods if choice.method == method for gamma in choice.gammas]
        values = [spec.low, spec.high, *(gamma for gamma in tried if gamma is not None)]
        space["gamma"] = (min(values), max(values))
    return space
