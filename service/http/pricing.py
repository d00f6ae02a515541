"""What a study would take, told before anything starts, and refused where it is more than the service takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.errors import InvalidInput
from search_spaces.methods import label
from search_spaces.plan import Plan
from search_spaces.scales import SCALES
from search_spaces.study import Study
from service.cluster.placement import Node, fit
from service.http.models import PlannedCurve, Priced
from service.http.settings import Settings


def priced(study: Study, settings: Settings, nodes: Sequence[Node], tokens_per_second: Mapping[str, float]) -> Priced:
    """
    Args:
        nodes: those of the cluster.
        tokens_per_second: measured rate of a cell, by scale.

    Raises:
        InvalidInput: it is larger than the settings allow, or not even one of its cells fits the cluster.
    """
    at_most(study, settings)
    plan = Plan(study, "")  # the digest of the tokens changes no number here, and a text need not be read for it
    resources = study.resources
    found = fit(resources, nodes, cells=plan.cell_count, can_grow=True)
    seconds = plan.seconds(tokens_per_second, found.cells)
    core_hours = seconds / 3600 * found.cells * resources.workers * resources.cpus_per_worker
    accelerator_hours = seconds / 3600 * found.cells * resources.workers * resources.gpus_per_worker
    curves = [
        PlannedCurve(
            scale=curve.scale,
            parameters=SCALES[curve.scale].parameters(study.data.V, tied=study.model.tied),
            attention_norm=curve.attention_norm,
            method=curve.method,
            gamma=curve.gamma,
            label=label(curve.method, curve.gamma, curve.attention_norm),
            cells=len(curve.cells),
        )
        for curve in plan.curves
    ]
    return Priced(
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
        core_hours=core_hours,
        accelerator_hours=accelerator_hours,
    )


def at_most(study: Study, settings: Settings) -> None:
    """See that a study is not too large, before a cell of it is made.

    Raises:
        InvalidInput: it has too many cells or tokens.
    """
    gammas = sum(len(choice.gammas) for choice in study.methods)
    cells = len(study.scales) * len(study.attention_norms) * gammas * len(study.lrs) * len(study.seeds)
    if cells <= settings.max_cells:
        cells = Plan(study, "").cell_count
    if cells > settings.max_cells:
        remedy = f"at most {settings.max_cells}: use fewer learning rates, gammas, seeds or trials"
        raise InvalidInput("study", f"{cells} cells", "are more than this service takes", remedy)
    training = study.training
    tokens = cells * training.steps * training.batch_size * training.sequence_length
    if tokens > settings.max_tokens:
        remedy = f"at most {settings.max_tokens:,}: use fewer cells, or lower training.steps"
        raise InvalidInput("study", f"{tokens:,} tokens", "are more than this service takes", remedy)
