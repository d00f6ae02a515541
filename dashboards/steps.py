"""The metrics of single cells along their runs, thinned to what a page can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from search_spaces.record import Row

METRICS: dict[str, str] = {
    "val_loss": "Validation loss (nats)",
    "train_loss": "Training loss (nats)",
    "grad_norm": "Gradient norm before the clip",
    "output_mu_norm": "Norm of mu, the mean output embedding",
    "logits_mean": "Mean logit",
    "logits_std": "Standard deviation of the logits",
    "logits_absmax": "Largest absolute logit, mean over tokens",
    "log_z": "Mean of log Z",
    "attention_logit_max": "Largest attention logit",
    "qkv_norm": "Output norm of QKV, mean over layers",
    "proj_norm": "Output norm of Proj, mean over layers",
    "fc1_norm": "Output norm of FC1, mean over layers",
    "fc2_norm": "Output norm of FC2, mean over layers",
}
"""Metrics that the page draws over a cell's steps, with their titles."""
LAYER_NORMS = ("qkv_norm", "proj_norm", "fc1_norm", "fc2_norm")
"""Those of ``METRICS`` that a row has per layer, as ``qkv_norm/0``."""
MAX_NUMBERS = 260_000
"""Numbers that a page holds for all cells together: some 2 MB."""
MAX_ROWS, MIN_ROWS = 60, 20
"""Rows per cell."""
MAX_CELLS = MAX_NUMBERS // (len(METRICS) * MIN_ROWS)

Columns = Mapping[str, Sequence[float | None]]
"""By key of ``METRICS``, and ``step``: one value per row, None where it was not measured or is not finite."""


def rows_per_cell(cells: int) -> int:
    """How many rows of each of ``cells`` cells a page holds."""
    return max(MIN_ROWS, min(MAX_ROWS, MAX_NUMBERS // (len(METRICS) * max(1, cells))))


def thin(rows: Sequence[Row], max_rows: int = MAX_ROWS) -> dict[str, list[float | None]]:
    """At most ``max_rows`` rows, evenly spread, including the first and the last, as columns of four digits."""
    kept = np.unique(np.linspace(0, len(rows) - 1, min(max_rows, len(rows))).round().astype(int)) if rows else ()
    chosen = [rows[i] for i in kept]
    found: dict[str, list[float | None]] = {"step": [row.step for row in chosen]}
    named = {name for row in (*chosen[:1], *chosen[-1:]) for name in row.metrics if "/" in name}
    layers = {key: [name for name in named if name.startswith(f"{key}/")] for key in LAYER_NORMS}
    for key in METRICS:
        values = [_value(row.metrics, key, layers.get(key)) for row in chosen]
        if any(value is not None for value in values):
            found[key] = values
    return found


def at_end(columns: Columns, key: str) -> float:
    """The last value of a key; NaN without one."""
    values = columns.get(key)
    return math.nan if not values or values[-1] is None else values[-1]


def _value(metrics: Mapping[str, float], key: str, layers: Sequence[str] | None) -> float | None:
    """The value of a key, or its mean over layers."""
    if layers is None:
        value = metrics.get(key, math.nan)
    else:
        values = [metrics[name] for name in layers if name in metrics]
        value = math.fsum(values) / len(values) if values else math.nan
    return float(f"{value:.4g}") if math.isfinite(value) else None
