"""Sends requests to the service that its OpenAPI description allows, and requests that it does not, with
schemathesis."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
LEFT_OUT = CHECKS.get_by_names(["ignored_auth", "positive_data_acceptance"])
"""``ignored_auth`` repeats requests without a token, which test_access.py does for every route.
``positive_data_acceptance`` expects everything that fits the schema to be accepted, but a schema cannot require
learning rates to ascend."""

MADE_VALID = CHECKS.get_by_names(["negative_data_rejection"])
"""Excluded if the name was replaced by that of a study, because the request may then be valid."""


def ask_everything(
    schema: Any, token: dict[str, str], mode: GenerationMode, name: str | None, skip: Collection[str], examples: int
) -> list[str]:
    """Sends ``examples`` requests to every operation except those in ``skip``, about the study ``name`` if it is given.
    Returns the labels of the operations.

    Raises:
        FailureGroup: a response is not described, or is a 5xx.
    """
    asked = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.label in skip:
            continue
        asked.append(operation.label)

        @settings(
            max_examples=examples, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            if name and "name" in (case.path_parameters or {}):
                case.path_parameters["name"] = name
                left_out = [*LEFT_OUT, *MADE_VALID]
            else:
                left_out = LEFT_OUT
            case.call_and_validate(excluded_checks=left_out, headers=token)

        ask()
    return asked
