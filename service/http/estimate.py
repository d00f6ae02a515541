"""The estimated cost of a study before it starts, and the limits on its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster.placement import Node, fit_study
from service.http.models import Estimate, PlannedCurve, Settings


def estimate(
    study: Study, settings: Settings, nodes: Sequence[Node], tokens_per_second: Mapping[str, float]
) -> Estimate:
    """Estimate what a study trains and how long it takes.

    Args:
        nodes: the nodes of the cluster.
        tokens_per_second: the measured speed of a cell at each scale.

    Raises:
        InvalidInput: the study is larger than the settings allow, or not even one of its cells fits on the cluster.
    """
    check_size(study, settings)
    plan = Plan(study, "")  # the digest of the data changes no number here, so the data need not be read
    resources = study.resources
    found = fit_study(study, nodes, cells=plan.cell_count, can_grow=True)
    seconds = plan.seconds(tokens_per_second, found.cells)
    worker_hours = seconds / 3600 * found.cells * resources.workers
    curves = [
        PlannedCurve(
            scale=curve.scale,
            parameters=curve.cells[0].parameters,
            attention_norm=curve.key.attention_norm,
            method=curve.key.method,
            gamma=curve.key.gamma,
            factors=dict(curve.key.factors),
            label=curve.label,
            cells=len(curve.cells),
        )
        for curve in plan.curves
    ]
    return Estimate(
        study=study.name,
        hash=study.hash,
        curves=curves,
        grid_cells=len(plan.cells),
        cells=plan.cell_count,
        tokens=plan.tokens,
        seconds=seconds,
        measured=set(study.scales) <= set(tokens_per_second),
        max_concurrent=found.cells,
        workers=found.cells * resources.workers,
        bound_by=found.bound_by,
        core_hours=worker_hours * resources.cpus_per_worker,
        accelerator_hours=worker_hours * resources.gpus_per_worker,
    )


def check_size(study: Study, settings: Settings) -> None:
    """Raise InvalidInput if a study has too many cells or tokens, before any of its cells is created."""
    plan, cells = Plan(study, ""), len(study.curve_keys) * len(study.grid) * len(study.seeds)
    if cells <= settings.max_cells:
        cells = plan.cell_count
    problem = "are more than this service accepts"
    if cells > settings.max_cells:
        remedy = f"use at most {settings.max_cells}: fewer learning rates, values of gamma, seeds or trials"
        raise InvalidInput("study", f"{cells} cells", problem, remedy)
    if (tokens := plan.tokens) > settings.max_tokens:
        remedy = f"use at most {settings.max_tokens:,}: fewer cells, or a lower training.steps"
        raise InvalidInput("study", f"{tokens:,} tokens", problem, remedy)
