"""What the form of the page offers, and the check of a study that is still being written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search_spaces import study_yaml
from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.cell import SIGNIFICANT_DIGITS
from search_spaces.data_spec import DataSpec
from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.shipped import shipped
from search_spaces.study import Study
from service.http.errors import ApiError, problem_of
from service.http.models import AttentionNormOut, Choices, Draft, Estimate, MethodOut, ScaleOut, ShippedStudy
from service.http.untrusted import check_trainer, confine_data, validate_fields

MAX_PROBLEMS = 50
"""A request of 64 KiB has room for thousands of bad values."""


@cache
def choices() -> Choices:
    """The registries and the shipped studies."""
    return Choices(
        scales=[ScaleOut(name=scale.name, blocks=scale.L, width=scale.D, heads=scale.H) for scale in SCALES.values()],
        attention_norms=[
            AttentionNormOut(name=norm.name, summary=norm.summary, source=norm.source)
            for norm in ATTENTION_NORMS.values()
        ],
        methods=[
            MethodOut(
                name=method.name,
                summary=method.summary,
                source=method.source,
                symbol=method.gamma and method.gamma.symbol,
                default_gamma=method.default_gamma,
            )
            for method in METHODS.values()
        ],
        studies=[
            ShippedStudy(name=name, description=study.description, file=changed_fields(study))
            for name in shipped()
            for study in [Study.load(name)]
        ],
        significant_digits=SIGNIFICANT_DIGITS,
    )


def draft(content: dict[str, Any], data_root: Path, estimate: Callable[[Study], Estimate]) -> Draft:
    """Check and estimate a study that may be incomplete.

    Args:
        content: the fields of a request, from ``parse_fields``.
        estimate: raises InvalidInput or ApiError for a study that this service cannot run.

    Raises:
        InvalidInput: the fields are nested too deeply to be written as YAML.
    """
    problems, cost, file = [], None, None
    try:
        study = validate_fields(content)
        cost = estimate(confine_data(study, data_root))
        file = changed_fields(study)
    except InvalidInput as error:
        problems = [problem_of(one) for one in _all_problems(content)[:MAX_PROBLEMS] or [error]]
    except ApiError as error:
        problems = [error.problem]
    try:
        text = study_yaml.write(content if file is None else file)
    except RecursionError as error:
        raise InvalidInput("study", "(request body)", "is nested too deeply", "remove the inner values") from error
    return Draft(file=file, yaml=text, problems=problems, parameters=_parameters(content), estimate=cost)


def changed_fields(study: Study) -> dict[str, Any]:
    """The fields of a study that differ from their defaults."""
    return study.model_dump(mode="json", exclude_defaults=True)


def _all_problems(content: dict[str, Any]) -> list[InvalidInput]:
    """What is wrong with the fields themselves; empty if their problem is another one."""
    try:
        check_trainer(content)
    except InvalidInput as error:
        return [error]
    return Study.problems(content)


def _parameters(content: dict[str, Any]) -> dict[str, int]:
    """The number of parameters of each scale, with the default vocabulary if that of the fields is not valid."""
    try:
        data = DataSpec.model_validate(content.get("data", {}))
    except ValidationError:
        data = DataSpec()
    model = content.get("model")
    tied = isinstance(model, dict) and model.get("tied") is True
    return {scale.name: scale.parameters(data.V, tied=tied) for scale in SCALES.values()}
