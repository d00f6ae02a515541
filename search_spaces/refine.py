"""What follows the grid of a study: the field ``refine``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from search_spaces.cell import Frozen
from search_spaces.edge import MIN_FACTOR
from search_spaces.errors import bad


class Budget(Frozen):
    """What refinement may take, both kinds together; does not change any result, and may be raised later."""

    cells: int | None = Field(default=None, gt=0, description="Cells beside the grid.")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes of training, summed over the cells beside the grid. None begins after them; those that "
        "run go on to their end.",
    )


class RefineSpec(Frozen):
    """What is tried beside the grid: the best (lr, gamma) of a method, and the edge of a curve."""

    trials: int = Field(
        default=0,
        ge=0,
        description="Optuna trials over (log lr, log gamma) for each (scale, attention norm, method), first seed.",
    )
    sampler: Literal["tpe", "gp"] = Field(default="tpe", description="Tree-structured Parzen, or Gaussian process.")
    edge: float | None = Field(
        default=None,
        ge=MIN_FACTOR,
        description="Bisect, for every curve, between the largest learning rate that converges with every seed and "
        "the next that does not, until their ratio is at most this.",
    )
    pruner: Literal["median"] | None = Field(
        default=None,
        description="Ends an Optuna trial whose loss is above the median of earlier ones at the same step; no cell of "
        "the grid or of an edge. May be set later.",
    )
    budget: Budget = Field(default=Budget(), description="No limit by default.")

    @field_validator("budget")
    @classmethod
    def _something_to_spend_it_on(cls, value: Budget, info: ValidationInfo) -> Budget:
        if value != Budget() and not info.data.get("trials") and info.data.get("edge") is None:
            raise bad("limits a refinement that there is not", "give refine.trials or refine.edge, or no budget")
        return value

    @field_validator("pruner")
    @classmethod
    def _something_to_prune(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and not info.data.get("trials"):
            raise bad("ends trials that there are not", "give refine.trials, or no pruner")
        return value

    @classmethod
    def from_trials(cls, value: Any) -> Any:
        """``refine: 8`` is short for ``{trials: 8}``."""
        return {"trials": value} if isinstance(value, int) else value
