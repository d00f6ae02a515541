"""The study: what to try, as a frozen model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.cell import Frozen, ModelSpec, TrainingSpec, digest
from search_spaces.errors import bad
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights, Shorthand
from search_spaces.methods import METHODS
from search_spaces.refine import RefineSpec
from search_spaces.scales import SCALES
from search_spaces.study_file import StudyFile

T = TypeVar("T")
GPU_UNIT = 1e-4
"""The smallest fraction of an accelerator that Ray can assign."""
MIN_EVALUATION_INTERVAL = 20
"""Fewest steps between two evaluations by default; the diagnostics of one then cost at most 2 % of the time."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
NOT_HASHED: Any = {
    **dict.fromkeys(("description", "intervals", "resources", "keep_weights"), True),
    "refine": {"budget", "pruner"},
}
"""Fields that may change between two runs of the same study."""
MAX_SEEDS = 10_000
"""Largest N in ``seeds: N``."""


def is_name(text: str) -> bool:
    """Whether a study may have this name, which also names a folder."""
    return NAME.fullmatch(text) is not None and ".." not in text


def require_known(kind: str, name: object, names: Iterable[str]) -> str:
    """``name`` if it is one of ``names``; otherwise an error with the closest match."""
    names = list(names)
    if name in names:
        return str(name)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise bad(f"is not a known {kind}", f"{hint}choose from {', '.join(names)}")


