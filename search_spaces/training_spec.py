"""The fields ``model`` and ``training`` of a study."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from search_spaces.errors import bad, require_known
from search_spaces.frozen import Frozen
from search_spaces.scales import SCALES

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
