"""Synthetic runs for the dashboards' tests."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from dashboards.runs import from_records

L_INIT = math.log(1024)
GRID = (1e-3, 1e-2, 1e-1, 1.0)


def run(**changes: Any) -> dict[str, Any]:
    """Returns a finished baseline run with some fields changed."""
    return {
        "study": "made-up",
        "scale": "tiny",
        "method": "baseline",
        "gamma": None,
        "lr": 1e-2,
        "seed": 1,
        "state": "finished",
        "val_loss": 3.0,
        "l_init": L_INIT,
        "train_seconds": 10.0,
    } | changes


def curve(losses: list[float], **changes: Any) -> list[dict[str, Any]]:
    """Returns one run per learning rate of ``GRID``, each with a cell id."""
    method, seed = changes.get("method", "baseline"), changes.get("seed", 1)
    return [
        run(lr=lr, val_loss=loss, cell=f"{method}-{changes.get('gamma')}-{lr:g}-{seed}", **changes)
        for lr, loss in zip(GRID, losses, strict=True)
    ]


def study(*curves: list[dict[str, Any]]) -> pd.DataFrame:
    return from_records(record for records in curves for record in records)