def _require_grid(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise bad("is empty", "give at least one value")
    if any(v <= 0 for v in values):
        raise bad("contains a value that is not positive", "give values above 0")
    if any(a >= b for a, b in pairwise(values)):
        raise bad("is not strictly ascending", "sort it and remove duplicates")
    return values


Grid = Annotated[tuple[float, ...], AfterValidator(_require_grid)]
"""Positive, strictly ascending values, at least one."""


class DataSpec(Frozen):
    """Where the tokens come from."""

    source: Literal["builtin", "text", "shards"] = Field(
        default="builtin",
        description="builtin: the source code of Python's standard library; text: local files; shards: token files.",
    )
    path: str | None = Field(
        default=None, description="text: a folder, a file or a glob; shards: a glob for the training shards."
    )
    validation: str | None = Field(
        default=None, description="shards: a glob for the validation shards, separate from the training shards."
    )
    tokenizer: Literal["bpe", "bytes", "gpt2"] = Field(
        default="bpe",
        description="builtin and text: byte-pair encoding trained on the text itself, plain bytes, or GPT-2's.",
    )
    vocab_size: int = Field(
        default=1024,
        ge=256,
        le=65_536,
        description="Number of token ids in use: the size of the vocabulary to train, or of the vocabulary that the "
        "shards were made with (50257 for GPT-2). The model pads it to a multiple of 64.",
    )

    @model_validator(mode="after")
    def _paths_belong_to_the_source(self) -> Self:
        wanted = {"builtin": (), "text": ("path",), "shards": ("path", "validation")}[self.source]
        for name in ("path", "validation"):
            if (getattr(self, name) is None) == (name in wanted):
                problem = "requires" if name in wanted else "does not take"
                raise bad(
                    f"{problem} data.{name}",
                    f"data.source {self.source} takes {' and '.join(wanted) or 'neither path nor validation'}",
                )
        return self

    @property
    def V(self) -> int:
        """Vocabulary size of the model: the number of token ids in use, padded to a multiple of 64."""
        used = {"bytes": 256, "gpt2": 50_257}.get(self.tokenizer, self.vocab_size)
        if self.source == "shards":
            used = self.vocab_size
        return -(-used // 64) * 64


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


class Intervals(Frozen):
    """How often a cell is evaluated and saved; does not change its result."""

    evaluate: int | None = Field(
        default=None, gt=0, description="Steps between evaluations; default: a twentieth of the run, at least 20."
    )
    checkpoint: int | None = Field(
        default=None, gt=0, description="Steps between checkpoints; default: at every evaluation."
    )


class ResourceSpec(Frozen):
    """The resources that a cell runs on; they do not change its result."""

    workers: int = Field(default=1, gt=0, description="DDP workers per cell.")
    cpus_per_worker: int = Field(default=1, gt=0, description="CPU cores per worker.")
    gpus_per_worker: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Accelerators per worker: 0 (gloo), 1 (NCCL), or a fraction for small cells with one worker; "
        "0.25 places four cells on a device.",
    )
    concurrency: int | None = Field(
        default=None, gt=0, description="Cells in parallel; default: as many as fit the cluster."
    )
    compile: bool | Literal["auto"] = Field(
        default="auto",
        description="Use torch.compile: on accelerators for model and head, with CUDA graphs; on CPUs for the model, "
        "or for the whole step if it is small and there is one worker. auto: only on accelerators, because on a CPU "
        "only long cells earn back the minute that compilation takes. If compilation fails, the cell runs in eager "
        "mode, with a warning.",
    )
    max_failures: int = Field(
        default=2,
        gt=0,
        description="After this many failures a cell is crashed; before that, it resumes from its checkpoint.",
    )
    autoscale: bool = Field(
        default=False,
        description="The cluster starts nodes on demand: the study requests concurrency cells in parallel, no matter "
        "how many nodes are up.",
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _ray_can_assign_it(cls, value: float) -> float:
        if abs(value - round(value / GPU_UNIT) * GPU_UNIT) > GPU_UNIT / 1000:
            raise bad(f"is not a multiple of {GPU_UNIT}, Ray's unit", "use fewer digits")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise bad(
                f"gives each of {self.workers} workers of a cell {self.gpus_per_worker:g} of a device, but NCCL "
                "refuses two ranks on one device",
                "set resources.workers to 1, or resources.gpus_per_worker to 1",
            )
        if self.autoscale and self.concurrency is None:
            raise bad(
                "sets autoscale without concurrency",
                "set resources.concurrency to the number of parallel cells that the cluster may grow to",
            )
        return self


class Study(StudyFile):
    """A study: one picture of final loss against learning rate, per scale, method and gamma."""

    name: str = Field(description="Lowercase letters, digits, '.', '_' and '-'; it names a folder.")
    description: str = Field(default="", description="The purpose of the study, in a sentence.")
    scales: tuple[str, ...] = Field(description="Model scales.")
    data: DataSpec = Field(default=DataSpec(), description="The tokens to train on.")
    attention_norms: tuple[str, ...] = Field(
        default=(DEFAULT,), description="Attention norms; every method is tried with each."
    )
    methods: tuple[
        Annotated[MethodChoice, BeforeValidator(MethodChoice.from_file, json_schema_input_type=str | MethodChoice)],
        ...,
    ] = Field(description="Methods, each by name, or with values of gamma.")
    lrs: Grid = Field(description="Peak learning rates: the grid of every curve.")
    seeds: tuple[int, ...] = Field(default=(1,), description="Seeds; every cell is run once per seed.")
    model: ModelSpec = Field(default=ModelSpec())
    training: TrainingSpec = Field(default=TrainingSpec())
    refine: Annotated[RefineSpec, BeforeValidator(RefineSpec.from_trials, json_schema_input_type=int | RefineSpec)] = (
        Field(default=RefineSpec(), description="Cells off the grid; a number is short for {trials: N}.")
    )
    intervals: Intervals = Field(default=Intervals())
    resources: ResourceSpec = Field(default=ResourceSpec())
    keep_weights: Annotated[
        KeepWeights, BeforeValidator(KeepWeights.from_shorthand, json_schema_input_type=Shorthand | KeepWeights)
    ] = Field(default=NO_WEIGHTS, description="Weights to keep in the home; `last` is short for {last: true}.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not is_name(value):
            raise bad(
                "is not a valid name",
                "use at most 63 lowercase letters, digits, '.', '_' and '-', starting with a letter or digit",
            )
        return value

    @field_validator("scales", "attention_norms")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind, known = ("scale", SCALES) if info.field_name == "scales" else ("attention norm", ATTENTION_NORMS)
        return tuple(require_known(kind, name, known) for name in _distinct(value))

    @field_validator("seeds", mode="wrap")
    @classmethod
    def _seeds(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[int, ...]:
        """``seeds: 3`` is short for ``[1, 2, 3]``."""
        if type(value) is int and value > MAX_SEEDS:
            raise bad("is too many seeds", f"give at most {MAX_SEEDS}")
        seeds: tuple[int, ...] = handler(range(1, value + 1) if type(value) is int else value)
        if any(seed < 0 for seed in seeds):
            raise bad("contains a negative seed", "give seeds of 0 or more")
        return _distinct(seeds)

    @field_validator("methods")
    @classmethod
    def _methods_once(cls, value: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
        _distinct(tuple(choice.method for choice in value))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        batch, workers = self.training.batch_size, self.resources.workers
        for field in ("precision", "deterministic"):
            value = getattr(self.training, field)
            if value in ("tf32", True) and not self.resources.gpus_per_worker:
                raise bad(
                    f"training.{field} {value} needs an accelerator, and resources.gpus_per_worker is 0",
                    f"remove training.{field}, or set resources.gpus_per_worker",
                )
        if batch % workers:
            raise bad(
                f"training.batch_size {batch} is not divisible by resources.workers {workers}",
                f"use {batch - batch % workers or workers} or {batch - batch % workers + workers} sequences, "
                "or another number of workers",
            )
        for name in ("eval_sequences", "final_eval_sequences"):
            if (getattr(self.training, name) or workers) < workers:
                raise bad(
                    f"training.{name} {getattr(self.training, name)} is less than resources.workers {workers}",
                    "give every worker at least one sequence to evaluate",
                )
        if self.training.warmup_steps > self.training.steps:
            raise bad(
                f"training.warmup_steps {self.training.warmup_steps} exceeds training.steps {self.training.steps}",
                "shorten the warm-up",
            )
        decay_steps = self.training.decay_steps if self.training.schedule == "wsd" else 0
        if self.training.warmup_steps + decay_steps > self.training.steps:
            raise bad(
                f"training.warmup_steps {self.training.warmup_steps} plus the {decay_steps} steps of the decay exceed "
                f"training.steps {self.training.steps}",
                "shorten the warm-up, or lower training.decay_share",
            )
        muon_lr_ratio = self.training.muon_lr_ratio if self.training.optimizer == "muon" else 1.0
        max_lr = self.lrs[-1] * max(1.0, muon_lr_ratio)
        if self.training.weight_decay_mode == "coupled" and self.training.weight_decay * max_lr >= 1:
            raise bad(
                f"training.weight_decay {self.training.weight_decay:g} times the largest learning rate "
                f"{max_lr:g} is 1 or more, which decays every matrix to zero in one step",
                "lower weight_decay, or set weight_decay_mode to independent",
            )
        if self.training.schedule != "constant" and self.training.min_lr > self.lrs[0]:
            raise bad(
                f"training.min_lr {self.training.min_lr:g} exceeds the smallest learning rate {self.lrs[0]:g}",
                "lower min_lr",
            )
        return self

    @property  # not cached: model_copy would copy the cached value
    def hash(self) -> str:
        """12 hexadecimal digits over every field except ``NOT_HASHED``.

        Hashes in existing homes date from when soft-cap's gamma was a field of its own, ``c``, and the newest field of
        ``training`` was ``deterministic``.
        """
        content = self.model_dump(mode="json", exclude=NOT_HASHED)
        content["training"] = {"deterministic": False} | self.training.content()
        for choice in content["methods"]:
            choice["c"] = None
            if (gamma := METHODS[choice["method"]].gamma) and gamma.symbol == "c":
                choice["c"], choice["gamma"] = choice["gamma"], None
        return digest(content)[:12]

    @property
    def evaluate_every(self) -> int:
        return self.intervals.evaluate or default_interval(self.training.steps)

    @property
    def checkpoint_every(self) -> int:
        return self.intervals.checkpoint or self.evaluate_every


def default_interval(steps: int) -> int:
    """Steps between evaluations of a run of ``steps``."""
    return max(MIN_EVALUATION_INTERVAL, steps // 20)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise bad("is empty", "give at least one")
    if len(set(values)) != len(values):
        raise bad("contains a duplicate", "remove it")
    return values
