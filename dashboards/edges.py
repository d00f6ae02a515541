"""The edge of a curve according to a table of its runs: between which two learning rates it stops converging."""

from __future__ import annotations

import pandas as pd

from search_spaces.edge import Edge, bracket
from search_spaces.record import Outcome, Verdict, aggregate_seeds


def edge_of(runs: pd.DataFrame) -> Edge:
    """The edge of one curve, from its grid and from the runs that searched for it.

    A learning rate converged if it did with every seed of the grid. One off the grid of which some seeds were never
    run, as when a budget ended, says nothing unless one of them diverged.

    Args:
        runs: columns ``RUN_COLUMNS``, of one (scale, attention norm, method, gamma).
    """
    runs = runs[runs["origin"] != "refine"]
    on_grid = set(runs.loc[runs["origin"] != "edge", "lr"])
    seeds = runs["seed"].unique()
    verdicts: dict[float, Verdict] = {}
    for lr, at_lr in runs.groupby("lr"):
        columns = zip(at_lr["seed"], at_lr["state"], at_lr["val_loss"], at_lr["l_init"], strict=True)
        by_seed = {seed: Outcome.of(state, val_loss, l_init).verdict for seed, state, val_loss, l_init in columns}
        verdict = aggregate_seeds(by_seed.get(seed) for seed in seeds)
        if verdict is not None or lr in on_grid:
            verdicts[float(str(lr))] = verdict or "running"
    return bracket(verdicts)
