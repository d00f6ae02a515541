"""The field ``keep_weights`` of a study: which weights of a cell stay in the home."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from search_spaces.errors import bad
from search_spaces.frozen import Frozen

Shorthand = Literal["none", "last"]
SHORTHANDS: dict[str, dict[str, Any]] = {"none": {}, "last": {"last": True}}


class KeepWeights(Frozen):
    """``none``, ``last``, or ``{every: STEPS}``, which includes the last weights."""

    last: bool = Field(default=False, description="Keep the weights after the last step.")
    every: int | None = Field(
        default=None, gt=0, description="Keep the weights every this many steps, and after the last step."
    )

    @model_validator(mode="before")
    @classmethod
    def _every_includes_last(cls, content: Any) -> Any:
        return {**content, "last": True} if isinstance(content, dict) and "every" in content else content

    @model_serializer
    def _shortest_form(self) -> str | dict[str, int]:
        return {"every": self.every} if self.every else "last" if self.last else "none"

    @classmethod
    def from_shorthand(cls, value: Any) -> Any:
        """``keep_weights: last`` is short for ``{last: true}``, ``none`` for ``{}``."""
        if isinstance(value, (dict, cls)):
            return value
        if isinstance(value, str) and value in SHORTHANDS:
            return SHORTHANDS[value]
        raise bad("is not a valid choice", "choose none, last or {every: STEPS}")

    def at(self, step: int) -> bool:
        """Whether to keep the weights after ``step``, a step before the last."""
        return self.every is not None and step % self.every == 0


NO_WEIGHTS = KeepWeights()
