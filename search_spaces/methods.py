"""The registry of output-head methods: what each does, its gamma, and who proposed it.

A method is an entry here plus a function of the same name (with underscores) in ``trainers.methods``. The study schema,
command line, tables, figures and tests pick it up from these two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces.attention_norms import DEFAULT
from search_spaces.factors import to_text

ActsOn = Literal["nothing", "loss", "logits", "weights"]
FOREIGN_KINDS = ("command", "python")
"""What stands in the place of a method in the cells of a foreign trainer."""


@dataclass(frozen=True, kw_only=True)
class GammaSpec:
    """The one hyperparameter of a method, called gamma here whatever papers call it."""

    symbol: str = "gamma"
    """How papers write it, for legends: ``gamma`` for a regularizer, ``c`` for soft-cap's cap."""
    default: float
    low: float
    high: float
    """The ends of the range that refinement searches, inclusive."""


@dataclass(frozen=True)
class Method:
    """One output-head method."""

    name: str
    summary: str
    source: str
    acts_on: ActsOn
    """Where it acts: a term of the loss, a map of the logits, or a map of the weights after a step."""
    gamma: GammaSpec | None = None
    """None for a method without a hyperparameter."""

    @property
    def default_gamma(self) -> float | None:
        """None for a method without one."""
        return self.gamma.default if self.gamma else None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("baseline", "cross-entropy only", "Radford et al., 2019 (GPT-2)", acts_on="nothing"),
        Method(
            "z-loss",
            "+ gamma * mean(log Z ** 2)",
            "arXiv 2204.02311 (PaLM), section 5; arXiv 2309.14322",
            acts_on="loss",
            gamma=GammaSpec(default=1e-4, low=1e-7, high=1e2),
        ),
        Method(
            "mu-loss",
            "+ gamma * (mu . mu), mu the mean row of E",
            "arXiv 2601.02031",
            acts_on="loss",
            gamma=GammaSpec(default=1e-4, low=1e-7, high=1e2),
        ),
        Method("mu-centering", "E -= mu after every optimizer step", "arXiv 2601.02031", acts_on="weights"),
        Method(
            "soft-cap",
            "logits = c * tanh(logits / c), in training and in evaluation",
            "arXiv 2408.00118 (Gemma 2), section 2",
            acts_on="logits",
            gamma=GammaSpec(symbol="c", default=30.0, low=5.0, high=100.0),
        ),
        Method(
            "max-z",
            "+ gamma * mean(max(logits) ** 2)",
            "arXiv 2309.10305 (Baichuan 2), section 2",
            acts_on="loss",
            gamma=GammaSpec(default=2e-4, low=1e-7, high=1e2),
        ),
    )
}


def label(
    method: str, gamma: float | None, attention_norm: str = DEFAULT, factors: Mapping[str, Any] | None = None
) -> str:
    """The name in legends and tables, for example ``z-loss (gamma=0.0001)``, ``baseline + qkv-norm, weight_decay=0.1``.

    A method that the registry does not know (from a table of another project) is shown with ``gamma``. The default
    attention norm is omitted, and so is the kind of a foreign trainer if its factors say more.
    """
    known = METHODS.get(method)
    symbol = known.gamma.symbol if known and known.gamma else "gamma"
    value = "" if gamma is None else f" ({symbol}={gamma:g})"
    norm = "" if attention_norm == DEFAULT else f" + {attention_norm}"
    return with_factors(method + value + norm, method, factors or {})


def with_factors(name: str, method: str, factors: Mapping[str, Any]) -> str:
    """The name of a curve with its factors, which say more than the kind of a foreign trainer."""
    texts = to_text(factors)
    return texts if texts and method in FOREIGN_KINDS else ", ".join(filter(None, (name, texts)))
