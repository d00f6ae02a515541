"""From the beginnings of a home's runs to a forecast of their ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from dashboards.forecast import COLUMNS, FEATURES, OBSERVED_SHARE, Forecast, extract_features
from search_spaces.cell import digest
from search_spaces.record import Row
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.home.studies import read_ledger, require_study, with_ledger
from trainers.rows import read

STATES = ("finished", "diverged", "running")
EXCLUDED = {"lr", "seed", "data", "V", "training"}
"""What cells of one curve may differ in, here: two studies that train one model on much the same are not to vouch for
each other."""


def beginnings(home: Home, studies: Sequence[str] = ()) -> pd.DataFrame:
    """The runs of these studies, or of all of the home, as ``dashboards.forecast`` wants them; each cell once.

    Raises:
        InvalidInput: no such study in the home.
    """
    for name in studies:
        require_study(home, name)
    found = {}
    for name in studies or with_ledger(home):
        entries = read_ledger(home, name).entries.items()
        new = {cell_id: entry for cell_id, entry in entries if entry.state in STATES and cell_id not in found}
        copies.download_metrics(home, [(cell_id, entry.reused_from or name) for cell_id, entry in new.items()])
        for cell_id, entry in new.items():
            found[cell_id] = forecast_features(entry, read(home.metrics(cell_id, entry.reused_from or name)))
    return table_of(found.values())


def forecast_features(entry: Entry, rows: Sequence[Row]) -> dict[str, Any]:
    """One run, of ``COLUMNS``."""
    cell = entry.cell
    return {
        "cell": entry.id,
        "label": cell.label,
        "curve": digest(cell.model_dump(mode="json", exclude=EXCLUDED)),
        "lr": cell.lr,
        "state": entry.state,
        "steps": cell.training.steps,
        "taken": entry.result.steps,
        "seconds": entry.result.train_seconds,
        **extract_features(rows, cell.training.steps),
    }


def table_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(records), columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("lr", "steps", "taken", "seconds", "loss", *FEATURES), "float64"))


def tables(forecast: Forecast, cells: bool) -> Iterator[RenderableType]:
    """What the forecast is worth beside rules without a model, and the runs that it got wrong by name; then the runs
    that still train, with ``cells`` all, and their probability to end diverged."""
    ended = forecast.ended
    yield (
        f"{len(ended)} runs to forecast, {(ended['state'] == 'diverged').sum()} of them diverged after the first "
        f"{OBSERVED_SHARE:.0%} of their steps. Left out: {forecast.diverged_early} that diverged before, "
        f"{forecast.not_evaluated} that were not evaluated in time."
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
    for what, labels in (("missed", own.missed), ("would stop wrongly", own.false_alarms)):
        if labels:
            yield f"{own.rule} {what}: {', '.join(labels)}"
    listed = forecast.runs if cells else forecast.runs[forecast.runs["state"] == "running"]
    if not listed.empty:
        table = Table("cell", "what", "state", "p(diverges)")
        for run in listed.sort_values("probability", ascending=False).to_dict("records"):
            table.add_row(run["cell"], run["label"], run["state"], f"{run['probability']:.2f}")
        yield table
