"""A cell: one training run, and the parts of a study file that decide its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from search_spaces.attention_norms import DEFAULT
from search_spaces.errors import bad
from search_spaces.methods import label
from search_spaces.scales import SCALES, Scale

SIGNIFICANT_DIGITS = 4
"""Proposed values of lr and gamma have this many: names stay readable, and the loss does not depend on more."""


class Frozen(BaseModel):
    """Base of every model in a study file: immutable, no unknown fields, no silent NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


LATER = {"deterministic": False}
"""Fields of ``training`` that came after cells had ids, with the values under which those ids hold."""
CurveKey = tuple[str, str, str, float | None]
"""Scale, attention norm, method and gamma: what the cells of one curve share."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class ModelSpec(Frozen):
    """What the model is, beside its scale."""

    tied: bool = Field(default=False, description="One matrix for the input and the output embedding.")
    init: Literal["xavier", "normal"] = Field(
        default="xavier",
        description="Linear layers: Xavier normal, or plain normal with standard deviation 0.02; attention's output "
        "projection has 0.02 / sqrt(2L) under both.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout probability on residual branches.")
    initial_mean_logit: float = Field(
        default=0.0,
        description="A stressed start: E begins shifted along the mean hidden state until the mean logit of the "
        "validation tokens has moved by this much. 0 is the normal start.",
    )


class TrainingSpec(Frozen):
    """How a cell is trained; every field changes its result. Defaults are those of the published runs."""

    steps: int = Field(default=100_000, gt=0, description="Optimizer steps.")
    batch_size: int = Field(default=64, gt=0, description="Global batch, in sequences, over all workers.")
    sequence_length: int = Field(default=2048, gt=0, description="Tokens a sequence.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine",
        description="After the warm-up: a cosine or a straight line down to min_lr; wsd (warm-up, stable, decay), "
        "at the peak until decay_share of the run is left, then a straight line down; constant, at the peak.",
    )
    warmup_steps: int = Field(
        default=5_000, ge=0, description="Steps of linear warm-up; step t of W, from 0, has lr (t + 1) / (W + 1)."
    )
    decay_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        validate_default=True,
        description="wsd: the share of the steps, at the end of the run, over which the learning rate falls.",
    )
    min_lr: float = Field(
        default=1e-5, ge=0, description="Where the learning rate is one step after the last; constant has none."
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="AdamW's two decay rates.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        default=0.0, ge=0, lt=1, description="What each matrix loses a step; norms keep their scales."
    )
    weight_decay_mode: Literal["independent", "coupled"] = Field(
        default="independent",
        description="independent: a step takes off the fraction weight_decay, whatever the learning rate; coupled: "
        "lr * weight_decay, as in AdamW.",
    )
    grad_clip: float = Field(default=1.0, gt=0, description="Largest global L2 norm of the gradient.")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="bfloat16",
        description="float32 throughout; tf32, the same with matrix products that an accelerator rounds to 10 bits "
        "first; or bfloat16 autocast.",
    )
    logits_dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Precision that the logits are rounded to, forward and backward."
    )
    deterministic: bool = Field(
        default=False,
        description="On an accelerator: only kernels that give the same bits every time, so that a cell repeats on the "
        "same kind of device and version of PyTorch. On a processor cells always do.",
    )
    eval_sequences: int = Field(
        default=160,
        gt=0,
        description="Sequences of a validation pass along the run: the first of the validation tokens.",
    )
    final_eval_sequences: int | None = Field(
        default=None,
        gt=0,
        description="Sequences of the validation pass that gives a run's result, drawn at random from all validation "
        "tokens, the same for every cell; by default the result is that of the last pass along the run.",
    )

    @field_validator("decay_share")
    @classmethod
    def _decay_share_belongs_to_wsd(cls, value: float | None, info: ValidationInfo) -> float | None:
        if (schedule := info.data.get("schedule")) is None:
            return value  # the schedule itself is refused
        if schedule == "wsd" and value is None:
            raise bad("is missing, and schedule wsd needs it", "give training.decay_share, 0.2 for the last fifth")
        if schedule != "wsd" and value is not None:
            raise bad(f"is given with schedule {schedule}", "remove it, or set training.schedule to wsd")
        return value

    @field_validator("weight_decay_mode")
    @classmethod
    def _mode_has_a_decay(cls, value: str, info: ValidationInfo) -> str:
        if value == "coupled" and info.data.get("weight_decay") == 0:
            raise bad("is given without a weight decay", "give training.weight_decay, or remove the mode")
        return value

    @property
    def decay_steps(self) -> int:
        """Steps of wsd's decay, at least one."""
        return max(1, round(self.steps * (self.decay_share or 0.0)))


@cache
def _shape(scale: str) -> dict[str, Any]:
    return asdict(SCALES[scale])


class Cell(Frozen):
    """One training run. Its ``id`` is a hash of exactly what changes its result.

    Workers, micro batch, compilation and evaluation interval change no more than the last bits, or nothing, and
    stay out of it: equal cells are one cell, however they were run.
    """

    scale: str
    attention_norm: str = DEFAULT
    method: str
    gamma: float | None = Field(description="The method's gamma; None for a method without one.")
    lr: float = Field(description="Peak learning rate.")
    seed: int
    data: str = Field(description="Digest of the tokens that it trains and is evaluated on.")
    V: int = Field(description="Vocabulary with padding.")
    model: ModelSpec
    training: TrainingSpec

    @property
    def shape(self) -> Scale:
        return SCALES[self.scale]

    @property  # not cached: model_copy would carry the old one over
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON of the cell and its scale's shape."""
        content = self.model_dump(mode="json") | {"scale": _shape(self.scale)}
        for name, default in LATER.items():
            if content["training"][name] == default:
                del content["training"][name]
        return digest(content)[:12]

    @property
    def curve(self) -> CurveKey:
        return self.scale, self.attention_norm, self.method, self.gamma

    @property
    def label(self) -> str:
        return f"{self.scale} {label(self.method, self.gamma, self.attention_norm)} lr={self.lr:g} seed={self.seed}"

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.training.steps * self.training.batch_size * self.training.sequence_length

    @property
    def flops(self) -> float:
        return self.tokens * self.shape.flops_per_token(self.V, self.training.sequence_length)


def rounded(value: float) -> float:
    """``value`` to ``SIGNIFICANT_DIGITS``."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest(content: Any) -> str:
    """SHA-256, as 64 hexadecimal digits, of the canonical JSON (sorted keys, no spaces) of ``content``."""
    text = _canonical(content)
    return hashlib.sha256(text.encode()).hexdigest()
