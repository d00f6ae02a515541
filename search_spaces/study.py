"""The study file: what to try, as a frozen model, from and to YAML."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.cell import Frozen, ModelSpec, TrainingSpec, digest
from search_spaces.errors import InvalidInput, bad
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights, Word
from search_spaces.methods import METHODS
from search_spaces.refine import RefineSpec
from search_spaces.scales import SCALES

GPU_UNIT = 1e-4
"""The smallest share of an accelerator that Ray can count."""

T = TypeVar("T")
SHIPPED = Path(__file__).parent / "studies"
FEWEST_STEPS = 20
"""Between two evaluations by default: what an evaluation looks at costs at most 2 % of so many steps."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
HASHED_WITHOUT: Any = {
    **dict.fromkeys(("description", "intervals", "resources", "keep_weights"), True),
    "refine": {"budget", "pruner"},
}
"""Fields that may change between two runs of one study."""
MOST_SEEDS = 10_000
"""That ``seeds: N`` may be short for."""


def is_name(text: str) -> bool:
    """Whether a study may have this name, which also names a folder."""
    return NAME.fullmatch(text) is not None and ".." not in text


def known(kind: str, name: object, names: Iterable[str]) -> str:
    """``name`` if it is one of ``names``; else an error with the nearest match."""
    names = list(names)
    if name in names:
        return str(name)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise bad(f"is not a known {kind}", f"{hint}choose from {', '.join(names)}")


def grid(values: tuple[float, ...]) -> tuple[float, ...]:
    """A grid: not empty, positive, strictly ascending."""
    if not values:
        raise bad("is an empty grid", "give at least one value")
    if any(v <= 0 for v in values):
        raise bad("holds a value that is not positive", "every value must be above 0")
    if any(a >= b for a, b in pairwise(values)):
        raise bad("is not strictly ascending", "sort it and drop duplicates")
    return values


