"""The study: what to try, as a frozen model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT
from search_spaces.cell import AnyCell
from search_spaces.command_line import require_placeholder
from search_spaces.data_spec import DataSpec
from search_spaces.errors import bad, require_known
from search_spaces.factors import (
    LR,
    CurveKey,
    Value,
    combination_count,
    combinations,
    format_factor,
    matches,
    require_axis,
    to_text,
)
from search_spaces.frozen import digest
from search_spaces.intervals import MIN_EVALUATION_INTERVAL, Intervals
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights, Shorthand
from search_spaces.method_choice import Grid, MethodChoice
from search_spaces.methods import METHODS
from search_spaces.refine import RefineSpec
from search_spaces.resources import ResourceSpec
from search_spaces.scales import SCALES
from search_spaces.study_file import StudyFile
from search_spaces.trainer import TrainerSpec
from search_spaces.training_spec import ADDED_FIELDS, ModelSpec, TrainingSpec
from search_spaces.variants import add_factors, apply_factors, check_pairs, check_training, checked_value

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
NOT_HASHED: Any = {
    **dict.fromkeys(("description", "intervals", "resources", "keep_weights"), True),
    "refine": {"budget", "pruner"},
    "trainer": {"directory", "resume", "resume_from", "silence_s", "grace_s"},
}
"""Fields that may change between two runs of the same study."""
_ADDED_FIELDS: dict[str, Any] = {"factors": {}, "lr_factor": LR, "pair": [], "exclude": [], "trainer": None}
"""Fields that are newer than the first hashes. With this value a field is left out of the hash."""
OEC_FIELDS = ("scales", "attention_norms", "methods", "data", "model", "training", "keep_weights")
"""Fields of the OEC model and its training, which another trainer does not have."""
MAX_COMBINATIONS = 10_000
"""Most combinations of factors that a study may have."""
MAX_SEEDS = 10_000
"""Largest N in ``seeds: N``."""


def is_name(text: str) -> bool:
    """Whether a study may have this name, which also names a folder."""
    return NAME.fullmatch(text) is not None and ".." not in text


class Study(StudyFile):
    """A study: one picture of final loss against learning rate, per scale, method and gamma, or per trainer."""

    name: str = Field(description="Lowercase letters, digits, '.', '_' and '-'; it names a folder.")
    description: str = Field(default="", description="The purpose of the study, in a sentence.")
    trainer: TrainerSpec | None = Field(
        default=None,
        description="Train a command or a Python object of yours in place of the OEC model. Such a study has no "
        "scales, methods, data, model or training of ours.",
    )
    scales: tuple[str, ...] = Field(default=(), validate_default=True, description="Model scales.")
    data: DataSpec = Field(default=DataSpec(), description="The tokens to train on.")
    attention_norms: tuple[str, ...] = Field(
        default=(DEFAULT,), description="Attention norms; every method is tried with each."
    )
    methods: tuple[
        Annotated[MethodChoice, BeforeValidator(MethodChoice.from_file, json_schema_input_type=str | MethodChoice)],
        ...,
    ] = Field(default=(), validate_default=True, description="Methods, each by name, or with values of gamma.")
    lrs: Grid = Field(description="Peak learning rates: the grid of every curve.")
    factors: dict[str, tuple[Value, ...]] = Field(
        default={},
        description="Further fields of training or model to vary, such as training.weight_decay, or placeholders of a "
        "command, each with its values; every combination is tried.",
    )
    lr_factor: str = Field(
        default=LR,
        description="The factor in the place of the learning rate: the axis of every curve, with positive values. If "
        "there are several learning rates, each has a curve of its own.",
    )
    pair: tuple[tuple[str, ...], ...] = Field(
        default=(), description="Groups of factors that change together, instead of in every combination."
    )
    exclude: tuple[dict[str, Value], ...] = Field(
        default=(),
        description="Combinations to leave out: factors, or scale, attention_norm, method, gamma or lr, each with a "
        "value or a list of values.",
    )
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
        if info.field_name == "scales" and not _required(value, info):
            return ()
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
    def _methods_once(cls, value: tuple[MethodChoice, ...], info: ValidationInfo) -> tuple[MethodChoice, ...]:
        if _required(value, info):
            _distinct(tuple(choice.method for choice in value))
        return value

    @field_validator("factors")
    @classmethod
    def _known_factors(cls, value: dict[str, tuple[Any, ...]], info: ValidationInfo) -> dict[str, tuple[Any, ...]]:
        if info.data.get("trainer") is not None:
            return {require_placeholder(name): _distinct(values) for name, values in value.items()}
        return {name: _distinct(tuple(checked_value(name, one) for one in values)) for name, values in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_pairs(self.pair, self.factors)
        if (count := combination_count(self.factors, self.pair)) > MAX_COMBINATIONS:
            problem = f"has {count:,} combinations of factors"
            raise bad(problem, f"use at most {MAX_COMBINATIONS:,}: fewer values, or pair")
        if self.lr_factor != LR and self.lr_factor not in self.factors:
            problem = f"takes {self.lr_factor} as lr_factor, which is not a factor of this study"
            raise bad(problem, f"list its values under factors.{self.lr_factor}")
        if any(self.lr_factor in group for group in self.pair):
            raise bad(f"pairs {self.lr_factor}, the axis of every curve", "pair other factors, or remove lr_factor")
        if self.lr_factor != LR:
            require_axis(self.lr_factor, self.factors[self.lr_factor])
        refines = self.refine.trials or self.refine.edge
        if refines and self.lr_factor != LR and any(type(x) is int for x in self.factors[self.lr_factor]):
            remedy = "remove refine or, if it takes fractions as well, write the values as 1.0"
            raise bad(f"refines {self.lr_factor}, which takes whole numbers only", remedy)
        self._check_exclude()
        if not self.curve_keys:
            raise bad("excludes every combination", "remove a rule from exclude")
        if self.trainer is not None:
            self._check_trainer(self.trainer)
        else:
            self._check_combinations()
        return self

    def _check_trainer(self, trainer: TrainerSpec) -> None:
        for name in OEC_FIELDS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise bad(f"has {name}, which belongs to the OEC model, and a trainer of its own", f"remove {name}")
        trainer.check_placeholders(list(self.factors), several_seeds=len(self.seeds) > 1, lr=LR in self.swept)
        if self.resources.workers % trainer.nodes:
            problem = f"spreads {self.resources.workers} workers over {trainer.nodes} nodes"
            raise bad(problem, "set resources.workers to a multiple of trainer.nodes")

    def _check_combinations(self) -> None:
        """Every combination can be trained, and no two train the same cells, which would belong to two curves."""
        known: dict[str, dict[str, Any]] = {}
        for values, lrs in self._trained_combinations:
            try:
                model, training = apply_factors(self.model, self.training, values)
                check_training(training, self.resources, lrs)
            except PydanticCustomError as error:
                raise add_factors(error, values) from error
            same = known.setdefault(digest([lrs, model.model_dump(mode="json"), training.content()]), values)
            if same is not values:
                problem = f"trains the same cells with {to_text(same)} and with {to_text(values)}"
                raise bad(problem, "leave one of them out with exclude")

    @property
    def _trained_combinations(self) -> list[tuple[dict[str, Any], tuple[float, ...]]]:
        """The values of all factors in each combination that is trained, with its learning rates."""
        combinations = [dict(shared) for shared in dict.fromkeys(key.factors for key in self.curve_keys)]
        if self.lr_factor == LR:
            return [(shared, self.lrs) for shared in combinations]
        return [
            ({name: shared.get(name, x) for name in self.factors}, (shared[LR],))
            for shared in combinations
            for x in self.factors[self.lr_factor]
        ]

    def _check_exclude(self) -> None:
        """Every name and value of ``exclude`` occurs: a misspelled rule would leave nothing out."""
        if not self.exclude:
            return
        keys = self._all_curve_keys
        known = [_values_of(key) for key in keys]
        for rule in self.exclude:
            for name, wanted in rule.items():
                if name not in known[0]:
                    raise bad(f"excludes by {name}, which curves do not differ in", f"use {', '.join(known[0])}")
                whole = any(values[name] == wanted for values in known)
                for value in wanted if isinstance(wanted, tuple) and not whole else (wanted,):
                    if not any(values[name] == value for values in known):
                        raise bad(f"excludes {name} {format_factor(value)}, which does not occur", "correct the value")

    @property
    def swept(self) -> tuple[str, ...]:
        """What the cells of the study differ in, apart from their seeds."""
        return (*self.factors, *([LR] if self.lr_factor == LR or len(self.lrs) > 1 else []))

    @property
    def group_resources(self) -> ResourceSpec:
        """What the worker group of a cell takes: the resources, or one worker per node if a command starts its own."""
        return self.trainer.group_resources(self.resources) if self.trainer else self.resources

    @property
    def distinct_nodes(self) -> bool:
        """Whether every worker of a cell's group has a node of its own."""
        return self.trainer is not None and self.trainer.nodes > 1

    @property
    def grid(self) -> tuple[float, ...]:
        """The axis of every curve: the learning rates, or the values of ``lr_factor``."""
        return self.lrs if self.lr_factor == LR else require_axis(self.lr_factor, self.factors[self.lr_factor])

    def accepts(self, x: float) -> bool:
        """Whether ``x`` may be on the axis: a search for an edge may ask for a value beyond the grid."""
        if self.lr_factor == LR or self.trainer is not None:
            return True
        try:
            checked_value(self.lr_factor, x)
        except PydanticCustomError:
            return False
        return True

    def axis_value(self, x: float) -> Any:
        """A value of ``lr_factor``, as the study writes it if it is on the grid (64, not 64.0)."""
        return next((value for value in self.factors[self.lr_factor] if value == x), x)

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """The factors that the curves of the study differ in; one empty combination without any."""
        shared: dict[str, Sequence[Any]] = {n: values for n, values in self.factors.items() if n != self.lr_factor}
        return list(combinations(shared if self.lr_factor == LR else shared | {LR: self.lrs}, self.pair))

    @property
    def trainings(self) -> list[TrainingSpec]:
        """The training of every combination of factors."""
        every = (apply_factors(self.model, self.training, values)[1] for values, _ in self._trained_combinations)
        return list(dict.fromkeys(every))

    @property
    def curve_keys(self) -> list[CurveKey]:
        """Every curve of the study, without those that ``exclude`` names."""
        keys = self._all_curve_keys
        return [key for key in keys if not any(matches(rule, _values_of(key)) for rule in self.exclude)]

    @property
    def _all_curve_keys(self) -> list[CurveKey]:
        """Scale by scale, the largest first, so that a sweep does not end with its longest cells."""
        factors = [tuple(combination.items()) for combination in self.combinations]
        if self.trainer:
            return [
                CurveKey(self.trainer.name, DEFAULT, self.trainer.kind, None, combination) for combination in factors
            ]
        return [
            CurveKey(scale, attention_norm, choice.method, gamma, combination)
            for scale in sorted(self.scales, key=lambda s: -SCALES[s].parameters(self.data.V))
            for attention_norm in self.attention_norms
            for choice in self.methods
            for gamma in choice.gammas
            for combination in factors
        ]

    @property  # not cached: model_copy would copy the cached value
    def hash(self) -> str:
        """12 hexadecimal digits over every field except ``NOT_HASHED``.

        Hashes in existing homes date from when soft-cap's gamma was a field of its own, ``c``, and the newest field of
        ``training`` was ``deterministic``.
        """
        content = self.model_dump(mode="json", exclude=NOT_HASHED)
        for name, default in _ADDED_FIELDS.items():
            if content[name] == default:
                del content[name]
        training = content["training"]
        for name, default in ADDED_FIELDS.items():
            if training[name] == default and name != "deterministic":
                del training[name]
        for choice in content["methods"]:
            choice["c"] = None
            if (gamma := METHODS[choice["method"]].gamma) and gamma.symbol == "c":
                choice["c"], choice["gamma"] = choice["gamma"], None
        return digest(content)[:12]

    def to_yaml(self) -> str:
        """As ``StudyFile.to_yaml``, without the defaults of what another trainer does not have."""
        return self.written(exclude=OEC_FIELDS if self.trainer else ())

    def evaluate_every(self, cell: AnyCell) -> int:
        """Steps between evaluations of a cell."""
        return self.intervals.evaluate or max(MIN_EVALUATION_INTERVAL, (cell.steps or 0) // 20)

    def checkpoint_every(self, cell: AnyCell) -> int:
        """Steps between checkpoints of a cell."""
        return self.intervals.checkpoint or self.evaluate_every(cell)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise bad("is empty", "give at least one")
    if len(set(values)) != len(values):
        raise bad("contains a duplicate", "remove it")
    return values


def _required(value: tuple[T, ...], info: ValidationInfo) -> tuple[T, ...]:
    """Scales and methods: at least one for the OEC model, none for another trainer."""
    if not value and info.data.get("trainer") is None:
        name = info.field_name
        raise bad("is missing or empty", f"add {name}, or a trainer of your own, which has no {name}")
    return value


def _values_of(key: CurveKey) -> dict[str, Any]:
    """What a rule of ``exclude`` can name."""
    own = {name: value for name, value in key._asdict().items() if name != "factors"}
    return own | dict(key.factors)
