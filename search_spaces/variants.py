"""The model and training of each combination of factors, and whether they are possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from search_spaces.errors import bad, require_known
from search_spaces.factors import Factors, format_factor, to_text
from search_spaces.resources import ResourceSpec
from search_spaces.training_spec import ModelSpec, TrainingSpec

SECTIONS: dict[str, type[BaseModel]] = {"training": TrainingSpec, "model": ModelSpec}
"""The parts of a study whose fields can be factors."""
FACTORS = tuple(f"{section}.{field}" for section, spec in SECTIONS.items() for field in spec.model_fields)


def checked_value(name: str, value: Any) -> Any:
    """A value of a factor of the OEC model, as the type of its field.

    Raises:
        PydanticCustomError: there is no such field, or it does not take this value.
    """
    section, _, field = require_known("field of training or model", name, FACTORS).partition(".")
    info = SECTIONS[section].model_fields[field]
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem, remedy = _explain(error.errors()[0])
        raise bad(f"gives {name} the value {format_factor(value)}, which {problem}", remedy) from error


def apply_factors(model: ModelSpec, training: TrainingSpec, factors: Factors) -> tuple[ModelSpec, TrainingSpec]:
    """``model`` and ``training`` with the values of the factors.

    Raises:
        PydanticCustomError: the values do not go together.
    """
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for name, value in factors.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    try:
        return (
            ModelSpec.model_validate(model.model_dump() | sections["model"]) if sections["model"] else model,
            TrainingSpec.model_validate(training.model_dump() | sections["training"])
            if sections["training"]
            else training,
        )
    except ValidationError as error:
        detail = error.errors()[0]
        problem, remedy = _explain(detail)
        section = "model" if error.title == ModelSpec.__name__ else "training"
        raise bad(f"{section}.{detail['loc'][0]} {problem}", remedy) from error


def add_factors(error: PydanticCustomError, factors: Factors) -> PydanticCustomError:
    """``error`` with the combination of factors that it occurred with."""
    context = error.context or {}
    return bad(f"{context['problem']}, with {to_text(factors)}", context["remedy"]) if factors else error


def check_pairs(groups: Sequence[Sequence[str]], factors: Mapping[str, Sequence[Any]]) -> None:
    """
    Raises:
        PydanticCustomError: the factors cannot change together, or one of them is in two groups.
    """
    names = [name for group in groups for name in group]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(f"pairs {twice} twice", "put all factors that change together into one group")
    for group in groups:
        _check_pair(group, factors)


def _check_pair(group: Sequence[str], factors: Mapping[str, Sequence[Any]]) -> None:
    for name in group:
        if name not in factors:
            raise bad(f"pairs {name}, which is not a factor of this study", f"list its values under factors.{name}")
    lengths = {name: len(factors[name]) for name in group}
    if len(set(lengths.values())) > 1 or len(group) < 2:
        counts = ", ".join(f"{name} has {length} values" for name, length in lengths.items())
        raise bad(f"cannot pair {' and '.join(group)}: {counts}", "pair two or more factors with as many values each")


def check_training(training: TrainingSpec, resources: ResourceSpec, lrs: Sequence[float]) -> None:
    """
    Args:
        lrs: the learning rates to train at, in ascending order.

    Raises:
        PydanticCustomError: this training cannot be run on these resources, or not at these learning rates.
    """
    batch, workers = training.batch_size, resources.workers
    for field in ("precision", "deterministic"):
        value = getattr(training, field)
        if value in ("tf32", True) and not resources.gpus_per_worker:
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
        if (getattr(training, name) or workers) < workers:
            raise bad(
                f"training.{name} {getattr(training, name)} is less than resources.workers {workers}",
                "give every worker at least one sequence to evaluate",
            )
    if training.warmup_steps > training.steps:
        raise bad(
            f"training.warmup_steps {training.warmup_steps} exceeds training.steps {training.steps}",
            "shorten the warm-up",
        )
    decay_steps = training.decay_steps if training.schedule == "wsd" else 0
    if training.warmup_steps + decay_steps > training.steps:
        raise bad(
            f"training.warmup_steps {training.warmup_steps} plus the {decay_steps} steps of the decay exceed "
            f"training.steps {training.steps}",
            "shorten the warm-up, or lower training.decay_share",
        )
    max_lr = lrs[-1] * max(1.0, training.muon_lr_ratio if training.optimizer == "muon" else 1.0)
    if training.weight_decay_mode == "coupled" and training.weight_decay * max_lr >= 1:
        raise bad(
            f"training.weight_decay {training.weight_decay:g} times the largest learning rate "
            f"{max_lr:g} is 1 or more, which decays every matrix to zero in one step",
            "lower weight_decay, or set weight_decay_mode to independent",
        )
    if training.schedule != "constant" and training.min_lr > lrs[0]:
        raise bad(f"training.min_lr {training.min_lr:g} exceeds the smallest learning rate {lrs[0]:g}", "lower min_lr")


def _explain(detail: ErrorDetails) -> tuple[str, str]:
    if detail["type"] == "oec":
        return detail["ctx"]["problem"], detail["ctx"]["remedy"]
    return "is not allowed", detail["msg"][0].lower() + detail["msg"][1:]
