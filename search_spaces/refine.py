"""The field ``refine`` of a study: cells off the grid."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from search_spaces.edge import MIN_FACTOR
from search_spaces.errors import bad
from search_spaces.frozen import Frozen


class Budget(Frozen):
    """A limit on all cells off the grid. It changes no result, and may be raised later."""

    cells: int | None = Field(default=None, gt=0, description="Maximum number of cells off the grid.")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes of training, summed over the cells off the grid. After that no such cell starts; running "
        "cells finish.",
    )


class RefineSpec(Frozen):
    """Cells off the grid: a search for the best (lr, gamma) of each method, and for the edge of each curve."""

    trials: int = Field(
        default=0,
        ge=0,
        description="Optuna trials over (log lr, log gamma) per (scale, attention norm, method), with the first seed.",
    )
    sampler: Literal["tpe", "gp"] = Field(
        default="tpe", description="Tree-structured Parzen estimator, or Gaussian process."
    )
    edge: float | None = Field(
        default=None,
        ge=MIN_FACTOR,
        description="For every curve, bisect between the largest learning rate that converges with every seed and the "
        "next larger one, which does not, until their ratio is at most this.",
    )
    pruner: Literal["median"] | None = Field(
        default=None,
        description="Stop an Optuna trial whose loss is above the median of earlier trials at the same step. Cells of "
        "the grid and of an edge are never pruned. May be set later.",
    )
    budget: Budget = Field(default=Budget(), description="Limit on the cells off the grid; default: no limit.")

    @field_validator("budget")
    @classmethod
    def _budget_needs_a_search(cls, value: Budget, info: ValidationInfo) -> Budget:
        if value != Budget() and not info.data.get("trials") and info.data.get("edge") is None:
            raise bad("requires refine.trials or refine.edge", "set one of them, or remove the budget")
        return value

    @field_validator("pruner")
    @classmethod
    def _pruner_needs_trials(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and not info.data.get("trials"):
            raise bad("requires refine.trials", "set refine.trials, or remove the pruner")
        return value

    @classmethod
    def from_trials(cls, value: Any) -> Any:
        """``refine: 8`` is short for ``{trials: 8}``."""
        return {"trials": value} if isinstance(value, int) else value
