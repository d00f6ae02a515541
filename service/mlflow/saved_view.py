"""A saved view of MLflow's runs page: the cells of one study, with charts of their metrics against the learning rate.

MLflow's own *Save view* writes such a view into a tag of the experiment: an envelope with a name, the time, and the
state of the page, as JSON in JSON (``savedViewEnvelope.ts`` and ``ExperimentPageUIState.tsx`` in MLflow's sources).
Whatever the state leaves out has MLflow's default.
"""

from __future__ import annotations

import json
from typing import Any

from search_spaces.factors import short_name
from search_spaces.study import Study

TAG_PREFIX = "mlflow.sharedViewState."
TRAINING = "workflowType=machine_learning"
"""For addresses: MLflow's sidebar for training runs; its default is the one for language model applications."""
WRITER = "oec"
"""Marks an envelope as ours. If somebody overwrites the view in MLflow's UI, the mark is gone."""
DIAGNOSTICS = ("logits_absmax", "log_z")
"""Metrics of our own training whose last values are shown against the learning rate, below the loss."""


def view_key(study: Study) -> str:
    """The id of the view in the experiment, the same for every delivery of a study."""
    return f"oec-{study.name}-{study.hash}"


def view_path(experiment: str, study: Study) -> str:
    """The address of the view, below that of MLflow's UI."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view_key(study)}&compareRunsMode=CHART&{TRAINING}"


def updated_view(current: str | None, study: Study, parent: str, now_ms: int) -> str | None:
    """The value of the view's tag; None if ``current`` is up to date, or if somebody has overwritten the view."""
    state = json.dumps(_state(study, parent))
    if current is None:
        return json.dumps(_envelope(study, state, now_ms))
    before = json.loads(current)
    if before.get("writtenBy") != WRITER or before["state"] == state:
        return None
    return json.dumps(_envelope(study, state, before["createdAt"]))


def _envelope(study: Study, state: str, created_ms: int) -> dict[str, Any]:
    name = f"{study.name}: loss against {short_name(study.lr_factor)}"
    return {"name": name, "createdAt": created_ms, "state": state, "writtenBy": WRITER}


def _state(study: Study, parent: str) -> dict[str, Any]:
    """The state of the runs page.

    Charts are those of one section, which stands before the sections that MLflow makes of all other metrics.
    """
    axis = short_name(study.lr_factor)
    x = {"key": f"log10_{axis}", "type": "METRIC"}
    metrics = ["curve_loss", *(() if study.trainer else DIAGNOSTICS)]
    charts: list[dict[str, Any]] = [
        {"type": "SCATTER", "xaxis": x, "yaxis": {"key": metric, "type": "METRIC"}, "runsCountToCompare": 100}
        for metric in metrics
    ]
    params = [*(() if study.trainer else ("method", "gamma")), study.lr_factor]
    # MLflow leaves runs without one of the values out of this chart, and not every method has a gamma.
    varied = [] if study.trainer else ["method"]
    charts.insert(1, {"type": "PARALLEL", "selectedParams": varied, "selectedMetrics": [x["key"], "curve_loss"]})
    section = f"{study.name} against {axis}"
    layout = {"display": True, "isReordered": True, "columns": 2, "cardHeight": 400}
    columns = [f"params.`{name}`" for name in (*params, "seed")] + ["metrics.`curve_loss`", "tags.`oec.state`"]
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": "metrics.`curve_loss`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": columns,
        "compareRunSections": [{"uuid": section, "name": section, **layout}],
        "compareRunCharts": [
            {"uuid": f"{section}-{number}", "metricSectionId": section, "deleted": False, "isGenerated": False, **chart}
            for number, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,
    }
