"""Which weights of a cell outlive its training: the field ``keep_weights`` of a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from search_spaces.cell import Frozen
from search_spaces.errors import bad

Word = Literal["none", "last"]
WORDS: dict[str, dict[str, Any]] = {"none": {}, "last": {"last": True}}


class KeepWeights(Frozen):
    """``none``, ``last``, or ``{every: STEPS}``, which keeps the last ones too."""

    last: bool = Field(default=False, description="Keep the weights that a cell ends with.")
    every: int | None = Field(
        default=None, gt=0, description="Keep those after every so many steps, and those that a cell ends with."
    )

    @model_validator(mode="before")
    @classmethod
    def _last_with_every(cls, content: Any) -> Any:
        return {**content, "last": True} if isinstance(content, dict) and "every" in content else content

    @model_serializer
    def _as_written(self) -> str | dict[str, int]:
        return {"every": self.every} if self.every else "last" if self.last else "none"

    @classmethod
    def from_word(cls, value: Any) -> Any:
        """``keep_weights: last`` is short for ``{last: true}``, ``none`` for ``{}``."""
        if isinstance(value, (dict, cls)):
            return value
        if isinstance(value, str) and value in WORDS:
            return WORDS[value]
        raise bad("is not a choice of weights", "choose none, last or {every: STEPS}")

    def at(self, step: int) -> bool:
        """Whether the weights after ``step`` are kept, if more steps follow."""
        return self.every is not None and step % self.every == 0


NO_WEIGHTS = KeepWeights()
