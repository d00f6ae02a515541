"""The field ``methods`` of a study: a method, and the values of gamma to try."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from search_spaces.errors import bad, require_known
from search_spaces.frozen import Frozen
from search_spaces.methods import METHODS
from search_spaces.tolerance import REL_TOLERANCE, same_value


def _require_grid(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise bad("is empty", "give at least one value")
    if any(v <= 0 for v in values):
        raise bad("contains a value that is not positive", "give values above 0")
    if any(a >= b for a, b in pairwise(values)):
        raise bad("is not strictly ascending", "sort it and remove duplicates")
    for a, b in pairwise(values):
        if same_value(a, b):
            raise bad(f"has {a!r} and {b!r}, which are the same to within {REL_TOLERANCE:g}", "remove one of them")
    return values


Grid = Annotated[tuple[float, ...], AfterValidator(_require_grid)]
"""Positive, strictly ascending values, at least one."""


class MethodChoice(Frozen):
    """A method and the values of gamma to try; without any, the method's default."""

    method: str = Field(description="A method that `oec methods` lists.")
    gamma: Grid | None = Field(
        default=None, description="Values of gamma to try; for soft-cap, its cap, which may also be written c."
    )

    @classmethod
    def from_file(cls, value: Any) -> Any:
        """``baseline`` is short for ``{method: baseline}``, and soft-cap's ``c`` another name for its gamma."""
        if isinstance(value, str):
            return {"method": value}
        method = METHODS.get(str(value.get("method"))) if isinstance(value, dict) else None
        symbol = method.gamma.symbol if method and method.gamma else "gamma"
        if isinstance(value, dict) and symbol in value and "gamma" not in value:
            return {"gamma" if name == symbol else name: inner for name, inner in value.items()}
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return require_known("method", value, METHODS)

    @model_validator(mode="after")
    def _gamma_belongs_to_the_method(self) -> Self:
        if self.gamma is not None and METHODS[self.method].gamma is None:
            raise bad(f"gives gamma to {self.method}, which has none", "remove gamma")
        return self

    @property
    def gammas(self) -> tuple[float | None, ...]:
        """The values of gamma to try, ``(None,)`` for a method without one."""
        return self.gamma or (METHODS[self.method].default_gamma,)
