"""A cell: one training run, and the parts of a study that determine its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from search_spaces.attention_norms import DEFAULT
from search_spaces.errors import bad, require_known
from search_spaces.factors import LR, CurveKey, Value
from search_spaces.methods import label
from search_spaces.scales import SCALES, Scale

SIGNIFICANT_DIGITS = 4
"""Proposed values of lr and gamma have this many: names stay readable, and the loss does not depend on more."""


class Frozen(BaseModel):
    """Base of every model in a study: immutable, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ADDED_FIELDS: dict[str, Any] = {
    "deterministic": False,
    "optimizer": "adamw",
    "muon_lr_ratio": 1.0,
    "parametrization": "standard",
    "mup_base": None,
    "cautious_weight_decay": False,
}
"""Fields of ``training`` that are newer than the first cell ids. With this value a field is left out of the id."""
WITHOUT_EFFECT: dict[str, tuple[str, Any]] = {
    "muon_lr_ratio": ("optimizer", "adamw"),
    "mup_base": ("parametrization", "standard"),
    "cautious_weight_decay": ("weight_decay", 0.0),
}
"""Fields of ``training`` that change nothing while another field has this value. They are then left out of the id, so
that a cell of AdamW is the same cell in a study that compares it with Muon."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class ModelSpec(Frozen):
    """The model, apart from its scale."""

    tied: bool = Field(default=False, description="Use one matrix for the input and the output embedding.")
    init: Literal["xavier", "normal"] = Field(
        default="xavier",
        description="Initialization of linear layers: Xavier normal, or normal with standard deviation 0.02. The "
        "output projection of attention has 0.02 / sqrt(2L) with both.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout probability on residual branches.")
    initial_mean_logit: float = Field(
        default=0.0,
        description="Stressed initialization: E starts shifted along the mean hidden state so that the mean logit of "
        "the validation tokens moves by this much. 0 is the normal initialization.",
    )


class TrainingSpec(Frozen):
    """How a cell is trained. Every field changes its result. The defaults are those of the published runs."""

    steps: int = Field(default=100_000, gt=0, description="Optimizer steps.")
    batch_size: int = Field(default=64, gt=0, description="Global batch size in sequences, over all workers.")
    sequence_length: int = Field(default=2048, gt=0, description="Tokens per sequence.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine",
        description="Learning rate after the warm-up. cosine, linear: decay to min_lr; wsd (warm-up, stable, decay): "
        "stay at the peak until decay_share of the run is left, then decay linearly to min_lr; constant: stay at the "
        "peak.",
    )
    warmup_steps: int = Field(
        default=5_000, ge=0, description="Steps of linear warm-up; step t of W, from 0, has lr * (t + 1) / (W + 1)."
    )
    decay_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        validate_default=True,
        description="wsd: the fraction of the steps, at the end of the run, in which the learning rate decays.",
    )
    min_lr: float = Field(
        default=1e-5,
        ge=0,
        description="Learning rate that the schedule reaches one step after the last; constant does not use it.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: Muon for the matrices of the blocks (Q, K, V, gate and up are separate matrices), with "
        "torch.optim.Muon's defaults, and AdamW for embeddings, head and norms.",
    )
    muon_lr_ratio: float = Field(
        default=1.0, gt=0, description="muon: learning rate of Muon's matrices relative to that of all others."
    )
    parametrization: Literal["standard", "mup"] = Field(
        default="standard",
        description="mup: initial values, learning rates, attention logits and output logits change with the width of "
        "the model so that the best learning rate does not (arXiv 2203.03466, table 8).",
    )
    mup_base: str | None = Field(
        default=None, validate_default=True, description="mup: the scale at which mup and standard are the same."
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="AdamW's beta1 and beta2.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Weight decay of every matrix; the scales of norms do not decay."
    )
    weight_decay_mode: Literal["independent", "coupled"] = Field(
        default="independent",
        description="independent: each step removes the fraction weight_decay, whatever the learning rate; coupled: "
        "lr * weight_decay, as in AdamW.",
    )
    cautious_weight_decay: bool = Field(
        default=False,
        description="Decay a weight only if the optimizer's step moves it towards zero as well, or is zero "
        "(arXiv 2510.12402).",
    )
    grad_clip: float = Field(
        default=1.0, gt=0, description="Maximum global L2 norm of the gradient; larger gradients are clipped."
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="bfloat16",
        description="float32 throughout; tf32: float32 with operands of matrix products rounded to 10 bits, on an "
        "accelerator; bfloat16: autocast.",
    )
    logits_dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Precision to round the logits to, forward and backward."
    )
    deterministic: bool = Field(
        default=False,
        description="On an accelerator, use only deterministic kernels: the cell is then reproducible bit by bit on "
        "the same kind of device with the same version of PyTorch. On a CPU every cell is.",
    )
    eval_sequences: int = Field(
        default=160,
        gt=0,
        description="Sequences per evaluation during the run: the first ones of the validation tokens.",
    )
    final_eval_sequences: int | None = Field(
        default=None,
        gt=0,
        description="Sequences of the final evaluation, which gives the result of the run: drawn at random from all "
        "validation tokens, the same for every cell. Default: the result is that of the last evaluation during the "
        "run.",
    )

    @field_validator("decay_share")
    @classmethod
    def _decay_share_belongs_to_wsd(cls, value: float | None, info: ValidationInfo) -> float | None:
        if (schedule := info.data.get("schedule")) is None:
            return value  # the schedule itself is invalid
        if schedule == "wsd" and value is None:
            raise bad("is missing, but schedule wsd requires it", "set it, for example to 0.2 for the last fifth")
        if schedule != "wsd" and value is not None:
            raise bad(f"does not apply to schedule {schedule}", "remove it, or set training.schedule to wsd")
        return value

    @field_validator("mup_base")
    @classmethod
    def _base_is_a_scale(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("parametrization") == "mup":
            raise bad("is missing, but parametrization mup requires it", "set it to a scale, for example the smallest")
        return None if value is None else require_known("scale", value, SCALES)

    @field_validator("weight_decay_mode")
    @classmethod
    def _mode_requires_decay(cls, value: str, info: ValidationInfo) -> str:
        if value == "coupled" and info.data.get("weight_decay") == 0:
            raise bad("requires training.weight_decay", "set it, or remove weight_decay_mode")
        return value

    def content(self) -> dict[str, Any]:
        """The fields that determine the result of a cell, as JSON values."""
        content = self.model_dump(mode="json")
        ignored = {name for name, (other, value) in WITHOUT_EFFECT.items() if content[other] == value}
        ignored |= {name for name, default in ADDED_FIELDS.items() if content[name] == default}
        return {name: value for name, value in content.items() if name not in ignored}

    @property
    def decay_steps(self) -> int:
        """Steps of the decay of wsd, at least one."""
        return max(1, round(self.steps * (self.decay_share or 0.0)))


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
    factors: dict[str, Value] = Field(default={}, description="The study's factors with this cell's values.")
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
        content = self.model_dump(mode="json", exclude={"factors", "lr_factor"})
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
    factors: dict[str, Value] = {}
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


_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces) of ``content``, as 64 hexadecimal digits."""
    return hashlib.sha256(_canonical_json(content).encode()).hexdigest()