class DataSpec(Frozen):
    """Where the tokens come from."""

    source: Literal["builtin", "text", "shards"] = Field(
        default="builtin",
        description="builtin: the sources of Python's standard library; text: local files; shards: token files.",
    )
    path: str | None = Field(
        default=None, description="text: a folder, a file or a glob; shards: a glob of the training shards."
    )
    validation: str | None = Field(
        default=None, description="shards: a glob of the validation shards, apart from the training ones."
    )
    tokenizer: Literal["bpe", "bytes", "gpt2"] = Field(
        default="bpe",
        description="builtin and text: byte pairs trained on the text itself, plain bytes, or GPT-2's.",
    )
    vocab_size: int = Field(
        default=1024,
        ge=256,
        le=65_536,
        description="Token ids in use: the size of the trained vocabulary, or of the one the shards were made "
        "with (50257 for GPT-2). The model pads it to a multiple of 64.",
    )

    @model_validator(mode="after")
    def _paths_belong_to_the_source(self) -> Self:
        wanted = {"builtin": (), "text": ("path",), "shards": ("path", "validation")}[self.source]
        for name in ("path", "validation"):
            if (getattr(self, name) is None) == (name in wanted):
                problem = "needs" if name in wanted else "takes no"
                raise bad(
                    f"{problem} data.{name}",
                    f"data.source {self.source} takes {' and '.join(wanted) or 'neither path nor validation'}",
                )
        return self

    @property
    def V(self) -> int:
        """Vocabulary of the model: the token ids in use, padded to a multiple of 64."""
        used = {"bytes": 256, "gpt2": 50_257}.get(self.tokenizer, self.vocab_size)
        if self.source == "shards":
            used = self.vocab_size
        return -(-used // 64) * 64


class MethodChoice(Frozen):
    """A method and the values of gamma to try; without any, the method's default."""

    method: str = Field(description="A method that `oec methods` lists.")
    gamma: tuple[float, ...] | None = Field(
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
        return known("method", value, METHODS)

    @field_validator("gamma")
    @classmethod
    def _grid(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if value is None else grid(value)

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
    """How often a cell is looked at; does not change its result."""

    evaluate: int | None = Field(
        default=None,
        gt=0,
        description="Steps between evaluations; by default a twentieth of the run, and 20 at least.",
    )
    checkpoint: int | None = Field(
        default=None, gt=0, description="Steps between checkpoints; at every evaluation by default."
    )


class ResourceSpec(Frozen):
    """What runs a cell; does not change its result."""

    workers: int = Field(default=1, gt=0, description="DDP workers a cell.")
    cpus_per_worker: int = Field(default=1, gt=0, description="Cores a worker.")
    gpus_per_worker: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Accelerators a worker: 0 (gloo), 1 (NCCL), or a share of one, for small cells of one worker. "
        "0.25 puts four on a device.",
    )
    concurrency: int | None = Field(
        default=None, gt=0, description="Cells at once; as many as the cluster holds by default."
    )
    compile: bool | Literal["auto"] = Field(
        default="auto",
        description="torch.compile: on accelerators of model and head, with CUDA graphs; on processors of the model, "
        "or of the whole step where it is small and one worker trains. auto: on accelerators alone, because on a "
        "processor only long cells earn back the minute that it takes. Falls back to eager with a warning.",
    )
    max_failures: int = Field(
        default=2,
        gt=0,
        description="A cell that has failed this often is crashed; before, it goes on from its checkpoint.",
    )
    autoscale: bool = Field(
        default=False,
        description="The cluster starts nodes for what waits: a study asks for concurrency cells at once, however "
        "many nodes are up.",
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _a_share_that_ray_can_count(cls, value: float) -> float:
        if abs(value - round(value / GPU_UNIT) * GPU_UNIT) > GPU_UNIT / 1000:
            raise bad(f"is no multiple of {GPU_UNIT}, in which Ray counts", "use fewer digits")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise bad(
                f"puts {self.workers} workers of a cell on {self.gpus_per_worker:g} of a device each, and NCCL refuses "
                "two ranks on one device",
                "set resources.workers to 1, or resources.gpus_per_worker to 1",
            )
        if self.autoscale and self.concurrency is None:
            raise bad(
                "sets autoscale without concurrency",
                "set resources.concurrency: as many cells at once as the cluster may grow to",
            )
        return self


class Study(Frozen):
    """A study: one picture of final loss against learning rate, per scale, method and gamma."""

    name: str = Field(description="Lower-case letters, digits, '.', '_' and '-'; it names a folder.")
    description: str = Field(default="", description="What it is for, in a sentence.")
    scales: tuple[str, ...] = Field(description="Model scales.")
    data: DataSpec = Field(default=DataSpec(), description="The tokens.")
    attention_norms: tuple[str, ...] = Field(
        default=(DEFAULT,), description="Attention and norm variants; every method is tried with each."
    )
    methods: tuple[
        Annotated[MethodChoice, BeforeValidator(MethodChoice.from_file, json_schema_input_type=str | MethodChoice)],
        ...,
    ] = Field(description="Methods, each by name, or with values of gamma.")
    lrs: tuple[float, ...] = Field(description="Peak learning rates: the grid of every curve.")
    seeds: tuple[int, ...] = Field(default=(1,), description="Seeds: every cell is run once a seed.")
    model: ModelSpec = Field(default=ModelSpec())
    training: TrainingSpec = Field(default=TrainingSpec())
    refine: Annotated[RefineSpec, BeforeValidator(RefineSpec.from_trials, json_schema_input_type=int | RefineSpec)] = (
        Field(default=RefineSpec(), description="What follows the grid; a number is short for trials.")
    )
    intervals: Intervals = Field(default=Intervals())
    resources: ResourceSpec = Field(default=ResourceSpec())
    keep_weights: Annotated[
        KeepWeights, BeforeValidator(KeepWeights.from_word, json_schema_input_type=Word | KeepWeights)
    ] = Field(default=NO_WEIGHTS, description="Weights that stay in the home; `last` is short for {last: true}.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not is_name(value):
            raise bad(
                "can not name a folder",
                "use at most 63 lower-case letters, digits, '.', '_' and '-', starting with a letter or digit",
            )
        return value

    @field_validator("scales")
    @classmethod
    def _known_scales(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known("scale", name, SCALES) for name in _distinct(value))

    @field_validator("attention_norms")
    @classmethod
    def _known_attention_norms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known("attention norm", name, ATTENTION_NORMS) for name in _distinct(value))

    @field_validator("lrs")
    @classmethod
    def _lrs(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return grid(value)

    @field_validator("seeds", mode="wrap")
    @classmethod
    def _seeds(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[int, ...]:
        """``seeds: 3`` is short for ``[1, 2, 3]``."""
        if type(value) is int and value > MOST_SEEDS:
            raise bad("is more seeds than anybody can run", f"give at most {MOST_SEEDS}")
        seeds: tuple[int, ...] = handler(range(1, value + 1) if type(value) is int else value)
        if any(seed < 0 for seed in seeds):
            raise bad("holds a negative seed", "seeds are 0 or above")
        return _distinct(seeds)

    @field_validator("methods")
    @classmethod
    def _methods_once(cls, value: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
        _distinct(tuple(choice.method for choice in value))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        batch, workers = self.training.batch_size, self.resources.workers
        if not self.resources.gpus_per_worker:
            for field, value in (
                ("precision", self.training.precision),
                ("deterministic", self.training.deterministic),
            ):
                if value in ("tf32", True):
                    raise bad(
                        f"training.{field} {value} needs an accelerator, and resources.gpus_per_worker is 0",
                        f"remove training.{field}, or set resources.gpus_per_worker",
                    )
        if batch % workers:
            raise bad(
                f"training.batch_size {batch} is not divided by resources.workers {workers}",
                f"use {batch - batch % workers or workers} or {batch - batch % workers + workers} sequences, "
                "or another number of workers",
            )
        for name in ("eval_sequences", "final_eval_sequences"):
            if (sequences := getattr(self.training, name)) is not None and sequences < workers:
                raise bad(
                    f"training.{name} {sequences} is less than resources.workers {workers}",
                    "every worker evaluates at least one sequence",
                )
        if self.training.warmup_steps > self.training.steps:
            raise bad(
                f"training.warmup_steps {self.training.warmup_steps} exceeds training.steps {self.training.steps}",
                "shorten the warm-up",
            )
        decay_steps = self.training.decay_steps if self.training.schedule == "wsd" else 0
        if self.training.warmup_steps + decay_steps > self.training.steps:
            raise bad(
                f"training.warmup_steps {self.training.warmup_steps} and the {decay_steps} steps of the decay exceed "
                f"training.steps {self.training.steps}",
                "shorten the warm-up, or lower training.decay_share",
            )
        if self.training.weight_decay_mode == "coupled" and self.training.weight_decay * self.lrs[-1] >= 1:
            raise bad(
                f"training.weight_decay {self.training.weight_decay:g} times the largest learning rate "
                f"{self.lrs[-1]:g} takes off all of a matrix at once",
                "lower weight_decay, or set weight_decay_mode to independent",
            )
        if self.training.schedule != "constant" and self.training.min_lr > self.lrs[0]:
            raise bad(
                f"training.min_lr {self.training.min_lr:g} exceeds the smallest learning rate {self.lrs[0]:g}",
                "lower min_lr",
            )
        return self

    @property  # not cached: model_copy would carry the old one over
    def hash(self) -> str:
        """12 hexadecimal digits over every field but ``HASHED_WITHOUT``.

        Hashes date from when soft-cap's gamma was a field of its own, ``c``, and homes are full of them.
        """
        content = self.model_dump(mode="json", exclude=HASHED_WITHOUT)
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

    def to_yaml(self) -> str:
        """The study as YAML that ``parse`` reads back to an equal study."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=110
        )

    @classmethod
    def parse(cls, text: str, origin: str = "study") -> Self:
        """A study from YAML.

        Raises:
            InvalidInput: not YAML, not a mapping, or any field that is unknown, missing or out of range.
        """
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
            where = getattr(error, "problem_mark", None)
            at = f" at line {where.line + 1}" if where else ""
            raise InvalidInput("study", origin, f"is not YAML{at}", "see the shipped studies for the form") from error
        if not isinstance(content, dict):
            raise InvalidInput("study", origin, "is not a mapping of fields", "start from a shipped study")
        return cls.validate_fields(content)

    @classmethod
    def validate_fields(cls, content: dict[str, Any]) -> Self:
        """A study from its fields.

        Raises:
            InvalidInput: any field that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _invalid(error.errors()[0]) from error

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """A shipped study by name, or a study file by path; ``-`` is standard input.

        Raises:
            InvalidInput: there is no such study, or it can not be read; see ``parse``.
        """
        if name_or_path == "-":
            return cls.parse(sys.stdin.buffer.read().decode(errors="replace"), "standard input")
        path = SHIPPED / f"{name_or_path}.yaml" if NAME.fullmatch(name_or_path) else Path(name_or_path)
        if not path.is_file():
            path = Path(name_or_path)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), name_or_path)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                "study",
                name_or_path,
                f"can not be read ({type(error).__name__})",
                f"give the path of a study file, or a shipped study: {', '.join(shipped())}",
            ) from error


def default_interval(steps: int) -> int:
    """Steps between evaluations of a run of so many."""
    return max(FEWEST_STEPS, steps // 20)


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def json_schema() -> str:
    """The JSON schema of a study file, for editors and forms."""
    return json.dumps(Study.model_json_schema(), indent=2)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise bad("is empty", "give at least one")
    if len(set(values)) != len(values):
        raise bad("names one twice", "drop the duplicate")
    return values


def _invalid(error: ErrorDetails) -> InvalidInput:
    """The first error of a validation as one message with field, value and remedy."""
    field = ".".join(str(part) for part in error["loc"]) or "study"
    value = error["input"]
    if error["type"] == "oec":
        problem, remedy = error["ctx"]["problem"], error["ctx"]["remedy"]
        if isinstance(value, dict):
            value = next((value[key] for key in ("name", "source", "method") if key in value), value)
    elif error["type"] == "extra_forbidden":
        fields = _fields_beside(error["loc"])
        close = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        problem = "is not a field of a study"
        remedy = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(fields)}"
    elif error["type"] == "missing":
        value, problem, remedy = None, "is missing", "every study names its " + field.split(".")[-1]
    else:
        problem, remedy = "is not allowed", error["msg"][0].lower() + error["msg"][1:]
    return InvalidInput(field, value, problem, remedy)


def _fields_beside(loc: tuple[int | str, ...]) -> list[str]:
    """The field names that could have stood where ``loc`` ends."""
    model: type[Frozen] = Study
    for part in loc[:-1]:
        inner: type[Frozen] | None = MethodChoice if part == "methods" else None
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = annotation if isinstance(annotation, type) and issubclass(annotation, Frozen) else inner
        model = inner or model
    return list(model.model_fields)
