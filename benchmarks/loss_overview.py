"""Sample files in the format of the published repository's ``loss_overview.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from dashboards import published

HEADER = (
    "name", "test_loss (~)", "test_loss", "test_perplexity", "-", "-", "I.mu norm", "O.mu norm", "O.centering_ratio",
    "O.corr_p(norm, lbp)", "O.logits_mean_mean", "O.logits_mean_std", "O.logits_mean_absmax", "H.mean_logsqZ", "time",
)  # fmt: skip
"""The published columns in order, except most of those that are not read. Two have the same name; one contains a
comma."""
CODES = {"16M": "4", "29M": "6", "57M": "8", "109M": "A", "221M": "C"}
WORDS = {
    "baseline": ("A", "baseline"),
    "z-loss": ("Z", "zloss"),
    "mu-loss": ("E", "muloss"),
    "mu-centering": ("R", "mucentering"),
}


def name_of(scale: str, method: str, gamma: float, lr: float, seed: int) -> str:
    letter, word = WORDS[method]
    what = f"bs64-lr{lr * 1e4:.0f}-{word}-g{gamma:.0e}-s{seed}"
    return f"wor{CODES[scale]}0{letter}-{scale}-13p1B-100k-{what}"


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes rows with the names of ``HEADER``. A missing value is empty, or a dash in the columns of that name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows([row.get(column, "-" if column == "-" else "") for column in HEADER] for row in rows)
    return path


def published_rows() -> list[dict[str, object]]:
    """Returns the published runs in the format of the published repository."""
    table = pd.read_csv(published.RUNS_CSV, dtype={"test_loss": str})
    return [
        {
            "name": name_of(run["scale"], run["method"], run["gamma"], run["lr"], run["seed"]),
            "test_loss (~)": run["test_loss"],
            "test_loss": run["test_loss"],
            "O.mu norm": run["output_mu_norm"],
            "O.logits_mean_mean": run["logits_mean"],
            "O.logits_mean_std": run["logits_mean_std"],
            "O.logits_mean_absmax": run["logits_absmax"],
            "H.mean_logsqZ": run["log_z_squared"],
            "time": run["train_seconds"],
        }
        for run in table.to_dict("records")
    ]
