"""The registry of output-head methods: what can be tried, with which strength, and who proposed it.

An entry here and a function of the same name (with underscores) in ``trainers.methods`` are a method; study
schema, command line, tables, figures and tests pick it up from the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_spaces.attention_norms import DEFAULT

ActsOn = Literal["nothing", "loss", "logits", "weights"]


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The one hyperparameter of a method."""

    symbol: str
    """How papers write it: ``gamma`` for a regularizer, ``c`` for a cap. Study files use the same word."""
    default: float
    low: float
    """Lower end of the range that refinement searches, inclusive."""
    high: float
    """Upper end of the range that refinement searches, inclusive."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One output-head method."""

    name: str
    acts_on: ActsOn
    """Where it enters: a term of the loss, a map of the logits, or a map of the weights after a step."""
    strength: Strength | None = None
    """None for a method without a hyperparameter."""
    summary: str
    source: str

    @property
    def default(self) -> float | None:
        """The default strength; None for a method without one."""
        return self.strength.default if self.strength else None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="baseline",
            acts_on="nothing",
            summary="cross-entropy only",
            source="Radford et al., 2019 (GPT-2)",
        ),
        Method(
            name="z-loss",
            acts_on="loss",
            strength=Strength(symbol="gamma", default=1e-4, low=1e-7, high=1e2),
            summary="+ gamma * mean(log Z ** 2)",
            source="arXiv 2204.02311 (PaLM), section 5; arXiv 2309.14322",
        ),
        Method(
            name="mu-loss",
            acts_on="loss",
            strength=Strength(symbol="gamma", default=1e-4, low=1e-7, high=1e2),
            summary="+ gamma * (mu . mu), mu the mean row of E",
            source="arXiv 2601.02031",
        ),
        Method(
            name="mu-centering",
            acts_on="weights",
            summary="E -= mu after every optimizer step",
            source="arXiv 2601.02031",
        ),
        Method(
            name="soft-cap",
            acts_on="logits",
            strength=Strength(symbol="c", default=30.0, low=5.0, high=100.0),
            summary="logits = c * tanh(logits / c), in training and in evaluation",
            source="arXiv 2408.00118 (Gemma 2), section 2",
        ),
        Method(
            name="max-z",
            acts_on="loss",
            strength=Strength(symbol="gamma", default=2e-4, low=1e-7, high=1e2),
            summary="+ gamma * mean(max(logits) ** 2)",
            source="arXiv 2309.10305 (Baichuan 2), section 2",
        ),
    )
}


def label(method: str, gamma: float | None, attention_norm: str = DEFAULT) -> str:
    """What a person reads in a legend or a table, e.g. ``z-loss (gamma=0.0001)``, ``baseline + qkv-norm``.

    A method that the registry does not know (a table from elsewhere) is shown with ``gamma``; the default attention
    norm goes without saying.
    """
    known = METHODS.get(method)
    symbol = known.strength.symbol if known and known.strength else "gamma"
    strength = "" if gamma is None else f" ({symbol}={gamma:g})"
    return method + strength + ("" if attention_norm == DEFAULT else f" + {attention_norm}")
