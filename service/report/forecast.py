"""The forecast of divergence from the first steps of the runs of a home."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from dashboards.forecast import COLUMNS, FEATURES, OBSERVED_SHARE, Forecast, extract_features
from search_spaces.frozen import digest
from search_spaces.record import Row
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.home.studies import read_ledger, require_study, with_ledger
from trainers.rows import read

FORECAST_STATES = ("finished", "diverged", "running")
NOT_IN_CURVE = {"lr", "seed", "data", "V", "training"}
"""Fields in which cells of the same curve may differ. Curves are what cross-validation holds out: without this, a
similar study of the same model would leak into the training set."""


def load_features(home: Home, studies: Sequence[str] = ()) -> pd.DataFrame:
    """The runs of these studies, or of all studies of the home, as input of ``dashboards.forecast``; each cell once.

    Raises:
        InvalidInput: the home has no such study.
    """
    for name in studies:
        require_study(home, name)
    found = {}
    for name in studies or with_ledger(home):
        entries = read_ledger(home, name).entries.items()
        new = {cell_id: entry for cell_id, entry in entries if entry.state in FORECAST_STATES and cell_id not in found}
        copies.download_metrics(home, [(cell_id, entry.reused_from or name) for cell_id, entry in new.items()])
        for cell_id, entry in new.items():
            found[cell_id] = forecast_features(entry, read(home.metrics(cell_id, entry.reused_from or name)))
    return forecast_table(found.values())


def forecast_features(entry: Entry, rows: Sequence[Row]) -> dict[str, Any]:
    """One run as a row with ``COLUMNS``."""
    cell = entry.cell
    return {
        "cell": entry.id,
        "label": cell.label,
        "curve": digest(cell.model_dump(mode="json", exclude=NOT_IN_CURVE)),
        "lr": cell.lr,
        "state": entry.state,
        "steps": cell.steps,
        "taken": entry.result.steps,
        "seconds": entry.result.train_seconds,
        **extract_features(rows, cell.steps or rows[-1].step),
    }


def forecast_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(records), columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("lr", "steps", "taken", "seconds", "loss", *FEATURES), "float64"))


def tables(forecast: Forecast, cells: bool) -> Iterator[RenderableType]:
    """The accuracy of the forecast next to that of simple rules, and the runs that it got wrong; then the probability
    that a run diverges, for running cells, or with ``cells`` for all."""
    if forecast.runs.empty and not (forecast.diverged_early or forecast.not_evaluated):
        yield "no forecast: no run has started yet"
        return
    ended = forecast.ended
    yield (
        f"{len(ended)} runs to forecast, {(ended['state'] == 'diverged').sum()} of which diverged after the first "
        f"{OBSERVED_SHARE:.0%} of their steps. Excluded: {forecast.diverged_early} runs that diverged earlier, and "
        f"{forecast.not_evaluated} without an evaluation by then."
    )
    if forecast.reason:
        yield f"no forecast: {forecast.reason}"
        return
    table = Table("rule", "precision", "recall", "caught", "missed", "false alarms", "time saved")
    for score in forecast.scores:
        shares = ("–" if share is None else f"{share:.2f}" for share in (score.precision, score.recall))
        counts = (str(count) for count in (score.caught, len(score.missed), len(score.false_alarms)))
        table.add_row(score.rule, *shares, *counts, f"{score.saved:.1%}")
    yield table
    own = forecast.scores[0]
    for what, labels in (("misses", own.missed), ("would wrongly stop", own.false_alarms)):
        if labels:
            yield f"{own.rule} {what}: {', '.join(labels)}"
    listed = forecast.runs if cells else forecast.runs[forecast.runs["state"] == "running"]
    if not listed.empty:
        table = Table("cell", "what", "state", "p(diverges)")
        for run in listed.sort_values("probability", ascending=False).to_dict("records"):
            table.add_row(run["cell"], run["label"], run["state"], f"{run['probability']:.2f}")
        yield table
