"""Factors: further fields of a training whose values a study combines, and the key of a curve.

For the OEC model a factor is a field of ``training`` or ``model``, written with a dot (``training.weight_decay``). For
a foreign trainer it is whatever that trainer calls it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from search_spaces.errors import bad
from search_spaces.tolerance import REL_TOLERANCE, same_value

LR = "lr"
"""The name of the learning rate, the axis of every curve unless ``lr_factor`` names another one."""


def _checked(value: Any) -> Any:
    """Lists become tuples, which are hashable."""
    match value:
        case list() | tuple():
            return tuple(map(_checked, value))
        case float() if not math.isfinite(value):
            raise bad(f"contains {value}", "give finite numbers")
        case None | bool() | int() | float() | str():
            return value
    raise bad(f"contains {value!r}", "give numbers, text, true or false, null, or lists of them")


Value = Annotated[Any, AfterValidator(_checked)]
"""One value of a factor: a number, text, a boolean, None, or a tuple of values."""
Factors = Mapping[str, Any]
"""Values by the names of their factors."""


class CurveKey(NamedTuple):
    """What the cells of one curve share. ``factors`` are name and value, in the order of the study."""

    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    factors: tuple[tuple[str, Any], ...] = ()

    @property
    def group(self) -> CurveKey:
        """The key without gamma: the curves of one group share an Optuna study, which searches over gamma as well."""
        return self._replace(gamma=None)

    def __str__(self) -> str:
        parts = (self.scale, self.attention_norm, self.method, to_text(dict(self.factors)))
        return " ".join(filter(None, parts))


def to_text(factors: Factors) -> str:
    """Factors for display: ``weight_decay=0.1, betas=0.9/0.95``."""
    return ", ".join(f"{short_name(name)}={format_factor(value)}" for name, value in factors.items())


def to_json(factors: Factors) -> str | None:
    """Factors as one text, for tables of runs; None without any."""
    return json.dumps(dict(factors)) if factors else None


def from_json(text: str) -> dict[str, Any]:
    """The inverse of ``to_json``.

    Raises:
        ValueError: the text is not a JSON object.
    """
    content = json.loads(text or "{}")
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return {name: _checked(value) for name, value in content.items()}


def short_name(name: str) -> str:
    """``weight_decay`` for ``training.weight_decay``."""
    return name.rpartition(".")[2]


def format_factor(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple() | list():
            return "/".join(map(format_factor, value))
    return str(value)


def combinations(factors: Mapping[str, Sequence[Any]], pairs: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Every combination of values, in the order in which the study writes the factors; the first one changes slowest.

    Args:
        pairs: groups of factors that change together, the first value of one with the first of the others.
    """
    paired = {name: tuple(group) for group in pairs for name in group}
    groups = dict.fromkeys(paired.get(name, (name,)) for name in factors)
    rows = [list(zip(*(factors[name] for name in group), strict=True)) for group in groups]
    for choice in product(*rows):
        values = {
            name: value
            for group, row in zip(groups, choice, strict=True)
            for name, value in zip(group, row, strict=True)
        }
        yield {name: values[name] for name in factors}


def combination_count(factors: Mapping[str, Sequence[Any]], pairs: Sequence[Sequence[str]]) -> int:
    """The number of ``combinations``, without making them."""
    followers = {name for group in pairs for name in group[1:]}
    return math.prod(len(values) for name, values in factors.items() if name not in followers)


def matches(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether ``values`` have, for every name of ``rule``, its value or one of its list of values."""
    return all(
        values[name] == wanted or (isinstance(wanted, tuple) and values[name] in wanted)
        for name, wanted in rule.items()
    )


def require_axis(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    """The values of a factor as the axis of a curve.

    Raises:
        PydanticCustomError: they are not positive, ascending numbers, so that they have no place on a log axis.
    """
    numbers = [value for value in values if type(value) in (int, float) and value > 0 and math.isfinite(value)]
    if len(numbers) < len(values):
        wrong = next(value for value in values if value not in numbers)
        problem = f"puts {name} on a logarithmic axis, which has no place for {format_factor(wrong)}"
        raise bad(problem, f"give factors.{name} positive numbers only")
    if sorted(set(numbers)) != numbers:
        raise bad(f"needs ascending values of {name}", f"sort factors.{name}")
    for a, b in pairwise(numbers):
        if same_value(a, b):
            raise bad(f"has {a!r} and {b!r}, which are the same to within {REL_TOLERANCE:g}", "remove one of them")
    return tuple(map(float, numbers))
