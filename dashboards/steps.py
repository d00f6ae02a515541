"""What was measured along the way of single cells, thinned to what a page can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

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
"""What is drawn over the steps of a cell, by key."""
LAYER_NORMS = ("qkv_norm", "proj_norm", "fc1_norm", "fc2_norm")
"""Of ``METRICS``, those that a row has once a layer, as ``qkv_norm/0``."""
NUMBERS = 260_000
"""Numbers that a page holds of all cells together: some 2 MB."""
MOST_ROWS, FEWEST_ROWS = 60, 20
MOST_CELLS = NUMBERS // (len(METRICS) * FEWEST_ROWS)

Columns = Mapping[str, Sequence[float | None]]
"""By key of ``METRICS``, and ``step``: a value a row, None where it was not measured or is not finite."""


def rows_of_each(cells: int) -> int:
    """Rows that are kept of each of so many cells."""
    return max(FEWEST_ROWS, min(MOST_ROWS, NUMBERS // (len(METRICS) * max(1, cells))))


def thinned(rows: Sequence[Mapping[str, float]], most: int = MOST_ROWS) -> dict[str, list[float | None]]:
    """At most ``most`` rows, evenly spread, the first and the last among them, as columns of four digits."""
    kept = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)) if rows else ()
    chosen = [rows[i] for i in kept]
    found: dict[str, list[float | None]] = {"step": [row["step"] for row in chosen]}
    named = {name for row in (*chosen[:1], *chosen[-1:]) for name in row if "/" in name}
    layers = {key: [name for name in named if name.startswith(f"{key}/")] for key in LAYER_NORMS}
    for key in METRICS:
        values = [_value(row, key, layers.get(key)) for row in chosen]
        if any(value is not None for value in values):
            found[key] = values
    return found


def at_end(columns: Columns, key: str) -> float:
    """The last value of a key; NaN without one."""
    values = columns.get(key)
    return math.nan if not values or values[-1] is None else values[-1]


def _value(row: Mapping[str, float], key: str, layers: Sequence[str] | None) -> float | None:
    """Of a key, or the mean over those of its layers."""
    if layers is None:
        value = row.get(key, math.nan)
    else:
        values = [row[name] for name in layers if name in row]
        value = math.fsum(values) / len(values) if values else math.nan
    return float(f"{value:.4g}") if math.isfinite(value) else None
