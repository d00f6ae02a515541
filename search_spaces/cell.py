"""A cell: one training run, and the parts of a study that determine its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from search_spaces.attention_norms import DEFAULT
from search_spaces.factors import LR, CurveKey, Value
from search_spaces.frozen import Frozen, digest
from search_spaces.methods import label
from search_spaces.scales import SCALES, Scale
from search_spaces.training_spec import ModelSpec, TrainingSpec

SIGNIFICANT_DIGITS = 4
"""Proposed values of lr and gamma have this many: names stay readable, and the loss does not depend on more."""


@cache
def _shape(scale: str) -> dict[str, Any]:
    return asdict(SCALES[scale])


class CellBase(Frozen):
    """What a cell of any trainer has. Its ``id`` is a hash of exactly what changes its result."""

    if TYPE_CHECKING:  # fields of both kinds of cell, each in the order in which ledgers have them
        lr: float
        seed: int
        factors: dict[str, Value]
        lr_factor: str

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cells without factors are written as they were before there were factors."""
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if (name, value) not in _NO_FACTORS}

    @property
    def x(self) -> float:
        """The cell's place on the axis of its curve: its learning rate, or its value of ``lr_factor``."""
        return self.lr if self.lr_factor == LR else float(str(self.factors[self.lr_factor]))

    @property
    def steps(self) -> int | None:
        """Optimizer steps to take; None if that is unknown before the run has ended."""
        return None

    def share_done(self, step: int) -> float:
        """The share of its steps that a run has taken; 0 if nothing is known."""
        return step / self.steps if self.steps else 0.0

    @property
    def curve_factors(self) -> tuple[tuple[str, Any], ...]:
        """The factors that the cells of its curve share. The learning rate is one of them if it is not the axis."""
        shared = tuple((name, value) for name, value in self.factors.items() if name != self.lr_factor)
        return shared if self.lr_factor == LR else (*shared, (LR, self.lr))


_NO_FACTORS: tuple[tuple[str, Any], ...] = (("factors", {}), ("lr_factor", LR))


class Cell(CellBase):
    """One training run of the OEC model.

    Workers, micro batch size, compilation and evaluation interval change the last bits at most. They are not part of
    the id, so equal cells are one cell, no matter how they were run. Factors are not either: ``model`` and ``training``
    have their values.
    """

    scale: str
    attention_norm: str = DEFAULT
    method: str
    gamma: float | None = Field(description="The method's gamma; None for a method without one.")
    lr: float = Field(description="Peak learning rate.")
    seed: int
    data: str = Field(description="Digest of the training and validation tokens.")
    V: int = Field(description="Padded vocabulary size.")
    model: ModelSpec
    training: TrainingSpec
    factors: dict[str, Value] = Field(default_factory=dict, description="The study's factors with this cell's values.")
    lr_factor: str = Field(default=LR, description="The factor on the axis of the cell's curve.")

    @property
    def source(self) -> str:
        """Digest of what every cell of a study shares: of the tokens here, of the trainer elsewhere."""
        return self.data

    @property
    def shape(self) -> Scale:
        return SCALES[self.scale]

    @property
    def base_shape(self) -> Scale:
        """The scale at which the standard parametrization has this cell's initial values and learning rates."""
        mup_base = self.training.mup_base if self.training.parametrization == "mup" else None
        return SCALES[mup_base or self.scale]

    @property  # not cached: model_copy would copy the cached value
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON of the cell and the shape of its scale."""
        training = self.training.content()
        if "mup_base" in training:
            training["mup_base"] = _shape(training["mup_base"])
        content = self.model_dump(mode="json", exclude={"factors", "lr_factor", "training"})
        return digest(content | {"scale": _shape(self.scale), "training": training})[:12]

    @property
    def curve(self) -> CurveKey:
        return CurveKey(self.scale, self.attention_norm, self.method, self.gamma, self.curve_factors)

    @property
    def label(self) -> str:
        name = label(self.method, self.gamma, self.attention_norm, dict(self.curve_factors))
        return f"{self.scale} {name} {self.lr_factor}={self.x:g} seed={self.seed}"

    @property
    def steps(self) -> int:
        return self.training.steps

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, without what an attention norm adds."""
        return self.shape.parameters(self.V, tied=self.model.tied)

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return self.training.steps * self.training.batch_size * self.training.sequence_length

    @property
    def flops(self) -> float:
        return self.tokens * self.shape.flops_per_token(self.V, self.training.sequence_length)


class ForeignCell(CellBase):
    """One run of somebody else's trainer: a command, or a Python object."""

    trainer: str = Field(description="Digest of the trainer: what it runs, and the contents of the files it names.")
    name: str = Field(description="What it runs, for people, such as train.py; it stands in the place of a scale.")
    kind: Literal["command", "python"]
    lr: float
    seed: int
    factors: dict[str, Value] = Field(default_factory=dict)
    lr_factor: str = LR

    @property
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over trainer, factors, learning rate and seed."""
        content = {"trainer": self.trainer, "factors": self.factors, "lr": self.lr, "seed": self.seed}
        return digest(content)[:12]

    @property
    def source(self) -> str:
        return self.trainer

    @property
    def scale(self) -> str:
        return self.name

    @property
    def attention_norm(self) -> str:
        return DEFAULT

    @property
    def method(self) -> str:
        return self.kind

    @property
    def gamma(self) -> None:
        return None

    @property
    def curve(self) -> CurveKey:
        return CurveKey(self.scale, self.attention_norm, self.method, None, self.curve_factors)

    @property
    def label(self) -> str:
        name = label(self.method, None, self.attention_norm, dict(self.curve_factors))
        return f"{self.name} {name} {self.lr_factor}={self.x:g} seed={self.seed}"

    @property
    def parameters(self) -> int:
        """0: unknown."""
        return 0

    @property
    def tokens(self) -> int:
        """1: the cells of a foreign trainer count as equally long, since nothing is known about them."""
        return 1

    @property
    def flops(self) -> float:
        return 1.0


AnyCell = Cell | ForeignCell


def parse_cell(content: Mapping[str, Any]) -> AnyCell:
    """The inverse of a cell's ``model_dump``.

    Raises:
        ValueError: ``content`` is not a cell.
    """
    return (ForeignCell if "trainer" in content else Cell).model_validate(content)


def round_significant(value: float) -> float:
    """Round to ``SIGNIFICANT_DIGITS``."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
